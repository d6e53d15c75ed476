//! The metadata quorum: controllers that agree on one log of metadata, by Raft.
//!
//! ```text
//! propose(records) ─► leader ─► entry on a majority of disks ─► committed ─► applied on every member
//!                       │ messages, network                                       │ machine
//!                       └──────── entry_log, snapshot ──── disk                   └─► image, entries
//! ```
//!
//! The protocol is openraft's (docs/decisions/0011); here is what it stands on: the entries on disk
//! ([`entry_log`]), what they come to ([`machine`]), the way to the others ([`messages`],
//! [`network`]), and what is ours to decide: how a node gets into a cluster ([`formation`]), how the
//! members change ([`members`]), when a member stands for election ([`elections`]), and when a leader
//! may decide ([`status`]). A node alone is a
//! quorum of one, by the same code.
//!
//! What is promised: records for which [`Quorum::propose`] has returned are on the disks of a
//! majority and are never lost or reordered while a majority of disks is there. A member that lost
//! its disk is another member ([`types::Member`]) and never votes twice.
//!
//! All that is read here is what this member has applied: it may be behind the others.
//!
//! # On disk
//!
//! | file of `<data_dir>/metadata/` | version | module |
//! |---|---|---|
//! | `member.json` | 1 | `identity` |
//! | `entries.log` | 1 | `entry_log` |
//! | `snapshot` | 1 | `snapshot` |

mod config;
mod description;
mod elections;
mod entry_log;
mod formation;
mod identity;
mod log_store;
mod machine;
mod members;
mod messages;
mod network;
mod parts;
mod patience;
mod peers;
mod snapshot;
mod status;
mod types;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use std::{fmt, fs};

use openraft::error::{ClientWriteError, Fatal, RaftError};
use tailwater_kafka::BrokerId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::elections::Elector;
use self::entry_log::EntryLog;
use self::formation::Formation;
use self::identity::Identity;
use self::log_store::LogStore;
use self::machine::{Machine, MachineStore};
use self::members::Members;
use self::messages::{Join, JoinAnswer, RaftAnswer, RaftMessage, Standing, WhoAnswer};
use self::parts::{Received, Receiving, SnapshotPart};
use self::patience::Patience;
use self::peers::{Heard, Peers};
use self::snapshot::SnapshotFile;
use self::status::Watcher;
use self::types::{
    LogId, Member, Proposal, Raft, Snapshot, SnapshotMeta, Vote, broker_id, raft_id,
};
use crate::Error;
use crate::metadata::{Image, MetadataIndex, Record};
use crate::storage::disk;
use crate::storage::partition::lock;

pub(crate) use config::{QuorumConfig, QuorumTimeouts, SNAPSHOT_AFTER};
pub(crate) use machine::After;
pub(crate) use messages::{
    ControllerHandler, ControllerMessage, ControllerReply, MemberDescription, NetworkError,
    QuorumAnswer, QuorumDescription, QuorumMessage, QuorumNetwork, RemoveAnswer,
};
pub(crate) use network::{TcpNetwork, serve};
pub(crate) use parts::SNAPSHOT_PART_BYTES;
pub(crate) use status::QuorumStatus;

/// The largest proposal in bytes of JSON: half of what a message between controllers may have.
const MAX_PROPOSAL_BYTES: usize = 32 << 20;

/// How long a node that joins is kept waiting for its answer; the join itself goes on.
const JOIN_PATIENCE: Duration = Duration::from_secs(2);

/// Why a quorum did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuorumError {
    /// Another member leads, or none. What was proposed may still be committed by it.
    #[error("this controller does not lead the metadata quorum")]
    NotLeader {
        /// Who does, and where it is reached, as far as this member knows.
        leader: Option<(BrokerId, String)>,
    },
    /// It cannot be done, or not now.
    #[error("{reason}")]
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// This member does nothing any more until the node is started again.
    #[error("the metadata quorum of this node has stopped: {reason}")]
    Stopped {
        /// Why, for people.
        reason: String,
    },
}

impl QuorumError {
    fn from_write(error: RaftError<u64, ClientWriteError<u64, Member>>, peers: &Peers) -> Self {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
                let leader = forward.leader_id.zip(forward.leader_node);
                let leader = leader.map(|(id, node)| (broker_id(id), peers.address(id, &node)));
                Self::NotLeader { leader }
            }
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
                Self::Refused { reason: error.to_string() }
            }
            RaftError::Fatal(fatal) => Self::stopped(&fatal),
        }
    }

    fn stopped(fatal: &Fatal<u64>) -> Self {
        Self::Stopped { reason: fatal.to_string() }
    }
}

/// A member of the metadata quorum: a handle, cheap to clone.
#[derive(Clone)]
pub(crate) struct Quorum {
    shared: Arc<Shared>,
    status: watch::Receiver<QuorumStatus>,
}

impl fmt::Debug for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quorum").field("node", &self.shared.config.node).finish_non_exhaustive()
    }
}

/// What the handle and the tasks of a member share.
struct Shared {
    config: QuorumConfig,
    directory: Uuid,
    identity: Mutex<Identity>,
    raft: Raft,
    machine: Arc<Machine>,
    members: Arc<Members>,
    peers: Peers,
    patience: Patience,
    /// A snapshot that comes in parts.
    receiving: Mutex<Receiving>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Shared {
    fn identity(&self) -> MutexGuard<'_, Identity> {
        lock(&self.identity)
    }
}

impl Quorum {
    /// Opens the member's folder, making an empty one, and takes part. A node alone leads before
    /// anything else happens; others find each other in the background.
    ///
    /// # Errors
    /// The system's, and what is wrong with the folder or the settings.
    pub(crate) async fn open(
        config: QuorumConfig,
        network: Arc<dyn QuorumNetwork>,
    ) -> Result<Self, Error> {
        let raft_config = Arc::new(config.raft()?);
        let folder = &config.directory;
        fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        if let Some(parent) = folder.parent() {
            disk::sync_folder(&*config.disk, parent)?;
        }
        let identity = Identity::open(folder, config.node)?;
        let (snapshots, found) = SnapshotFile::open(&folder.join("snapshot"), &config.disk)?;
        let log = EntryLog::open(&folder.join("entries.log"), &config.disk)?;

        let stopping = CancellationToken::new();
        let patience = Patience(stopping.clone());
        let peers = Peers {
            network: Arc::clone(&network),
            addresses: Arc::new(config.addresses()),
            again_after: config.timeouts.heartbeat,
            part_bytes: config.snapshot_part_bytes,
            heard: Heard::default(),
        };
        let log = LogStore::new(log, patience.clone(), snapshots.durable());
        let machine = Arc::new(Machine::new(snapshots, found));
        let applying = MachineStore::new(Arc::clone(&machine), patience.clone());
        let raft = Raft::new(raft_id(config.node), raft_config, peers.clone(), log, applying)
            .await
            .map_err(|fatal| Error::io("read", folder)(io::Error::other(fatal)))?;

        let members = Arc::new(Members::new(raft.clone(), peers.clone()));
        let shared = Arc::new(Shared {
            directory: identity.directory(),
            identity: Mutex::new(identity),
            config,
            raft,
            machine,
            members,
            peers,
            patience,
            receiving: Mutex::default(),
            stopping,
            tasks: TaskTracker::new(),
        });
        Ok(Self::start(shared, network).await)
    }

    async fn start(shared: Arc<Shared>, network: Arc<dyn QuorumNetwork>) -> Self {
        let (status_sender, status) = watch::channel(QuorumStatus::default());
        let watcher = Watcher {
            raft: shared.raft.clone(),
            members: Arc::clone(&shared.members),
            status: status_sender.clone(),
            lapse: shared.config.timeouts.election_most,
            tasks: shared.tasks.clone(),
            stopping: shared.stopping.clone(),
        };
        // What the member has on disk shows in its metrics once its core has answered something.
        if let Err(fatal) = shared.raft.with_raft_state(|_| ()).await {
            tracing::debug!(error = %fatal, "metadata quorum stopped at once");
        }
        lead_alone(&shared).await;
        let elector = Elector {
            id: raft_id(shared.config.node),
            raft: shared.raft.clone(),
            peers: shared.peers.clone(),
            timeouts: shared.config.timeouts,
            stopping: shared.stopping.clone(),
        };
        shared.tasks.spawn(elector.run());
        shared.tasks.spawn(watcher.run());
        if !shared.identity().joined() {
            let config = shared.config.clone();
            let formation =
                Formation { shared: Arc::clone(&shared), config, network, status: status_sender };
            shared.tasks.spawn(formation.run());
        }
        Self { shared, status }
    }

    /// Writes records as one entry, and waits until it is committed and applied here.
    ///
    /// # Errors
    /// [`QuorumError`]. After [`QuorumError::NotLeader`] and [`QuorumError::Stopped`] the records
    /// may still be committed: what the next leader has decides.
    pub(crate) async fn propose(&self, records: Vec<Record>) -> Result<MetadataIndex, QuorumError> {
        let refuse = |reason: String| QuorumError::Refused { reason };
        let bytes = serde_json::to_vec(&records).map_err(|error| refuse(error.to_string()))?.len();
        if bytes > MAX_PROPOSAL_BYTES {
            return Err(refuse(format!(
                "{bytes} bytes of metadata at once, at most {MAX_PROPOSAL_BYTES} are taken: \
                 change fewer topics at a time"
            )));
        }
        match self.shared.raft.client_write(Proposal(records.into())).await {
            Ok(written) => Ok(written.data),
            Err(error) => Err(QuorumError::from_write(error, &self.shared.peers)),
        }
    }

    /// The member's status, as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<QuorumStatus> {
        self.status.clone()
    }

    /// Whether nobody else can lead at this moment, if this member does: a majority has answered what
    /// it was sent within the shortest election timeout, and votes for nobody before that is over.
    /// That a member is active says less: openraft measures at its ticks, and longer.
    pub(crate) fn has_lease(&self) -> bool {
        let shared = &self.shared;
        let least = shared.config.timeouts.election_least;
        let members = members::effective(&shared.raft);
        let is_bound = |id: &u64| {
            *id == raft_id(shared.config.node)
                || shared.peers.heard.silence(*id).is_some_and(|silence| silence < least)
        };
        let bound: BTreeSet<u64> = members.voter_ids().filter(is_bound).collect();
        elections::is_majority(members.membership().get_joint_config(), &bound)
    }

    /// The node of this member.
    pub(crate) fn node(&self) -> BrokerId {
        self.shared.config.node
    }

    /// The metadata that this member has applied.
    pub(crate) fn image(&self) -> Arc<Image> {
        self.shared.machine.image()
    }

    /// What this member has applied after `index`.
    pub(crate) fn entries_after(&self, index: MetadataIndex) -> After {
        self.shared.machine.entries_after(index)
    }

    /// The UUID of the member's folder.
    #[cfg(test)]
    pub(crate) fn directory(&self) -> Uuid {
        self.shared.directory
    }

    /// Answers another controller.
    pub(crate) async fn handle(&self, message: QuorumMessage) -> QuorumAnswer {
        match message {
            QuorumMessage::Raft { to, directory, .. }
            | QuorumMessage::WouldVote { to, directory, .. }
                if (to, directory) != self.own_id() =>
            {
                self.misdirected(to, directory)
            }
            QuorumMessage::Raft { message, .. } => self.handle_raft(message).await,
            QuorumMessage::WouldVote { last, .. } => self.handle_would_vote(last).await,
            QuorumMessage::Who => QuorumAnswer::Who(self.who()),
            QuorumMessage::Join(join) => QuorumAnswer::Join(self.handle_join(join).await),
            QuorumMessage::Describe => self.answer_describe().await,
            QuorumMessage::Remove { node, directory } => self.answer_remove(node, directory).await,
        }
    }

    /// Makes a node a voter; this member must lead. One that is, on the same directory, stays.
    ///
    /// # Errors
    /// [`QuorumError`]; it may be tried again.
    pub(crate) async fn add_voter(
        &self,
        node: BrokerId,
        address: String,
        directory: Uuid,
    ) -> Result<(), QuorumError> {
        let id = raft_id(node);
        let members = Arc::clone(&self.shared.members);
        self.to_its_end(async move { members.add(id, Member { address, directory }).await }).await
    }

    /// Makes a node a voter no more; this member must lead.
    ///
    /// # Errors
    /// [`QuorumError`]; the last voter cannot be removed.
    pub(crate) async fn remove_voter(&self, node: BrokerId) -> Result<(), QuorumError> {
        let id = raft_id(node);
        let members = Arc::clone(&self.shared.members);
        self.to_its_end(async move { members.remove(id).await }).await
    }

    /// What ends the tasks of this member when it is cancelled.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.shared.stopping.clone()
    }

    /// Stops taking part. Everything acknowledged is on the disk already.
    pub(crate) async fn close(&self) {
        self.shared.stopping.cancel();
        if let Err(error) = self.shared.raft.shutdown().await {
            tracing::warn!(%error, "metadata quorum ended by a panic");
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn own_id(&self) -> (u64, Uuid) {
        (raft_id(self.shared.config.node), self.shared.directory)
    }

    fn misdirected(&self, to: u64, directory: Uuid) -> QuorumAnswer {
        let (own, own_directory) = self.own_id();
        let reason = format!(
            "the message is for controller {to} on directory {directory}, here is {own} on \
             {own_directory}"
        );
        QuorumAnswer::Refused { reason }
    }

    async fn handle_would_vote(&self, last: Option<LogId>) -> QuorumAnswer {
        match elections::answer(&self.shared.raft, self.shared.config.timeouts, last).await {
            Ok(yes) => QuorumAnswer::WouldVote(yes),
            Err(fatal) => QuorumAnswer::Refused { reason: fatal.to_string() },
        }
    }

    async fn handle_raft(&self, message: RaftMessage) -> QuorumAnswer {
        let raft = &self.shared.raft;
        let answer = match message {
            RaftMessage::AppendEntries(request) => {
                raft.append_entries(request).await.map(RaftAnswer::AppendEntries)
            }
            RaftMessage::Vote(request) => raft.vote(request).await.map(RaftAnswer::Vote),
            RaftMessage::Snapshot { vote, meta, image } => self.install(vote, meta, image).await,
            RaftMessage::SnapshotPart(part) => match self.receive(part) {
                Ok(Received::More { next }) => Ok(RaftAnswer::SnapshotPart { next }),
                Ok(Received::Whole { vote, meta, json }) => match serde_json::from_str(&json) {
                    Ok(image) => self.install(vote, meta, image).await,
                    Err(error) => {
                        return QuorumAnswer::Refused { reason: format!("no snapshot: {error}") };
                    }
                },
                Err(reason) => return QuorumAnswer::Refused { reason },
            },
        };
        match answer {
            Ok(answer) => QuorumAnswer::Raft(answer),
            Err(error) => QuorumAnswer::Refused { reason: error.to_string() },
        }
    }

    async fn install(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        image: Arc<Image>,
    ) -> Result<RaftAnswer, RaftError<u64>> {
        let snapshot = Snapshot { meta, snapshot: Box::new(image) };
        let installed = self.shared.raft.install_full_snapshot(vote, snapshot).await;
        installed.map(RaftAnswer::Snapshot).map_err(RaftError::Fatal)
    }

    fn receive(&self, part: SnapshotPart) -> Result<Received, String> {
        lock(&self.shared.receiving).take(part)
    }

    fn who(&self) -> WhoAnswer {
        WhoAnswer {
            node: self.shared.config.node,
            directory: self.shared.directory,
            controllers: self.shared.config.controllers.keys().copied().collect(),
            standing: standing(&self.shared),
        }
    }

    async fn handle_join(&self, join: Join) -> JoinAnswer {
        let adding = self.add_voter(join.node, join.address, join.directory);
        match tokio::time::timeout(JOIN_PATIENCE, adding).await {
            Ok(Ok(())) => JoinAnswer::Joined,
            Ok(Err(QuorumError::NotLeader { leader })) => {
                JoinAnswer::NotLeader { leader: leader.map(|(_, address)| address) }
            }
            Ok(Err(error)) => JoinAnswer::Later { reason: error.to_string() },
            Err(_) => JoinAnswer::Later { reason: "the leader to add this node".to_owned() },
        }
    }

    /// Does a change of the members to its end, also if nobody waits for it any more: half a change
    /// is a state of its own.
    async fn to_its_end(
        &self,
        change: impl Future<Output = Result<(), QuorumError>> + Send + 'static,
    ) -> Result<(), QuorumError> {
        let closed = || QuorumError::Stopped { reason: "it was closed".to_owned() };
        if self.shared.stopping.is_cancelled() {
            return Err(closed());
        }
        let stopping = self.shared.stopping.clone();
        let task =
            self.shared.tasks.spawn(async move { stopping.run_until_cancelled(change).await });
        task.await.ok().flatten().unwrap_or_else(|| Err(closed()))
    }
}

/// How far this node has come on its way into a cluster.
fn standing(shared: &Shared) -> Standing {
    let metrics = shared.raft.metrics();
    let metrics = metrics.borrow();
    let id = raft_id(shared.config.node);
    match shared.identity().joined() {
        true if metrics.membership_config.voter_ids().any(|voter| voter == id) => Standing::Member,
        true => Standing::Removed,
        false if metrics.last_log_index.is_none() && metrics.snapshot.is_none() => Standing::Empty,
        false => Standing::Forming,
    }
}

/// A node alone in its configuration begins a cluster; one alone in its cluster leads it.
async fn lead_alone(shared: &Shared) {
    let id = raft_id(shared.config.node);
    if shared.config.controllers.len() == 1 && standing(shared) == Standing::Empty {
        let (address, directory) = (shared.config.address.clone(), shared.directory);
        formation::begin(&shared.raft, [(id, Member { address, directory })].into()).await;
        return;
    }
    let members = members::effective(&shared.raft);
    if members.voter_ids().eq([id])
        && let Err(fatal) = shared.raft.trigger().elect().await
    {
        tracing::debug!(error = %fatal, "not elected at once");
    }
}
