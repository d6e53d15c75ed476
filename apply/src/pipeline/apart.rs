//! What a session does differently where partitions may be applied each on its own.
//!
//! A session has a role: the **whole** of a pipeline; the **leader** of one whose partitions may
//! part, which applies all of them together and lets them go; or one **part**. What the rows of the
//! target say, and in which order they are written and read, stands in [`parts`](super::parts).

use std::sync::Arc;
use std::time::Duration;

use tailwater_change::{Disposition, Operation, Place, SchemaId, TableId, TableSchema};

use super::hold::{STANDBY_INTERVAL, in_time};
use super::parts::{self, Row, Stand, gather, is_awaited, is_passed, needs_order, row_name, stand};
use super::schemas::Meaning;
use super::session::{Context, Flow, Session};
use super::start::Continuity;
use super::state::SavedState;
use super::{Error, LogIdentity};
use crate::{Change, ConflictPolicy, Item, Progress, Table, Target};

/// How often who has nothing to apply looks whether that has changed.
pub(super) const ASIDE_INTERVAL: Duration = Duration::from_millis(250);

/// What of a pipeline a session applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// All of it, in the source's order.
    Whole,
    /// All of it, where the partitions are together.
    Leader,
    /// A partition, while it is on its own.
    Part(usize),
}

impl Role {
    pub(super) fn is_part(self) -> bool {
        matches!(self, Self::Part(_))
    }

    /// How often the lock is asked for. That of a partition is free, or about to be.
    pub(super) fn standby_interval(self) -> Duration {
        if self.is_part() { ASIDE_INTERVAL } else { STANDBY_INTERVAL }
    }
}

impl Context {
    /// The name of its progress row and its lock.
    pub(super) fn row_name(&self) -> String {
        match self.role {
            Role::Whole | Role::Leader => self.config.name.clone(),
            Role::Part(partition) => row_name(&self.config.name, partition),
        }
    }

    /// What to do about rows that are not as expected. A partition alone does not know whether
    /// another one's change is still to come.
    pub(super) fn on_conflict(&self) -> ConflictPolicy {
        if self.role.is_part() { ConflictPolicy::Stop } else { self.config.on_conflict }
    }
}

/// Takes over what `initial` names; `None`: nothing is to be applied now.
pub(super) async fn begin(
    context: &mut Context,
    target: &mut dyn Target,
    initial: &Progress,
    identity: &LogIdentity,
) -> Result<Option<Row>, Error> {
    let own = row(target.take_over(initial).await?)?;
    if let Role::Part(partition) = context.role {
        return begin_part(context, target, own, partition, identity).await;
    }
    let Some(parted) = own.state.parted else { return Ok(Some(own)) };
    let known = same_log(&own, identity);
    if context.role == Role::Leader && known && !parted.called {
        let rows = read_parts(target, &own).await?;
        if !is_awaited(&own, &rows) {
            return Ok(None);
        }
    }
    let mut gathered = call_in(target, own).await?;
    if !known {
        // Offsets of another log.
        gathered.state.until.clear();
    }
    Ok(Some(gathered))
}

async fn begin_part(
    context: &mut Context,
    target: &mut dyn Target,
    own: Row,
    partition: usize,
    identity: &LogIdentity,
) -> Result<Option<Row>, Error> {
    // After the fence was raised: see `parts`.
    let Some(main) = read(target, &context.config.name).await? else { return Ok(None) };
    context.seen = main.state.parted;
    let Stand::At(mut own) = stand(&main, &own, partition) else { return Ok(None) };
    let waits = context.trial.waits.take();
    if waits.is_some() || !same_log(&own, identity) {
        if let Some(apart) = &mut own.state.apart {
            apart.waits = waits.or(Some(-1));
        }
        save(target, &own).await?;
        return Ok(None);
    }
    context.known = main.state.tables;
    Ok(Some(*own))
}

/// All partitions together again, whatever they are doing.
async fn call_in(target: &mut dyn Target, mut main: Row) -> Result<Row, Error> {
    if let Some(parted) = &mut main.state.parted {
        parted.called = true;
    }
    save(target, &main).await?;
    let mut rows = Vec::new();
    for partition in 0..partitions(&main) {
        let pipeline = row_name(&main.progress.pipeline, partition);
        let none = Progress { pipeline, fence: 0, state: "{}".into(), ..main.progress.clone() };
        rows.push(row(target.take_over(&none).await?)?);
    }
    let gathered = gather(&main, &rows);
    save(target, &gathered).await?;
    tracing::info!(place = %gathered.progress.place, "partitions are applied together");
    Ok(gathered)
}

/// Whether who stands aside has something to apply by now. Also his sign of life.
pub(super) async fn has_news(context: &Context, target: &mut dyn Target) -> Result<bool, Error> {
    let main = in_time(target.progress(&context.config.name)).await?;
    let Some(main) = main.map(row).transpose()? else { return Ok(!context.role.is_part()) };
    if context.role.is_part() {
        let parted = main.state.parted.filter(|parted| !parted.called);
        return Ok(parted.is_some() && parted != context.seen);
    }
    let rows = read_parts(target, &main).await?;
    let place = parts::place(&main, &rows);
    context.status.send_modify(|status| status.place = Some(place));
    Ok(main.state.parted.is_none() || is_awaited(&main, &rows))
}

/// The rows of all partitions, as they are.
pub(super) async fn read_parts(
    target: &mut dyn Target,
    main: &Row,
) -> Result<Vec<Option<Row>>, Error> {
    let mut rows = Vec::new();
    // Together, they say nothing.
    let count = main.state.parted.map_or(0, |_| partitions(main));
    for partition in 0..count {
        rows.push(read(target, &row_name(&main.progress.pipeline, partition)).await?);
    }
    Ok(rows)
}

pub(super) async fn read(target: &mut dyn Target, name: &str) -> Result<Option<Row>, Error> {
    in_time(target.progress(name)).await?.map(row).transpose()
}

async fn save(target: &mut dyn Target, row: &Row) -> Result<(), Error> {
    let progress = Progress { state: text(&row.progress, &row.state)?, ..row.progress.clone() };
    target.begin().await?;
    target.commit(&progress).await?;
    Ok(())
}

fn text(progress: &Progress, state: &SavedState) -> Result<String, Error> {
    serde_json::to_string(state)
        .map_err(|source| Error::State { pipeline: progress.pipeline.clone(), source })
}

fn row(progress: Progress) -> Result<Row, Error> {
    let state = serde_json::from_str(&progress.state)
        .map_err(|source| Error::State { pipeline: progress.pipeline.clone(), source })?;
    Ok(Row { progress, state })
}

fn partitions(main: &Row) -> usize {
    1 + main.state.others.len()
}

fn same_log(row: &Row, identity: &LogIdentity) -> bool {
    let read = (&row.progress.cluster_id, &row.progress.topic_id);
    read == (&identity.cluster_id, &identity.topic_id)
}

impl Session<'_> {
    pub(super) fn is_apart(&self) -> bool {
        self.context.role.is_part()
    }

    /// Whether a partition alone may not take this.
    pub(super) fn concerns_others(&self, item: &Item) -> bool {
        if !self.is_apart() {
            return false;
        }
        let is_next_epoch = |place: Place| place.epoch != self.progress.place.epoch;
        match item {
            Item::Part(part) => {
                part.snapshot
                    || is_next_epoch(part.mark.place)
                    || part.changes.iter().any(is_shared)
            }
            Item::Idle(mark) => is_next_epoch(mark.place),
            Item::Schema(_) | Item::Opened { .. } => false,
            Item::Voided { snapshot, .. } => *snapshot,
            Item::SnapshotBegin { .. }
            | Item::TableBegin { .. }
            | Item::TableEnd { .. }
            | Item::SnapshotEnd(_)
            | Item::SnapshotCut(_)
            | Item::SnapshotRest { .. }
            | Item::SchemaChange { .. } => true,
        }
    }

    /// Commits what stands before it, and that it is not for a partition alone.
    pub(super) async fn wait_for_others(&mut self) -> Result<Flow, Error> {
        self.rest().await?;
        self.context.trial.suspect = None;
        let walked = self.walked();
        if let Some(apart) = &mut self.state.apart {
            apart.waits = Some(walked);
        }
        self.save().await?;
        Ok(Flow::Aside)
    }

    fn walked(&self) -> i64 {
        let intake = self.intake.as_ref();
        intake.and_then(|intake| intake.assembler.walked(0)).map_or(-1, |offset| offset.get())
    }

    /// What a partition alone could not apply, all together have to pass.
    pub(super) fn note_failure(&mut self, error: &Error) {
        let waits = match error.disposition() {
            Disposition::Operator | Disposition::Bug => self.is_apart(),
            Disposition::Retry | Disposition::Fenced => false,
        };
        if waits {
            self.context.trial.waits = Some(self.walked());
        }
    }

    /// Whether this partition is no longer on its own.
    pub(super) async fn is_called(&mut self) -> Result<bool, Error> {
        if !self.is_apart() {
            return Ok(false);
        }
        let main = read(self.target.as_mut(), &self.context.config.name).await?;
        Ok(main.and_then(|main| main.state.parted) != self.context.seen)
    }

    /// The table that rows of `id` are written to, if a partition on its own may.
    pub(super) async fn table_apart(
        &mut self,
        id: SchemaId,
        schema: &Arc<TableSchema>,
        to: &TableId,
    ) -> Result<Option<Arc<Table>>, Error> {
        if let Some(table) = self.tables.get(&id) {
            return Ok(Some(Arc::clone(table)));
        }
        let known = self.context.known.iter().any(|entry| entry.table == *to && entry.schema == id);
        if !known {
            return Ok(None);
        }
        let Some(described) = self.target.describe(schema, to).await? else { return Ok(None) };
        if needs_order(schema, &described).is_some() {
            return Ok(None);
        }
        self.target.follows(schema, to).await?;
        Ok(Some(self.remember(id, schema, described)))
    }

    /// Whether the partitions may go on each on its own from what is committed.
    pub(super) async fn may_part(&mut self) -> Result<bool, Error> {
        let trial = &self.context.trial;
        let is_plain = self.context.role == Role::Leader
            && !self.stays_together
            && self.batch.is_empty()
            && self.large.is_none()
            && self.continuity == Continuity::Certain
            && (trial.superseded.is_none() && trial.one_by_one.is_none() && trial.skips.is_empty());
        let state = &self.state;
        let is_whole = state.streaming
            && !state.is_loading()
            && state.given_up.is_none()
            && !state.tables.iter().any(|table| table.unfinished || table.void || table.loading)
            && !state.others.is_empty()
            && state.others.len() + 1 == self.identity.partitions;
        if !is_plain || !is_whole || !is_passed(&self.progress, state) {
            return Ok(false);
        }
        self.stays_together = self.is_ordered().await?;
        Ok(!self.stays_together)
    }

    /// Whether a table's rows are right only in the source's order.
    async fn is_ordered(&mut self) -> Result<bool, Error> {
        let tables = self.state.tables.iter();
        let tables: Vec<_> = tables.map(|entry| (entry.schema, entry.table.clone())).collect();
        for (id, to) in tables {
            let Meaning::Table(schema) = self.context.schemas.get(id).await? else { continue };
            let Some(described) = self.target.describe(&schema, &to).await? else { continue };
            if let Some(why) = needs_order(&schema, &described) {
                tracing::warn!(
                    table = %to,
                    why,
                    "its rows need the source's order: one process applies all partitions together"
                );
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets the partitions go.
    pub(super) async fn part(&mut self) -> Result<(), Error> {
        self.state = parts::part(&self.state, (self.context.config.clock)());
        self.save().await?;
        tracing::info!(place = %self.progress.place, "partitions are applied each on its own");
        Ok(())
    }
}

/// Whether a change concerns more than the partition it is in.
fn is_shared(change: &Change) -> bool {
    match change.operation {
        Operation::Truncate | Operation::Read => true,
        // A row of another partition under the identity that it has from here on.
        Operation::Update => {
            change.before.is_some()
                && !change.unsent.is_empty()
                && !change.table.schema.key().is_empty()
        }
        Operation::Insert | Operation::Delete => false,
    }
}
