//! Snapshots: synthetic transactions, their tables and the marks between their parts.

use tailwater_change::{Commit, Control, Place, SchemaId, TableId};

use super::{Slot, Writer};
use crate::changes::TableSlot;
use crate::error::Error;

impl Writer {
    /// These tables were finished by whoever wrote before.
    pub(crate) fn keep(&mut self, finished: Vec<TableId>) {
        self.finished = finished;
    }

    /// Tables whose end has been appended and that stay if the snapshot breaks off.
    pub(crate) fn finished(&self) -> &[TableId] {
        &self.finished
    }

    /// The place that the next row of the snapshot gets.
    pub(crate) fn snapshot_place(&self) -> Option<Place> {
        let open = self.open.as_ref()?;
        Some(Place::new(self.epoch, open.commit, open.next_ordinal))
    }

    /// Begins the synthetic transaction of a snapshot.
    pub(crate) async fn snapshot_begin(&mut self, commit: Commit) -> Result<(), Error> {
        self.begin_part(commit)?;
        self.lanes.marker(&Control::SnapshotBegin { epoch: self.epoch, commit }).await
    }

    /// Says that the snapshot at `commit` broke off, and what of it counts.
    pub(crate) async fn snapshot_cut(&mut self, commit: Commit) -> Result<(), Error> {
        self.lanes.look_at_clock();
        self.lanes.marker(&Control::SnapshotCut { epoch: self.epoch, commit }).await
    }

    /// Begins the rest of a snapshot that was cut.
    pub(crate) async fn snapshot_rest(&mut self, commit: Commit) -> Result<(), Error> {
        self.begin_part(commit)?;
        self.lanes.marker(&Control::SnapshotRest { epoch: self.epoch, commit }).await
    }

    /// Goes on in the snapshot that is open in the log: its next row gets the place `next`.
    pub(crate) fn snapshot_again(&mut self, next: Place) -> Result<(), Error> {
        self.begin_part(next.commit)?;
        if let Some(open) = &mut self.open {
            (open.base, open.next_ordinal) = (next.ordinal, next.ordinal);
        }
        Ok(())
    }

    fn begin_part(&mut self, commit: Commit) -> Result<(), Error> {
        self.lanes.look_at_clock();
        self.begin(commit, None)?;
        if let Some(open) = &mut self.open {
            open.snapshot = true;
        }
        Ok(())
    }

    pub(super) async fn table_begin(&mut self, slot: TableSlot) -> Result<(), Error> {
        let (place, schema) = self.table_place(slot)?;
        if let Some(open) = &mut self.open {
            open.table_rows = 0;
        }
        self.lanes.marker(&Control::TableBegin { place, schema }).await
    }

    pub(super) async fn table_end(&mut self, slot: TableSlot) -> Result<(), Error> {
        let (place, schema) = self.table_place(slot)?;
        let rows = self.open.as_ref().map_or(0, |open| open.table_rows);
        self.lanes.marker(&Control::TableEnd { place, schema, rows }).await?;
        if let Some(Some(Slot { schema, .. })) = self.slots.get(slot.0)
            // Its stream would not say all that happens to it: it is always read to its end at the
            // point where the stream goes on.
            && !schema.changes_unlogged()
        {
            self.finished.push(schema.table.clone());
        }
        Ok(())
    }

    fn table_place(&self, slot: TableSlot) -> Result<(Place, SchemaId), Error> {
        let Some(open) = &self.open else {
            return Err(Error::Contract("a snapshot's table outside a snapshot"));
        };
        let Some(Some(table)) = self.slots.get(slot.0) else {
            return Err(Error::Contract("a snapshot's table that has no schema"));
        };
        tracing::debug!(table = %table.schema.table, "snapshot table boundary");
        Ok((Place::new(self.epoch, open.commit, open.next_ordinal), table.value_id))
    }

    pub(super) async fn snapshot_end(&mut self) -> Result<(), Error> {
        let Some(open) = self.open.take() else {
            return Err(Error::Contract("the end of no snapshot"));
        };
        if self.lanes.count() > 1 {
            // Where one partition has the end, all of them have all rows.
            self.lanes.drain().await?;
        }
        self.lanes.marker(&Control::SnapshotEnd { epoch: self.epoch, commit: open.commit }).await
    }
}
