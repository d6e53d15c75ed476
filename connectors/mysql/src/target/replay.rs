//! Changes one by one in the source's order, repairing what the target has otherwise.
//!
//! Changes travel several to a packet behind a savepoint of their own. As long as each changes
//! exactly one row that is all. Where one does not, back to that savepoint, and from there with one
//! round trip per change, so that each can be answered.
//!
//! A source that checks unique keys only at the end of a statement or transaction (PostgreSQL's
//! deferrable constraints) may swap values in an order that no order of single rows allows here.
//! Then the rows of that transaction's changes on that table go at once: deleted, and inserted as
//! they end. Only where nothing fires, all columns are known and identities are bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tailwater_apply::{Change, ConflictPolicy, RowImage, StepOutcome, TargetError};
use tailwater_change::{Operation, Problem, RowWriter};

use super::failure::{DUPLICATE, too_large, violated_key};
use super::load::{Images, fits};
use super::session::Session;
use super::sql::{self, Batch};
use super::step::Work;
use super::table::{Shape, on};

const GROUP: usize = 64;
const GROUP_BYTES: usize = 256 * 1024;

/// How a single statement ended.
#[derive(Debug)]
enum Single {
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
            // Undone even where the caller goes on: a change names one row.
            (Operation::Delete | Operation::Update, Single::Changed(2..)) => {
                self.back().await?;
                Err(conflict(&shape, change, "the target has several rows of this key"))
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

    async fn single(&mut self, shape: &Shape, statement: &[u8]) -> Result<Single, TargetError> {
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

    /// A warning means that the server bent a value. It stays out.
    async fn warned(&mut self, shape: &Shape) -> TargetError {
        use mysql_async::prelude::Queryable;
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
        sql::put_where(shape, &images.new, &mut statement)?;
        self.count(&statement, shape).await.map(|count| count > 0)
    }

    async fn count(&mut self, statement: &[u8], shape: &Shape) -> Result<u64, TargetError> {
        use mysql_async::prelude::Queryable;
        let found: Result<Option<u64>, _> = self.conn.query_first(statement).await;
        found.map(Option::unwrap_or_default).map_err(|error| {
            super::failure::Failure::of(error).into_target(&on("read", &shape.target.name))
        })
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
            Single::Changed(count) => {
                Err(conflict(shape, change, &format!("the row is there {count} times")))
            }
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
    async fn insert_or_equalise(
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

    /// The identities that rows come to and that rows of the target have already.
    async fn identities_there(
        &mut self,
        shape: &Shape,
        changes: &[&Change],
    ) -> Result<HashSet<Vec<u8>>, TargetError> {
        let mut there = HashSet::new();
        for after in changes.iter().filter_map(|change| change.after.as_ref()) {
            let mut values = Vec::new();
            sql::read(shape, after, &[], &mut values)?;
            let mut statement = format!("SELECT COUNT(*) FROM {}", shape.table).into_bytes();
            sql::put_where(shape, &values, &mut statement)?;
            if self.count(&statement, shape).await? > 0 {
                there.insert(key_of(shape, after)?);
            }
        }
        Ok(there)
    }

    /// A unique key is in the way: takes the transaction's remaining changes of this table
    /// together, if that is legal.
    async fn settle(
        &mut self,
        changes: &[Change],
        at: usize,
        policy: ConflictPolicy,
        settled: &mut HashSet<usize>,
        key: &str,
    ) -> Result<u64, TargetError> {
        let change = &changes[at];
        let shape = self.shape(&change.table).await?;
        let taken =
            || conflict(&shape, change, &format!("another row has its value of unique key {key}"));
        let members = members(&shape, changes, at).ok_or_else(taken)?;
        let together: Vec<&Change> = members.iter().map(|at| &changes[*at]).collect();
        let there = self.identities_there(&shape, &together).await?;
        let net = Net::of(&shape, &together, &there)?.ok_or_else(taken)?;
        let mut repaired = 0;
        for old in &net.gone {
            let mut images = Images::default();
            sql::read(&shape, old, &[], &mut images.old)?;
            let mut statement = Vec::new();
            sql::put_delete(&shape, &images.old, &mut statement)?;
            let single = self.single(&shape, &statement).await?;
            if matches!(single, Single::Changed(2..)) {
                return Err(conflict(&shape, change, "the target has several rows of a key"));
            }
            if !matches!(single, Single::Changed(1)) {
                require(policy, &shape, change, "a row to change is not there")?;
                repaired += 1;
            }
        }
        for row in &net.rows {
            let insert = Change {
                operation: Operation::Insert,
                before: None,
                after: Some(row.clone()),
                ..change.clone()
            };
            let met = self.insert_or_equalise(&shape, &insert).await?;
            if met > 0 {
                require(policy, &shape, &insert, "the row is already there")?;
            }
            repaired += met;
        }
        settled.extend(members);
        Ok(repaired)
    }
}

/// What a transaction's changes of one table come to.
#[derive(Default)]
struct Net {
    /// Identities that are there before.
    gone: Vec<Bytes>,
    /// Rows that are there after.
    rows: Vec<Bytes>,
}

/// What becomes of one identity.
#[derive(Default)]
struct Fate {
    /// Whether a row had it before, and has not left it yet.
    original: bool,
    /// The row that came to it.
    arrived: Option<Bytes>,
}

impl Net {
    /// Of these changes; `there` are the identities that rows of the target have now, of those that
    /// rows come to.
    ///
    /// None where it cannot be known: as long as the old row is still there, a row that arrived
    /// shares its identity, and which of the two leaves only a whole old image tells.
    fn of(
        shape: &Shape,
        changes: &[&Change],
        there: &HashSet<Vec<u8>>,
    ) -> Result<Option<Self>, TargetError> {
        let mut fates: HashMap<Vec<u8>, Fate> = HashMap::new();
        let mut order = Vec::new();
        let mut net = Self::default();
        for change in changes {
            let Some(identity) = change.identity() else { return Ok(None) };
            if matches!(change.operation, Operation::Update | Operation::Delete) {
                let key = key_of(shape, identity)?;
                let fate = fates.entry(key.clone()).or_insert_with(|| {
                    order.push(key.clone());
                    Fate { original: true, arrived: None }
                });
                let arrived_leaves = match (&fate.arrived, fate.original) {
                    (None, true) => false,
                    (Some(_), false) => true,
                    (Some(row), true) => match &change.before {
                        Some(before) if before.full => before.bytes == *row,
                        _ => return Ok(None),
                    },
                    (None, false) => return Ok(None),
                };
                if arrived_leaves {
                    fate.arrived = None;
                } else {
                    fate.original = false;
                    net.gone.push(identity.clone());
                }
            }
            if let Some(after) =
                change.after.as_ref().filter(|_| change.operation != Operation::Delete)
            {
                let key = key_of(shape, after)?;
                let original = there.contains(&key);
                let fate = fates.entry(key.clone()).or_insert_with(|| {
                    order.push(key.clone());
                    Fate { original, arrived: None }
                });
                if fate.arrived.replace(after.clone()).is_some() {
                    return Ok(None);
                }
            }
        }
        net.rows = order.iter().filter_map(|key| fates.remove(key)?.arrived).collect();
        Ok(Some(net))
    }
}

/// The transaction's changes from `start` on that concern the same table; none where not all of
/// them may be taken together.
fn members(shape: &Shape, changes: &[Change], start: usize) -> Option<Vec<usize>> {
    let first = &changes[start];
    if shape.target.fires || !shape.target.identity_is_bytes {
        return None;
    }
    let mut members = Vec::new();
    for (at, change) in changes.iter().enumerate().skip(start) {
        if !change.place.same_transaction(&first.place) {
            break;
        }
        if change.table.target.name != first.table.target.name {
            continue;
        }
        let together = Arc::ptr_eq(&change.table, &first.table)
            && change.unsent.is_empty()
            && change.operation != Operation::Truncate;
        if !together {
            return None;
        }
        members.push(at);
    }
    Some(members)
}

/// The identity's columns of a row, as bytes.
fn key_of(shape: &Shape, row: &[u8]) -> Result<Vec<u8>, TargetError> {
    let mut values = Vec::new();
    sql::read(shape, row, &[], &mut values)?;
    let mut out = Vec::new();
    let mut writer = RowWriter::new(&mut out);
    for at in &shape.key {
        let source = shape.fields[*at].source;
        writer.column(shape.schema.columns[source].field, values[source]);
    }
    Ok(out)
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

fn require(
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

fn conflict(shape: &Shape, change: &Change, what: &str) -> TargetError {
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
