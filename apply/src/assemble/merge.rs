//! Several partitions become the source's one order again.
//!
//! ```text
//!   partition 0   T1·0  T1·2  end T1 │ T2·0  end T2 │            T4·0 …
//!   partition 1   T1·1        end T1 │              │ end T3
//!   partition 2                      │ T2·1  end T2 │ T3·0 end T3
//! ```
//!
//! Each partition has its rows in the order of their places, so the least of their next records is
//! the next of all: it is taken once every other partition shows that it has nothing before it, by
//! its own next record or by what was taken of it. Nothing is held but one record of each. A
//! partition that lags is waited for, and the others are not read on meanwhile.
//!
//! - An end marker, an idle marker or a `reached` says up to where its partition has everything; it
//!   stays the partition's next record until the others have come as far, so that who resumes finds
//!   it again.
//! - A transaction is whole when every partition has passed it: its rows there have their end, or it
//!   has none and goes on behind it, in the same epoch. It is void, everywhere, if one partition goes
//!   on without the end of what it has, or in another epoch: that one's part of it was never written.
//! - The markers of a snapshot stand in every partition, and are taken from all at once. One that
//!   the writer's death left in some of them only is dropped where it stands, with the rows behind
//!   it: what counts its successor has said again.
//! - A row that moved from one partition to another is a deletion here and an insertion there, at
//!   one place: one update ([`Open::add`]).

use tailwater_change::{Commit, Control, Frame, Operation, Ordinal, Place};
use tailwater_kafka::Offset;

use super::item::Item;
use super::open::Open;
use super::{AssembleError, AssembleProblem, Assembler, Entry, Lane, Logged, SchemaUse, change_of};

/// The first record of a partition that is not taken.
#[derive(Debug)]
pub(super) struct Head {
    place: Place,
    rank: Rank,
    what: What,
    entry: Entry,
    row: Option<Logged>,
}

/// The order of records at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// What a snapshot or a table begins or ends with, or a changed definition.
    Marker,
    /// A row's deletion, of which the insertion may stand elsewhere.
    Gone,
    Row,
    /// Everything up to there.
    Through,
    /// What stands between transactions.
    Between,
}

#[derive(Debug)]
enum What {
    Row,
    /// A control record, to be read again.
    Marker,
    Through {
        /// Whether it is a transaction's end.
        ends: bool,
        committed_at_us: Option<i64>,
    },
}

impl Head {
    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn from(&self) -> Offset {
        self.entry.from
    }

    fn key(&self) -> (Place, Rank) {
        (self.place, self.rank)
    }

    fn through(place: Place, ends: bool, committed_at_us: Option<i64>, entry: Entry) -> Self {
        let what = What::Through { ends, committed_at_us };
        Self { place, rank: Rank::Through, what, entry, row: None }
    }

    /// Whether it is the end of the transaction at `place`.
    fn ends(&self, end: Place) -> bool {
        self.place == end && matches!(self.what, What::Through { ends: true, .. })
    }

    /// The message of a marker: what is the same in all partitions.
    fn message(&self) -> Option<&[u8]> {
        match self.what {
            What::Marker => Frame::parse(&self.entry.value).ok().map(|frame| frame.message),
            What::Row | What::Through { .. } => None,
        }
    }
}

/// How a transaction stands in a partition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stand {
    /// There may be more of it.
    Open,
    Done,
    /// The partition goes on without its end.
    Void,
}

impl Lane {
    /// Whether nothing at or before `place` is still to come.
    fn is_beyond(&self, place: Place) -> bool {
        self.head.as_ref().map_or(self.through, |head| head.place) >= place
    }

    fn has_unended(&self, place: Place) -> bool {
        self.unended.is_some_and(|unended| unended.same_transaction(&place))
    }

    fn stand(&self, transaction: Place) -> Stand {
        let end = Place::end_of(transaction.epoch, transaction.commit);
        let unended = self.has_unended(transaction);
        if self.through >= end && !unended {
            return Stand::Done;
        }
        match &self.head {
            Some(head) if head.ends(end) => Stand::Done,
            Some(head) if head.place > end => {
                // In another epoch nobody has shown that there was no more of it.
                let is_void = unended || head.place.epoch != transaction.epoch;
                if is_void { Stand::Void } else { Stand::Done }
            }
            _ => Stand::Open,
        }
    }

    /// Takes the head if it only says what is known by now.
    fn pass(&mut self, place: Place) {
        let told =
            |head: &mut Head| matches!(head.what, What::Through { .. }) && head.place <= place;
        if let Some(head) = self.head.take_if(told) {
            self.through = self.through.max(head.place);
        }
    }
}

impl Assembler {
    /// A step of the merge; `false`: a partition has to be read on.
    pub(super) fn merge(&mut self) -> Result<bool, AssembleError> {
        for at in 0..self.lanes.len() {
            if self.lanes[at].head.is_none() {
                self.pull(at)?;
                if !self.ready.is_empty() {
                    return Ok(true);
                }
            }
        }
        if self.settle() {
            return Ok(true);
        }
        let heads = self.lanes.iter().enumerate();
        let keys = heads.filter_map(|(at, lane)| Some((lane.head.as_ref()?.key(), at)));
        let Some(((place, rank), at)) = keys.min() else { return Ok(false) };
        let is_next = match rank {
            Rank::Marker | Rank::Between => self.lanes.iter().all(|lane| lane.head.is_some()),
            Rank::Gone | Rank::Row | Rank::Through => {
                self.lanes.iter().all(|lane| lane.is_beyond(place))
            }
        };
        if !is_next {
            return Ok(false);
        }
        match rank {
            Rank::Marker | Rank::Between => self.take_head_marker(at)?,
            Rank::Through => self.take_through(at, place),
            Rank::Gone | Rank::Row => {
                let Some(Head { row: Some(row), entry, .. }) = self.lanes[at].head.take() else {
                    return Ok(true);
                };
                self.take_merged(row, &entry).map_err(|problem| of(&entry, problem))?;
            }
        }
        Ok(true)
    }

    /// Brings the next record of a partition to its head; none: it has to be read on, or something
    /// is ready.
    fn pull(&mut self, at: usize) -> Result<(), AssembleError> {
        while self.ready.is_empty() {
            let next = self.lanes[at].next_entry(at).map_err(|error| error.of(at))?;
            let Some((entry, walked)) = next else { return Ok(()) };
            self.walked_bytes += walked as u64;
            let offset = entry.at;
            let mut next = Some(entry);
            while let Some(entry) = next.take() {
                let sorted = self.sort(entry);
                next = sorted.map_err(|problem| AssembleError::new(offset, problem).of(at))?;
            }
            if self.lanes[at].head.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Makes a record the head of its partition, unless nothing is to come of it; or gives the value
    /// that is whole with it.
    fn sort(&mut self, entry: Entry) -> Result<Option<Entry>, AssembleProblem> {
        let value = entry.value.clone();
        let frame = Frame::parse(&value).map_err(AssembleProblem::Frame)?;
        let Some(usage) = self.schemas.get(&frame.schema) else {
            self.ready.push_back(Item::Schema(frame.schema));
            let lane = &mut self.lanes[entry.lane];
            lane.waiting = Some(entry);
            return Ok(None);
        };
        if matches!(usage, SchemaUse::Control) {
            let control = Control::decode(frame.message).map_err(AssembleProblem::Decode)?;
            return self.sort_control(&control, entry);
        }
        let lane = &mut self.lanes[entry.lane];
        if !lane.counts(entry.producer) {
            return Ok(None);
        }
        let row = change_of(usage, &entry, frame.message)?;
        if !entry.joined {
            lane.joiner.reset();
        }
        let place = row.place;
        if row.operation == Operation::Read && lane.void_from.is_some() {
            return Ok(None);
        }
        if self.is_behind(entry.lane, place)? {
            // The last flag counts on a duplicate.
            let ends = row.last && self.lanes[entry.lane].has_unended(place);
            let end = Place::end_of(place.epoch, place.commit);
            if ends {
                self.put(Head::through(end, true, row.committed_at_us, entry));
            }
            return Ok(None);
        }
        let rank = if row.operation == Operation::Delete { Rank::Gone } else { Rank::Row };
        self.put(Head { place, rank, what: What::Row, entry, row: Some(row) });
        Ok(None)
    }

    fn sort_control(
        &mut self,
        control: &Control<'_>,
        entry: Entry,
    ) -> Result<Option<Entry>, AssembleProblem> {
        let lane = &mut self.lanes[entry.lane];
        if let Control::Open { producer_id, producer_epoch, server, .. } = control {
            if lane.take_open(*producer_id, *producer_epoch, &entry)
                && self.server.as_deref() != Some(*server)
            {
                self.server = Some((*server).to_owned());
                self.ready.push_back(Item::Opened { server: (*server).to_owned() });
            }
            return Ok(None);
        }
        if !lane.counts(entry.producer) {
            return Ok(None);
        }
        if let Control::Chunk { .. } = control {
            return lane.take_chunk(control, &entry);
        }
        lane.joiner.reset();
        let through = lane.through;
        let (place, rank) = match control {
            Control::End { epoch, commit, committed_at_us, .. } => {
                let end = Place::end_of(*epoch, *commit);
                self.sort_through(end, true, *committed_at_us, entry);
                return Ok(None);
            }
            Control::Idle { epoch, commit } => {
                let end = Place::end_of(*epoch, *commit);
                self.sort_through(end, false, None, entry);
                return Ok(None);
            }
            Control::Reached { place, .. } => {
                self.sort_through(*place, false, None, entry);
                return Ok(None);
            }
            Control::SnapshotBegin { epoch, commit } | Control::SnapshotRest { epoch, commit } => {
                let first = Ordinal::ZERO;
                (Place::new(*epoch, *commit, first), Rank::Marker)
            }
            Control::SnapshotEnd { epoch, commit } | Control::SnapshotCut { epoch, commit } => {
                (Place::end_of(*epoch, *commit), Rank::Marker)
            }
            Control::TableBegin { place, .. } | Control::TableEnd { place, .. } => {
                (*place, Rank::Marker)
            }
            // Behind what stands before it in its partition.
            Control::SchemaChange { place, .. } if place.commit == Commit::ZERO => {
                (through.max(self.passed), Rank::Between)
            }
            Control::SchemaChange { place, .. } => (*place, Rank::Marker),
            Control::Open { .. } | Control::Chunk { .. } => return Ok(None),
        };
        // Inside of what was passed the partitions need not begin at the same marker.
        let end = Place::end_of(place.epoch, place.commit);
        let floor = self.lanes[entry.lane].floor;
        let behind =
            |this: &mut Self| this.has_passed(end) || end <= this.void_through || end <= floor;
        if rank == Rank::Marker && behind(self) {
            self.lanes[entry.lane].is_shown = true;
            return Ok(None);
        }
        self.put(Head { place, rank, what: What::Marker, entry, row: None });
        Ok(None)
    }

    fn put(&mut self, head: Head) {
        let lane = head.entry.lane;
        self.lanes[lane].head = Some(head);
    }

    fn sort_through(&mut self, place: Place, ends: bool, at_us: Option<i64>, entry: Entry) {
        let lane = &mut self.lanes[entry.lane];
        let is_known = place <= lane.through && !lane.has_unended(place);
        let passed = self.has_passed(place);
        self.lanes[entry.lane].is_shown |= passed;
        if !(passed || is_known || place <= self.void_through) {
            self.put(Head::through(place, ends, at_us, entry));
        }
    }

    /// Whether a row of a partition is there already, or void.
    fn is_behind(&mut self, lane: usize, place: Place) -> Result<bool, AssembleProblem> {
        if self.has_passed(place) {
            self.lanes[lane].is_shown = true;
            return Ok(true);
        }
        let (through, floor) = (self.lanes[lane].through, self.lanes[lane].floor);
        if place <= self.void_through || place <= floor {
            return Ok(true);
        }
        if place > through {
            return Ok(false);
        }
        if place.same_transaction(&through) {
            return Ok(true);
        }
        Err(AssembleProblem::OutOfOrder { open: through, found: place })
    }

    /// Ends the open transaction if it is whole, or void; whether it was.
    fn settle(&mut self) -> bool {
        let Some(open) = self.open.as_ref().filter(|open| !open.is_snapshot()) else {
            return false;
        };
        let place = open.place();
        let end = Place::end_of(place.epoch, place.commit);
        let mut whole = true;
        for lane in &self.lanes {
            match lane.stand(place) {
                Stand::Done => {}
                Stand::Open => whole = false,
                Stand::Void => {
                    self.void_through(end);
                    return true;
                }
            }
        }
        if !whole {
            return false;
        }
        for lane in &mut self.lanes {
            if let Some(Head { place, what: What::Through { committed_at_us, .. }, .. }) =
                &lane.head
                && *place == end
                && let Some(open) = &mut self.open
            {
                open.committed_at(*committed_at_us);
            }
            lane.pass(end);
            lane.through = lane.through.max(end);
            lane.unended = None;
        }
        self.flush(true, None);
        true
    }

    /// Gives up the open transaction: whatever else there is of it, too.
    fn void_through(&mut self, end: Place) {
        self.void();
        self.void_through = self.void_through.max(end);
        for lane in &mut self.lanes {
            let is_void = |head: &mut Head| head.place <= end && head.message().is_none();
            if let Some(head) = lane.head.take_if(is_void) {
                lane.through = lane.through.max(head.place);
            }
            lane.unended = lane.unended.filter(|unended| *unended > end);
        }
    }

    /// Every partition has come as far as this one says.
    fn take_through(&mut self, at: usize, place: Place) {
        let Some(head) = self.lanes[at].head.as_ref() else { return };
        let from = head.entry.from;
        let is_end = head.ends(place);
        if let Some(snapshot) = self.open.as_ref().filter(|open| open.is_snapshot()) {
            let at = snapshot.place();
            let end = Place::end_of(at.epoch, at.commit);
            if place > end {
                // The source goes on, and the snapshot had no end.
                return self.void_through(end);
            }
        }
        let is_open = self.open.is_some() || place <= self.passed;
        if is_open || place.ordinal != Ordinal::END {
            // Within a transaction, or said of the past.
            let lane = &mut self.lanes[at];
            lane.head = None;
            // Said of a time when it had no row of it.
            if place.ordinal != Ordinal::END || !lane.has_unended(place) {
                lane.through = lane.through.max(place);
            }
            return;
        }
        if is_end {
            // A transaction of which nothing is left for us: `settle` gives it.
            self.open = Some(Open::transaction(place, from));
            return;
        }
        for lane in &mut self.lanes {
            lane.pass(place);
        }
        self.passed = place;
        let mark = self.mark_here();
        self.ready.push_back(Item::Idle(mark));
    }

    fn take_merged(&mut self, row: Logged, entry: &Entry) -> Result<(), AssembleProblem> {
        let (place, last) = (row.place, row.last);
        let snapshot = row.operation == Operation::Read;
        if snapshot && !self.open.as_ref().is_some_and(|open| open.is_snapshot_at(place)) {
            return Err(AssembleProblem::NoSnapshot(place));
        }
        // Every partition has it, and none goes past it alone.
        let overtakes = |lane: &Lane| lane.floor >= place;
        if row.operation == Operation::Truncate
            && let Some(partition) = self.lanes.iter().position(overtakes)
        {
            return Err(AssembleProblem::Overtaken { place, partition });
        }
        if let Some(open) = &self.open
            && !open.place().same_transaction(&place)
        {
            let open = open.place();
            self.void_through(Place::end_of(open.epoch, open.commit));
        }
        let lane = &mut self.lanes[entry.lane];
        let ends = last && !snapshot;
        lane.through = if ends { Place::end_of(place.epoch, place.commit) } else { place };
        lane.unended = (!snapshot && !ends).then_some(place);
        let open = self.open.get_or_insert_with(|| Open::transaction(place, entry.from));
        let before = self.walked_bytes - if entry.joined { 0 } else { entry.value.len() as u64 };
        let added = open.add(row, before);
        let is_full = added && open.is_full(self.bounds, self.walked_bytes);
        // Two halves of one change stay together.
        let mut heads = self.lanes.iter().filter_map(|lane| lane.head.as_ref());
        if is_full && !heads.any(|head| head.key() == (place, Rank::Row)) {
            self.flush(false, None);
        }
        Ok(())
    }

    /// The marker of the partition `at` is next, and all partitions show what they have.
    fn take_head_marker(&mut self, at: usize) -> Result<(), AssembleError> {
        let Some(head) = self.lanes[at].head.as_ref() else { return Ok(()) };
        let value = head.entry.value.clone();
        let message = head.message().unwrap_or_default().to_vec();
        let has = |lane: &Lane| {
            lane.head.as_ref().is_some_and(|head| head.message() == Some(message.as_slice()))
        };
        let lacks = self.lanes.iter().position(|lane| !has(lane));
        let taken = Frame::parse(&value)
            .map_err(AssembleProblem::Frame)
            .and_then(|frame| Control::decode(frame.message).map_err(AssembleProblem::Decode));
        let control = match taken {
            Ok(control) => control,
            Err(problem) => return Err(self.refuse(at, problem)),
        };
        // A stop too many does no harm, and one too few would.
        let is_change = matches!(control, Control::SchemaChange { .. });
        if let Some(lacking) = lacks
            && !is_change
        {
            return self.drop_orphan(at, lacking, &control);
        }
        // With the heads still there: what is given away stands before them.
        self.flush(false, None);
        let closes = match control {
            Control::SnapshotEnd { epoch, commit } | Control::SnapshotCut { epoch, commit } => {
                Some(Place::end_of(epoch, commit))
            }
            _ => None,
        };
        let mut first = None;
        for lane in self.lanes.iter_mut().filter(|lane| has(lane)) {
            let taken = lane.head.take().map(|head| head.entry);
            first = first.or(taken);
            lane.void_from = None;
            lane.through = lane.through.max(closes.unwrap_or_default());
        }
        let Some(entry) = first else { return Ok(()) };
        self.take_marker(&control, &entry).map_err(|problem| of(&entry, problem))
    }

    /// Drops a marker that its writer did not live to put everywhere.
    fn drop_orphan(
        &mut self,
        at: usize,
        lacking: usize,
        control: &Control<'_>,
    ) -> Result<(), AssembleError> {
        let named =
            |lane: &Lane| lane.writer.map(|writer| (writer.producer_id, writer.producer_epoch));
        let (writer, successor) = (named(&self.lanes[at]), named(&self.lanes[lacking]));
        if let (Some(writer), Some(successor)) = (writer, successor)
            && successor <= writer
        {
            let place = self.lanes[at].head.as_ref().map_or(self.passed, Head::place);
            let problem = AssembleProblem::Unmatched { place, partition: lacking };
            return Err(self.refuse(at, problem));
        }
        let position = self.lanes[at].position();
        let lane = &mut self.lanes[at];
        lane.head = None;
        let begins = matches!(
            control,
            Control::SnapshotBegin { .. }
                | Control::SnapshotRest { .. }
                | Control::TableBegin { .. }
        );
        if begins {
            lane.void_from.get_or_insert(position);
        }
        tracing::debug!(partition = at, ?control, "a marker that its writer did not finish");
        Ok(())
    }

    /// The head of a partition is no use: reading goes on behind it, if at all.
    fn refuse(&mut self, at: usize, problem: AssembleProblem) -> AssembleError {
        let head = self.lanes[at].head.take();
        let offset = head.map_or(self.lanes[at].next_offset, |head| head.entry.at);
        AssembleError::new(offset, problem).of(at)
    }
}

fn of(entry: &Entry, problem: AssembleProblem) -> AssembleError {
    AssembleError::new(entry.at, problem).of(entry.lane)
}
