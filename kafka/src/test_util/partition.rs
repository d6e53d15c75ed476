//! One partition in memory: batches, and what is known of their producers.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};

use crate::{
    batch::{RecordBatch, place},
    ids::{LeaderEpoch, Offset, ProducerId, Sequence},
    wire::{ErrorCode, fetch_request::FetchPartition, fetch_response::PartitionData},
};

/// Batches per producer that are recognised when they come again.
const REMEMBERED: usize = 5;

#[derive(Debug, Default)]
pub(super) struct Partition {
    batches: VecDeque<RecordBatch>,
    start: i64,
    end: i64,
    producers: HashMap<ProducerId, Known>,
    /// Ignores sequences.
    pub(super) forgetful: bool,
}

/// What a partition knows of a producer.
#[derive(Debug)]
struct Known {
    epoch: i16,
    /// First and last sequence and base offset of the newest batches, oldest first.
    batches: VecDeque<(Sequence, Sequence, i64)>,
}

impl Partition {
    /// Appends one batch by Kafka's rules: the code and the base offset.
    pub(super) fn append(&mut self, records: Option<&Bytes>) -> (ErrorCode, i64) {
        let Some(records) = records else {
            return (ErrorCode::InvalidRecord, -1);
        };
        let Ok(Some((batch, rest))) = RecordBatch::parse(records.clone()) else {
            return (ErrorCode::CorruptMessage, -1);
        };
        if batch.verify_crc().is_err() || batch.record_count() != batch.offset_count() {
            return (ErrorCode::CorruptMessage, -1);
        }
        if !rest.is_empty() {
            return (ErrorCode::InvalidRecord, -1);
        }
        if batch.producer_id() != ProducerId::NONE
            && !self.forgetful
            && let Err(answer) = self.check_sequence(&batch)
        {
            return answer;
        }
        let base_offset = self.end;
        let mut bytes = BytesMut::from(&batch.bytes()[..]);
        place(&mut bytes, Offset::new(base_offset), LeaderEpoch::new(0)).expect("it was parsed");
        let placed = RecordBatch::parse(bytes.freeze()).expect("it was parsed before");
        let (placed, _) = placed.expect("it was whole before");
        self.end = placed.next_offset().get();
        if let Some(known) = self.producers.get_mut(&batch.producer_id()) {
            known.batches.push_back((batch.base_sequence(), batch.last_sequence(), base_offset));
            if known.batches.len() > REMEMBERED {
                known.batches.pop_front();
            }
        }
        self.batches.push_back(placed);
        (ErrorCode::None, base_offset)
    }

    fn check_sequence(&mut self, batch: &RecordBatch) -> Result<(), (ErrorCode, i64)> {
        let epoch = batch.producer_epoch().get();
        let Some(known) = self.producers.get_mut(&batch.producer_id()) else {
            let known = Known { epoch, batches: VecDeque::new() };
            self.producers.insert(batch.producer_id(), known);
            return Ok(());
        };
        let (first, last) = (batch.base_sequence(), batch.last_sequence());
        if epoch == known.epoch
            && let Some(repeated) = known.batches.iter().find(|it| (it.0, it.1) == (first, last))
        {
            return Err((ErrorCode::None, repeated.2));
        }
        if epoch < known.epoch {
            return Err((ErrorCode::InvalidProducerEpoch, -1));
        }
        if epoch > known.epoch {
            if first != Sequence::ZERO {
                return Err((ErrorCode::OutOfOrderSequenceNumber, -1));
            }
            *known = Known { epoch, batches: VecDeque::new() };
            return Ok(());
        }
        match known.batches.back() {
            Some((_, newest, _)) if newest.advance(1) != first => {
                Err((ErrorCode::OutOfOrderSequenceNumber, -1))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn fetch(&self, answer: PartitionData, wanted: &FetchPartition) -> PartitionData {
        let answer = answer
            .with_high_watermark(self.end)
            .with_last_stable_offset(self.end)
            .with_log_start_offset(self.start)
            .with_preferred_read_replica(-1);
        let from = wanted.fetch_offset;
        if from < self.start || from > self.end {
            return answer.with_error_code(ErrorCode::OffsetOutOfRange.into());
        }
        let limit = usize::try_from(wanted.partition_max_bytes).unwrap_or(0);
        let mut records = BytesMut::new();
        for batch in self.batches.iter().filter(|batch| batch.next_offset().get() > from) {
            if !records.is_empty() && records.len() + batch.bytes().len() > limit {
                break;
            }
            records.extend_from_slice(batch.bytes());
        }
        answer.with_records(Some(records.freeze()))
    }

    pub(super) fn offset_at(&self, timestamp: i64) -> i64 {
        match timestamp {
            -1 => self.end,
            -2 => self.start,
            _ => self
                .batches
                .iter()
                .find(|batch| batch.max_timestamp() >= timestamp)
                .map_or(-1, |batch| batch.base_offset().get()),
        }
    }

    pub(super) fn expire(&mut self, below: i64) {
        self.start = self.start.max(below.min(self.end));
        while self.batches.front().is_some_and(|batch| batch.next_offset().get() <= self.start) {
            self.batches.pop_front();
        }
    }
}
