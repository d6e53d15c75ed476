//! The controller's decisions: which brokers are there, who leads which partition, what is made.
//!
//! A state machine without IO, clock or chance. Its shell (the broker's) tells it what happens and
//! does what it commands:
//!
//! ```text
//!  Activated, Request, Tick ──► ┌────────────┐ ──► Propose ──► quorum ─┐
//!                               │ Controller │ ──► Answer              │
//!  Committed ─────────────────► └────────────┘                         │
//!      ▲───────────────────────────────────────────────────────────────┘
//! ```
//!
//! It decides on committed metadata only, and has one proposal under way at most: what is asked
//! meanwhile waits and is then decided together, each thing after the other, as one entry. A
//! request is answered when the entry that holds its outcome is committed; if it takes none, at
//! once. So an answer never speaks of something that may yet be lost.
//!
//! If leadership goes, everything that waits is refused with NOT_CONTROLLER: its outcome is not
//! known, and all requests may be repeated.
//!
//! | module | decides |
//! |---|---|
//! | `brokers`, `sessions` | who is registered, fenced, stopping |
//! | `partitions` | what a partition becomes: ISR, ELR, leader, epochs |
//! | `elections` | preferred and unclean elections |
//! | `reassignment` | moving replicas |
//! | `topics`, `placement` | topics, their partitions and settings; who gets the replicas |
//! | `guarded` | what cannot be changed about topics that others rely on |
//! | `producer_ids` | blocks of producer ids |

mod brokers;
mod draft;
mod elections;
mod guarded;
mod partitions;
mod placement;
mod producer_ids;
mod reassignment;
mod requests;
mod sessions;
mod settings;
mod topics;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::BrokerId;

use self::draft::Draft;
use self::sessions::Sessions;
use crate::metadata::{ClusterState, Image, LEVEL, MetadataIndex, Record};

pub(crate) use self::placement::Placement;
pub(crate) use self::requests::{
    AlterPartitions, ConfigChange, ControllerAnswer, ControllerRequest, CopyReport, CreatedTopic,
    ElectionKind, Heartbeat, IsrChange, MorePartitions, NewTopic, Refusal, Registration,
    TopicConfigs, TopicRef,
};
pub(crate) use self::settings::Settings;

/// An entry takes no further requests once it has this many records: a few megabytes.
const RECORDS_PER_ENTRY: usize = 10_000;

/// What happens to the controller.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// This node leads the quorum and `image` holds every entry before its leadership.
    ///
    /// A proposal that failed, or whose outcome is not known, is followed by
    /// [`Event::Deactivated`], and by this if the node leads all the same.
    Activated {
        /// The metadata.
        image: Arc<Image>,
        /// The node that led before, if another one did: it may carry a broker as well.
        led_before: Option<BrokerId>,
    },
    /// This node does not lead the quorum any more.
    Deactivated,
    /// An entry was committed, the controller's own or an empty one of the quorum's.
    Committed {
        /// Which.
        index: MetadataIndex,
        /// What it says.
        records: Arc<[Record]>,
    },
    /// Somebody asks; the shell chooses an id for the answer.
    Request {
        /// Of this request; none that waits has the same.
        id: u64,
        /// What is asked.
        request: ControllerRequest,
    },
    /// Who sent this heartbeat waits for its answer no longer: the connection is gone, and so may
    /// the broker be.
    Abandoned {
        /// Of the request.
        id: u64,
    },
    /// Time goes by. Comes several times in an eighth of the session time-out, within which a broker
    /// whose connection ended has to come back.
    Tick,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Gives these records to the quorum, as one entry.
    Propose {
        /// What it says.
        records: Vec<Record>,
    },
    /// Answers a request; each has one answer.
    Answer {
        /// Which request.
        id: u64,
        /// To tell who asked.
        answer: Result<ControllerAnswer, Refusal>,
    },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Controller {
    settings: Settings,
    /// While this node leads the quorum.
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    /// Committed metadata; while a proposal is under way, as it will be then.
    image: Arc<Image>,
    sessions: Sessions,
    proposal: Option<Proposal>,
    queue: VecDeque<(u64, ControllerRequest)>,
    /// Everything is to be looked at once after activation.
    is_new: bool,
    rebalanced_at: Duration,
}

/// An entry that is not committed yet, and what it answers.
#[derive(Debug)]
struct Proposal {
    records: Vec<Record>,
    answers: Vec<Command>,
}

impl Controller {
    /// A controller that does not lead.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, active: None }
    }

    /// What is to be done when `event` happens; `now` is monotonic, from any beginning.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) -> Vec<Command> {
        match event {
            Event::Activated { image, led_before } => {
                let mut commands = self.deactivate();
                let timeout = self.settings.session_timeout;
                let sessions = Sessions::new(now, timeout, &image, led_before);
                let active = self.active.insert(Active::new(now, sessions, image));
                commands.extend(active.decide(now, &self.settings));
                commands
            }
            Event::Deactivated => self.deactivate(),
            Event::Request { id, request } => match &mut self.active {
                Some(active) => {
                    active.take(now, id, request);
                    active.decide(now, &self.settings)
                }
                None => vec![Command::Answer { id, answer: Err(Refusal::not_controller()) }],
            },
            Event::Committed { index, records } => {
                let Some(active) = &mut self.active else { return Vec::new() };
                let mut commands = active.commit(now, index, &records);
                commands.extend(active.decide(now, &self.settings));
                commands
            }
            Event::Abandoned { id } => {
                if let Some(active) = &mut self.active {
                    active.sessions.leave(now, id);
                }
                Vec::new()
            }
            Event::Tick => {
                let Some(active) = &mut self.active else { return Vec::new() };
                active.sessions.awake(now);
                active.decide(now, &self.settings)
            }
        }
    }

    fn deactivate(&mut self) -> Vec<Command> {
        let Some(active) = self.active.take() else { return Vec::new() };
        let undecided = active.queue.into_iter().map(|(id, _)| id);
        let answers = active.proposal.into_iter().flat_map(|proposal| proposal.answers);
        let uncommitted = answers.filter_map(|command| match command {
            Command::Answer { id, .. } => Some(id),
            Command::Propose { .. } => None,
        });
        uncommitted
            .chain(undecided)
            .map(|id| Command::Answer { id, answer: Err(Refusal::not_controller()) })
            .collect()
    }
}

impl Active {
    fn new(now: Duration, sessions: Sessions, image: Arc<Image>) -> Self {
        Self {
            image,
            sessions,
            proposal: None,
            queue: VecDeque::new(),
            is_new: true,
            rebalanced_at: now,
        }
    }

    /// A heartbeat counts when it comes, also if it is decided on later.
    fn take(&mut self, now: Duration, id: u64, request: ControllerRequest) {
        if let ControllerRequest::Heartbeat(beat) = &request {
            self.sessions.hear(now, id, beat);
        }
        self.queue.push_back((id, request));
    }

    fn commit(&mut self, now: Duration, index: MetadataIndex, records: &[Record]) -> Vec<Command> {
        let proposal = self.proposal.take_if(|proposal| proposal.records == records);
        // The image has the records of a proposal since it was put together.
        let new = if proposal.is_some() { &[] } else { records };
        Arc::make_mut(&mut self.image).apply(index, new);
        self.sessions.committed(now, index, records);
        proposal.map_or_else(Vec::new, |proposal| proposal.answers)
    }

    /// Puts the next entry together, if none is under way and there is something to decide.
    fn decide(&mut self, now: Duration, settings: &Settings) -> Vec<Command> {
        if self.proposal.is_some() {
            return Vec::new();
        }
        let mut draft = Draft::new(Arc::make_mut(&mut self.image), settings);
        if std::mem::take(&mut self.is_new) {
            take_over(&mut draft);
        }
        brokers::fence_silent(&mut draft, &self.sessions, now);

        let (mut commands, mut answers) = (Vec::new(), Vec::new());
        while draft.records().len() < RECORDS_PER_ENTRY {
            let Some((id, request)) = self.queue.pop_front() else { break };
            let answer = decide_on(&mut draft, &self.sessions, &request);
            let waits = !draft.records().is_empty();
            let to = if waits { &mut answers } else { &mut commands };
            to.push(Command::Answer { id, answer });
        }
        if let Some(interval) = settings.rebalance_interval
            && now.saturating_sub(self.rebalanced_at) >= interval
        {
            self.rebalanced_at = now;
            elections::rebalance(&mut draft);
        }

        let records = draft.into_records();
        if !records.is_empty() {
            commands.push(Command::Propose { records: records.clone() });
            self.proposal = Some(Proposal { records, answers });
        }
        commands
    }
}

/// What a controller sees to before anything else: that the cluster has its first record, that
/// what was configured holds, and that all partitions are as this version of the rules has them.
fn take_over(draft: &mut Draft<'_>) {
    let settings = draft.settings();
    let known = draft.image().cluster();
    let state = match known {
        None => ClusterState {
            cluster_id: settings.cluster_id.clone(),
            level: LEVEL,
            min_insync_replicas: settings.min_insync_replicas,
        },
        Some(known) => {
            ClusterState { min_insync_replicas: settings.min_insync_replicas, ..known.clone() }
        }
    };
    if known != Some(&state) {
        draft.write(Record::Cluster { state });
    }
    draft.resettle_all();
}

fn decide_on(
    draft: &mut Draft<'_>,
    sessions: &Sessions,
    request: &ControllerRequest,
) -> Result<ControllerAnswer, Refusal> {
    use ControllerRequest as Request;
    Ok(match request {
        Request::Register(request) => brokers::register(draft, request)?,
        Request::Heartbeat(request) => brokers::heartbeat(draft, sessions, request)?,
        Request::AlterPartitions(request) => partitions::alter_partitions(draft, request)?,
        Request::CreateTopics { topics, validate_only } => ControllerAnswer::Created(
            topics.iter().map(|topic| topics::create(draft, topic, *validate_only)).collect(),
        ),
        Request::DeleteTopics { topics } => ControllerAnswer::Deleted(
            topics.iter().map(|topic| topics::delete(draft, topic)).collect(),
        ),
        Request::CreatePartitions { topics, validate_only } => ControllerAnswer::Done(
            topics
                .iter()
                .map(|topic| topics::add_partitions(draft, topic, *validate_only))
                .collect(),
        ),
        Request::SetTopicConfigs { topics, validate_only } => ControllerAnswer::Done(
            topics.iter().map(|topic| topics::set_configs(draft, topic, *validate_only)).collect(),
        ),
        Request::ElectLeaders { kind, partitions } => {
            elections::elect_leaders(draft, *kind, partitions.as_deref())
        }
        Request::Reassign { partitions } => ControllerAnswer::Done(
            partitions
                .iter()
                .map(|(named, target)| reassignment::reassign(draft, named, target.as_deref()))
                .collect(),
        ),
        Request::AllocateProducerIds { id, epoch } => producer_ids::allocate(draft, *id, *epoch)?,
        Request::UnregisterBroker { id } => brokers::unregister(draft, *id)?,
    })
}
