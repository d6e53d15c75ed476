//! The partitions of a changes topic, as their one writer fills them.
//!
//! In each of them one row is held back, encoded, until the next event shows whether it was the last
//! of its transaction. What is larger than a record goes in chunks.

use tailwater_change::{
    Chunks, Commit, Control, EnvelopeWriter, Epoch, Frame, Operation, Place, SchemaId,
};
use tailwater_kafka::{PartitionId, Producer, RecordNumber, TopicPartition};

use super::lane::{Lane, Pending};
use crate::config::Config;
use crate::error::{Error, log};
use crate::state::{STATE_KEY, State};
use crate::take_over::identity;

/// Room in a record batch for its header, the record's own framing and its key.
const RECORD_ROOM: usize = 4096;

/// How long a partition may have nothing of a transaction that is being written before it is told
/// how far that is: until then, who merges the partitions waits for it.
const SILENCE_MS: i64 = 1_000;

/// All partitions, by their number, and the producer that writes them.
#[derive(Debug)]
pub(super) struct Lanes {
    producer: Producer,
    lanes: Vec<Lane>,
    control: SchemaId,
    epoch: Epoch,
    clock: fn() -> i64,
    /// When what is being written came: one time for all of it.
    now_ms: i64,
    chunk_bytes: usize,
    attempt: u64,
    appended: Option<RecordNumber>,
    rows: u64,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) commit: Commit,
    pub(super) committed_at_us: Option<i64>,
    pub(super) transaction: Option<&'a str>,
}

/// A row as it goes into one partition.
pub(super) struct Record<'a> {
    pub(super) operation: Operation,
    pub(super) place: Place,
    pub(super) committed_at_us: Option<i64>,
    pub(super) value_id: SchemaId,
    /// With the id of its schema; none for tables without one.
    pub(super) key: Option<(SchemaId, &'a [u8])>,
    pub(super) before: Option<(&'a [u8], bool)>,
    pub(super) after: Option<&'a [u8]>,
    pub(super) unsent: &'a [u32],
}

impl Lanes {
    /// Partitions that hold rows up to `held` already.
    pub(super) fn new(
        config: &Config,
        mut producer: Producer,
        control: SchemaId,
        epoch: Epoch,
        held: &[Option<Place>],
    ) -> Self {
        let (producer_id, producer_epoch) = identity(&producer);
        let (topic, now_ms) = (config.topic(), (config.clock)());
        let mut lane = |(partition, held): (i32, &Option<Place>)| {
            let partition = TopicPartition::new(topic.clone(), PartitionId::new(partition));
            Lane::new(producer.register(&partition), *held, now_ms)
        };
        let lanes = (0..).zip(held).map(&mut lane).collect();
        Self {
            producer,
            lanes,
            control,
            epoch,
            clock: config.clock,
            now_ms,
            chunk_bytes: config.max_record_bytes.saturating_sub(RECORD_ROOM).max(1),
            // No other attempt has this producer's id and epoch.
            attempt: (producer_id << 48) | ((producer_epoch & 0xFFFF) << 32),
            appended: None,
            rows: 0,
        }
    }

    pub(super) fn producer(&mut self) -> &mut Producer {
        &mut self.producer
    }

    pub(super) fn into_producer(self) -> Producer {
        self.producer
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Rows appended by this writer.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The newest record that was appended.
    pub(super) fn appended(&self) -> Option<RecordNumber> {
        self.appended
    }

    /// What is written next came now.
    pub(super) fn look_at_clock(&mut self) -> i64 {
        self.now_ms = (self.clock)();
        self.now_ms
    }

    /// Whether no row is held back.
    pub(super) fn are_flushed(&self) -> bool {
        self.lanes.iter().all(|lane| !lane.pending.there)
    }

    /// Another transaction begins.
    pub(super) fn begin(&mut self) {
        for lane in &mut self.lanes {
            lane.rows = 0;
        }
    }

    /// The same row in several partitions: who merges them takes it once, and who reads one alone
    /// knows that it concerns others.
    pub(super) async fn put_in(
        &mut self,
        lanes: impl IntoIterator<Item = usize>,
        record: &Record<'_>,
    ) -> Result<(), Error> {
        for lane in lanes {
            self.put(lane, record).await?;
        }
        Ok(())
    }

    /// Gives the row to a partition, unless that has it.
    pub(super) async fn put(&mut self, at: usize, record: &Record<'_>) -> Result<(), Error> {
        let lane = &mut self.lanes[at];
        lane.rows += 1;
        if lane.holds(record.place) {
            return Ok(());
        }
        self.flush_pending(at).await?;
        let now_ms = self.now_ms;
        let lane = &mut self.lanes[at];
        lane.tell(record.place, now_ms);
        let pending = &mut lane.pending;
        pending.there = true;
        pending.value.clear();
        pending.value.extend_from_slice(&Frame::prefix(record.value_id));
        let (operation, at_us) = (record.operation, record.committed_at_us);
        let mut envelope =
            EnvelopeWriter::begin(&mut pending.value, operation, record.place, at_us);
        envelope.unsent(record.unsent);
        if let Some((before, full)) = record.before {
            envelope.before(before, full);
        }
        if let Some(after) = record.after {
            envelope.after(after);
        }
        pending.key.clear();
        pending.has_key = record.key.is_some();
        if let Some((id, key)) = record.key {
            pending.key.extend_from_slice(&Frame::prefix(id));
            pending.key.extend_from_slice(key);
        }
        self.rows += 1;
        if self.lanes[at].pending.value.len() > self.chunk_bytes {
            // Held back it would be in memory beside the next one: it gets an end marker instead.
            self.flush_pending(at).await?;
        }
        Ok(())
    }

    /// The transaction has ended: the partitions that have rows of it say so.
    pub(super) async fn end(&mut self, end: End<'_>) -> Result<(), Error> {
        let place = Place::end_of(self.epoch, end.commit);
        for at in 0..self.lanes.len() {
            let lane = &mut self.lanes[at];
            if lane.pending.there {
                EnvelopeWriter::resume(&mut lane.pending.value).last(end.transaction);
                lane.tell(place, self.now_ms);
                self.flush_pending(at).await?;
            } else if lane.rows > 0 && !lane.holds(place) {
                // Every row was in the log, but perhaps not the end: say it, twice does no harm.
                let rows = lane.rows;
                self.end_marker(at, end, rows)?;
            }
        }
        Ok(())
    }

    /// Says the end to the partitions that had nothing of its transaction.
    pub(super) fn tell_end(&mut self, end: End<'_>) -> Result<(), Error> {
        let place = Place::end_of(self.epoch, end.commit);
        for at in 0..self.lanes.len() {
            if !self.lanes[at].knows(place) {
                self.end_marker(at, end, 0)?;
            }
        }
        Ok(())
    }

    /// Says how far the open transaction is to the partitions that have long had nothing of it.
    pub(super) async fn tell_reached(&mut self, place: Place, snapshot: bool) -> Result<(), Error> {
        for at in 0..self.lanes.len() {
            let lane = &mut self.lanes[at];
            if lane.knows(place) || lane.silent_ms(self.now_ms) < SILENCE_MS {
                continue;
            }
            self.flush_pending(at).await?;
            self.lanes[at].tell(place, self.now_ms);
            self.marker_to(at, &Control::Reached { place, snapshot })?;
        }
        Ok(())
    }

    /// Says that nothing of ours committed through `commit`.
    pub(super) async fn idle(&mut self, commit: Commit) -> Result<(), Error> {
        self.marker(&Control::Idle { epoch: self.epoch, commit }).await?;
        for lane in &mut self.lanes {
            lane.tell(Place::end_of(self.epoch, commit), self.now_ms);
        }
        Ok(())
    }

    /// Waits until the log has acknowledged everything.
    pub(super) async fn drain(&mut self) -> Result<(), Error> {
        self.flush_all().await?;
        self.producer.drain().await.map_err(log("append"))
    }

    fn end_marker(&mut self, lane: usize, end: End<'_>, rows: u64) -> Result<(), Error> {
        let (epoch, End { commit, committed_at_us, transaction }) = (self.epoch, end);
        let end = Control::End { epoch, commit, committed_at_us, transaction, rows };
        self.lanes[lane].tell(Place::end_of(epoch, commit), self.now_ms);
        self.marker_to(lane, &end)
    }

    /// Says it to every partition.
    pub(super) async fn marker(&mut self, control: &Control<'_>) -> Result<(), Error> {
        self.flush_all().await?;
        for at in 0..self.lanes.len() {
            self.marker_to(at, control)?;
        }
        Ok(())
    }

    fn marker_to(&mut self, lane: usize, control: &Control<'_>) -> Result<(), Error> {
        let mut value = Frame::prefix(self.control).to_vec();
        control.encode(&mut value);
        self.append(lane, None, &value)
    }

    async fn flush_all(&mut self) -> Result<(), Error> {
        for at in 0..self.lanes.len() {
            self.flush_pending(at).await?;
        }
        Ok(())
    }

    /// Appends the row that was held back.
    async fn flush_pending(&mut self, lane: usize) -> Result<(), Error> {
        if !self.lanes[lane].pending.there {
            return Ok(());
        }
        let mut pending: Pending = std::mem::take(&mut self.lanes[lane].pending);
        let key = pending.has_key.then_some(pending.key.as_slice());
        if key.map_or(0, <[u8]>::len) + pending.value.len() > self.chunk_bytes {
            self.append_chunks(lane, &pending.value).await?;
            pending.value = Vec::new();
        } else {
            self.append(lane, key, &pending.value)?;
        }
        pending.there = false;
        self.lanes[lane].pending = pending;
        Ok(())
    }

    async fn append_chunks(&mut self, lane: usize, value: &[u8]) -> Result<(), Error> {
        self.attempt += 1;
        let mut record = Vec::new();
        for chunk in Chunks::new(value, self.chunk_bytes, self.attempt) {
            self.producer.ready().await.map_err(log("append"))?;
            record.clear();
            record.extend_from_slice(&Frame::prefix(self.control));
            chunk.encode(&mut record);
            self.append(lane, None, &record)?;
        }
        Ok(())
    }

    /// Remembers `state` in the log, behind everything appended so far.
    pub(super) fn state(&mut self, to: &TopicPartition, state: &State) -> Result<(), Error> {
        let json = serde_json::to_vec(state)
            .map_err(|source| Error::State { topic: to.topic.clone(), source })?;
        let to = self.producer.register(to);
        self.producer
            .append(to, Some(STATE_KEY), &[&json], (self.clock)())
            .map_err(log("append the state"))?;
        Ok(())
    }

    fn append(&mut self, lane: usize, key: Option<&[u8]>, value: &[u8]) -> Result<(), Error> {
        let to = self.lanes[lane].to;
        let number = self.producer.append(to, key, &[value], self.now_ms).map_err(log("append"))?;
        self.appended = Some(number);
        Ok(())
    }
}
