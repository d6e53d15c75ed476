//! The controller of this process: its decisions, between the quorum and whoever asks.
//!
//! One task owns the [`Controller`]. It tells it what is asked, what was committed, and whether this
//! node leads the quorum; what it proposes goes to the quorum, what it answers to who asked.
//!
//! A heartbeat is also how a broker gets its metadata: the answer has what is new to it, and waits
//! for something new for as long as the broker wants. If the connection ends meanwhile, whoever
//! carries out [`ControllerNode::handle`] drops it, and the controller is told.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use crate::controller::{
    Command, Controller, ControllerAnswer, ControllerRequest, Event, Refusal, Settings,
};
use crate::metadata::{Image, MetadataIndex, Record};
use crate::quorum::{After, Quorum, QuorumError};

/// Requests that may wait for the task: brokers repeat what is not answered.
const QUEUE: usize = 256;

/// How often time goes by for the controller: several times while a broker whose connection ended
/// may come back.
const TICK: Duration = Duration::from_millis(50);

/// Entries of one answer: a broker that lacks more asks again at once.
const NEWS_ENTRIES: usize = 500;

/// What a node asks a controller.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ask {
    pub(crate) request: ControllerRequest,
    /// For a heartbeat: how long its answer may wait for news, ms.
    pub(crate) wait_ms: u64,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reply {
    pub(crate) answer: Result<ControllerAnswer, Refusal>,
    /// To a heartbeat: metadata that is new to the broker.
    pub(crate) news: Option<News>,
    /// No other controller decided when this one did.
    #[serde(default)]
    pub(crate) is_certain: bool,
    /// With NOT_CONTROLLER: where the one that leads is reached, if that is known.
    #[serde(default)]
    pub(crate) leader: Option<String>,
}

/// Metadata that is new to a broker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum News {
    /// All of it.
    Image(Arc<Image>),
    /// Entries, in order.
    Entries(Vec<(MetadataIndex, Arc<[Record]>)>),
}

impl News {
    /// Whether this is all that the controller had.
    pub(crate) fn is_all(&self) -> bool {
        match self {
            Self::Image(_) => true,
            Self::Entries(entries) => entries.len() < NEWS_ENTRIES,
        }
    }
}

/// A handle on the controller of this process.
#[derive(Debug)]
pub(crate) struct ControllerNode {
    quorum: Quorum,
    asks: mpsc::Sender<Said>,
    /// Of the next request.
    next_id: AtomicU64,
    /// Aborted when this is dropped.
    _task: JoinSet<()>,
    /// A node that is dropped takes part no more, like one whose process died.
    _stop_quorum: DropGuard,
}

/// What nodes tell the task.
#[derive(Debug)]
enum Said {
    Asked {
        id: u64,
        request: ControllerRequest,
        answer: oneshot::Sender<Result<ControllerAnswer, Refusal>>,
    },
    /// Nobody waits for the answer to this heartbeat any more.
    Abandoned { id: u64 },
}

/// A heartbeat that is being answered; dropped before it was, it has been abandoned.
struct Outstanding<'a> {
    id: u64,
    asks: &'a mpsc::Sender<Said>,
    is_answered: bool,
}

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            // With a full queue, or none, the session runs out as it does for who is just silent.
            drop(self.asks.try_send(Said::Abandoned { id: self.id }));
        }
    }
}

impl ControllerNode {
    /// Begins to decide whenever `quorum` is led from here.
    pub(crate) fn start(quorum: Quorum, settings: Settings) -> Self {
        let (asks, asked) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        let shell = Shell {
            quorum: quorum.clone(),
            controller: Controller::new(settings),
            started: Instant::now(),
            applied: MetadataIndex::ZERO,
            active_since: None,
            led_before: None,
            waiting: HashMap::new(),
            proposal: None,
        };
        task.spawn(shell.run(asked));
        let _stop_quorum = quorum.stopping().drop_guard();
        Self { quorum, asks, next_id: AtomicU64::new(0), _task: task, _stop_quorum }
    }

    /// The quorum.
    pub(crate) fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// Answers a node.
    pub(crate) async fn handle(&self, ask: Ask) -> Reply {
        let applied = match &ask.request {
            ControllerRequest::Heartbeat(heartbeat) => Some(heartbeat.applied),
            _ => None,
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut outstanding =
            applied.map(|_| Outstanding { id, asks: &self.asks, is_answered: false });
        let answer = self.decide(id, ask.request).await;
        let is_certain = answer.is_ok() && self.quorum.has_lease();
        let wait = match &answer {
            Ok(_) => Duration::from_millis(ask.wait_ms),
            // What is committed holds wherever it is heard: a broker that is cut off from the
            // controller that decides learns here who leads instead of it.
            Err(_) => Duration::ZERO,
        };
        let news = match applied {
            Some(applied) => self.news(applied, wait).await,
            None => None,
        };
        if let Some(outstanding) = &mut outstanding {
            outstanding.is_answered = true;
        }
        let refused = answer.as_ref().is_err_and(|it| it.code == ErrorCode::NotController);
        let leader = if refused { self.quorum.leader_address() } else { None };
        Reply { answer, news, is_certain, leader }
    }

    async fn decide(
        &self,
        id: u64,
        request: ControllerRequest,
    ) -> Result<ControllerAnswer, Refusal> {
        let (answer, answered) = oneshot::channel();
        if self.asks.send(Said::Asked { id, request, answer }).await.is_err() {
            return Err(Refusal::not_controller());
        }
        answered.await.unwrap_or_else(|_| Err(Refusal::not_controller()))
    }

    /// What came after `applied`, waiting for it up to `wait` while this node leads.
    async fn news(&self, applied: MetadataIndex, wait: Duration) -> Option<News> {
        let deadline = Instant::now() + wait;
        let mut status = self.quorum.watch();
        let active_since = status.borrow().active_since;
        loop {
            // Who asked had better ask the next one, which has yet to hear of it.
            let is_over = status.borrow_and_update().active_since != active_since;
            if self.quorum.image().index() > applied {
                return match self.quorum.entries_after(applied) {
                    After::Behind { image } => Some(News::Image(image)),
                    After::Entries(mut entries) => {
                        entries.truncate(NEWS_ENTRIES);
                        Some(News::Entries(entries))
                    }
                };
            }
            if is_over {
                return None;
            }
            match tokio::time::timeout_at(deadline, status.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }
}

/// Keeps `image` as the controller of this node has it, for a node that has no broker to do that.
pub(crate) async fn show(controller: Arc<ControllerNode>, image: watch::Sender<Arc<Image>>) {
    let mut status = controller.quorum().watch();
    loop {
        let applied = controller.quorum().image();
        image.send_if_modified(|shown| {
            let is_newer = applied.index() > shown.index();
            if is_newer {
                *shown = applied;
            }
            is_newer
        });
        if status.changed().await.is_err() {
            return;
        }
    }
}

type Proposal = Pin<Box<dyn Future<Output = Result<MetadataIndex, QuorumError>> + Send>>;

struct Shell {
    quorum: Quorum,
    controller: Controller,
    started: Instant,
    /// What the controller has been told of.
    applied: MetadataIndex,
    /// Of the activity that the controller knows of.
    active_since: Option<MetadataIndex>,
    /// The node that led last, other than this one.
    led_before: Option<BrokerId>,
    waiting: HashMap<u64, oneshot::Sender<Result<ControllerAnswer, Refusal>>>,
    proposal: Option<Proposal>,
}

/// What the task waits for.
enum Next {
    Said(Said),
    Proposed(Result<MetadataIndex, QuorumError>),
    Status,
    Tick,
    End,
}

impl Shell {
    async fn run(mut self, mut asked: mpsc::Receiver<Said>) {
        let mut status = self.quorum.watch();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                biased;
                changed = status.changed() => {
                    if changed.is_ok() { Next::Status } else { Next::End }
                }
                proposed = async { self.proposal.as_mut().expect("checked").await },
                    if self.proposal.is_some() => Next::Proposed(proposed),
                asked = asked.recv() => asked.map_or(Next::End, Next::Said),
                _ = tick.tick() => Next::Tick,
            };
            match next {
                Next::Status => {
                    let (leader, active_since) = {
                        let status = status.borrow_and_update();
                        (status.leader, status.active_since)
                    };
                    self.follow(leader, active_since);
                }
                Next::Proposed(outcome) => self.proposed(outcome),
                Next::Said(Said::Asked { id, request, answer }) => {
                    self.waiting.insert(id, answer);
                    self.tell(Event::Request { id, request });
                }
                Next::Said(Said::Abandoned { id }) => self.tell(Event::Abandoned { id }),
                Next::Tick => self.tell(Event::Tick),
                Next::End => return,
            }
        }
    }

    /// Tells what has been committed, and whether this node leads.
    fn follow(&mut self, leader: Option<BrokerId>, active_since: Option<MetadataIndex>) {
        if leader.is_some_and(|leader| leader != self.quorum.node()) {
            self.led_before = leader;
        }
        if self.active_since != active_since {
            self.active_since = active_since;
            self.proposal = None;
            match active_since {
                Some(_) => self.activate(),
                None => self.tell(Event::Deactivated),
            }
        }
        self.tell_committed();
    }

    fn activate(&mut self) {
        let image = self.quorum.image();
        self.applied = image.index();
        // It is replaced once only.
        let led_before = self.led_before.take();
        self.tell(Event::Activated { image, led_before });
    }

    fn tell_committed(&mut self) {
        if self.active_since.is_none() || self.quorum.image().index() <= self.applied {
            return;
        }
        match self.quorum.entries_after(self.applied) {
            // Only a leader's own entries come here, one at a time: it is never that far behind.
            After::Behind { .. } => self.activate(),
            After::Entries(entries) => {
                for (index, records) in entries {
                    self.applied = index;
                    self.tell(Event::Committed { index, records });
                }
            }
        }
    }

    fn proposed(&mut self, outcome: Result<MetadataIndex, QuorumError>) {
        self.proposal = None;
        match outcome {
            Ok(_) => self.tell_committed(),
            Err(error) => {
                tracing::warn!(%error, "a decision was not committed");
                self.tell(Event::Deactivated);
                if self.active_since.is_some() {
                    self.activate();
                }
            }
        }
    }

    fn tell(&mut self, event: Event) {
        for command in self.controller.handle(self.started.elapsed(), event) {
            match command {
                Command::Propose { records } => {
                    let quorum = self.quorum.clone();
                    self.proposal = Some(Box::pin(async move { quorum.propose(records).await }));
                }
                Command::Answer { id, answer } => {
                    if let Some(waiting) = self.waiting.remove(&id) {
                        // Who asked may be gone.
                        drop(waiting.send(answer));
                    }
                }
            }
        }
    }
}
