//! What a producer has appended, and how far each of it is: no IO, no clock.
//!
//! Per partition there is at most one open batch, which takes records, and a queue of sealed ones:
//!
//! ```text
//! queue:  [acked] [waiting] [in flight] [in flight] | open
//!          front = oldest that is not settled
//! ```
//!
//! Three rules keep each record in the log once and in order:
//!
//! 1. Only the first `max_in_flight` (at most 5) of the queue are ever on their way, so that
//!    a broker, which remembers five batches, recognises each one it is sent again.
//! 2. After a failed attempt nothing more is sent for the partition until every batch in flight is
//!    answered; then all that is not acknowledged is sent again from the oldest on.
//! 3. The first batch goes alone, and so does the first after a failed attempt or a long silence:
//!    a broker that knows nothing of a producer takes any sequence from it, and would take the
//!    second batch for the first if the first were refused for another reason (KIP-360). It is
//!    also what gets through a connection that barely works.
//! 4. A sequence error is an error only of the oldest batch; of the others it says that an older
//!    one was lost, and rule 2 sends both again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Identity, PartitionHandle, ProducerConfig, RecordNumber};
use crate::{
    batch::{BatchBuilder, BatchError, BatchStamp, Compression, HEADER_BYTES},
    client::Backoff,
    error::{Disposition, Error, is_fenced},
    ids::{Sequence, TopicPartition},
    wire::ErrorCode,
};

/// Silence after which a broker may have forgotten a producer. Kafka's default is a day, in the
/// oldest versions the retention of the topic.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Buffer of a new batch: most are small when latency counts, and it grows where they are not.
const FIRST_BUFFER_BYTES: usize = 4 << 10;

#[derive(Debug)]
pub(super) struct Ledger {
    identity: Identity,
    batch_bytes: usize,
    max_in_flight: usize,
    compression: Compression,
    linger: Duration,
    delivery_timeout: Duration,
    partitions: Vec<Partition>,
    next_record: u64,
    unacknowledged_bytes: usize,
    acknowledged_batches: u64,
    failed: Option<Arc<Error>>,
}

#[derive(Debug)]
struct Partition {
    name: TopicPartition,
    open: Option<Open>,
    queue: VecDeque<Batch>,
    /// The sequence of the next batch to be sealed.
    next_sequence: Sequence,
    /// The last acknowledgement, unless an attempt has failed since.
    proven_at: Option<Instant>,
    /// Set by a failed attempt, until everything in flight is answered and the pause is over.
    recovery: Option<Recovery>,
    /// Pause after the next failed attempt.
    next_pause: Duration,
    /// What the last failed attempt said.
    last_error: Option<Arc<Error>>,
}

#[derive(Debug)]
struct Open {
    builder: BatchBuilder,
    first: RecordNumber,
    /// Sealed when there is room in the queue, at the latest then.
    seal_at: Instant,
}

#[derive(Debug)]
struct Batch {
    first: RecordNumber,
    bytes: usize,
    base_sequence: Sequence,
    sealed_at: Instant,
    body: Body,
    status: Status,
}

/// Encoded when it is first sent, outside of the lock.
#[derive(Debug)]
enum Body {
    Records(BatchBuilder),
    Taken,
    Encoded(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting,
    InFlight,
    Acknowledged,
}

#[derive(Debug)]
struct Recovery {
    resume_at: Instant,
}

/// A batch to be sent.
#[derive(Debug)]
pub(super) struct Dispatch {
    pub(super) partition: usize,
    pub(super) name: TopicPartition,
    pub(super) base_sequence: Sequence,
    pub(super) body: DispatchBody,
}

#[derive(Debug)]
pub(super) enum DispatchBody {
    /// To be encoded with this stamp, and handed back through [`Ledger::encoded`].
    Records(BatchBuilder, BatchStamp),
    Encoded(Bytes),
}

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Outcome {
    Acknowledged,
    /// The broker's code for the partition.
    Refused(ErrorCode, Option<String>),
    /// The request as a whole failed; whether it took effect is unknown.
    Lost(Arc<Error>),
}

impl Ledger {
    pub(super) fn new(identity: Identity, config: &ProducerConfig) -> Self {
        Self {
            identity,
            batch_bytes: config.batch_bytes,
            max_in_flight: config.max_in_flight.clamp(1, 5),
            compression: config.compression,
            linger: config.linger,
            delivery_timeout: config.delivery_timeout,
            partitions: Vec::new(),
            next_record: 0,
            unacknowledged_bytes: 0,
            acknowledged_batches: 0,
            failed: None,
        }
    }

    pub(super) fn register(&mut self, name: &TopicPartition) -> PartitionHandle {
        let known = self.partitions.iter().position(|partition| partition.name == *name);
        PartitionHandle(known.unwrap_or_else(|| {
            self.partitions.push(Partition::new(name.clone()));
            self.partitions.len() - 1
        }))
    }

    /// Appends a record of `(key, value parts)`; also says whether the sender has to look.
    pub(super) fn append(
        &mut self,
        now: Instant,
        to: PartitionHandle,
        (key, value_parts): (Option<&[u8]>, Option<&[&[u8]]>),
        timestamp_ms: i64,
    ) -> Result<(RecordNumber, bool), Error> {
        self.check()?;
        let value_bytes = value_parts.map(|parts| parts.iter().map(|part| part.len()).sum());
        let record_bytes = BatchBuilder::record_bytes(key, value_bytes);
        if record_bytes + HEADER_BYTES > self.batch_bytes {
            let limit = self.batch_bytes;
            return Err(Error::RecordTooLarge { bytes: record_bytes + HEADER_BYTES, limit });
        }
        let partition = &mut self.partitions[to.0];
        let full = |open: &Open| open.builder.size() + record_bytes > self.batch_bytes;
        let mut wake = false;
        if partition.open.as_ref().is_some_and(full) {
            partition.seal(now);
            wake = true;
        }
        let number = RecordNumber(self.next_record);
        self.next_record += 1;
        let open = partition.open.get_or_insert_with(|| {
            // The linger starts: the sender's alarm has to be set.
            wake = true;
            let builder = BatchBuilder::with_capacity(FIRST_BUFFER_BYTES);
            Open { builder, first: number, seal_at: now + self.linger }
        });
        let before = open.builder.size();
        open.builder.append(key, value_parts, timestamp_ms, &[]);
        self.unacknowledged_bytes += open.builder.size() - before;
        Ok((number, wake))
    }

    /// Lets every open batch go as soon as there is room in its queue. Until then it still grows:
    /// a slow log gets larger batches.
    pub(super) fn flush(&mut self, now: Instant) {
        for open in self.partitions.iter_mut().filter_map(|partition| partition.open.as_mut()) {
            open.seal_at = open.seal_at.min(now);
        }
    }

    /// # Errors
    /// If the producer has failed.
    pub(super) fn check(&self) -> Result<(), Error> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(Error::ProducerFailed(Arc::clone(error))),
        }
    }

    pub(super) fn failed(&self) -> Option<&Arc<Error>> {
        self.failed.as_ref()
    }

    pub(super) fn fail(&mut self, error: Arc<Error>) {
        self.failed.get_or_insert(error);
    }

    pub(super) fn unacknowledged_bytes(&self) -> usize {
        self.unacknowledged_bytes
    }

    /// How many batches were ever acknowledged.
    pub(super) fn acknowledged_batches(&self) -> u64 {
        self.acknowledged_batches
    }

    pub(super) fn is_drained(&self) -> bool {
        self.partitions.iter().all(|it| it.open.is_none() && it.queue.is_empty())
    }

    /// Every record with a lesser number is acknowledged.
    pub(super) fn acknowledged_below(&self) -> RecordNumber {
        let oldest = |partition: &Partition| {
            let sealed = partition.queue.front().map(|batch| batch.first);
            sealed.or(partition.open.as_ref().map(|open| open.first))
        };
        let oldest = self.partitions.iter().filter_map(oldest).min();
        oldest.unwrap_or(RecordNumber(self.next_record))
    }

    pub(super) fn name(&self, index: usize) -> TopicPartition {
        self.partitions[index].name.clone()
    }

    /// Partitions that have something to send now.
    pub(super) fn sendable(&mut self, now: Instant) -> Vec<usize> {
        let max_in_flight = self.max_in_flight;
        let mut sendable = Vec::new();
        for (index, partition) in self.partitions.iter_mut().enumerate() {
            partition.seal_if_due(now, max_in_flight);
            if partition.next_to_send(now, max_in_flight).is_some() {
                sendable.push(index);
            }
        }
        sendable
    }

    /// The next batch of a partition, which is in flight from now on.
    pub(super) fn dispatch(&mut self, now: Instant, index: usize) -> Option<Dispatch> {
        let stamp = BatchStamp {
            producer_id: self.identity.id,
            producer_epoch: self.identity.epoch,
            compression: self.compression,
            ..BatchStamp::default()
        };
        let partition = &mut self.partitions[index];
        let position = partition.next_to_send(now, self.max_in_flight)?;
        partition.recovery = None;
        let batch = &mut partition.queue[position];
        batch.status = Status::InFlight;
        let base_sequence = batch.base_sequence;
        let body = match std::mem::replace(&mut batch.body, Body::Taken) {
            Body::Encoded(bytes) => {
                batch.body = Body::Encoded(bytes.clone());
                DispatchBody::Encoded(bytes)
            }
            Body::Records(builder) => {
                DispatchBody::Records(builder, BatchStamp { base_sequence, ..stamp })
            }
            Body::Taken => unreachable!("the sender hands a batch back before its next look"),
        };
        Some(Dispatch { partition: index, name: partition.name.clone(), base_sequence, body })
    }

    /// Takes back a batch that was encoded; an error fails the producer.
    pub(super) fn encoded(
        &mut self,
        index: usize,
        base_sequence: Sequence,
        bytes: Result<Bytes, BatchError>,
    ) {
        let partition = &mut self.partitions[index];
        match bytes {
            Ok(bytes) => {
                if let Some(batch) = partition.batch(base_sequence) {
                    batch.body = Body::Encoded(bytes);
                }
            }
            Err(source) => {
                let partition = partition.name.clone();
                self.fail(Arc::new(Error::EncodeBatch { partition, source }));
            }
        }
    }

    /// Notes what became of an attempt. Also says whether the partition's leader has to be looked
    /// up anew.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        index: usize,
        base_sequence: Sequence,
        outcome: Outcome,
    ) -> bool {
        let partition = &mut self.partitions[index];
        let is_oldest = partition.is_oldest(base_sequence);
        let Some(batch) = partition.batch(base_sequence) else {
            return false;
        };
        batch.status = Status::Waiting;
        let error = match outcome {
            Outcome::Acknowledged | Outcome::Refused(ErrorCode::DuplicateSequenceNumber, _) => {
                batch.status = Status::Acknowledged;
                let bytes = batch.bytes;
                partition.next_pause = Backoff::FIRST;
                if partition.recovery.is_none() {
                    partition.proven_at = Some(now);
                }
                partition.drop_acknowledged();
                self.unacknowledged_bytes -= bytes;
                self.acknowledged_batches += 1;
                return false;
            }
            Outcome::Lost(error) => error,
            Outcome::Refused(code, message) => match partition.judge(code, message, is_oldest) {
                Judgement::Retry(error) => error,
                Judgement::Fail(error) => {
                    self.fail(error);
                    return false;
                }
            },
        };
        if error.disposition() == Disposition::Retry {
            partition.recover(now, error);
        } else {
            self.fail(error);
        }
        true
    }

    /// Notes that a partition's leader could not be found.
    pub(super) fn note_no_leader(&mut self, index: usize, error: Arc<Error>) {
        self.partitions[index].last_error = Some(error);
    }

    /// Fails the producer if a batch is overdue, and says when to look again.
    pub(super) fn next_alarm(&mut self, now: Instant) -> Option<Instant> {
        let mut alarms = Vec::new();
        let mut overdue = None;
        for partition in &self.partitions {
            if let Some(oldest) = partition.queue.front() {
                // One in flight is answered or given up by its connection, and looked at then.
                let deadline = oldest.sealed_at + self.delivery_timeout;
                if oldest.status == Status::Waiting && deadline <= now {
                    overdue = Some(Arc::new(Error::DeliveryTimeout {
                        partition: partition.name.clone(),
                        after: self.delivery_timeout,
                        source: partition.last_error.clone(),
                    }));
                }
                alarms.push(deadline);
            }
            alarms.extend(partition.recovery.as_ref().map(|recovery| recovery.resume_at));
            if partition.queue.len() < self.max_in_flight {
                alarms.extend(partition.open.as_ref().map(|open| open.seal_at));
            }
        }
        if let Some(error) = overdue {
            self.fail(error);
        }
        alarms.retain(|alarm| *alarm > now);
        alarms.into_iter().min()
    }
}

enum Judgement {
    Retry(Arc<Error>),
    Fail(Arc<Error>),
}

impl Partition {
    fn new(name: TopicPartition) -> Self {
        Self {
            name,
            open: None,
            queue: VecDeque::new(),
            next_sequence: Sequence::ZERO,
            proven_at: None,
            recovery: None,
            next_pause: Backoff::FIRST,
            last_error: None,
        }
    }

    fn seal_if_due(&mut self, now: Instant, max_in_flight: usize) {
        let due = self.open.as_ref().is_some_and(|open| open.seal_at <= now);
        if due && self.queue.len() < max_in_flight {
            self.seal(now);
        }
    }

    fn seal(&mut self, now: Instant) {
        let Some(Open { builder, first, .. }) = self.open.take() else {
            return;
        };
        let base_sequence = self.next_sequence;
        self.next_sequence = base_sequence.advance(builder.record_count());
        self.queue.push_back(Batch {
            first,
            bytes: builder.size() - HEADER_BYTES,
            base_sequence,
            sealed_at: now,
            body: Body::Records(builder),
            status: Status::Waiting,
        });
    }

    /// Which batch of the queue may be sent now.
    fn next_to_send(&self, now: Instant, max_in_flight: usize) -> Option<usize> {
        let in_flight = self.queue.iter().any(|batch| batch.status == Status::InFlight);
        match &self.recovery {
            Some(recovery) if in_flight || recovery.resume_at > now => return None,
            Some(_) | None => {}
        }
        let proven = self.proven_at.is_some_and(|at| now < at + FORGOTTEN_AFTER);
        let window = self.queue.iter().take(if proven { max_in_flight } else { 1 });
        window.into_iter().position(|batch| batch.status == Status::Waiting)
    }

    fn is_oldest(&self, base_sequence: Sequence) -> bool {
        self.queue.front().is_some_and(|batch| batch.base_sequence == base_sequence)
    }

    fn batch(&mut self, base_sequence: Sequence) -> Option<&mut Batch> {
        self.queue.iter_mut().find(|batch| batch.base_sequence == base_sequence)
    }

    fn drop_acknowledged(&mut self) {
        while self.queue.front().is_some_and(|batch| batch.status == Status::Acknowledged) {
            self.queue.pop_front();
        }
    }

    fn recover(&mut self, now: Instant, error: Arc<Error>) {
        self.last_error = Some(error);
        self.proven_at = None;
        // One pause for all batches that were in flight together.
        if self.recovery.is_none() {
            self.recovery = Some(Recovery { resume_at: now + self.next_pause });
            self.next_pause = (self.next_pause * 2).min(Backoff::LONGEST);
        }
    }

    fn judge(&self, code: ErrorCode, message: Option<String>, is_oldest: bool) -> Judgement {
        let partition = self.name.clone();
        if is_fenced(code) {
            let partition = partition.to_string();
            return Judgement::Fail(Arc::new(Error::Fenced { partition, code }));
        }
        if matches!(code, ErrorCode::OutOfOrderSequenceNumber | ErrorCode::UnknownProducerId) {
            let error = Arc::new(Error::SequenceLost { partition, code });
            return if is_oldest { Judgement::Fail(error) } else { Judgement::Retry(error) };
        }
        let operation = format!("produce to {partition}");
        let error = Arc::new(Error::Broker { operation, code, message });
        if error.disposition() == Disposition::Retry {
            Judgement::Retry(error)
        } else {
            Judgement::Fail(error)
        }
    }
}
