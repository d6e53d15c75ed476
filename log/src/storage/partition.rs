//! One partition: its state in memory, and who may touch what.
//!
//! Two locks. [`Partition::state`] guards everything that requests look at; it is held for short,
//! synchronous steps and never during IO. [`Partition::files`] is held by whoever changes files
//! (a flush thread, retention, compaction, closing) for as long as that takes; it is always taken
//! first. So appends and reads go on while a flush runs.
//!
//! Five offsets, none ever behind the one before it:
//!
//! | offset | moved by | promise |
//! |---|---|---|
//! | `start` | retention | records before it are gone |
//! | `high_watermark` | what the replicas have | on every in-sync replica, acknowledged, readable |
//! | `durable_end` | a flush round, after the flush the policy asks for | counts for the high watermark |
//! | `written_end` | a flush round, after the write | in the file |
//! | `end` (log end offset) | append; back to `written_end` when a write fails | in memory |

use std::collections::VecDeque;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tailwater_kafka::{LeaderEpoch, Offset, PartitionId, RecordBatch, TopicId};
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use crate::Config;
use crate::Error;
use crate::partitions::PartitionKey;
use crate::producers::ProducerStates;
use crate::replica::{Event, Replica};
use crate::storage::checkpoint::FlushedFile;
use crate::storage::epochs::EpochHistory;
use crate::storage::folder_lock::FolderLock;
use crate::storage::read::ReadBelow;
use crate::storage::reserve::Reserve;
use crate::storage::role::Errands;
use crate::storage::segment::{ActiveSegment, SealedSegment};
use crate::storage::tail::TailCache;
use crate::topic_config::TopicConfig;

/// What all partitions of a node share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// Held as long as anyone may write.
    pub(crate) folder_lock: Arc<FolderLock>,
    /// How many partitions share [`Config::tail_bytes`].
    pub(crate) partition_count: AtomicUsize,
    /// Space for getting out of a full disk.
    pub(crate) reserve: Arc<Reserve>,
    /// What replicas want done outside of their partition.
    pub(crate) errands: Errands,
    /// A partition was opened late, and has not heard what it is to be.
    pub(crate) opened_late: AtomicBool,
    started: Instant,
}

impl Shared {
    pub(crate) fn new(config: Config, folder_lock: Arc<FolderLock>, reserve: Reserve) -> Self {
        let (partition_count, reserve) = (AtomicUsize::new(0), Arc::new(reserve));
        let (errands, started) = (Errands::default(), Instant::now());
        let opened_late = AtomicBool::new(false);
        Self { config, folder_lock, partition_count, reserve, errands, opened_late, started }
    }

    /// The time since this node started, which never goes backwards.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A partition's share of the memory for recent batches.
    pub(crate) fn tail_share(&self) -> usize {
        self.config.tail_bytes / self.partition_count.load(Ordering::Relaxed).max(1)
    }
}

/// Who a partition is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionName {
    pub(crate) topic: String,
    pub(crate) topic_id: TopicId,
    pub(crate) partition: PartitionId,
}

impl PartitionName {
    /// The partition by its topic's identity.
    pub(crate) fn key(&self) -> PartitionKey {
        (self.topic_id, self.partition)
    }
}

impl fmt::Display for PartitionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Why a partition serves nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stopped {
    /// Its files cannot be used, or not be trusted after a failed flush. Until the node is started
    /// again, or what was wanting is there.
    #[error("{0}")]
    Offline(String),
    /// What is stored is not what was written. It is copied anew from a leader that has it all, if
    /// there is one; else a human must act.
    #[error("{0}")]
    Damaged(String),
    /// Its topic was deleted.
    #[error("the topic was deleted")]
    Deleted,
    /// The node is stopping.
    #[error("the log is closed")]
    Closed,
}

impl Stopped {
    /// What a failure at its files makes of a partition.
    pub(super) fn by(error: &Error) -> Self {
        let is_damage = error.is_damage() && !matches!(error, Error::FormatVersion { .. });
        let reason = error.full_text();
        if is_damage { Self::Damaged(reason) } else { Self::Offline(reason) }
    }

    /// Whether its copy is there and cannot be used.
    pub(crate) fn is_offline(&self) -> bool {
        match self {
            Self::Offline(_) | Self::Damaged(_) => true,
            Self::Deleted | Self::Closed => false,
        }
    }
}

/// Why a batch that was taken is not kept after all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotKept {
    /// No space; it was taken back as if it had never come.
    #[error("{0}")]
    NoSpace(String),
    /// Another replica leads now, and may not have it: the producer asks there.
    #[error("another broker leads the partition now")]
    NotLeader,
    /// The partition stopped before the batch was flushed.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What a producer wants to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acks {
    /// This replica has the batch durably (`acks=1`).
    Leader,
    /// Every in-sync replica has it (`acks=all`).
    All,
}

/// Told when a batch is kept as its producer wants it, or is not going to be.
pub(crate) type Acknowledgement = oneshot::Receiver<Result<(), NotKept>>;

/// Where a partition stands. See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) start: Offset,
    pub(crate) high_watermark: Offset,
    pub(crate) end: Offset,
}

/// A partition of a topic.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) name: PartitionName,
    pub(super) folder: PathBuf,
    /// As of the newest metadata. Who needs several settings together takes them once.
    pub(super) topic: RwLock<Arc<TopicConfig>>,
    pub(crate) shared: Arc<Shared>,
    pub(super) state: Mutex<State>,
    pub(super) files: Mutex<Files>,
    /// Held during a compaction pass.
    pub(super) compacting: Mutex<()>,
}

/// What requests look at.
#[derive(Debug)]
pub(super) struct State {
    pub(super) condition: Condition,
    /// What the cluster makes of this copy.
    pub(super) replica: Replica,
    /// Readers that wait for more below the high watermark; each is woken once.
    pub(super) waiting: Vec<Arc<Notify>>,
    /// Who copies here from a leader, and waits until that is flushed.
    pub(super) fetcher: Option<Arc<Notify>>,
    /// Followers that wait for more that is written; each is woken once.
    pub(super) followers: Vec<Arc<Notify>>,
}

#[derive(Debug)]
pub(super) enum Condition {
    Online(Box<Online>),
    Stopped { why: Stopped, offsets: Offsets, size: u64 },
}

/// A partition that serves.
#[derive(Debug)]
pub(super) struct Online {
    /// Rising, without gaps between one's end and the next one's base.
    pub(super) sealed: Vec<SealedSegment>,
    pub(super) active: ActiveSegment,
    pub(super) start: Offset,
    pub(super) high_watermark: Offset,
    pub(super) durable_end: Offset,
    pub(super) written_end: Offset,
    pub(super) end: Offset,
    /// The greatest record timestamp below the high watermark, ms; -1 with none.
    pub(super) readable_max_timestamp: i64,
    pub(super) epochs: EpochHistory,
    /// When this replica last began to lead.
    pub(super) leads_since: Option<Instant>,
    /// With everything up to `end`.
    pub(super) producers: ProducerStates,
    /// With everything up to `written_end`: what is left when the rest must be taken back.
    pub(super) producers_written: ProducerStates,
    /// From `written_end` to `end`.
    pub(super) pending: VecDeque<Pending>,
    pub(super) acknowledgements: Vec<AwaitedAck>,
    pub(super) tail: TailCache,
    /// A follower's leader keeps nothing before this.
    pub(super) leader_start: Offset,
    /// An epoch in which this replica is to lead, once that is noted on the disk.
    pub(super) beginning: Option<LeaderEpoch>,
    /// Whether the partition stands in the flusher's queue or is being written.
    pub(super) scheduled: bool,
    /// Compaction has looked at everything below.
    pub(super) compacted_to: Offset,
    /// Odd while compaction exchanges files; another number afterwards.
    pub(super) replacements: u64,
}

/// A batch that waits to be written.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) batch: RecordBatch,
    /// Its part of the node's memory for waiting batches, given back when it is written.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
pub(super) struct AwaitedAck {
    pub(super) last: Offset,
    pub(super) acks: Acks,
    pub(super) tell: oneshot::Sender<Result<(), NotKept>>,
}

/// What belongs to whoever changes files.
#[derive(Debug)]
pub(super) struct Files {
    /// `None` while the partition is stopped.
    pub(super) flushed: Option<FlushedFile>,
    /// Everything below is on the disk, flushed.
    pub(super) flushed_end: Offset,
    /// The leader epochs that `partition.json` has.
    pub(super) described: EpochHistory,
    /// Not opened for want of files, memory or space: to be tried again.
    pub(super) refused: bool,
    /// Past their retention, and still there because the system did not remove them.
    pub(super) unremoved: Vec<SealedSegment>,
}

impl Online {
    pub(super) fn offsets(&self) -> Offsets {
        Offsets { start: self.start, high_watermark: self.high_watermark, end: self.end }
    }

    /// The greatest record timestamp of all that is written, ms; -1 with none.
    pub(super) fn written_max_timestamp(&self) -> i64 {
        let sealed = self.sealed.iter().map(|segment| segment.max_timestamp).max().unwrap_or(-1);
        sealed.max(self.active.index.max_timestamp())
    }

    pub(super) fn size(&self) -> u64 {
        self.sealed.iter().map(|segment| segment.size).sum::<u64>() + self.active.size
    }
}

impl State {
    pub(super) fn online(&mut self) -> Result<&mut Online, Stopped> {
        match &mut self.condition {
            Condition::Online(online) => Ok(online),
            Condition::Stopped { why, .. } => Err(why.clone()),
        }
    }

    /// Wakes every fetch that waits: there is something to see.
    pub(super) fn wake(&mut self) {
        for waiting in self.waiting.drain(..) {
            waiting.notify_one();
        }
        self.wake_followers();
    }

    /// Wakes the followers: there is more that is written.
    pub(super) fn wake_followers(&mut self) {
        for waiting in self.followers.drain(..) {
            waiting.notify_one();
        }
    }
}

impl Partition {
    /// Where the partition stands.
    ///
    /// # Errors
    /// If it serves nobody.
    pub(crate) fn offsets(&self) -> Result<Offsets, Stopped> {
        self.lock_state().online().map(|online| online.offsets())
    }

    /// The first offset that is not in a file.
    #[cfg(test)]
    pub(crate) fn written_end(&self) -> Offset {
        self.lock_state().online().map_or(Offset::ZERO, |online| online.written_end)
    }

    /// The leader epochs.
    ///
    /// # Errors
    /// If it serves nobody.
    pub(crate) fn epochs(&self) -> Result<EpochHistory, Stopped> {
        self.lock_state().online().map(|online| online.epochs.clone())
    }

    /// Offsets, size in bytes, and why it is stopped if it is.
    pub(crate) fn condition(&self) -> (Offsets, u64, Option<Stopped>) {
        match &self.lock_state().condition {
            Condition::Online(online) => (online.offsets(), online.size(), None),
            Condition::Stopped { why, offsets, size } => (*offsets, *size, Some(why.clone())),
        }
    }

    /// The topic's settings, as they are now.
    pub(crate) fn topic_config(&self) -> Arc<TopicConfig> {
        Arc::clone(&self.topic.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The topic has these settings from now on.
    pub(crate) fn configure(&self, topic: TopicConfig) {
        let mut present = self.topic.write().unwrap_or_else(PoisonError::into_inner);
        if **present != topic {
            *present = Arc::new(topic);
        }
    }

    /// Whether it was closed with everything flushed.
    pub(crate) fn is_closed_clean(&self) -> bool {
        matches!(self.condition().2, Some(Stopped::Closed))
    }

    /// Has `waiting` notified at the next change that whoever reads up to `below` can see.
    pub(crate) fn wake_on_change(&self, waiting: &Arc<Notify>, below: ReadBelow) {
        let mut state = self.lock_state();
        match below {
            ReadBelow::HighWatermark => state.waiting.push(Arc::clone(waiting)),
            ReadBelow::Written => state.followers.push(Arc::clone(waiting)),
        }
    }

    /// Takes back [`Partition::wake_on_change`].
    pub(crate) fn stop_waking(&self, waiting: &Arc<Notify>) {
        let mut state = self.lock_state();
        state.waiting.retain(|other| !Arc::ptr_eq(other, waiting));
        state.followers.retain(|other| !Arc::ptr_eq(other, waiting));
    }

    /// Serves nobody from now on: whoever waits is told why. The replica has no part in anything any
    /// more; the controller hears of it with the next heartbeat.
    pub(super) fn stop(&self, why: Stopped) {
        let mut state = self.lock_state();
        let Condition::Online(online) = &mut state.condition else { return };
        if why.is_offline() {
            tracing::error!(
                topic = %self.name.topic,
                partition = %self.name.partition,
                reason = %why,
                "partition is offline"
            );
        }
        for awaited in online.acknowledgements.drain(..) {
            // The request may be gone; then nobody needs to know.
            drop(awaited.tell.send(Err(why.clone().into())));
        }
        let (offsets, size) = (online.offsets(), online.size());
        state.tell(self, Event::Unassigned);
        state.condition = Condition::Stopped { why, offsets, size };
        state.wake();
    }

    /// Does a piece of work in the background. If that panics, this partition goes offline and
    /// says so, and the others are looked after all the same.
    pub(crate) fn guard<T>(&self, work: impl FnOnce(&Self) -> T) -> Option<T> {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| work(self)));
        if outcome.is_err() {
            let reason = "background work met a mistake of ours; see the process's output, and \
                          restart the node";
            self.stop(Stopped::Offline(reason.to_owned()));
        }
        outcome.ok()
    }

    pub(super) fn lock_state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Locks even after a panic elsewhere: every step under these locks leaves whole state behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
