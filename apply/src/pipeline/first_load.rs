//! A snapshot's markers: tables are made or emptied, loaded, and finished when all of it is there.
//!
//! While a snapshot is loaded the target shows parts of it; every commit carries the place of the
//! last row that is in, so a crash continues inside a table. A snapshot that was given up before
//! its end leaves rows behind: its successor empties the tables it loads again, and at its end
//! those that it no longer has. One that was cut goes on: tables that had their end stay and follow
//! the stream, the others are emptied, and nothing is finished before the end of its rest. A table that was merged into has rows of others as well, and which
//! row is whose is not known: it is not loaded again before somebody has emptied it.

use std::sync::Arc;

use tailwater_change::{Place, SchemaId, SchemaTextError, TableId, TableSchema};

use super::schemas::Meaning;
use super::session::Session;
use super::state::SavedTable;
use super::tables::{existing, mixed};
use super::{Error, OnExisting};
use crate::{Mark, Table};

impl Session<'_> {
    pub(super) async fn begin_snapshot(
        &mut self,
        snapshot: Place,
        mark: Mark,
    ) -> Result<(), Error> {
        self.flush().await?;
        let running = self.state.snapshot;
        if running.is_none_or(|running| !running.same_transaction(&snapshot)) {
            if let Some(running) = running.or(self.state.cut) {
                self.state.void_snapshot(running);
            }
            self.state.snapshot = Some(snapshot);
            self.state.given_up = None;
            self.state.streaming = false;
            tracing::info!(%snapshot, "snapshot begins");
        }
        self.batch.pass(mark);
        self.show();
        Ok(())
    }

    /// A table's rows follow: they replace what is there, unless some of them are in already.
    pub(super) async fn begin_table(
        &mut self,
        id: SchemaId,
        begin: Place,
        mark: Mark,
    ) -> Result<(), Error> {
        self.flush().await?;
        let Some((schema, to)) = self.routed(id).await? else {
            self.batch.pass(mark);
            return Ok(());
        };
        let (table, made) = match self.target.describe(&schema, &to).await? {
            Some(target) => (self.remember(id, &schema, target), false),
            None => {
                self.make(id, &schema, &to).await?;
                (self.describe_made(id, &schema, &to).await?, true)
            }
        };
        if self.progress.place >= begin {
            self.batch.pass(mark);
            return Ok(());
        }
        let clear = !made && self.must_clear(id, &to).await?;
        let entry = self.state.table_mut(&to, id);
        (entry.schema, entry.loading, entry.ended, entry.void) = (id, true, false, false);
        self.target.begin().await?;
        if clear {
            self.target.clear(&[table]).await?;
        }
        self.commit(mark, None).await
    }

    /// All of a table's rows are there. That is remembered with what is committed next: if it is
    /// forgotten, the log says it again.
    pub(super) async fn end_table(&mut self, id: SchemaId, mark: Mark) -> Result<(), Error> {
        self.flush().await?;
        if let Some((_, to)) = self.routed(id).await? {
            self.state.table_mut(&to, id).ended = true;
        }
        self.batch.pass(mark);
        Ok(())
    }

    /// The snapshot broke off: what it has complete stays, what it has not is emptied here already.
    /// The stream no longer knows those rows, and could fall over them.
    pub(super) async fn cut_snapshot(&mut self, mark: Mark) -> Result<(), Error> {
        self.flush().await?;
        self.state.cut_snapshot();
        let mut void = Vec::new();
        for (id, to) in self.void_tables(|entry| !entry.merged) {
            void.extend(self.described(id, &to).await?);
        }
        tracing::info!(place = %mark.place, void = void.len(), "the snapshot broke off and goes on");
        self.target.begin().await?;
        if !void.is_empty() {
            self.target.clear(&void).await?;
        }
        self.commit(mark, None).await
    }

    /// The rest of a snapshot that was cut. Without its first part it is no beginning.
    pub(super) async fn begin_rest(&mut self, snapshot: Place, mark: Mark) -> Result<(), Error> {
        self.check_follows(snapshot)?;
        self.flush().await?;
        if self.state.snapshot.is_none_or(|running| !running.same_transaction(&snapshot)) {
            let cut = self.state.cut.take().filter(|cut| cut.epoch == snapshot.epoch);
            if cut.is_none() {
                return Err(Error::Gap { applied: self.progress.place, found: snapshot });
            }
            self.state.snapshot = Some(snapshot);
            tracing::info!(%snapshot, "the rest of the snapshot begins");
        }
        self.batch.pass(mark);
        self.show();
        Ok(())
    }

    /// Everything is there: indexes and foreign keys, then the stream.
    pub(super) async fn end_snapshot(&mut self, mark: Mark) -> Result<(), Error> {
        self.flush().await?;
        self.finish_all().await?;
        self.all_follow().await?;
        let left = self.left_over().await?;
        self.state.snapshot = None;
        self.state.given_up = None;
        for entry in &mut self.state.tables {
            (entry.loading, entry.ended, entry.void) = (false, false, false);
        }
        self.target.begin().await?;
        if !left.is_empty() {
            self.target.clear(&left).await?;
        }
        tracing::info!(place = %mark.place, "snapshot is complete");
        self.commit(mark, None).await?;
        // Finished tables have more keys than the plan was told of.
        self.tables.clear();
        self.intake().assembler.forget_schemas();
        Ok(())
    }

    async fn routed(&mut self, id: SchemaId) -> Result<Option<(Arc<TableSchema>, TableId)>, Error> {
        match self.context.schemas.get(id).await? {
            Meaning::Control => Err(Error::SchemaText { id, source: SchemaTextError::NotOurs }),
            Meaning::Table(schema) => {
                let to = self.context.config.route.target(&schema.table);
                Ok(to.map(|to| (schema, to)))
            }
        }
    }

    /// Whether a table's rows are to be deleted before it is loaded; for one that is not ours the
    /// configuration decides.
    async fn must_clear(&mut self, id: SchemaId, to: &TableId) -> Result<bool, Error> {
        if let Some(entry) = self.state.table(to) {
            return if entry.merged { self.unmerge(to).await } else { Ok(true) };
        }
        if self.target.is_empty(to).await? {
            return Ok(false);
        }
        match self.context.config.on_existing {
            OnExisting::Stop => Err(existing(to)),
            OnExisting::Replace => Ok(true),
            OnExisting::Merge => {
                self.state.table_mut(to, id).merged = true;
                Ok(false)
            }
        }
    }

    /// Whether a table is to be emptied in which rows of an earlier load stand among rows of others.
    /// To merge once more would keep what the source has deleted in between, and to empty it would
    /// delete what is not ours: unless there is nothing in it, that has been decided for us.
    async fn unmerge(&mut self, to: &TableId) -> Result<bool, Error> {
        let replace = self.context.config.on_existing == OnExisting::Replace;
        if !replace && !self.target.is_empty(to).await? {
            return Err(mixed(to));
        }
        for entry in &mut self.state.tables {
            entry.merged &= entry.table != *to;
        }
        Ok(replace)
    }

    /// Tables of a snapshot that was given up which this one did not load again.
    async fn left_over(&mut self) -> Result<Vec<Arc<Table>>, Error> {
        let mut tables = Vec::new();
        for (id, to) in self.void_tables(|_| true) {
            let merged = self.state.table(&to).is_some_and(|entry| entry.merged);
            if merged && !self.unmerge(&to).await? {
                continue;
            }
            tables.extend(self.described(id, &to).await?);
        }
        Ok(tables)
    }

    /// Tables whose rows are to be replaced.
    fn void_tables(&self, which: fn(&SavedTable) -> bool) -> Vec<(SchemaId, TableId)> {
        let void = self.state.tables.iter().filter(|entry| entry.void && which(entry));
        void.map(|entry| (entry.schema, entry.table.clone())).collect()
    }

    /// A table as it is on the target, if it is there.
    async fn described(&mut self, id: SchemaId, to: &TableId) -> Result<Option<Arc<Table>>, Error> {
        let Meaning::Table(schema) = self.context.schemas.get(id).await? else { return Ok(None) };
        let target = self.target.describe(&schema, to).await?;
        Ok(target.map(|target| Arc::new(Table { schema, target })))
    }
}
