//! A log's record batches become whole transactions, or bounded parts of large ones.
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
//! One partition ([`lane`]) is taken as it comes. Several are merged into the source's order first
//! ([`merge`]), by the places of their next records; what follows is the same.
//!
//! No IO, no clock. Schemas are learned by asking: [`Item::Schema`].

mod control;
mod error;
mod item;
mod lane;
mod merge;
mod open;

use std::collections::{HashMap, VecDeque};

use tailwater_change::{Control, Envelope, Frame, Operation, Place, SchemaId};
use tailwater_kafka::{Offset, RecordBatch};

pub use error::{AssembleError, AssembleProblem};
pub use item::{Item, Mark, Part, Position, SchemaUse, Writer};
use lane::{Entry, Lane};
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

/// Assembles a log.
#[derive(Debug)]
pub struct Assembler {
    bounds: PartBounds,
    schemas: HashMap<SchemaId, SchemaUse>,
    /// Its partitions, by their number; at least one.
    lanes: Vec<Lane>,
    ready: VecDeque<Item>,
    /// Everything up to here was given away whole, or applied before.
    passed: Place,
    /// What was applied at the beginning.
    applied: Place,
    /// The last place met that was passed already.
    met_passed: Option<Place>,
    met_applied: bool,
    open: Option<Open>,
    /// Of several partitions: what is left of transactions up to here is void.
    void_through: Place,
    /// Of several partitions: whom the writer reads that was told of last.
    server: Option<String>,
    /// Of several partitions: one of them has to be read on.
    is_starved: bool,
    /// Bytes of all records walked, whether anything came of them.
    walked_bytes: u64,
    /// How many of them the parts given so far have told of.
    told_bytes: u64,
}

impl Assembler {
    /// Begins after what `resume` says is applied, in a log of one partition; batches must follow
    /// from `next_offset` on.
    pub fn new(resume: Resume, next_offset: Offset, bounds: PartBounds) -> Self {
        Self::merging(resume, &[Position { next_offset, writer: resume.writer }], bounds)
    }

    /// As [`new`](Self::new), for the partitions that begin at `positions`.
    pub fn merging(resume: Resume, positions: &[Position], bounds: PartBounds) -> Self {
        let from = positions.first().map_or(Offset::ZERO, |position| position.next_offset);
        let lane = |position: &Position| Lane::new(*position, resume.applied, bounds.row_bytes);
        Self {
            bounds,
            schemas: HashMap::new(),
            lanes: positions.iter().map(lane).collect(),
            ready: VecDeque::new(),
            passed: resume.applied,
            applied: resume.applied,
            met_passed: None,
            met_applied: false,
            open: resume.snapshot.map(|place| Open::snapshot(place, from)),
            void_through: Place::default(),
            server: None,
            is_starved: false,
            walked_bytes: 0,
            told_bytes: 0,
        }
    }

    /// Partitions that were applied each on its own may be further than
    /// [`Resume::applied`], which is what all of them have: each up to its floor.
    #[must_use]
    pub fn with_floors(mut self, floors: &[Place]) -> Self {
        for (lane, &floor) in self.lanes.iter_mut().zip(floors) {
            lane.floor = floor;
            lane.through = lane.through.max(floor);
        }
        self
    }

    /// The last record that was walked of a partition, taken or not.
    pub fn walked(&self, partition: usize) -> Option<Offset> {
        let next = self.lanes.get(partition)?.next_offset.get();
        (next > 0).then(|| Offset::new(next - 1))
    }

    /// Adds a batch behind those added before.
    pub fn push(&mut self, batch: RecordBatch) {
        self.push_to(0, batch);
    }

    /// Adds a batch behind those added before to the same partition.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn push_to(&mut self, partition: usize, batch: RecordBatch) {
        self.is_starved = false;
        self.lanes[partition].push(batch);
    }

    /// Whether nothing more can be given before this partition is read on.
    pub fn wants(&self, partition: usize) -> bool {
        let Some(lane) = self.lanes.get(partition) else { return false };
        self.lanes.len() == 1 || (lane.is_walked() && lane.head.is_none())
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
        self.ready.is_empty()
            && match self.lanes.as_slice() {
                [lane] => lane.is_walked(),
                _ => self.is_starved,
            }
    }

    /// The unfinished transaction, if there is one. Of several partitions: or one of which some
    /// have more than others.
    pub fn unfinished(&self) -> Option<Place> {
        let waits =
            || self.lanes.iter().find_map(|lane| lane.head.as_ref()).map(|head| head.place());
        self.open.as_ref().map(Open::place).or_else(waits)
    }

    /// The last place met at or below [`Resume::applied`] or what was given since. It does not show
    /// that this is the log in which that was read: see [`has_met_applied`](Self::has_met_applied).
    pub fn last_met(&self) -> Option<Place> {
        self.met_passed
    }

    /// Whether a record of the very transaction in which [`Resume::applied`] lies has been met:
    /// the log goes on from there without a gap.
    pub fn has_met_applied(&self) -> bool {
        self.met_applied && (self.lanes.len() == 1 || self.lanes.iter().all(|lane| lane.is_shown))
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
            if self.lanes.len() > 1 {
                if !self.merge()? {
                    self.is_starved = true;
                    return Ok(None);
                }
                continue;
            }
            let Some((entry, walked)) = self.lanes[0].next_entry(0)? else { return Ok(None) };
            self.walked_bytes += walked as u64;
            let offset = entry.at;
            self.take(entry).map_err(|problem| AssembleError::new(offset, problem))?;
        }
    }

    fn take(&mut self, entry: Entry) -> Result<(), AssembleProblem> {
        let value = entry.value.clone();
        let frame = Frame::parse(&value).map_err(AssembleProblem::Frame)?;
        let Some(usage) = self.schemas.get(&frame.schema) else {
            self.ready.push_back(Item::Schema(frame.schema));
            let lane = &mut self.lanes[entry.lane];
            lane.waiting = Some(entry);
            return Ok(());
        };
        if matches!(usage, SchemaUse::Control) {
            let control = Control::decode(frame.message).map_err(AssembleProblem::Decode)?;
            return self.take_control(&control, &entry);
        }
        let lane = &mut self.lanes[entry.lane];
        if !lane.counts(entry.producer) {
            return Ok(());
        }
        let change = change_of(usage, &entry, frame.message)?;
        if !entry.joined {
            lane.joiner.reset();
        }
        self.take_row(change, &entry)
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
            self.flush(false, None);
        }
        if end {
            self.flush(true, None);
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

    /// Gives away what the open transaction holds. `before`: the record that is being taken is not
    /// in it.
    fn flush(&mut self, end: bool, before: Option<Offset>) {
        let Some(open) = &self.open else { return };
        if !end && open.is_empty() {
            return;
        }
        let mark = self.mark_at(open.reached(end, self.passed), before);
        let walked = self.walked_bytes - std::mem::replace(&mut self.told_bytes, self.walked_bytes);
        let Some(open) = &mut self.open else { return };
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
        self.mark_at(place, None)
    }

    fn mark_at(&self, place: Place, before: Option<Offset>) -> Mark {
        match self.lanes.as_slice() {
            [lane] => {
                let next_offset = before.unwrap_or(lane.next_offset);
                Mark { place, next_offset, writer: lane.writer, others: None }
            }
            lanes => {
                let mut positions = lanes.iter().map(Lane::position);
                let first = positions.next();
                let (next_offset, writer) =
                    first.map_or((Offset::ZERO, None), |first| (first.next_offset, first.writer));
                Mark { place, next_offset, writer, others: Some(positions.collect()) }
            }
        }
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
