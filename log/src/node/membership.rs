//! A broker's place in the cluster: it registers, says that it is there, and applies what it hears.
//!
//! ```text
//! register ─► epoch ─► heartbeat ─► news ─► image ─► assign ─┐
//!    ▲                     ▲                                 │
//!    │ replaced, forgotten └─────────────────────────────────┘
//!    └─────────────────────
//! ```
//!
//! Nothing is led or followed before the metadata shows this registration: what an older one says
//! is from before a restart, which may have cost records that had been there.

use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::assign::{Assigner, Changed};
use super::controller::{Ask, News};
use super::link::{ControllerLink, Tried};
use crate::controller::{ControllerAnswer, ControllerRequest, CopyReport, Heartbeat, Registration};
use crate::metadata::{BrokerEpoch, Image, MetadataIndex};

/// How long a heartbeat may wait for news: several in a session.
const HEARTBEAT_WAIT: Duration = Duration::from_millis(400);

/// Between attempts to reach a controller.
const PAUSE: Duration = Duration::from_millis(100);

/// How this node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Its registration; `None` before the first.
    pub(crate) epoch: Option<BrokerEpoch>,
    /// The controller relies on it.
    pub(crate) in_service: bool,
    /// It wants to stop, and may.
    pub(crate) may_stop: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) registration: Registration,
    pub(crate) link: Arc<ControllerLink>,
    pub(crate) image: watch::Sender<Arc<Image>>,
    /// What has been carried out of it.
    pub(crate) assigned: watch::Sender<MetadataIndex>,
    pub(crate) standing: watch::Sender<Standing>,
    /// When a heartbeat was sent that the active controller has answered, and of which everything has
    /// been carried out. What this broker still leads then, nobody else led when it was sent.
    pub(crate) confirmed: watch::Sender<Option<Instant>>,
    pub(crate) assigner: Assigner,
    /// Once cancelled, heartbeats ask to be let go.
    pub(crate) leaving: CancellationToken,
}

impl Membership {
    /// Takes part until it is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            let epoch = self.register().await;
            self.standing.send_modify(|standing| {
                *standing = Standing { epoch: Some(epoch), in_service: false, may_stop: false };
            });
            self.serve(epoch).await;
            self.standing.send_modify(|standing| standing.in_service = false);
            tracing::warn!(broker = %self.id(), "this registration has been replaced; registering again");
            // Whatever this process was before is over, as after a restart.
            self.registration.incarnation = Uuid::new_v4();
            self.registration.previous_epoch = None;
        }
    }

    fn id(&self) -> BrokerId {
        self.registration.id
    }

    async fn register(&self) -> BrokerEpoch {
        let mut told = String::new();
        loop {
            let request = ControllerRequest::Register(self.registration.clone());
            match self.link.ask(request).await {
                Ok(ControllerAnswer::Registered { epoch }) => return epoch,
                Ok(other) => tracing::error!(?other, "a registration was answered otherwise"),
                Err(refusal) => {
                    let text = refusal.to_string();
                    if text != told {
                        tracing::warn!(broker = %self.id(), reason = text, "not registered yet");
                        told = text;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Heartbeats until the registration counts no more.
    async fn serve(&mut self, epoch: BrokerEpoch) {
        loop {
            let heartbeat = Heartbeat {
                id: self.id(),
                epoch,
                applied: self.image.borrow().index(),
                stopping: self.leaving.is_cancelled(),
                copies: self.copies_to_report(epoch),
            };
            let request = ControllerRequest::Heartbeat(heartbeat);
            let sent = Instant::now();
            let wait_ms = u64::try_from(HEARTBEAT_WAIT.as_millis()).unwrap_or(0);
            let Tried { decided, news } = self.link.try_all(Ask { request, wait_ms }).await;
            for news in news {
                self.apply(news, epoch).await;
                self.note_fencing();
            }
            let Some(reply) = decided else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let serves = matches!(
                &reply.answer,
                Ok(ControllerAnswer::Heartbeat(answer)) if !answer.fenced
            );
            let tells_all = reply.news.as_ref().is_none_or(News::is_all);
            let is_confirmed = reply.is_certain && serves && tells_all;
            match reply.answer {
                Ok(ControllerAnswer::Heartbeat(answer)) => {
                    self.standing.send_if_modified(|standing| {
                        let before = *standing;
                        standing.in_service = !answer.fenced;
                        standing.may_stop = answer.may_stop;
                        *standing != before
                    });
                }
                Ok(other) => tracing::error!(?other, "a heartbeat was answered otherwise"),
                Err(refusal) if replaced(refusal.code) => return,
                Err(refusal) => {
                    tracing::warn!(%refusal, "heartbeat refused");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            match reply.news {
                Some(news) => self.apply(news, epoch).await,
                // What could not be done before.
                None if self.assigner.is_behind() => self.assign(epoch, Changed::none()).await,
                None => {}
            }
            if is_confirmed {
                self.confirmed.send_replace(Some(sent));
            }
        }
    }

    /// What the metadata has wrong about the copies here. Before this registration's metadata has come
    /// they are not open yet, and there is nothing to be said.
    fn copies_to_report(&self, epoch: BrokerEpoch) -> Vec<CopyReport> {
        let image = self.image.borrow();
        let is_carried_out = *self.assigned.borrow() == image.index();
        if is_carried_out && self.is_own(&image, epoch) {
            return self.assigner.copies_to_report(&image);
        }
        Vec::new()
    }

    fn is_own(&self, image: &Image, epoch: BrokerEpoch) -> bool {
        image.broker(self.id()).is_some_and(|broker| broker.epoch == epoch)
    }

    async fn apply(&mut self, news: News, epoch: BrokerEpoch) {
        let before = Arc::clone(&self.image.borrow());
        let (image, changed) = match news {
            News::Image(image) if image.index() > before.index() => (image, Changed::Everything),
            News::Image(_) => return,
            News::Entries(entries) => {
                let mut image = (*before).clone();
                let mut changed = Changed::none();
                for (index, records) in &entries {
                    if *index > image.index() {
                        changed.note(records);
                        image.apply(*index, records);
                    }
                }
                (Arc::new(image), changed)
            }
        };
        if let Err(problem) = image.check_level() {
            tracing::error!(problem, "this node does not understand its cluster any more");
            return;
        }
        self.image.send_replace(image);
        self.assign(epoch, changed).await;
    }

    /// The controller does not hear this broker, and others told it so.
    fn note_fencing(&self) {
        if self.image.borrow().broker(self.id()).is_some_and(|broker| broker.fenced) {
            self.standing.send_if_modified(|standing| std::mem::take(&mut standing.in_service));
        }
    }

    async fn assign(&mut self, epoch: BrokerEpoch, changed: Changed) {
        let image = Arc::clone(&self.image.borrow());
        if self.is_own(&image, epoch) {
            self.assigner.assign(&image, changed).await;
            self.assigned.send_replace(image.index());
        } else {
            self.assigner.keep_for_later();
        }
    }
}

/// Whether a registration counts no more.
fn replaced(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::StaleBrokerEpoch | ErrorCode::BrokerIdNotRegistered)
}

/// The standing before the first registration.
pub(crate) const NOT_REGISTERED: Standing =
    Standing { epoch: None, in_service: false, may_stop: false };
