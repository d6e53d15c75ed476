//! What the rows of a schema are written to: found on the target, or made there.

use std::collections::HashSet;
use std::sync::Arc;

use tailwater_change::{Problem, SchemaId, TableId, TableSchema};

use super::schemas::Meaning;
use super::session::{Flow, Session};
use super::{Error, OnExisting};
use crate::{SchemaUse, Table};

impl Session<'_> {
    /// Answers the assembler's question what `id` stands for. A partition that is applied on its own
    /// leaves tables that it does not know, and those that need the source's order, to the leader.
    pub(super) async fn learn(&mut self, id: SchemaId) -> Result<Flow, Error> {
        let usage = match self.context.schemas.get(id).await? {
            Meaning::Control => SchemaUse::Control,
            Meaning::Table(schema) => match self.context.config.route.target(&schema.table) {
                None => SchemaUse::Ignored,
                Some(to) if self.is_apart() => match self.table_apart(id, &schema, &to).await? {
                    Some(table) => SchemaUse::Table(table),
                    None => return self.wait_for_others().await,
                },
                Some(to) => match self.table_of(id, &schema, &to).await? {
                    Some(table) => SchemaUse::Table(table),
                    None => return Ok(Flow::Restart),
                },
            },
        };
        self.intake().assembler.learn(id, usage);
        Ok(Flow::On)
    }

    /// The table that rows of `id` are written to; `None`: it was made, and what is running has to
    /// begin again, since making it ended the open transaction.
    async fn table_of(
        &mut self,
        id: SchemaId,
        schema: &Arc<TableSchema>,
        to: &TableId,
    ) -> Result<Option<Arc<Table>>, Error> {
        if let Some(table) = self.tables.get(&id) {
            return Ok(Some(Arc::clone(table)));
        }
        if let Some(target) = self.target.describe(schema, to).await? {
            self.adopt(id, to).await?;
            // Before a load is over, what the table lacks is still ours to make.
            if !self.state.is_loading() {
                self.target.follows(schema, to).await?;
            }
            return Ok(Some(self.remember(id, schema, target)));
        }
        let large = self.large.is_some();
        self.abandon_large().await?;
        self.flush().await?;
        self.make(id, schema, to).await?;
        self.finish(schema, to).await?;
        self.target.follows(schema, to).await?;
        self.state.table_mut(to, id).unfinished = false;
        if large {
            self.save().await?;
            return Ok(None);
        }
        let table = self.describe_made(id, schema, to).await?;
        Ok(Some(table))
    }

    pub(super) fn remember(
        &mut self,
        id: SchemaId,
        schema: &Arc<TableSchema>,
        target: crate::TargetTable,
    ) -> Arc<Table> {
        let table = Arc::new(Table { schema: Arc::clone(schema), target });
        self.tables.insert(id, Arc::clone(&table));
        table
    }

    /// Makes a table. That we do so is kept first: after a crash in between, its indexes are still
    /// ours to make.
    pub(super) async fn make(
        &mut self,
        id: SchemaId,
        schema: &Arc<TableSchema>,
        to: &TableId,
    ) -> Result<(), Error> {
        let entry = self.state.table_mut(to, id);
        entry.unfinished = true;
        entry.schema = id;
        self.save().await?;
        tracing::info!(table = %to, "creating the table on the target");
        self.target.create_table(schema, to).await?;
        Ok(())
    }

    pub(super) async fn describe_made(
        &mut self,
        id: SchemaId,
        schema: &Arc<TableSchema>,
        to: &TableId,
    ) -> Result<Arc<Table>, Error> {
        let target = self.target.describe(schema, to).await?.ok_or_else(|| {
            Error::Existing(Problem::new(
                format!("table {to} was made on the target and is not there"),
                "see who removes tables there, then `tailwater resume`",
            ))
        })?;
        Ok(self.remember(id, schema, target))
    }

    /// Secondary indexes, foreign keys, sequences of a table of ours.
    async fn finish(&mut self, schema: &Arc<TableSchema>, to: &TableId) -> Result<(), Error> {
        // A foreign key to a table that this pipeline does not fill could never be satisfied.
        let route = self.context.config.route.clone();
        let ours: HashSet<TableId> =
            self.state.tables.iter().map(|entry| entry.table.clone()).collect();
        let reach = |table: &TableId| route.target(table).filter(|to| ours.contains(to));
        self.target.finish_table(schema, to, &reach).await?;
        Ok(())
    }

    /// Tables that were made and not finished, by this load or before a crash.
    ///
    /// A foreign key may reference a unique index of any of them: indexes first, of all. Nothing is
    /// kept in between, so after a crash all of it is looked at again.
    pub(super) async fn finish_all(&mut self) -> Result<(), Error> {
        let unfinished = self.state.tables.iter().filter(|entry| entry.unfinished);
        let unfinished: Vec<_> =
            unfinished.map(|entry| (entry.schema, entry.table.clone())).collect();
        let mut made = Vec::new();
        for (id, to) in unfinished {
            let Meaning::Table(schema) = self.context.schemas.get(id).await? else { continue };
            if self.target.describe(&schema, &to).await?.is_none() {
                self.target.create_table(&schema, &to).await?;
            }
            self.target.finish_table(&schema, &to, &|_| None).await?;
            made.push((schema, to));
        }
        for (schema, to) in made {
            if !schema.foreign_keys.is_empty() {
                self.finish(&schema, &to).await?;
            }
        }
        for entry in &mut self.state.tables {
            entry.unfinished = false;
        }
        Ok(())
    }

    /// The load is over: what its tables still lack, nobody makes any more.
    pub(super) async fn all_follow(&mut self) -> Result<(), Error> {
        let loaded = self.state.tables.iter().filter(|entry| !entry.void);
        let loaded: Vec<_> = loaded.map(|entry| (entry.schema, entry.table.clone())).collect();
        for (id, to) in loaded {
            if let Meaning::Table(schema) = self.context.schemas.get(id).await? {
                self.target.follows(&schema, &to).await?;
            }
        }
        Ok(())
    }

    /// Rows of a stream arrive for a table that was there before.
    async fn adopt(&mut self, id: SchemaId, to: &TableId) -> Result<(), Error> {
        if self.state.table(to).is_none() && !self.target.is_empty(to).await? {
            match self.context.config.on_existing {
                OnExisting::Merge => self.state.table_mut(to, id).merged = true,
                // Nothing in the stream would bring back what is deleted here.
                OnExisting::Replace | OnExisting::Stop => return Err(existing(to)),
            }
        }
        self.state.table_mut(to, id).schema = id;
        Ok(())
    }
}

/// The target's table has rows of somebody else and rows of an earlier load of ours.
pub(super) fn mixed(to: &TableId) -> Error {
    Error::Existing(Problem::new(
        format!(
            "table {to} on the target has rows that it had before this pipeline and rows of a load \
             that a new one replaces, and nothing tells them apart"
        ),
        "empty it (rows of its own can be kept elsewhere and put back once the pipeline is \
         streaming), or set on_existing = \"replace\" (delete them all); then `tailwater resume`",
    ))
}

/// The target's table has rows of somebody else.
pub(super) fn existing(to: &TableId) -> Error {
    Error::Existing(Problem::new(
        format!("table {to} on the target has rows that this pipeline has not written"),
        "empty it, or set on_existing = \"merge\" (keep them, the source's rows win) or, for \
         tables that a snapshot loads, on_existing = \"replace\" (delete them); then `tailwater \
         resume`",
    ))
}
