//! What a producer has appended, and how far each of it is: no IO, no clock.
//!
//! Per partition there is at most one open batch, which takes records, and a queue of sealed ones:
//!
//! ```text
//! queue:  [acked] [waiting] [in flight] [in flight] | open
//!          front = oldest that is not settled
//! ```
//!
//! Four rules keep each record in the log once and in order:
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

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Identity, PartitionHandle, ProducerConfig, RecordNumber,
    partition::{Body, Judgement, Open, Partition, Status},
};
use crate::{
    batch::{BatchBuilder, BatchError, BatchStamp, Compression, HEADER_BYTES},
    client::Backoff,
    error::{Disposition, Error},
    ids::{Offset, Sequence, TopicPartition},
    wire::ErrorCode,
};

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
    /// In the log, from this offset on.
    Acknowledged(Offset),
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

    /// Lets every open batch go as soon as nothing is before it. Until then it still grows: a slow
    /// log gets larger batches.
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
            partition.seal_if_due(now);
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
            Outcome::Acknowledged(at) => {
                self.acknowledge(now, index, base_sequence, Some(at));
                return false;
            }
            Outcome::Refused(ErrorCode::DuplicateSequenceNumber, _) => {
                self.acknowledge(now, index, base_sequence, None);
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

    fn acknowledge(
        &mut self,
        now: Instant,
        index: usize,
        base_sequence: Sequence,
        at: Option<Offset>,
    ) {
        let partition = &mut self.partitions[index];
        if let Some(batch) = partition.batch(base_sequence) {
            batch.status = Status::Acknowledged(at);
            self.unacknowledged_bytes -= batch.bytes;
            self.acknowledged_batches += 1;
        }
        partition.next_pause = Backoff::FIRST;
        if partition.recovery.is_none() {
            partition.proven_at = Some(now);
        }
        if let Err(error) = partition.drop_acknowledged() {
            self.fail(Arc::new(error));
        }
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
            if partition.queue.is_empty() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{PartitionId, ProducerEpoch, ProducerId};

    const BATCH_BYTES: usize = 200;

    /// A ledger with one partition, a clock that is moved by hand, and what is in flight.
    struct Scenario {
        ledger: Ledger,
        to: PartitionHandle,
        now: Instant,
    }

    impl Scenario {
        fn new() -> Self {
            let config = ProducerConfig { batch_bytes: BATCH_BYTES, ..ProducerConfig::default() };
            let identity = Identity { id: ProducerId::new(7), epoch: ProducerEpoch::new(0) };
            let mut ledger = Ledger::new(identity, &config);
            let to = ledger.register(&TopicPartition::new("shop", PartitionId::new(0)));
            Self { ledger, to, now: Instant::now() }
        }

        /// Appends `count` records, each of which fills a batch.
        fn append(&mut self, count: usize) {
            for _ in 0..count {
                let value: &[&[u8]] = &[&[0; 100]];
                self.ledger.append(self.now, self.to, (None, Some(value)), 1).unwrap();
            }
            self.ledger.flush(self.now);
        }

        /// Sends all that may be sent: the sequences.
        fn send(&mut self) -> Vec<i32> {
            let mut sent = Vec::new();
            while let Some(index) = self.ledger.sendable(self.now).pop() {
                let dispatch = self.ledger.dispatch(self.now, index).unwrap();
                if let DispatchBody::Records(builder, stamp) = dispatch.body {
                    let bytes = builder.finish(stamp);
                    self.ledger.encoded(index, dispatch.base_sequence, bytes);
                }
                sent.push(dispatch.base_sequence.get());
            }
            sent
        }

        fn settle(&mut self, sequence: i32, outcome: Outcome) {
            self.ledger.settle(self.now, self.to.0, Sequence::new(sequence), outcome);
        }

        fn acknowledge(&mut self, sequence: i32) {
            // Each of the batches here is one record: the log is where the sequences are.
            let at = Offset::new(1000 + i64::from(sequence));
            self.settle(sequence, Outcome::Acknowledged(at));
        }

        fn refuse(&mut self, sequence: i32, code: ErrorCode) {
            self.settle(sequence, Outcome::Refused(code, None));
        }

        fn below(&self) -> u64 {
            self.ledger.acknowledged_below().get()
        }
    }

    /// A scenario that has sent sequences 1 to 5 of 0 to 7, 0 being acknowledged.
    fn five_in_flight() -> Scenario {
        let mut scenario = Scenario::new();
        scenario.append(8);
        assert_eq!(scenario.send(), [0]);
        scenario.acknowledge(0);
        assert_eq!(scenario.send(), [1, 2, 3, 4, 5]);
        scenario
    }

    #[test]
    fn the_first_batch_goes_alone_and_then_five() {
        let mut scenario = five_in_flight();
        assert_eq!(scenario.below(), 1);
        scenario.acknowledge(1);
        assert_eq!(scenario.send(), [6]);
    }

    #[test]
    fn a_lost_batch_is_sent_again_alone_once_all_are_answered() {
        let mut scenario = five_in_flight();
        scenario.refuse(1, ErrorCode::NotLeaderOrFollower);
        assert!(scenario.send().is_empty());
        for sequence in 2..=5 {
            scenario.refuse(sequence, ErrorCode::OutOfOrderSequenceNumber);
        }
        assert!(scenario.send().is_empty(), "there is a pause");
        scenario.now += Backoff::FIRST;
        assert_eq!(scenario.send(), [1]);
        scenario.acknowledge(1);
        assert_eq!(scenario.send(), [2, 3, 4, 5, 6]);
        assert!(scenario.ledger.failed().is_none());
    }

    #[test]
    fn what_was_appended_behind_a_lost_answer_is_not_sent_again() {
        let mut scenario = five_in_flight();
        scenario.refuse(1, ErrorCode::RequestTimedOut);
        for sequence in 2..=5 {
            scenario.acknowledge(sequence);
        }
        assert_eq!(scenario.below(), 1);
        scenario.now += Backoff::FIRST;
        assert_eq!(scenario.send(), [1]);
        scenario.refuse(1, ErrorCode::DuplicateSequenceNumber);
        assert_eq!(scenario.below(), 6);
        // The last one is not full: it grows while another is on its way.
        assert_eq!(scenario.send(), [6]);
        scenario.acknowledge(6);
        assert_eq!(scenario.send(), [7]);
    }

    #[test]
    fn never_more_than_five_beyond_the_oldest_are_sent() {
        let mut scenario = five_in_flight();
        for sequence in 2..=5 {
            scenario.acknowledge(sequence);
        }
        // The broker remembers five batches: 1 to 5. One more, and it would not know 1 again.
        assert!(scenario.send().is_empty());
        scenario.acknowledge(1);
        assert_eq!(scenario.send(), [6]);
    }

    #[test]
    fn a_sequence_error_of_the_oldest_batch_is_the_end() {
        let mut scenario = five_in_flight();
        scenario.refuse(1, ErrorCode::OutOfOrderSequenceNumber);
        let failed = scenario.ledger.failed().unwrap();
        assert!(matches!(**failed, Error::SequenceLost { .. }));
        let value: &[&[u8]] = &[b"more"];
        let more = scenario.ledger.append(scenario.now, scenario.to, (None, Some(value)), 1);
        assert!(matches!(more, Err(Error::ProducerFailed(_))));
    }

    #[test]
    fn while_the_queue_is_full_the_open_batch_grows() {
        let mut scenario = five_in_flight();
        scenario.append(1);
        let value: &[&[u8]] = &[b""];
        for _ in 0..2 {
            scenario.ledger.append(scenario.now, scenario.to, (None, Some(value)), 1).unwrap();
            scenario.ledger.flush(scenario.now);
            assert!(scenario.send().is_empty());
        }
        for sequence in 1..=7 {
            scenario.acknowledge(sequence);
            scenario.send();
        }
        // One batch of three records, not three batches.
        scenario.acknowledge(8);
        assert_eq!(scenario.below(), 11);
        assert!(scenario.ledger.is_drained());
        assert_eq!(scenario.ledger.unacknowledged_bytes(), 0);
    }

    #[test]
    fn after_a_long_silence_the_first_goes_alone_again() {
        let mut scenario = five_in_flight();
        for sequence in 1..=7 {
            scenario.acknowledge(sequence);
            scenario.send();
        }
        scenario.now += Duration::from_secs(3600);
        scenario.append(3);
        assert_eq!(scenario.send(), [8]);
        scenario.append(1);
        scenario.acknowledge(8);
        assert_eq!(scenario.send(), [9, 10]);
    }

    #[test]
    fn an_open_batch_of_another_partition_holds_back_what_is_acknowledged() {
        let mut scenario = Scenario::new();
        let other = scenario.ledger.register(&TopicPartition::new("shop", PartitionId::new(1)));
        let value: &[&[u8]] = &[b"open"];
        scenario.ledger.append(scenario.now, other, (None, Some(value)), 1).unwrap();
        let first = scenario.to;
        scenario.ledger.append(scenario.now, first, (None, Some(value)), 1).unwrap();
        scenario.ledger.flush(scenario.now);
        assert_eq!(scenario.send().len(), 2);
        scenario.acknowledge(0);
        assert_eq!(scenario.below(), 0);
        let outcome = Outcome::Acknowledged(Offset::new(5));
        scenario.ledger.settle(scenario.now, other.0, Sequence::ZERO, outcome);
        assert_eq!(scenario.below(), 2);
    }

    #[test]
    fn a_log_that_goes_back_is_the_end() {
        let mut scenario = five_in_flight();
        scenario.settle(1, Outcome::Acknowledged(Offset::new(0)));
        let failed = scenario.ledger.failed().unwrap();
        assert!(matches!(**failed, Error::LogShrunk { .. }));
    }

    #[test]
    fn an_overdue_batch_fails_the_producer() {
        let mut scenario = five_in_flight();
        scenario.refuse(1, ErrorCode::NotEnoughReplicas);
        scenario.now += ProducerConfig::default().delivery_timeout;
        assert_eq!(scenario.ledger.next_alarm(scenario.now), None);
        let failed = scenario.ledger.failed().unwrap();
        assert!(matches!(**failed, Error::DeliveryTimeout { source: Some(_), .. }));
    }
}
