//! What capture says of itself, and what it can be told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tailwater_change::{Commit, Place};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

/// What a source is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CaptureState {
    /// Taking over the log.
    #[default]
    Starting,
    /// Reading the first snapshot.
    Snapshot,
    /// Reading the stream.
    Streaming,
    /// Something failed that may pass.
    Retrying,
    /// Another process captures this source.
    Standby,
    /// Told to pause.
    Paused,
    /// A person must act.
    Stopped,
}

impl CaptureState {
    /// The word that `status` prints.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Snapshot => "snapshot",
            Self::Streaming => "streaming",
            Self::Retrying => "retrying",
            Self::Standby => "standby",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A source's status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureStatus {
    /// What it is doing.
    pub state: CaptureState,
    /// The newest place of which the log holds everything up to it.
    pub place: Option<Place>,
    /// The newest commit position that the source has told of.
    pub seen: Option<Commit>,
    /// Why it is retrying or stopped.
    pub error: Option<String>,
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
    resume: Notify,
    probe: Notify,
    rows: AtomicU64,
    transactions: AtomicU64,
}

impl CaptureHandle {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                status: watch::Sender::new(CaptureStatus::default()),
                paused: watch::Sender::new(false),
                resume: Notify::new(),
                probe: Notify::new(),
                rows: AtomicU64::new(0),
                transactions: AtomicU64::new(0),
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

    /// Makes capture ask the source where it is and say so in the log.
    pub fn probe(&self) {
        self.inner.probe.notify_one();
    }

    pub(crate) fn set(&self, state: CaptureState, error: Option<String>) {
        self.inner.status.send_modify(|status| {
            status.state = state;
            status.error = error;
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

    pub(crate) fn add_rows(&self, rows: u64) {
        self.inner.rows.fetch_add(rows, Ordering::Relaxed);
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
