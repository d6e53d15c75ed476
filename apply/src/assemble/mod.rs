//! One partition's record batches become whole transactions, or bounded parts of large ones.
//!
//! ```text
//!   batches ─► drop superseded writers ─► join chunks ─► drop places already passed
//!           ─► transaction: open ─► parts … ─► end          (flag `last`, or End marker)
//!                             └────► voided: a greater (epoch, commit) came before its end
//! ```
//!
//! The log may hold what never became whole: half of a transaction whose writer died, a row cut
//! off in the middle of its chunks, the same rows twice, batches of a writer that another has
//! superseded. What counts is decided here and nowhere else:
//!
//! 1. An open marker names the producer that writes from there on; batches of any other do not
//!    count, except for an open marker of their own.
//! 2. A place at or below what was passed is a duplicate.
//! 3. A transaction counts only with its end. It goes on only at the same `(epoch, commit)` with
//!    rising ordinals; a greater one voids it. A snapshot may be cut instead: what of it counts
//!    then, its tables' ends say.
//!
//! No IO, no clock. Schemas are learned by asking: [`Item::Schema`].

mod control;
mod error;
mod item;
mod open;

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tailwater_change::{ChunkJoiner, Control, Envelope, Frame, Operation, Place, SchemaId};
use tailwater_kafka::{Limits, Offset, RecordBatch, Records};

pub use error::{AssembleError, AssembleProblem};
pub use item::{Item, Mark, Part, SchemaUse, Writer};
use open::Open;

use crate::{Change, RowImage};

/// Where an assembler begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resume {
    /// Everything up to here is applied, inclusive.
    pub applied: Place,
    /// Whose batches count, where that is known.
    pub writer: Option<Writer>,
    /// The snapshot that is being applied and began before the first batch: any place within it.
    pub snapshot: Option<Place>,
}

/// How large a part becomes before it is given away.
#[derive(Debug, Clone, Copy)]
pub struct PartBounds {
    /// Rows.
    pub rows: usize,
    /// Bytes held.
    pub bytes: usize,
    /// A row's size in bytes at most: chunks of a larger one are not joined.
    pub row_bytes: usize,
}

/// Assembles one partition.
#[derive(Debug)]
pub struct Assembler {
    bounds: PartBounds,
    schemas: HashMap<SchemaId, SchemaUse>,
    batches: VecDeque<RecordBatch>,
    current: Option<Current>,
    /// A record whose schema is being asked for.
    waiting: Option<Entry>,
    ready: VecDeque<Item>,
    joiner: ChunkJoiner,
    /// The first chunk of the run being joined.
    joining_from: Offset,
    writer: Option<Writer>,
    /// Everything up to here was given away whole, or applied before.
    passed: Place,
    /// What was applied at the beginning.
    applied: Place,
    /// The last place met that was passed already.
    met_passed: Option<Place>,
    met_applied: bool,
    open: Option<Open>,
    next_offset: Offset,
    /// Bytes of all records walked, whether anything came of them.
    walked_bytes: u64,
    /// How many of them the parts given so far have told of.
    told_bytes: u64,
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
struct Entry {
    /// Its first record.
    from: Offset,
    /// Its last record.
    at: Offset,
    value: Bytes,
    joined: bool,
    producer: Writer,
}

impl Assembler {
    /// Begins after what `resume` says is applied; batches must follow from `next_offset` on.
    pub fn new(resume: Resume, next_offset: Offset, bounds: PartBounds) -> Self {
        Self {
            bounds,
            schemas: HashMap::new(),
            batches: VecDeque::new(),
            current: None,
            waiting: None,
            ready: VecDeque::new(),
            joiner: ChunkJoiner::new(bounds.row_bytes),
            joining_from: next_offset,
            writer: resume.writer,
            passed: resume.applied,
            applied: resume.applied,
            met_passed: None,
            met_applied: false,
            open: resume.snapshot.map(|place| Open::snapshot(place, next_offset)),
            next_offset,
            walked_bytes: 0,
            told_bytes: 0,
        }
    }

    /// Adds a batch behind those added before.
    pub fn push(&mut self, batch: RecordBatch) {
        self.batches.push_back(batch);
    }

    /// What `schema` stands for, after [`Item::Schema`] asked for it.
    pub fn learn(&mut self, schema: SchemaId, usage: SchemaUse) {
        self.schemas.insert(schema, usage);
    }

    /// Forgets what schemas stand for: each is asked for again.
    pub fn forget_schemas(&mut self) {
        self.schemas.clear();
    }

    /// Whether everything that was pushed has been walked.
    pub fn is_drained(&self) -> bool {
        self.batches.is_empty()
            && self.current.is_none()
            && self.ready.is_empty()
            && self.waiting.is_none()
    }

    /// The unfinished transaction, if there is one.
    pub fn unfinished(&self) -> Option<Place> {
        self.open.as_ref().map(Open::place)
    }

    /// The last place met at or below [`Resume::applied`] or what was given since. It does not show
    /// that this is the log in which that was read: see [`has_met_applied`](Self::has_met_applied).
    pub fn last_met(&self) -> Option<Place> {
        self.met_passed
    }

    /// Whether a record of the very transaction in which [`Resume::applied`] lies has been met:
    /// the log goes on from there without a gap.
    pub fn has_met_applied(&self) -> bool {
        self.met_applied
    }

    /// The next item; `None`: more batches are needed.
    ///
    /// # Errors
    /// A record that is not ours or contradicts the others: reading stops at it.
    pub fn next_item(&mut self) -> Result<Option<Item>, AssembleError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            let Some(entry) = self.next_entry()? else { return Ok(None) };
            let offset = entry.at;
            self.take(entry).map_err(|problem| AssembleError { offset, problem })?;
        }
    }

    /// The next framed value: chunks joined, batches that do not count left out.
    fn next_entry(&mut self) -> Result<Option<Entry>, AssembleError> {
        if let Some(entry) = self.waiting.take() {
            return Ok(Some(entry));
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
            let problem = |problem| AssembleError { offset: self.next_offset, problem };
            let record = record.map_err(|error| problem(AssembleProblem::Batch(error)))?;
            self.next_offset = record.offset.next();
            let value = record.value.ok_or(AssembleError {
                offset: record.offset,
                problem: AssembleProblem::NoValue,
            })?;
            let key = record.key.map_or(0, |key| key.len());
            self.walked_bytes += (key + value.len()) as u64;
            let (from, at) = (record.offset, record.offset);
            return Ok(Some(Entry { from, at, value, joined: false, producer }));
        }
    }

    fn next_batch(&mut self) -> Result<bool, AssembleError> {
        let Some(batch) = self.batches.pop_front() else { return Ok(false) };
        if batch.is_control() {
            // Kafka's own transaction markers: a foreign cluster may add them, nobody sees them.
            self.next_offset = batch.next_offset();
            return Ok(true);
        }
        let records = batch.records(Limits::default()).map_err(|error| AssembleError {
            offset: batch.base_offset(),
            problem: AssembleProblem::Batch(error),
        })?;
        let producer = Writer {
            producer_id: batch.producer_id().get(),
            producer_epoch: batch.producer_epoch().get(),
        };
        self.current = Some(Current { records, producer, next_offset: batch.next_offset() });
        Ok(true)
    }

    fn take(&mut self, entry: Entry) -> Result<(), AssembleProblem> {
        let value = entry.value.clone();
        let frame = Frame::parse(&value).map_err(AssembleProblem::Frame)?;
        let Some(usage) = self.schemas.get(&frame.schema) else {
            self.ready.push_back(Item::Schema(frame.schema));
            self.waiting = Some(entry);
            return Ok(());
        };
        if matches!(usage, SchemaUse::Control) {
            let control = Control::decode(frame.message).map_err(AssembleProblem::Decode)?;
            return self.take_control(&control, &entry);
        }
        if !self.counts(entry.producer) {
            return Ok(());
        }
        let change = change_of(usage, &entry, frame.message)?;
        if !entry.joined {
            self.joiner.reset();
        }
        self.take_row(change, &entry)
    }

    /// Whether what this producer writes counts.
    fn counts(&self, producer: Writer) -> bool {
        self.writer.is_none_or(|writer| writer == producer)
    }

    fn take_row(&mut self, row: Logged, entry: &Entry) -> Result<(), AssembleProblem> {
        let place = row.place;
        if self.has_passed(place) {
            return Ok(());
        }
        let snapshot = row.operation == Operation::Read;
        if snapshot && !self.open.as_ref().is_some_and(|open| open.is_snapshot_at(place)) {
            return Err(AssembleProblem::NoSnapshot(place));
        }
        self.void_before(place)?;
        let open = self.open.get_or_insert_with(|| Open::transaction(place, entry.from));
        let end = row.last && !snapshot;
        let before = self.walked_bytes - if entry.joined { 0 } else { entry.value.len() as u64 };
        if open.add(row, before) && open.is_full(self.bounds, self.walked_bytes) && !end {
            self.flush(false, self.next_offset);
        }
        if end {
            self.flush(true, self.next_offset);
        }
        Ok(())
    }

    fn has_passed(&mut self, place: Place) -> bool {
        let passed = place <= self.passed;
        if passed {
            self.met_passed = Some(place);
            self.met_applied |= place.same_transaction(&self.applied);
        }
        passed
    }

    fn is_duplicate(&self, place: Place) -> bool {
        self.open.as_ref().is_some_and(|open| open.has(place))
    }

    /// Gives up the unfinished transaction if `place` belongs to a later one.
    fn void_before(&mut self, place: Place) -> Result<(), AssembleProblem> {
        let Some(open) = &self.open else { return Ok(()) };
        let at = open.place();
        if at.same_transaction(&place) {
            return Ok(());
        }
        if place < at {
            return Err(AssembleProblem::OutOfOrder { open: at, found: place });
        }
        self.void();
        Ok(())
    }

    fn void(&mut self) {
        let Some(open) = self.open.take() else { return };
        if open.was_given() {
            let (transaction, snapshot) = (open.place(), open.is_snapshot());
            self.ready.push_back(Item::Voided { transaction, snapshot });
        }
    }

    /// Gives away what the open transaction holds; `next_offset` is the first record not in it.
    fn flush(&mut self, end: bool, next_offset: Offset) {
        let Some(open) = &mut self.open else { return };
        if !end && open.is_empty() {
            return;
        }
        let mark = Mark { place: open.reached(end, self.passed), next_offset, writer: self.writer };
        let walked = self.walked_bytes - std::mem::replace(&mut self.told_bytes, self.walked_bytes);
        let part = open.give(end, mark, walked);
        if end {
            self.passed = part.mark.place;
            self.open = None;
        }
        self.ready.push_back(Item::Part(part));
    }

    /// How far the log is taken right now.
    fn mark_here(&self) -> Mark {
        let place = self.open.as_ref().map_or(self.passed, |open| open.reached(false, self.passed));
        Mark { place, next_offset: self.next_offset, writer: self.writer }
    }
}

/// A row as the log has it.
#[derive(Debug)]
struct Logged {
    operation: Operation,
    place: Place,
    committed_at_us: Option<i64>,
    last: bool,
    /// `None`: of a table that is not applied.
    change: Option<Change>,
    /// What the change holds of memory besides the read buffer that its record lies in.
    bytes: usize,
}

fn change_of(usage: &SchemaUse, entry: &Entry, message: &[u8]) -> Result<Logged, AssembleProblem> {
    let value = &entry.value;
    let envelope = Envelope::decode(message).map_err(AssembleProblem::Decode)?;
    check_images(&envelope)?;
    let change = match usage {
        SchemaUse::Control | SchemaUse::Ignored => None,
        SchemaUse::Table(table) => Some(Change {
            table: std::sync::Arc::clone(table),
            operation: envelope.operation,
            before: envelope.before.map(|before| RowImage {
                bytes: value.slice_ref(before),
                full: envelope.before_full,
            }),
            after: envelope.after.map(|after| value.slice_ref(after)),
            unsent: envelope.unsent,
            place: envelope.place,
        }),
    };
    Ok(Logged {
        operation: envelope.operation,
        place: envelope.place,
        committed_at_us: envelope.committed_at_us,
        last: envelope.last,
        bytes: change.as_ref().map_or(0, |change| {
            let joined = if entry.joined { value.len() } else { 0 };
            size_of::<Change>() + size_of_val(change.unsent.as_slice()) + joined
        }),
        change,
    })
}

fn check_images(envelope: &Envelope<'_>) -> Result<(), AssembleProblem> {
    let (operation, image) = match envelope.operation {
        Operation::Insert if envelope.after.is_none() => ("insert", "after"),
        Operation::Read if envelope.after.is_none() => ("snapshot row", "after"),
        Operation::Update if envelope.after.is_none() => ("update", "after"),
        Operation::Delete if envelope.before.is_none() => ("delete", "before"),
        Operation::Insert
        | Operation::Read
        | Operation::Update
        | Operation::Delete
        | Operation::Truncate => return Ok(()),
    };
    Err(AssembleProblem::NoImage { operation, image })
}
