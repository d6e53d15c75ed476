//! What an operator can tell a pipeline.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::Status;
use crate::Metrics;

/// Why a command was not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The pipeline's task has ended.
    #[error("the pipeline is not running")]
    Ended,
    /// It makes no sense now.
    #[error("{0}")]
    Refused(String),
}

#[derive(Debug)]
pub(super) enum Order {
    Pause,
    Resume,
    Skip(String),
}

#[derive(Debug)]
pub(super) struct Command {
    pub(super) order: Order,
    pub(super) reply: oneshot::Sender<Result<(), CommandError>>,
}

impl Command {
    /// Answers; whoever asked may have gone.
    pub(super) fn answer(self, result: Result<(), CommandError>) {
        drop(self.reply.send(result));
    }

    pub(super) fn refuse(self, why: &str) {
        self.answer(Err(CommandError::Refused(why.to_owned())));
    }
}

/// A running pipeline, seen from outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PipelineHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) metrics: Arc<Metrics>,
}

impl PipelineHandle {
    /// How it is now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Changes of its status.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Its numbers.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Commits what is whole and waits. Answers when it is taken; the state becomes `paused`.
    ///
    /// # Errors
    /// The pipeline has ended.
    pub async fn pause(&self) -> Result<(), CommandError> {
        self.send(Order::Pause).await
    }

    /// Goes on after a pause, or tries again after a stop, from the same place.
    ///
    /// # Errors
    /// It neither waits nor retries, or has ended.
    pub async fn resume(&self) -> Result<(), CommandError> {
        self.send(Order::Resume).await
    }

    /// Leaves out what stopped the pipeline; `position` must be the one that its status names.
    ///
    /// # Errors
    /// It is not stopped there, or has ended.
    pub async fn skip(&self, position: impl Into<String>) -> Result<(), CommandError> {
        self.send(Order::Skip(position.into())).await
    }

    async fn send(&self, order: Order) -> Result<(), CommandError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(Command { order, reply }).await;
        sent.map_err(|_| CommandError::Ended)?;
        answer.await.map_err(|_| CommandError::Ended)?
    }
}
