//! What control records say: who writes, what a transaction or a snapshot begins and ends with.

use tailwater_change::{Commit, Control, Ordinal, Place, TableId};

use super::open::Open;
use super::{AssembleProblem, Assembler, Entry, Item, Lane, Mark, Writer};

impl Assembler {
    pub(super) fn take_control(
        &mut self,
        control: &Control<'_>,
        entry: &Entry,
    ) -> Result<(), AssembleProblem> {
        if let Control::Open { producer_id, producer_epoch, server, .. } = control {
            if self.lanes[entry.lane].take_open(*producer_id, *producer_epoch, entry) {
                self.ready.push_back(Item::Opened { server: (*server).to_owned() });
            }
            return Ok(());
        }
        let lane = &mut self.lanes[entry.lane];
        if !lane.counts(entry.producer) {
            return Ok(());
        }
        if let Control::Chunk { .. } = control {
            return match lane.take_chunk(control, entry)? {
                Some(joined) => self.take(joined),
                None => Ok(()),
            };
        }
        lane.joiner.reset();
        self.take_marker(control, entry)
    }

    /// What is neither who writes nor a piece of a row.
    pub(super) fn take_marker(
        &mut self,
        control: &Control<'_>,
        entry: &Entry,
    ) -> Result<(), AssembleProblem> {
        match control {
            Control::End { epoch, commit, committed_at_us, .. } => {
                self.take_end(Place::end_of(*epoch, *commit), *committed_at_us, entry)
            }
            Control::Idle { epoch, commit } => {
                self.take_idle(Place::end_of(*epoch, *commit));
                Ok(())
            }
            Control::SnapshotBegin { epoch, commit } => {
                let begun = self.begin_snapshot(Place::end_of(*epoch, *commit), entry)?;
                let item = |(snapshot, mark)| Item::SnapshotBegin { snapshot, mark };
                self.ready.extend(begun.map(item));
                Ok(())
            }
            Control::SnapshotRest { epoch, commit } => {
                let begun = self.begin_snapshot(Place::end_of(*epoch, *commit), entry)?;
                let item = |(snapshot, mark)| Item::SnapshotRest { snapshot, mark };
                self.ready.extend(begun.map(item));
                Ok(())
            }
            Control::TableBegin { place, schema } => {
                if self.in_snapshot(*place)? {
                    self.flush(false, Some(entry.from));
                    let mark = self.mark_here();
                    let (schema, begin) = (*schema, *place);
                    self.ready.push_back(Item::TableBegin { schema, begin, mark });
                }
                Ok(())
            }
            Control::TableEnd { place, schema, .. } => {
                if self.in_snapshot(*place)? {
                    self.flush(false, Some(entry.from));
                    let mark = self.mark_here();
                    self.ready.push_back(Item::TableEnd { schema: *schema, mark });
                }
                Ok(())
            }
            Control::SnapshotEnd { epoch, commit } => {
                self.close_snapshot(Place::end_of(*epoch, *commit), entry, Item::SnapshotEnd)
            }
            Control::SnapshotCut { epoch, commit } => {
                self.close_snapshot(Place::end_of(*epoch, *commit), entry, Item::SnapshotCut)
            }
            Control::SchemaChange { place, table, description } => {
                self.change_schema(*place, table, description, entry)
            }
            // One partition alone has nothing to be told.
            Control::Open { .. } | Control::Chunk { .. } | Control::Reached { .. } => Ok(()),
        }
    }

    fn take_end(
        &mut self,
        place: Place,
        committed_at_us: Option<i64>,
        entry: &Entry,
    ) -> Result<(), AssembleProblem> {
        if self.has_passed(place) {
            return Ok(());
        }
        self.void_before(place)?;
        let open = self.open.get_or_insert_with(|| Open::transaction(place, entry.from));
        open.committed_at(committed_at_us);
        self.flush(true, None);
        Ok(())
    }

    /// Between transactions a source has no place for it: it stands behind what was passed.
    fn change_schema(
        &mut self,
        place: Place,
        table: &TableId,
        description: &str,
        entry: &Entry,
    ) -> Result<(), AssembleProblem> {
        let between = place.commit == Commit::ZERO;
        if !between && (self.has_passed(place) || self.is_duplicate(place)) {
            return Ok(());
        }
        if !between {
            self.void_before(place)?;
        }
        self.flush(false, Some(entry.from));
        self.ready.push_back(Item::SchemaChange {
            table: table.clone(),
            description: description.to_owned(),
            place: if between { self.passed } else { place },
            offset: entry.at,
        });
        Ok(())
    }

    fn take_idle(&mut self, place: Place) {
        if self.has_passed(place) {
            return;
        }
        if let Some(open) = &self.open {
            // Said of the past, while a transaction is on its way.
            if place <= Place::end_of(open.place().epoch, open.place().commit) {
                return;
            }
            self.void();
        }
        self.passed = place;
        let mark = self.mark_here();
        self.ready.push_back(Item::Idle(mark));
    }

    /// Opens a snapshot or the rest of one: its place, and how far. `None`: it was passed.
    fn begin_snapshot(
        &mut self,
        place: Place,
        entry: &Entry,
    ) -> Result<Option<(Place, Mark)>, AssembleProblem> {
        if self.has_passed(place) {
            return Ok(None);
        }
        if self.open.as_ref().is_some_and(|open| open.is_snapshot_at(place)) {
            return Err(AssembleProblem::SnapshotAgain(place));
        }
        self.void_before(place)?;
        self.open = Some(Open::snapshot(place, entry.from));
        let mark = self.mark_here();
        Ok(Some((Place { ordinal: Ordinal::ZERO, ..place }, mark)))
    }

    /// Ends the snapshot at `place`, as `item` says.
    fn close_snapshot(
        &mut self,
        place: Place,
        entry: &Entry,
        item: fn(Mark) -> Item,
    ) -> Result<(), AssembleProblem> {
        if self.in_snapshot(place)? {
            self.flush(false, Some(entry.from));
            self.open = None;
            self.passed = place;
            let mark = self.mark_here();
            self.ready.push_back(item(mark));
        }
        Ok(())
    }

    /// Whether a snapshot's marker is to be told; the places of passed ones are not.
    fn in_snapshot(&mut self, place: Place) -> Result<bool, AssembleProblem> {
        if self.open.as_ref().is_some_and(|open| open.is_snapshot_at(place)) {
            return Ok(true);
        }
        if self.has_passed(Place::end_of(place.epoch, place.commit)) {
            return Ok(false);
        }
        Err(AssembleProblem::NoSnapshot(place))
    }
}

impl Lane {
    /// A new writer, if it is one. Its own older self, late, does not come back; in a copy of the
    /// log that another producer wrote, batches name nobody we know, and places alone decide.
    pub(super) fn take_open(
        &mut self,
        producer_id: u64,
        producer_epoch: u64,
        entry: &Entry,
    ) -> bool {
        let named = i64::try_from(producer_id).ok().zip(i16::try_from(producer_epoch).ok());
        let opened =
            named.map(|(producer_id, producer_epoch)| Writer { producer_id, producer_epoch });
        if opened != Some(entry.producer) {
            self.writer = None;
            self.joiner.reset();
            return true;
        }
        let late = self.writer.is_some_and(|writer| {
            writer.producer_id == entry.producer.producer_id
                && writer.producer_epoch > entry.producer.producer_epoch
        });
        if !late {
            self.writer = opened;
            self.joiner.reset();
        }
        !late
    }

    /// A chunk; the value once it is whole.
    pub(super) fn take_chunk(
        &mut self,
        control: &Control<'_>,
        entry: &Entry,
    ) -> Result<Option<Entry>, AssembleProblem> {
        let Control::Chunk { attempt, index, last, data } = control else { return Ok(None) };
        if entry.joined {
            return Err(AssembleProblem::NestedChunk);
        }
        if *index == 0 {
            self.joining_from = entry.at;
        }
        let whole =
            self.joiner.push(*attempt, *index, *last, data).map_err(AssembleProblem::Chunk)?;
        let (from, at, producer) = (self.joining_from, entry.at, entry.producer);
        let joined = |value: Vec<u8>| Entry {
            lane: entry.lane,
            from,
            at,
            value: value.into(),
            joined: true,
            producer,
        };
        Ok(whole.map(joined))
    }
}
