//! The way to the controller that is active, wherever it is.
//!
//! Any controller can be asked; one that is not active says so, and the next one is tried. What is
//! asked may be repeated (see [`ControllerRequest`]), so a lost answer is just asked for again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::controller::{Ask, ControllerNode, News, Reply};
use crate::controller::{ControllerAnswer, ControllerRequest, Refusal};
use crate::quorum::{ControllerMessage, ControllerReply, QuorumNetwork};

/// How long one controller may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

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
        Self { own, controllers, network, last: AtomicUsize::new(0), closed }
    }

    /// Asks until a controller has decided.
    ///
    /// # Errors
    /// Its refusal; NOT_CONTROLLER if none was found in time.
    pub(crate) async fn ask(
        &self,
        request: ControllerRequest,
    ) -> Result<ControllerAnswer, Refusal> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ask = Ask { request: request.clone(), wait_ms: 0 };
            match self.closed.run_until_cancelled(self.try_all(ask)).await {
                Some(Tried { decided: Some(reply), .. }) => return reply.answer,
                Some(_) if Instant::now() + PAUSE < deadline => {}
                Some(_) | None => return Err(Refusal::not_controller()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks each controller once, the last active one first, until one is active.
    pub(crate) async fn try_all(&self, ask: Ask) -> Tried {
        let first = self.last.load(Ordering::Relaxed);
        let mut tried = Tried { decided: None, news: Vec::new() };
        for turn in 0..self.controllers.len() {
            let number = (first + turn) % self.controllers.len();
            let Some(reply) = self.call(number, ask.clone()).await else { continue };
            if !matches!(&reply.answer, Err(refusal) if refusal.code == ErrorCode::NotController) {
                self.last.store(number, Ordering::Relaxed);
                tried.decided = Some(reply);
                return tried;
            }
            tried.news.extend(reply.news);
        }
        tried
    }

    async fn call(&self, number: usize, ask: Ask) -> Option<Reply> {
        let (id, address) = self.controllers.get(number)?;
        if let Some((own, node)) = &self.own
            && own == id
        {
            return Some(node.handle(ask).await);
        }
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
