//! What capture says of itself, and what it can be told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

pub use tailwater_change::RoleState as CaptureState;
use tailwater_change::{Commit, Epoch, Place};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

/// A source's status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureStatus {
    /// What it is doing.
    pub state: CaptureState,
    /// The epoch that is being written.
    pub epoch: Option<Epoch>,
    /// The newest place of which the log holds everything up to it.
    pub place: Option<Place>,
    /// The source has told that it has nothing for us up to here, besides what the log holds.
    pub seen: Option<Commit>,
    /// Bytes of the source's own log, as it says itself, that ours does not cover: asked every
    /// second while streaming. `None`: not known now.
    pub lag_bytes: Option<u64>,
    /// When there were none the last time: wall-clock milliseconds since 1970.
    pub current_at_ms: Option<i64>,
    /// Why it is retrying or stopped.
    pub error: Option<String>,
}

impl CaptureStatus {
    /// The log has everything of the source up to here; of no use to who reads another epoch.
    pub fn covered(&self) -> Option<Commit> {
        let place = self.place.filter(|place| Some(place.epoch) == self.epoch);
        place.map(|place| place.commit).max(self.seen)
    }
}

/// Why a resync has not begun; nothing has happened then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResyncError {
    /// Another process captures the source.
    #[error("another process captures this source: ask that one")]
    Standby,
    /// The source or the log did not answer.
    #[error("the source is {}, and the resync has not begun: {why}; ask again", state.as_str())]
    NotBegun {
        /// What the source is doing.
        state: CaptureState,
        /// What keeps it from beginning.
        why: String,
    },
}

/// A resync that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResyncOrder {
    number: u64,
    /// Its epoch must be a later one than this.
    pub(crate) above: Epoch,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Resyncs {
    asked: u64,
    settled: u64,
    above: Option<Epoch>,
}

impl Resyncs {
    /// Whether one was asked for that has neither begun nor been given up.
    pub(crate) fn is_pending(&self) -> bool {
        self.asked > self.settled
    }
}

/// Watches and steers the capture of one source. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CaptureHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: watch::Sender<CaptureStatus>,
    paused: watch::Sender<bool>,
    resyncs: watch::Sender<Resyncs>,
    /// The number of the last resync that has begun: for who asked for it.
    begun: watch::Sender<u64>,
    resume: Notify,
    probe: Notify,
    rows: AtomicU64,
    transactions: AtomicU64,
    /// Tables of an unfinished snapshot that need not be read again.
    kept: AtomicUsize,
}

impl CaptureHandle {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                status: watch::Sender::new(CaptureStatus::default()),
                paused: watch::Sender::new(false),
                resyncs: watch::Sender::new(Resyncs::default()),
                begun: watch::Sender::new(0),
                resume: Notify::new(),
                probe: Notify::new(),
                rows: AtomicU64::new(0),
                transactions: AtomicU64::new(0),
                kept: AtomicUsize::new(0),
            }),
        }
    }

    /// The status now.
    pub fn status(&self) -> CaptureStatus {
        self.inner.status.borrow().clone()
    }

    /// The status as it changes.
    pub fn watch(&self) -> watch::Receiver<CaptureStatus> {
        self.inner.status.subscribe()
    }

    /// Rows appended to the log since this process started.
    pub fn rows(&self) -> u64 {
        self.inner.rows.load(Ordering::Relaxed)
    }

    /// Transactions that the log has acknowledged since this process started.
    pub fn transactions(&self) -> u64 {
        self.inner.transactions.load(Ordering::Relaxed)
    }

    /// Stops reading after what is in hand; the position stays.
    pub fn pause(&self) {
        self.inner.paused.send_replace(true);
    }

    /// Goes on after a pause or a stop. Says nothing to a capture that runs: a stop that comes later
    /// is another one, and waits for its own word.
    pub fn resume(&self) {
        self.inner.paused.send_replace(false);
        self.inner.resume.notify_waiters();
    }

    /// Takes a new snapshot of the whole source, under a later epoch than any before and than
    /// `above`: it replaces what the targets have. Whatever the source is doing, it ends that; also
    /// a pause or a stop. Answers when the log remembers that a snapshot has begun: from then on it
    /// is finished, through crashes and restarts.
    ///
    /// # Errors
    /// It has not begun within `patience`, and will not.
    pub async fn resync(&self, above: Epoch, patience: Duration) -> Result<(), ResyncError> {
        if self.status().state == CaptureState::Standby {
            return Err(ResyncError::Standby);
        }
        let mut begun = self.inner.begun.subscribe();
        let mut number = 0;
        self.inner.resyncs.send_modify(|resyncs| {
            resyncs.asked += 1;
            resyncs.above = resyncs.above.max(Some(above));
            number = resyncs.asked;
        });
        self.resume();
        let begun = begun.wait_for(|begun| *begun >= number);
        if let Ok(Ok(_begun)) = tokio::time::timeout(patience, begun).await {
            return Ok(());
        }
        // Nobody waits for it any more: begun some day, it would be a surprise.
        self.settled(number);
        let status = self.status();
        if status.state == CaptureState::Standby {
            return Err(ResyncError::Standby);
        }
        let why = status.error.unwrap_or_else(|| "it does not answer".into());
        Err(ResyncError::NotBegun { state: status.state, why })
    }

    /// Makes capture ask the source where it is and say so in the log.
    pub fn probe(&self) {
        self.inner.probe.notify_one();
    }

    pub(crate) fn set(&self, state: CaptureState, error: Option<String>) {
        self.inner.status.send_modify(|status| {
            status.state = state;
            status.error = error;
            if state != CaptureState::Streaming {
                status.lag_bytes = None;
            }
        });
    }

    pub(crate) fn confirmed(&self, place: Place, transactions: u64) {
        self.inner.transactions.fetch_add(transactions, Ordering::Relaxed);
        self.inner.status.send_modify(|status| status.place = Some(place));
    }

    pub(crate) fn seen(&self, commit: Commit) {
        self.inner.status.send_if_modified(|status| {
            let newer = status.seen.is_none_or(|seen| seen < commit);
            if newer {
                status.seen = Some(commit);
            }
            newer
        });
    }

    /// The source said at `at_ms` how far the log is behind it.
    pub(crate) fn measured(&self, lag_bytes: Option<u64>, at_ms: i64) {
        self.inner.status.send_modify(|status| {
            let streams = status.state == CaptureState::Streaming;
            status.lag_bytes = lag_bytes.filter(|_| streams);
            if status.lag_bytes == Some(0) {
                status.current_at_ms = Some(at_ms);
            }
        });
    }

    /// So many tables of an unfinished snapshot are complete in the log, and the log says so.
    pub(crate) fn kept(&self, tables: usize) {
        self.inner.kept.store(tables, Ordering::Relaxed);
    }

    /// As [`kept`](Self::kept) was told.
    pub(crate) fn kept_tables(&self) -> usize {
        self.inner.kept.load(Ordering::Relaxed)
    }

    pub(crate) fn add_rows(&self, rows: u64) {
        self.inner.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// The log says that this epoch is being written.
    pub(crate) fn writes(&self, epoch: Epoch) {
        self.inner.status.send_modify(|status| {
            if status.epoch != Some(epoch) {
                (status.epoch, status.seen) = (Some(epoch), None);
            }
        });
    }

    pub(crate) fn resyncs(&self) -> watch::Receiver<Resyncs> {
        self.inner.resyncs.subscribe()
    }

    /// The resync that is to begin.
    pub(crate) fn resync_order(&self) -> Option<ResyncOrder> {
        let resyncs = *self.inner.resyncs.borrow();
        resyncs.is_pending().then(|| ResyncOrder {
            number: resyncs.asked,
            above: resyncs.above.unwrap_or_default(),
        })
    }

    pub(crate) fn resync_begun(&self, order: ResyncOrder) {
        self.settled(order.number);
        self.inner.begun.send_replace(order.number);
    }

    /// No news to who waits for an order.
    fn settled(&self, number: u64) {
        self.inner.resyncs.send_if_modified(|resyncs| {
            resyncs.settled = resyncs.settled.max(number);
            false
        });
    }

    pub(crate) fn paused(&self) -> watch::Receiver<bool> {
        self.inner.paused.subscribe()
    }

    pub(crate) fn resumed(&self) -> Notified<'_> {
        self.inner.resume.notified()
    }

    pub(crate) async fn probed(&self) {
        self.inner.probe.notified().await;
    }
}
