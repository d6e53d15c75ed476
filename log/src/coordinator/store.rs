//! A map in a partition of a compacted topic, as its leader has it.
//!
//! ```text
//! elected ─► wait until all that was there then is committed ─► read it ─► serve
//!                                                                          │ another leads, or stop
//!                                                                          ▼
//!                                                                        nothing
//! ```
//!
//! Where the outcome of a change cannot be known but nobody else leads, all is read anew, into another
//! store: what stands in this one may be from before the change.
//!
//! A change is a record per entry, all in one batch: it happens whole or not at all. It shows in the
//! map, and its caller is told, when every in-sync replica has it. Changes that wait share a batch.
//! One whose outcome cannot be known, because another leads by now, is not shown: the new leader
//! knows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tailwater_kafka::{BatchBuilder, BatchStamp, LeaderEpoch, Limits, Offset, RecordBatch};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::storage::append::NotTaken;
use crate::storage::flusher::Flusher;
use crate::storage::partition::{Acks, NotKept, Partition, Stopped, lock};
use crate::storage::read::{NotRead, Read, ReadBelow, ReadRequest};

/// Changes that may wait: more than that many requests at once have to queue before it.
const WAITING_CHANGES: usize = 256;

/// Bytes of a batch from which no more changes join it.
const BATCH_BYTES: usize = 512 << 10;

/// Bytes read at a time while loading.
const LOAD_BYTES: usize = 4 << 20;

/// The entries of the map: keys and values as they stand in the records.
pub(crate) type Entries = BTreeMap<Vec<u8>, Bytes>;

/// One entry to be set, or removed (`None`).
pub(crate) type Change = (Vec<u8>, Option<Bytes>);

/// Why nothing was read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotChanged {
    /// Another node is the coordinator, or will be.
    #[error("another broker is the coordinator")]
    NotCoordinator,
    /// What the partition holds is not read yet.
    #[error("the coordinator is loading")]
    Loading,
    /// Not now: too few replicas, or no space.
    #[error("{0}")]
    Unavailable(String),
}

/// A handle on the map, and on the task that changes it.
#[derive(Debug)]
pub(crate) struct Store {
    partition: Arc<Partition>,
    leader_epoch: LeaderEpoch,
    entries: Arc<Mutex<Entries>>,
    loaded: Arc<AtomicBool>,
    requests: mpsc::Sender<Request>,
    /// Held while a change is made up from what is there.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Aborted when the store is dropped.
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Request {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<(), NotChanged>>,
}

impl Store {
    /// Begins to load what `partition` holds, which this node leads in that epoch; `changed` is told
    /// when that is done, and when the store has ended.
    pub(crate) fn load(
        partition: Arc<Partition>,
        leader_epoch: LeaderEpoch,
        flusher: Arc<Flusher>,
        changed: watch::Sender<()>,
    ) -> Self {
        let entries = Arc::new(Mutex::new(Entries::new()));
        let loaded = Arc::new(AtomicBool::new(false));
        let (requests, incoming) = mpsc::channel(WAITING_CHANGES);
        let keeper = Keeper {
            partition: Arc::clone(&partition),
            leader_epoch,
            flusher,
            entries: Arc::clone(&entries),
            loaded: Arc::clone(&loaded),
            changed: changed.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            keeper.run(incoming).await;
            changed.send_replace(());
        });
        let turn = tokio::sync::Mutex::default();
        Self { partition, leader_epoch, entries, loaded, requests, turn, _task: task }
    }

    /// Whether it can be read and changed.
    ///
    /// # Errors
    /// [`NotChanged::Loading`] if not: whether it is read anew here or by another node shows soon.
    pub(crate) fn check(&self) -> Result<(), NotChanged> {
        if self.has_ended() || !self.loaded.load(Ordering::Acquire) {
            return Err(NotChanged::Loading);
        }
        Ok(())
    }

    /// Whether nothing will be changed in it any more.
    fn has_ended(&self) -> bool {
        self.requests.is_closed()
    }

    /// Another one in place of one that has ended, if this node leads still.
    pub(crate) fn renewed(
        &self,
        flusher: &Arc<Flusher>,
        changed: &watch::Sender<()>,
    ) -> Option<Self> {
        let (partition, epoch) = (&self.partition, self.leader_epoch);
        (self.has_ended() && partition.leads() == Some(epoch))
            .then(|| Self::load(Arc::clone(partition), epoch, Arc::clone(flusher), changed.clone()))
    }

    /// Looks at the entries, all of which are committed.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Entries) -> T) -> T {
        look(&lock(&self.entries))
    }

    /// Changes entries, all or none.
    ///
    /// # Errors
    /// If it did not happen, or ([`NotChanged::NotCoordinator`]) only a new coordinator can tell.
    pub(crate) async fn change(&self, changes: Vec<Change>) -> Result<(), NotChanged> {
        if changes.is_empty() {
            return Ok(());
        }
        let (done, outcome) = oneshot::channel();
        let sent = self.requests.send(Request { changes, done }).await;
        sent.map_err(|_| NotChanged::NotCoordinator)?;
        outcome.await.map_err(|_| NotChanged::NotCoordinator)?
    }
}

/// Who reads and writes the partition.
struct Keeper {
    partition: Arc<Partition>,
    leader_epoch: LeaderEpoch,
    flusher: Arc<Flusher>,
    entries: Arc<Mutex<Entries>>,
    loaded: Arc<AtomicBool>,
    changed: watch::Sender<()>,
}

impl Keeper {
    async fn run(self, mut incoming: mpsc::Receiver<Request>) {
        if let Err(reason) = self.load().await {
            let (topic, partition) = (&self.partition.name.topic, self.partition.name.partition);
            tracing::debug!(%topic, %partition, reason, "not loaded");
            return;
        }
        self.loaded.store(true, Ordering::Release);
        self.changed.send_replace(());
        while let Some(first) = incoming.recv().await {
            let mut round = vec![first];
            let mut bytes = size(&round[0]);
            while bytes < BATCH_BYTES
                && let Ok(more) = incoming.try_recv()
            {
                bytes += size(&more);
                round.push(more);
            }
            if !self.round(round).await {
                return;
            }
        }
    }

    async fn load(&self) -> Result<(), String> {
        let end = self.partition.offsets().map_err(|stopped| stopped.to_string())?.end;
        self.wait_until_committed(end).await?;
        let mut from = self.partition.offsets().map_err(|stopped| stopped.to_string())?.start;
        while from < end {
            let batches = match self.read(from).await {
                Ok(batches) => batches,
                // Retention moved on: these topics are compacted, but may be told otherwise.
                Err(NotRead::OutOfRange(offsets)) if offsets.start > from => {
                    from = offsets.start;
                    continue;
                }
                Err(error) => return Err(error.to_string()),
            };
            let next = self.take_in(batches, from)?;
            if next == from {
                return Err(format!("nothing at offset {from}"));
            }
            from = next;
        }
        Ok(())
    }

    /// What was there at the election may still be unknown to replicas without which it does not
    /// count.
    async fn wait_until_committed(&self, end: Offset) -> Result<(), String> {
        let woken = Arc::new(Notify::new());
        loop {
            self.partition.wake_on_change(&woken, ReadBelow::HighWatermark);
            let committed = self.partition.offsets().map_err(|stopped| stopped.to_string())?;
            if self.partition.leads() != Some(self.leader_epoch) {
                return Err("another leads".to_owned());
            }
            if committed.high_watermark >= end {
                self.partition.stop_waking(&woken);
                return Ok(());
            }
            woken.notified().await;
        }
    }

    async fn read(&self, from: Offset) -> Result<Bytes, NotRead> {
        let below = ReadBelow::HighWatermark;
        let request = ReadRequest { from, below, max_bytes: LOAD_BYTES, at_least_one: true };
        match self.partition.read(request)? {
            Read::Done(found) => Ok(found.batches),
            Read::Cold(cold) => {
                let partition = Arc::clone(&self.partition);
                let workers = &self.partition.shared.config.workers;
                let reading = workers.run(move || partition.read_cold(cold)).await;
                Ok(reading.map_err(|error| NotRead::Failed(error.to_string()))??.batches)
            }
        }
    }

    /// Applies whole batches; the offset after them.
    fn take_in(&self, mut rest: Bytes, from: Offset) -> Result<Offset, String> {
        let mut entries = lock(&self.entries);
        let mut next = from;
        while let Some((batch, after)) = RecordBatch::parse(rest).map_err(|e| e.to_string())? {
            rest = after;
            next = batch.next_offset();
            if batch.is_control() {
                continue;
            }
            for record in batch.records(Limits::default()).map_err(|e| e.to_string())? {
                let record = record.map_err(|e| e.to_string())?;
                let Some(key) = record.key else { continue };
                set(&mut entries, key.to_vec(), record.value);
            }
        }
        Ok(next)
    }

    /// Whether this is still the coordinator.
    async fn round(&self, round: Vec<Request>) -> bool {
        let outcome = self.append(&round).await;
        if outcome.is_ok() {
            let mut entries = lock(&self.entries);
            for (key, value) in round.iter().flat_map(|request| &request.changes) {
                set(&mut entries, key.clone(), value.clone());
            }
        }
        for request in round {
            // The caller may be gone; the change stands.
            drop(request.done.send(outcome.clone()));
        }
        outcome != Err(NotChanged::NotCoordinator)
    }

    async fn append(&self, round: &[Request]) -> Result<(), NotChanged> {
        let batch = self.batch(round)?;
        let taken =
            self.partition.append(&batch, None, Acks::All).map_err(
                |not_taken| match not_taken {
                    NotTaken::Stopped(Stopped::Offline(_) | Stopped::Damaged(_))
                    | NotTaken::NotNow(crate::replica::NotNow::NotEnoughReplicas)
                    | NotTaken::Refused(_)
                    | NotTaken::Full => NotChanged::Unavailable(not_taken.to_string()),
                    NotTaken::Stopped(_) | NotTaken::NotNow(_) => NotChanged::NotCoordinator,
                },
            )?;
        if taken.schedule {
            self.flusher.schedule(&self.partition);
        }
        match taken.acknowledgement.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(NotKept::NoSpace(text))) => Err(NotChanged::Unavailable(text)),
            Ok(Err(NotKept::NotLeader | NotKept::Stopped(_))) | Err(_) => {
                Err(NotChanged::NotCoordinator)
            }
        }
    }

    fn batch(&self, round: &[Request]) -> Result<RecordBatch, NotChanged> {
        let now = self.partition.shared.config.clock.now_ms();
        let mut builder = BatchBuilder::with_capacity(round.iter().map(size).sum());
        for (key, value) in round.iter().flat_map(|request| &request.changes) {
            let value = value.as_ref().map(|value| [&value[..]]);
            builder.append(Some(key), value.as_ref().map(|parts| &parts[..]), now, &[]);
        }
        let unavailable = |error: tailwater_kafka::BatchError| {
            NotChanged::Unavailable(format!("the change cannot be written: {error}"))
        };
        let bytes = builder.finish(BatchStamp::default()).map_err(unavailable)?;
        let parsed = RecordBatch::parse(bytes).map_err(unavailable)?;
        parsed.map(|(batch, _)| batch).ok_or(NotChanged::NotCoordinator)
    }
}

fn set(entries: &mut Entries, key: Vec<u8>, value: Option<Bytes>) {
    match value {
        Some(value) => entries.insert(key, value),
        None => entries.remove(&key),
    };
}

/// About what a request's records take.
fn size(request: &Request) -> usize {
    let bytes = |(key, value): &Change| 32 + key.len() + value.as_ref().map_or(0, Bytes::len);
    request.changes.iter().map(bytes).sum()
}
