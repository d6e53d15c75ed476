//! One partition: its batches become framed values, and who writes them is known.

use std::collections::VecDeque;

use bytes::Bytes;
use tailwater_change::{ChunkJoiner, Place};
use tailwater_kafka::{Limits, Offset, RecordBatch, Records};

use super::merge::Head;
use super::{AssembleError, AssembleProblem, Position, Writer};

/// One partition of the log.
#[derive(Debug)]
pub(super) struct Lane {
    batches: VecDeque<RecordBatch>,
    current: Option<Current>,
    /// A record whose schema is being asked for.
    pub(super) waiting: Option<Entry>,
    pub(super) joiner: ChunkJoiner,
    /// The first chunk of the run being joined.
    pub(super) joining_from: Offset,
    pub(super) writer: Option<Writer>,
    pub(super) next_offset: Offset,
    /// Whether nothing before the first record is missing between it and what is applied.
    pub(super) is_shown: bool,
    /// Of several partitions: the first record that is not taken.
    pub(super) head: Option<Head>,
    /// Of several partitions: everything of this one up to here was taken.
    pub(super) through: Place,
    /// Of several partitions: everything of this one up to here was applied while it was alone.
    pub(super) floor: Place,
    /// Of several partitions: the transaction of which this one has rows and no end.
    pub(super) unended: Option<Place>,
    /// Of several partitions: rows of the snapshot do not count, from there to the next marker that
    /// all have. Who resumes has to see that again.
    pub(super) void_from: Option<Position>,
}

/// The batch being walked.
#[derive(Debug)]
struct Current {
    records: Records,
    producer: Writer,
    next_offset: Offset,
}

/// A framed value: one record, or several that were joined.
#[derive(Debug)]
pub(super) struct Entry {
    /// The partition.
    pub(super) lane: usize,
    /// Its first record.
    pub(super) from: Offset,
    /// Its last record.
    pub(super) at: Offset,
    pub(super) value: Bytes,
    pub(super) joined: bool,
    pub(super) producer: Writer,
}

impl Lane {
    pub(super) fn new(position: Position, applied: Place, row_bytes: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            current: None,
            waiting: None,
            joiner: ChunkJoiner::new(row_bytes),
            joining_from: position.next_offset,
            writer: position.writer,
            next_offset: position.next_offset,
            is_shown: position.next_offset == Offset::ZERO,
            head: None,
            through: applied,
            floor: Place::default(),
            unended: None,
            void_from: None,
        }
    }

    pub(super) fn push(&mut self, batch: RecordBatch) {
        self.batches.push_back(batch);
    }

    /// Whether everything that was pushed has been walked.
    pub(super) fn is_walked(&self) -> bool {
        self.batches.is_empty() && self.current.is_none() && self.waiting.is_none()
    }

    /// Whether what this producer writes counts.
    pub(super) fn counts(&self, producer: Writer) -> bool {
        self.writer.is_none_or(|writer| writer == producer)
    }

    /// Where reading goes on if nothing but what was taken is kept.
    pub(super) fn position(&self) -> Position {
        if let Some(from) = self.void_from {
            return from;
        }
        let next_offset = match (&self.head, &self.waiting) {
            (Some(head), _) => head.from(),
            (None, Some(waiting)) => waiting.from,
            (None, None) if self.joiner.is_joining() => self.joining_from,
            (None, None) => self.next_offset,
        };
        Position { next_offset, writer: self.writer }
    }

    /// The next framed value, and how many bytes were walked for it.
    pub(super) fn next_entry(
        &mut self,
        lane: usize,
    ) -> Result<Option<(Entry, usize)>, AssembleError> {
        if let Some(entry) = self.waiting.take() {
            return Ok(Some((entry, 0)));
        }
        loop {
            let Some(current) = &mut self.current else {
                if !self.next_batch()? {
                    return Ok(None);
                }
                continue;
            };
            let Some(record) = current.records.next() else {
                self.next_offset = current.next_offset;
                self.current = None;
                continue;
            };
            let producer = current.producer;
            let offset = self.next_offset;
            let record = record
                .map_err(|error| AssembleError::new(offset, AssembleProblem::Batch(error)))?;
            self.next_offset = record.offset.next();
            let value = record
                .value
                .ok_or_else(|| AssembleError::new(record.offset, AssembleProblem::NoValue))?;
            let walked = record.key.map_or(0, |key| key.len()) + value.len();
            let (from, at) = (record.offset, record.offset);
            return Ok(Some((Entry { lane, from, at, value, joined: false, producer }, walked)));
        }
    }

    fn next_batch(&mut self) -> Result<bool, AssembleError> {
        let Some(batch) = self.batches.pop_front() else { return Ok(false) };
        if batch.is_control() {
            // Kafka's own transaction markers: a foreign cluster may add them, nobody sees them.
            self.next_offset = batch.next_offset();
            return Ok(true);
        }
        let records = batch.records(Limits::default()).map_err(|error| {
            AssembleError::new(batch.base_offset(), AssembleProblem::Batch(error))
        })?;
        let producer = Writer {
            producer_id: batch.producer_id().get(),
            producer_epoch: batch.producer_epoch().get(),
        };
        self.current = Some(Current { records, producer, next_offset: batch.next_offset() });
        Ok(true)
    }
}
