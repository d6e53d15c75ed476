//! The producer: records in, each in the log once and in order, or an error and nothing behind it.
//!
//! ```text
//! append ─► open batch ─► queue of sealed batches ─► up to 5 in flight ─► acknowledged
//!           (one per partition; copied once)          (in order, retried in order)
//! ```
//!
//! [`Producer`] appends under a short lock and never waits; its sender task seals, encodes and
//! sends. What is decided in between (what may be sent, what a response means, what is
//! acknowledged) is the [`ledger`], which does no IO.
//!
//! Every batch carries producer id, epoch and sequence: a batch sent again is not appended again,
//! and one behind a lost one is refused. Whatever cannot be delivered fails the whole producer:
//! the log then ends, on each partition, with a prefix of what was appended.

mod ledger;
mod partition;
mod sender;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ledger::Ledger;
use tokio::{
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::Instant,
};

use crate::{
    batch::Compression,
    client::Cluster,
    error::Error,
    ids::{ProducerEpoch, ProducerId, TopicPartition},
};

/// How a producer behaves.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// Fences older producers of the same id. Without one nothing is fenced.
    pub transactional_id: Option<String>,
    /// Bytes of a batch before compression. At most the topic's `max.message.bytes`.
    pub batch_bytes: usize,
    /// Appended and not acknowledged bytes from which [`Producer::ready`] waits.
    pub in_flight_bytes: usize,
    /// Batches in flight per partition, 1 to 5: brokers remember five to recognise repetitions.
    pub max_in_flight: usize,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long a batch that is not full waits for more records, unless flushed.
    pub linger: Duration,
    /// How long a sealed batch may take to be acknowledged, retries included.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            transactional_id: None,
            // 1 MiB, Kafka's default limit of a message, less a kibibyte for its accounting.
            batch_bytes: (1 << 20) - (1 << 10),
            in_flight_bytes: 16 << 20,
            max_in_flight: 5,
            compression: Compression::None,
            linger: Duration::from_millis(5),
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

/// The number of a record over a producer's life, all partitions counted together: 0, 1, 2, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordNumber(u64);

impl RecordNumber {
    /// Wraps a number.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for RecordNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a producer's records are in the log.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    /// Every record with a lesser number is acknowledged, on every partition.
    pub below: RecordNumber,
    /// Set once the producer has failed; `below` then stands still.
    pub failed: Option<Arc<Error>>,
}

/// A partition that a producer writes to; valid for that producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartitionHandle(usize);

/// Who a producer is to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
}

/// What the producer and its sender share.
#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    /// There may be something to send.
    work: Notify,
    /// Bytes were acknowledged, or the producer failed.
    settled: Notify,
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nothing panics while it holds the ledger")
    }
}

/// Writes to the partitions of a cluster, idempotently, acknowledged by all in-sync replicas.
///
/// Dropping it drops what is not yet sent; [`Producer::close`] does not.
#[derive(Debug)]
pub struct Producer {
    identity: Identity,
    config: ProducerConfig,
    shared: Arc<Shared>,
    acknowledged: watch::Receiver<Acknowledged>,
    sender: JoinSet<()>,
}

impl Producer {
    pub(crate) fn start(cluster: Arc<Cluster>, identity: Identity, config: ProducerConfig) -> Self {
        let shared = Arc::new(Shared {
            ledger: Mutex::new(Ledger::new(identity, &config)),
            work: Notify::new(),
            settled: Notify::new(),
        });
        let (publish, acknowledged) =
            watch::channel(Acknowledged { below: RecordNumber(0), failed: None });
        let mut sender = JoinSet::new();
        sender.spawn(sender::run(cluster, Arc::clone(&shared), publish));
        Self { identity, config, shared, acknowledged, sender }
    }

    /// The producer id; batches carry it.
    #[must_use]
    pub fn producer_id(&self) -> ProducerId {
        self.identity.id
    }

    /// The producer's epoch; batches carry it.
    #[must_use]
    pub fn producer_epoch(&self) -> ProducerEpoch {
        self.identity.epoch
    }

    /// The handle to append to `partition` with; the same for the same partition.
    pub fn register(&mut self, partition: &TopicPartition) -> PartitionHandle {
        self.shared.ledger().register(partition)
    }

    /// Appends a record whose value is `value_parts`, one after the other. Neither waits nor does
    /// IO: full batches go to the sender, the rest waits for more, the linger, or a flush.
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`] if it does not fit a batch: it is not appended, the producer goes
    /// on. [`Error::ProducerFailed`] if the producer has failed.
    ///
    /// # Panics
    /// If `to` is of another producer.
    pub fn append(
        &mut self,
        to: PartitionHandle,
        key: Option<&[u8]>,
        value_parts: &[&[u8]],
        timestamp_ms: i64,
    ) -> Result<RecordNumber, Error> {
        self.append_value(to, key, Some(value_parts), timestamp_ms)
    }

    /// Appends a tombstone: in a compacted topic it deletes what has its key.
    ///
    /// # Errors
    /// As [`Producer::append`].
    ///
    /// # Panics
    /// If `to` is of another producer.
    pub fn append_tombstone(
        &mut self,
        to: PartitionHandle,
        key: &[u8],
        timestamp_ms: i64,
    ) -> Result<RecordNumber, Error> {
        self.append_value(to, Some(key), None, timestamp_ms)
    }

    /// Has everything sent that is accumulated now, in the next produce round.
    pub fn flush(&mut self) {
        self.shared.ledger().flush(Instant::now());
        self.shared.work.notify_one();
    }

    /// Waits until less than the bound is in flight. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::ProducerFailed`] if the producer has failed.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let mut flushed = false;
        loop {
            {
                let ledger = self.shared.ledger();
                ledger.check()?;
                if ledger.unacknowledged_bytes() < self.config.in_flight_bytes {
                    return Ok(());
                }
            }
            // Once is enough: nothing is appended meanwhile.
            if !std::mem::replace(&mut flushed, true) {
                self.flush();
            }
            self.wait().await;
        }
    }

    /// How far the records are in the log, also for other tasks.
    #[must_use]
    pub fn acknowledged(&self) -> watch::Receiver<Acknowledged> {
        self.acknowledged.clone()
    }

    /// Appended bytes that are not yet acknowledged.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> usize {
        self.shared.ledger().unacknowledged_bytes()
    }

    /// Sends everything and waits until it is acknowledged. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::ProducerFailed`] if the producer has failed.
    pub async fn drain(&mut self) -> Result<(), Error> {
        self.flush();
        loop {
            {
                let ledger = self.shared.ledger();
                ledger.check()?;
                if ledger.is_drained() {
                    return Ok(());
                }
            }
            self.wait().await;
        }
    }

    /// Drains and ends the sender.
    ///
    /// # Errors
    /// [`Error::ProducerFailed`] if the producer has failed: not everything is in the log.
    pub async fn close(mut self) -> Result<(), Error> {
        let drained = self.drain().await;
        self.sender.shutdown().await;
        drained
    }

    /// Waits until something is acknowledged or has failed. A panic of the sender is ours too.
    async fn wait(&mut self) {
        tokio::select! {
            () = self.shared.settled.notified() => {}
            Some(ended) = self.sender.join_next() => match ended.map_err(JoinError::try_into_panic) {
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                // It has failed and said so, or the runtime is shutting down.
                Ok(()) | Err(Err(_)) => self.shared.ledger().fail(Arc::new(Error::Closed)),
            },
        }
    }

    fn append_value(
        &mut self,
        to: PartitionHandle,
        key: Option<&[u8]>,
        value_parts: Option<&[&[u8]]>,
        timestamp_ms: i64,
    ) -> Result<RecordNumber, Error> {
        let now = Instant::now();
        let (number, wake) =
            self.shared.ledger().append(now, to, (key, value_parts), timestamp_ms)?;
        if wake {
            self.shared.work.notify_one();
        }
        Ok(number)
    }
}
