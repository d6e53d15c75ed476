//! Changes one by one in the source's order, repairing what the target has otherwise.
//!
//! Changes travel several to a packet behind a savepoint of their own. As long as each changes
//! exactly one row that is all. Where one does not, back to that savepoint, and from there with one
//! round trip per change, so that each can be answered.
//!
//! A row is found by its key's bytes: one whose key the target's collation only takes for equal is
//! another row, and never written over.

use std::collections::HashSet;

use mysql_async::prelude::{FromRow, Queryable};
use tailwater_apply::{Change, ConflictPolicy, RowImage, StepOutcome, TargetError};
use tailwater_change::{Operation, Problem, Value};

use super::failure::{DUPLICATE, too_large, violated_key};
use super::load::{Images, fits};
use super::session::Session;
use super::sql::{self, Batch};
use super::step::Work;
use super::table::{Shape, on};
use crate::connect::quote_text;

const GROUP: usize = 64;
const GROUP_BYTES: usize = 256 * 1024;

/// As much of another row's key as a message shows.
const KEY_CHARACTERS: usize = 64;

/// How a single statement ended.
#[derive(Debug)]
pub(super) enum Single {
    /// It changed this many rows.
    Changed(u64),
    /// This unique key already has the value.
    Duplicate(String),
}

impl Session {
    /// Executes changes in order; see [`tailwater_apply::Target::replay`].
    pub(super) async fn replay_changes(
        &mut self,
        changes: &[Change],
        policy: ConflictPolicy,
    ) -> Result<u64, TargetError> {
        let mut repaired = 0;
        let mut at = 0;
        // Changes that went together with an earlier one.
        let mut settled = HashSet::new();
        while at < changes.len() {
            if settled.contains(&at) {
                at += 1;
                continue;
            }
            let (end, applied) = self.group(changes, at, &settled).await?;
            if !applied {
                self.back().await?;
                for one in at..end {
                    if !settled.contains(&one) {
                        repaired += self.one(changes, one, policy, &mut settled).await?;
                    }
                }
            }
            at = end;
        }
        Ok(repaired)
    }

    /// Sends as many changes from `start` on as go together; where they end, and whether each
    /// changed exactly its row.
    async fn group(
        &mut self,
        changes: &[Change],
        start: usize,
        settled: &HashSet<usize>,
    ) -> Result<(usize, bool), TargetError> {
        let first = self.shape(&changes[start].table).await?;
        let cascades = first.cascades;
        let mut batch = self.batch(cascades);
        batch.stage("SAVEPOINT tailwater_row");
        let mut exact = Vec::new();
        let mut end = start;
        while end < changes.len() && exact.len() < GROUP && batch.sql.len() < GROUP_BYTES {
            if settled.contains(&end) {
                end += 1;
                continue;
            }
            let change = &changes[end];
            let shape = self.shape(&change.table).await?;
            // Foreign keys act for a whole packet or not at all; and large rows go alone.
            let mut statement = Vec::new();
            put(&shape, change, &mut statement)?;
            if shape.cascades != cascades || !fits(self, &batch, statement.len()) {
                break;
            }
            batch.statement().append(&mut statement);
            exact.push(change.operation != Operation::Truncate);
            end += 1;
        }
        if exact.is_empty() {
            // One row, too large for a packet: the savepoint is all that is sent.
            self.ran(&batch, "replay changes").await?;
            return Ok((start + 1, false));
        }
        match self.run(&batch).await {
            Ok(outcomes) => {
                let applied = outcomes.len() == exact.len()
                    && outcomes.iter().zip(&exact).all(|(outcome, one)| {
                        outcome.warnings == 0 && (!one || outcome.affected == 1)
                    });
                Ok((end, applied))
            }
            Err(failure) if failure.data().is_some() => Ok((end, false)),
            Err(failure) => Err(failure.into_target("replay changes")),
        }
    }

    async fn ran(&mut self, batch: &Batch, operation: &str) -> Result<(), TargetError> {
        self.run(batch).await.map(drop).map_err(|failure| failure.into_target(operation))
    }

    async fn back(&mut self) -> Result<(), TargetError> {
        self.execute("ROLLBACK TO SAVEPOINT tailwater_row")
            .await
            .map(drop)
            .map_err(|failure| failure.into_target("return to a savepoint"))
    }

    /// Executes one change and repairs what it meets.
    async fn one(
        &mut self,
        changes: &[Change],
        at: usize,
        policy: ConflictPolicy,
        settled: &mut HashSet<usize>,
    ) -> Result<u64, TargetError> {
        let change = &changes[at];
        let shape = self.shape(&change.table).await?;
        if change.operation == Operation::Truncate {
            self.delete_all(std::slice::from_ref(&change.table)).await?;
            return Ok(0);
        }
        let mut statement = Vec::new();
        put(&shape, change, &mut statement)?;
        if !fits(self, &Batch::default(), statement.len()) {
            return self.large(&shape, change).await;
        }
        let single = self.single(&shape, &statement).await?;
        match (change.operation, single) {
            (_, Single::Changed(1)) => Ok(0),
            (Operation::Delete | Operation::Update, Single::Changed(2..)) => {
                Err(self.several(&shape, change).await)
            }
            (Operation::Delete, Single::Changed(_)) => {
                require(policy, &shape, change, "the row to delete is not there")?;
                Ok(1)
            }
            (Operation::Insert | Operation::Read, Single::Changed(_)) => {
                Err(conflict(&shape, change, "the row was not inserted"))
            }
            (Operation::Insert | Operation::Read, Single::Duplicate(key)) => {
                if self.has_identity(&shape, change, &key).await? {
                    require(policy, &shape, change, "the row to insert is already there")?;
                    return self.equalise(&shape, change).await.map(|()| 1);
                }
                self.settle(changes, at, policy, settled, &key).await
            }
            (Operation::Update, Single::Changed(_)) => {
                require(policy, &shape, change, "the row to update is not there")?;
                self.put_missing(&shape, change).await
            }
            (Operation::Update, Single::Duplicate(key)) => {
                self.settle(changes, at, policy, settled, &key).await
            }
            (Operation::Delete | Operation::Truncate, Single::Duplicate(key)) => {
                Err(conflict(&shape, change, &format!("unique key {key} stands in the way")))
            }
            (Operation::Truncate, Single::Changed(_)) => Ok(0),
        }
    }

    pub(super) async fn single(
        &mut self,
        shape: &Shape,
        statement: &[u8],
    ) -> Result<Single, TargetError> {
        let operation = on("change a row of", &shape.target.name);
        let mut batch = self.batch(shape.cascades);
        batch.statement().extend_from_slice(statement);
        match self.run(&batch).await {
            Ok(outcomes) => match outcomes[..] {
                [outcome] if outcome.warnings == 0 => Ok(Single::Changed(outcome.affected)),
                [_] => Err(self.warned(shape).await),
                _ => Err(TargetError::Bug { operation, detail: "no result".into() }),
            },
            Err(failure) => match failure.data() {
                Some(error) if error.code == DUPLICATE => {
                    Ok(Single::Duplicate(violated_key(error).unwrap_or("?").to_owned()))
                }
                _ => Err(failure.into_target(&operation)),
            },
        }
    }

    /// A change names one row: what it did to several is undone, even where the caller goes on.
    pub(super) async fn several(&mut self, shape: &Shape, change: &Change) -> TargetError {
        match self.back().await {
            Ok(()) => conflict(shape, change, "the target has several rows of this key"),
            Err(error) => error,
        }
    }

    /// A warning means that the server bent a value. It stays out.
    async fn warned(&mut self, shape: &Shape) -> TargetError {
        let rows: Result<Vec<(String, u16, String)>, _> = self.conn.query("SHOW WARNINGS").await;
        let texts: Vec<String> = match rows {
            Ok(rows) => rows
                .into_iter()
                .map(|(level, code, message)| {
                    let error = mysql_async::ServerError { code, message, state: level };
                    super::failure::sanitized(&error)
                })
                .collect(),
            Err(error) => {
                let operation = on("read the warnings of", &shape.target.name);
                return super::failure::Failure::of(error).into_target(&operation);
            }
        };
        TargetError::Refused(Problem::new(
            format!(
                "table {} would not take a row unchanged: {}",
                shape.target.name,
                texts.join("; ")
            ),
            "make the target's column as wide as the source's, then `tailwater resume`",
        ))
    }

    /// A row that goes only in pieces: as its own step.
    async fn large(&mut self, shape: &Shape, change: &Change) -> Result<u64, TargetError> {
        if !self.local_infile || shape.is_full() && change.operation == Operation::Update {
            return Err(too_large(&on("change a row of", &shape.target.name)));
        }
        let outcome = match change.operation {
            Operation::Insert | Operation::Read => self.insert_rows(shape, &[change]).await?,
            Operation::Update => {
                let work =
                    Work::Update { moved: change.before.is_some(), unsent: change.unsent.clone() };
                let joined = self.join_rows(shape, &[change], &work).await?;
                joined.ok_or_else(|| too_large(&on("change a row of", &shape.target.name)))?
            }
            Operation::Delete | Operation::Truncate => {
                return Err(too_large(&on("delete a row of", &shape.target.name)));
            }
        };
        match outcome {
            StepOutcome::Applied => Ok(0),
            StepOutcome::Refused(why) => Err(conflict(shape, change, &why)),
        }
    }

    /// Whether the row that `change` inserts has its identity on the target already.
    async fn has_identity(
        &mut self,
        shape: &Shape,
        change: &Change,
        violated: &str,
    ) -> Result<bool, TargetError> {
        if shape.is_full() {
            return Ok(false);
        }
        if shape.identity_indexes.iter().any(|index| index == violated) {
            return Ok(true);
        }
        let mut images = Images::default();
        images.read(shape, change)?;
        let mut statement = format!("SELECT COUNT(*) FROM {}", shape.table).into_bytes();
        sql::put_where_equal(shape, &images.new, &mut statement)?;
        self.count(&statement, shape).await.map(|count| count > 0)
    }

    pub(super) async fn count(
        &mut self,
        statement: &[u8],
        shape: &Shape,
    ) -> Result<u64, TargetError> {
        self.first(statement, shape).await.map(Option::unwrap_or_default)
    }

    /// The first row of a query on the table.
    async fn first<R: FromRow + Send + 'static>(
        &mut self,
        statement: &[u8],
        shape: &Shape,
    ) -> Result<Option<R>, TargetError> {
        self.conn.query_first(statement).await.map_err(|error| {
            super::failure::Failure::of(error).into_target(&on("read", &shape.target.name))
        })
    }

    /// Why the row that stands in the way was not made equal to `key`'s: where the target takes
    /// different keys for equal, it may be another, and would be lost.
    async fn not_found(
        &mut self,
        shape: &Shape,
        change: &Change,
        key: &[Value<'_>],
    ) -> Result<TargetError, TargetError> {
        let gone = || conflict(shape, change, "the row is there and cannot be found");
        let Some(statement) = sql::other_key(shape, key)? else { return Ok(gone()) };
        let found: Option<mysql_async::Row> = self.first(&statement, shape).await?;
        let Some(found) = found else { return Ok(gone()) };
        let texts = (0..shape.folding.len()).map(|at| found.get::<String, _>(at));
        let names = shape.folding.iter().map(|at| &shape.fields[*at].name);
        let there: Vec<String> = names
            .zip(texts)
            .map(|(name, text)| {
                let text: String = text.unwrap_or_default().chars().take(KEY_CHARACTERS).collect();
                format!("{name}={}", quote_text(&text))
            })
            .collect();
        let there = there.join(", ");
        let what = format!(
            "the target takes its key for equal to that of another row, {there}, which is there"
        );
        Ok(conflict(shape, change, &what))
    }

    /// Makes the row that has `change`'s new identity equal to it.
    async fn equalise(&mut self, shape: &Shape, change: &Change) -> Result<(), TargetError> {
        if !change.unsent.is_empty() {
            return Err(conflict(shape, change, "the row differs and not all of it was sent"));
        }
        let mut images = Images::default();
        images.read(shape, change)?;
        let mut statement = Vec::new();
        sql::put_update(shape, &images.new, &images.new, true, &mut statement)?;
        match self.single(shape, &statement).await? {
            Single::Changed(1) => Ok(()),
            Single::Changed(0) => Err(self.not_found(shape, change, &images.new).await?),
            Single::Changed(_) => Err(self.several(shape, change).await),
            Single::Duplicate(key) => Err(conflict(
                shape,
                change,
                &format!("another row has its value of unique key {key}"),
            )),
        }
    }

    /// Inserts the row that an update did not find.
    async fn put_missing(&mut self, shape: &Shape, change: &Change) -> Result<u64, TargetError> {
        if !change.unsent.is_empty() {
            return Err(conflict(
                shape,
                change,
                "the row to update is not there, and not all of it was sent",
            ));
        }
        self.insert_or_equalise(shape, change).await.map(|_| 1)
    }

    /// Makes sure that the new row is there as `change` has it; how many rows had to be repaired.
    pub(super) async fn insert_or_equalise(
        &mut self,
        shape: &Shape,
        change: &Change,
    ) -> Result<u64, TargetError> {
        let mut images = Images::default();
        images.read(shape, change)?;
        let mut statement = Vec::new();
        sql::put_insert(shape, &mut statement);
        sql::put_tuple(shape, &images.new, &mut statement)?;
        match self.single(shape, &statement).await? {
            Single::Changed(_) => Ok(0),
            Single::Duplicate(key) if self.has_identity(shape, change, &key).await? => {
                self.equalise(shape, change).await.map(|()| 1)
            }
            Single::Duplicate(key) => Err(conflict(
                shape,
                change,
                &format!("another row has its value of unique key {key}"),
            )),
        }
    }
}

/// The statement of one change.
fn put(shape: &Shape, change: &Change, out: &mut Vec<u8>) -> Result<(), TargetError> {
    if change.operation == Operation::Truncate {
        out.extend_from_slice(b"DELETE FROM ");
        out.extend_from_slice(shape.table.as_bytes());
        return Ok(());
    }
    let mut images = Images::default();
    images.read(shape, change)?;
    match change.operation {
        Operation::Insert | Operation::Read => {
            sql::put_insert(shape, out);
            sql::put_tuple(shape, &images.new, out)
        }
        Operation::Update => {
            sql::put_update(shape, &images.old, &images.new, change.before.is_some(), out)
        }
        Operation::Delete | Operation::Truncate => sql::put_delete(shape, &images.old, out),
    }
}

pub(super) fn require(
    policy: ConflictPolicy,
    shape: &Shape,
    change: &Change,
    what: &str,
) -> Result<(), TargetError> {
    match policy {
        ConflictPolicy::Repair => Ok(()),
        ConflictPolicy::Stop => Err(conflict(shape, change, what)),
    }
}

pub(super) fn conflict(shape: &Shape, change: &Change, what: &str) -> TargetError {
    let mut values = Vec::new();
    let key = match change
        .before
        .as_ref()
        .map(|RowImage { bytes, .. }| bytes)
        .or(change.after.as_ref())
    {
        Some(row) if sql::read(shape, row, &[], &mut values).is_ok() => {
            sql::key_text(shape, &values)
        }
        _ => "a row".to_owned(),
    };
    TargetError::Conflict {
        table: shape.target.name.clone(),
        detail: format!("{what} ({key}, source {})", change.place),
    }
}
