//! The way to the controller that is active, wherever it is.
//!
//! Any controller can be asked; one that is not active says so, and the next one is tried. What is
//! asked may be repeated (see [`ControllerRequest`]), so a lost answer is just asked for again.
//!
//! The one that leads may be one that this node's configuration does not name yet: controllers come
//! and go while the cluster runs. Then those that are named say where it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::controller::{Ask, ControllerNode, News, Reply};
use crate::controller::{ControllerAnswer, ControllerRequest, Refusal};
use crate::quorum::{
    ControllerMessage, ControllerReply, QuorumAnswer, QuorumMessage, QuorumNetwork,
};
use crate::storage::partition::lock;

/// How long one controller may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to change who the controllers are.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between rounds in which no controller was active.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a request looks for a controller: a few elections.
const PATIENCE: Duration = Duration::from_secs(10);

/// What asking every controller came to.
#[derive(Debug)]
pub(crate) struct Tried {
    /// What the active one answered, if one is.
    pub(crate) decided: Option<Reply>,
    /// What others know: metadata is true wherever it is heard.
    pub(crate) news: Vec<News>,
}

/// The way to the active controller.
#[derive(Debug)]
pub(crate) struct ControllerLink {
    own: Option<(BrokerId, Arc<ControllerNode>)>,
    controllers: Vec<(BrokerId, String)>,
    network: Arc<dyn QuorumNetwork>,
    /// Which of `controllers` was active last.
    last: AtomicUsize,
    /// Where the one was that others named as leading and that `controllers` does not have.
    elsewhere: Mutex<Option<String>>,
    /// Nothing is asked any more once this is cancelled.
    closed: CancellationToken,
}

impl ControllerLink {
    /// A link to `controllers`, one of which may be this process's `own`.
    pub(crate) fn new(
        own: Option<(BrokerId, Arc<ControllerNode>)>,
        controllers: &BTreeMap<BrokerId, String>,
        network: Arc<dyn QuorumNetwork>,
        closed: CancellationToken,
    ) -> Self {
        let controllers = controllers.iter().map(|(id, at)| (*id, at.clone())).collect();
        let (last, elsewhere) = (AtomicUsize::new(0), Mutex::default());
        Self { own, controllers, network, last, elsewhere, closed }
    }

    /// Asks until a controller has decided.
    ///
    /// # Errors
    /// Its refusal; NOT_CONTROLLER if none was found in time.
    pub(crate) async fn ask(
        &self,
        request: ControllerRequest,
    ) -> Result<ControllerAnswer, Refusal> {
        let request = &request;
        let attempt = || async move {
            self.try_all(Ask { request: request.clone(), wait_ms: 0 }).await.decided
        };
        self.insist(attempt).await?.answer
    }

    /// Tries until there is an answer.
    async fn insist<T, F: Future<Output = Option<T>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, Refusal> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.closed.run_until_cancelled(attempt()).await {
                Some(Some(answer)) => return Ok(answer),
                Some(None) if Instant::now() + PAUSE < deadline => {}
                Some(None) | None => return Err(Refusal::not_controller()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks each controller once, the last active one first, until one is active.
    pub(crate) async fn try_all(&self, ask: Ask) -> Tried {
        let mut tried = Tried { decided: None, news: Vec::new() };
        let before = lock(&self.elsewhere).clone();
        if let Some(address) = before
            && let Some(reply) = self.call_at(&address, ask.clone()).await.filter(is_active)
        {
            tried.decided = Some(reply);
            return tried;
        }
        let mut elsewhere = None;
        let first = self.last.load(Ordering::Relaxed);
        for turn in 0..self.controllers.len() {
            let number = (first + turn) % self.controllers.len();
            let Some(reply) = self.call(number, ask.clone()).await else { continue };
            if is_active(&reply) {
                self.last.store(number, Ordering::Relaxed);
                *lock(&self.elsewhere) = None;
                tried.decided = Some(reply);
                return tried;
            }
            elsewhere = reply.leader.filter(|leader| !self.names(leader)).or(elsewhere);
            tried.news.extend(reply.news);
        }
        if let Some(address) = elsewhere
            && let Some(reply) = self.call_at(&address, ask).await.filter(is_active)
        {
            *lock(&self.elsewhere) = Some(address);
            tried.decided = Some(reply);
        }
        tried
    }

    /// Asks the member that leads the quorum about the quorum itself.
    ///
    /// # Errors
    /// NOT_CONTROLLER if none was found in time.
    pub(crate) async fn ask_quorum(&self, message: QuorumMessage) -> Result<QuorumAnswer, Refusal> {
        self.insist(|| self.try_quorum(&message)).await
    }

    async fn try_quorum(&self, message: &QuorumMessage) -> Option<QuorumAnswer> {
        let mut elsewhere = None;
        for (id, address) in &self.controllers {
            let answer = match &self.own {
                Some((own, node)) if own == id => Some(node.quorum().handle(message.clone()).await),
                _ => self.call_quorum(address, message).await,
            };
            match answer {
                Some(QuorumAnswer::NotLeader { leader }) => {
                    elsewhere = leader.filter(|leader| !self.names(leader)).or(elsewhere);
                }
                Some(answer @ (QuorumAnswer::Described(_) | QuorumAnswer::Removed(_))) => {
                    return Some(answer);
                }
                _ => {}
            }
        }
        let answer = self.call_quorum(&elsewhere?, message).await?;
        (!matches!(answer, QuorumAnswer::NotLeader { .. })).then_some(answer)
    }

    async fn call_quorum(&self, address: &str, message: &QuorumMessage) -> Option<QuorumAnswer> {
        let limit = match message {
            QuorumMessage::Remove { .. } => CHANGE_TIMEOUT,
            _ => CALL_TIMEOUT,
        };
        let call = self.network.call(address, ControllerMessage::Quorum(message.clone()));
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(ControllerReply::Quorum(answer))) => Some(answer),
            _ => None,
        }
    }

    fn names(&self, address: &str) -> bool {
        self.controllers.iter().any(|(_, known)| known == address)
    }

    async fn call(&self, number: usize, ask: Ask) -> Option<Reply> {
        let (id, address) = self.controllers.get(number)?;
        if let Some((own, node)) = &self.own
            && own == id
        {
            return Some(node.handle(ask).await);
        }
        self.call_at(address, ask).await
    }

    async fn call_at(&self, address: &str, ask: Ask) -> Option<Reply> {
        let limit = CALL_TIMEOUT + Duration::from_millis(ask.wait_ms);
        let message = ControllerMessage::Controller(serde_json::to_value(ask).ok()?);
        let reply = tokio::time::timeout(limit, self.network.call(address, message)).await;
        match reply {
            Ok(Ok(ControllerReply::Controller(reply))) => serde_json::from_value(reply)
                .inspect_err(|error| tracing::warn!(%error, %address, "controller misunderstood"))
                .ok(),
            Ok(Ok(ControllerReply::Refused { reason })) => {
                tracing::debug!(%address, reason, "controller refuses");
                None
            }
            Ok(Ok(ControllerReply::Quorum(_))) | Err(_) => None,
            Ok(Err(error)) => {
                tracing::debug!(%error, "controller not reached");
                None
            }
        }
    }
}

fn is_active(reply: &Reply) -> bool {
    !matches!(&reply.answer, Err(refusal) if refusal.code == ErrorCode::NotController)
}
