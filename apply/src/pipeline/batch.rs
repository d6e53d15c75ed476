//! What goes into one transaction of the target, and its execution.

use tailwater_change::Place;
use tokio::time::Instant;

use super::session::Session;
use super::{BatchBounds, Error};
use crate::{Change, ConflictPolicy, Mark, Part, StepOutcome, Stretch, plan};

/// Consecutive whole transactions, or parts of a snapshot.
#[derive(Debug, Default)]
pub(super) struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    /// Transactions that end in it.
    transactions: usize,
    /// Any place within the first of them.
    first: Option<Place>,
    /// When the source committed each of them.
    committed_at_us: Vec<i64>,
    /// How far the log is taken with it; `None`: it is empty.
    mark: Option<Mark>,
    since: Option<Instant>,
}

/// What is being applied, in case it cannot be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    pub(super) first: Place,
    pub(super) last: Place,
    pub(super) transactions: usize,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.mark.is_none()
    }

    pub(super) fn add(&mut self, mut part: Part) {
        self.since.get_or_insert_with(Instant::now);
        self.first.get_or_insert(part.mark.place);
        if part.end {
            self.transactions += 1;
            self.committed_at_us.extend(part.committed_at_us);
        }
        // What was walked before the first row is kept by none.
        if !self.changes.is_empty() || !part.changes.is_empty() {
            self.bytes = self.bytes.saturating_add(part.bytes);
        }
        if self.changes.is_empty() {
            self.changes = part.changes;
        } else {
            self.changes.append(&mut part.changes);
        }
        self.mark = Some(part.mark);
    }

    /// Takes the log up to `mark` without a change.
    pub(super) fn pass(&mut self, mark: Mark) {
        self.since.get_or_insert_with(Instant::now);
        self.mark = Some(mark);
    }

    pub(super) fn is_full(&self, bounds: BatchBounds, held_bytes: usize) -> bool {
        self.changes.len() >= bounds.rows
            || self.bytes >= held_bytes
            || self.since.is_some_and(|since| since.elapsed() >= bounds.time)
    }

    /// When the source committed the newest of its transactions, if it has any and they say so.
    pub(super) fn newest_us(&self) -> Option<i64> {
        self.committed_at_us.last().copied()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn transactions(&self) -> usize {
        self.transactions
    }

    fn suspect(&self, mark: &Mark) -> Option<Suspect> {
        let first = self.first?;
        Some(Suspect { first, last: mark.place, transactions: self.transactions })
    }
}

impl Session<'_> {
    /// Applies and commits what the batch holds.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        let batch = std::mem::take(&mut self.batch);
        let Some(mark) = batch.mark.clone() else { return Ok(()) };
        self.context.trial.suspect = batch.suspect(&mark);
        let (rows, newest_us) = (batch.changes.len(), batch.newest_us());
        self.target.begin().await?;
        self.execute(batch.changes).await?;
        self.commit(mark, newest_us).await?;
        self.note_applied(rows, batch.transactions, &batch.committed_at_us);
        Ok(())
    }

    /// One more part of a transaction too large for a batch: it stays open on the target.
    pub(super) async fn stream(&mut self, part: Part) -> Result<(), Error> {
        if self.large.is_none() {
            self.flush().await?;
            let place = part.mark.place;
            self.context.trial.suspect =
                Some(Suspect { first: place, last: place, transactions: 1 });
            self.target.begin().await?;
            self.large = Some(0);
        }
        let rows = part.changes.len();
        self.execute(part.changes).await?;
        let large = self.large.get_or_insert(0);
        *large += rows;
        if part.end {
            let rows = self.large.take().unwrap_or(rows);
            self.commit(part.mark, part.committed_at_us).await?;
            self.note_applied(rows, 1, part.committed_at_us.as_slice());
        }
        Ok(())
    }

    /// Undoes what was streamed of a transaction that is void, or not to be finished now.
    pub(super) async fn abandon_large(&mut self) -> Result<(), Error> {
        if self.large.take().is_some() {
            self.target.rollback().await?;
        }
        Ok(())
    }

    async fn execute(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        for stretch in plan(changes) {
            let policy = self.policy(&stretch);
            if stretch.steps.is_empty() || !self.took_steps(&stretch).await? {
                let repaired = self.target.replay(&stretch.changes, policy).await?;
                self.context.metrics.note_conflicts(repaired);
            }
        }
        Ok(())
    }

    /// Tries the steps; `false`: refused, and undone.
    async fn took_steps(&mut self, stretch: &Stretch) -> Result<bool, Error> {
        self.target.savepoint().await?;
        for step in &stretch.steps {
            if let StepOutcome::Refused(why) = self.target.step(step).await? {
                tracing::debug!(why, changes = stretch.changes.len(), "refused: replaying");
                self.context.metrics.note_refusal();
                self.target.rollback_to_savepoint().await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A table that is merged into expects rows to be there.
    fn policy(&self, stretch: &Stretch) -> ConflictPolicy {
        let merging = |change: &Change| self.state.is_merging(&change.table.target.name);
        if self.state.snapshot.is_some() && stretch.changes.iter().any(merging) {
            ConflictPolicy::Repair
        } else {
            self.context.on_conflict()
        }
    }
}
