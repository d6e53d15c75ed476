//! A target database in memory.
//!
//! A session works on a copy of the tables it touches and a commit puts it in place, under the
//! fence: readers of [`MemoryDatabase::rows`] see whole transactions or nothing of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tailwater_apply::{
    Change, ConflictPolicy, Progress, Step, StepOutcome, Table, Target, TargetConnector,
    TargetError, TargetTable,
};
use tailwater_change::{DecodeError, Dialect, Operation, Problem, TableId, TableSchema};

use crate::table::Denied;
use crate::{Cell, Definition, Fault, Faults, MemoryTable, Op, Planted, UniqueChecks};

/// A database: shared by its sessions, and by the test that looks into it.
#[derive(Debug, Clone, Default)]
pub struct MemoryDatabase {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    faults: Faults,
}

type Tables = BTreeMap<TableId, Arc<MemoryTable>>;

#[derive(Debug, Default)]
struct Inner {
    tables: Tables,
    progress: HashMap<String, Progress>,
    /// Which session holds a pipeline's lock.
    locks: HashMap<String, u64>,
    sessions: u64,
    commits: u64,
    /// What every commit left, while it is recorded.
    history: Option<Vec<Committed>>,
    planted: Option<Planted>,
}

/// The database as a commit left it.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The progress that was committed.
    pub progress: Progress,
    tables: Tables,
}

impl Committed {
    /// The rows of a table; `None` if it did not exist.
    pub fn rows(&self, name: &TableId) -> Option<Vec<Vec<Cell>>> {
        self.tables.get(name).map(|table| table.rows().cloned().collect())
    }
}

impl MemoryDatabase {
    /// An empty database.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a table, as somebody else would.
    pub fn create(&self, name: TableId, definition: Definition) {
        self.lock().tables.insert(name, Arc::new(MemoryTable::new(definition)));
    }

    /// Removes a table.
    pub fn drop_table(&self, name: &TableId) {
        self.lock().tables.remove(name);
    }

    /// Puts a row into a table, as somebody else would; `false` if it cannot stand there.
    pub fn put(&self, name: &TableId, row: Vec<Cell>) -> bool {
        let mut inner = self.lock();
        let table = inner.tables.get_mut(name);
        table.is_some_and(|table| Arc::make_mut(table).insert(row).is_ok())
    }

    /// The committed rows of a table; `None` if it does not exist.
    pub fn rows(&self, name: &TableId) -> Option<Vec<Vec<Cell>>> {
        self.lock().tables.get(name).map(|table| table.rows().cloned().collect())
    }

    /// What a table is like.
    pub fn definition(&self, name: &TableId) -> Option<Definition> {
        self.lock().tables.get(name).map(|table| table.definition().clone())
    }

    /// The committed progress of a pipeline.
    pub fn progress(&self, pipeline: &str) -> Option<Progress> {
        self.lock().progress.get(pipeline).cloned()
    }

    /// How many transactions have committed.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Records what every commit from now on leaves.
    pub fn record_history(&self) {
        self.lock().history = Some(Vec::new());
    }

    /// What commits have left since [`record_history`](Self::record_history).
    pub fn history(&self) -> Vec<Committed> {
        self.lock().history.clone().unwrap_or_default()
    }

    /// Ends the session that holds a pipeline's lock: the lock is free, the session does not know.
    pub fn break_lock(&self, pipeline: &str) {
        self.lock().locks.remove(pipeline);
    }

    /// Makes it wrong from now on, for a test that has to notice.
    pub fn plant(&self, bug: Planted) {
        self.lock().planted = Some(bug);
    }

    /// What is to fail.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// A session, without a connector.
    pub fn session(&self) -> MemoryTarget {
        let mut inner = self.lock();
        inner.sessions += 1;
        MemoryTarget { database: self.clone(), session: inner.sessions, transaction: None }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, bug: Planted) -> bool {
        self.lock().planted == Some(bug)
    }

    async fn enter(&self, op: Op) -> Result<Leave<'_>, TargetError> {
        match self.shared.faults.next(op) {
            None => Ok(Leave { database: self, op, fault: None }),
            Some(Fault::Lost) => Err(lost(op)),
            Some(Fault::Hang) => {
                self.shared.faults.note_hung();
                std::future::pending().await
            }
            fault @ Some(Fault::LostAfter | Fault::HangAfter) => {
                Ok(Leave { database: self, op, fault })
            }
        }
    }
}

/// The way out of a call, where it may still fail.
struct Leave<'a> {
    database: &'a MemoryDatabase,
    op: Op,
    fault: Option<Fault>,
}

impl Leave<'_> {
    async fn leave(self) -> Result<(), TargetError> {
        match self.fault {
            None => Ok(()),
            Some(Fault::LostAfter | Fault::Lost) if self.op == Op::Commit => {
                Err(TargetError::UnknownOutcome("connection lost on purpose".into()))
            }
            Some(Fault::LostAfter | Fault::Lost) => Err(lost(self.op)),
            Some(Fault::HangAfter | Fault::Hang) => {
                self.database.shared.faults.note_hung();
                std::future::pending().await
            }
        }
    }
}

fn lost(op: Op) -> TargetError {
    if op == Op::Commit {
        return TargetError::UnknownOutcome("connection lost on purpose".into());
    }
    TargetError::unavailable(format!("{op:?}"), "connection lost on purpose")
}

#[async_trait]
impl TargetConnector for MemoryDatabase {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn check(&self) -> Vec<Problem> {
        Vec::new()
    }

    async fn check_table(&self, schema: &TableSchema, to: &TableId) -> Vec<Problem> {
        let inner = self.lock();
        let Some(table) = inner.tables.get(to) else { return Vec::new() };
        missing_column(table, schema, to).err().into_iter().collect()
    }

    async fn connect(&self) -> Result<Box<dyn Target>, TargetError> {
        let call = self.enter(Op::Connect).await?;
        let session = self.session();
        call.leave().await?;
        Ok(Box::new(session))
    }

    async fn forget(&self, pipeline: &str) -> Result<(), TargetError> {
        self.lock().progress.remove(pipeline);
        Ok(())
    }
}

/// A session.
#[derive(Debug)]
pub struct MemoryTarget {
    database: MemoryDatabase,
    session: u64,
    transaction: Option<Transaction>,
}

#[derive(Debug)]
struct Transaction {
    tables: Tables,
    touched: BTreeSet<TableId>,
    savepoint: Option<Tables>,
}

impl Drop for MemoryTarget {
    fn drop(&mut self) {
        // What a server does when a connection closes.
        let session = self.session;
        self.database.lock().locks.retain(|_, holder| *holder != session);
    }
}

#[async_trait]
impl Target for MemoryTarget {
    async fn try_lock(&mut self, pipeline: &str) -> Result<bool, TargetError> {
        let call = self.database.enter(Op::TryLock).await?;
        let got = {
            let mut inner = self.database.lock();
            let holder = inner.locks.entry(pipeline.to_owned()).or_insert(self.session);
            *holder == self.session
        };
        call.leave().await?;
        Ok(got)
    }

    async fn progress(&mut self, pipeline: &str) -> Result<Option<Progress>, TargetError> {
        let call = self.database.enter(Op::Progress).await?;
        let progress = self.database.progress(pipeline);
        call.leave().await?;
        Ok(progress)
    }

    async fn take_over(&mut self, initial: &Progress) -> Result<Progress, TargetError> {
        let call = self.database.enter(Op::TakeOver).await?;
        let progress = {
            let mut inner = self.database.lock();
            let pipeline = initial.pipeline.clone();
            let progress = inner.progress.entry(pipeline).or_insert_with(|| initial.clone());
            progress.fence += 1;
            progress.clone()
        };
        call.leave().await?;
        Ok(progress)
    }

    async fn describe(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Option<TargetTable>, TargetError> {
        let call = self.database.enter(Op::Describe).await?;
        let described = {
            let inner = self.database.lock();
            match inner.tables.get(to) {
                None => None,
                Some(table) => {
                    missing_column(table, schema, to).map_err(TargetError::Refused)?;
                    Some(table.describe(to, schema))
                }
            }
        };
        call.leave().await?;
        Ok(described)
    }

    async fn create_table(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<(), TargetError> {
        let call = self.database.enter(Op::CreateTable).await?;
        if self.transaction.is_some() {
            return Err(bug("create_table", "within a transaction"));
        }
        self.database
            .lock()
            .tables
            .entry(to.clone())
            .or_insert_with(|| Arc::new(MemoryTable::new(Definition::of(schema))));
        call.leave().await
    }

    async fn finish_table(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
        route: &(dyn for<'a> Fn(&'a TableId) -> Option<TableId> + Sync),
    ) -> Result<(), TargetError> {
        let call = self.database.enter(Op::FinishTable).await?;
        if self.transaction.is_some() {
            return Err(bug("finish_table", "within a transaction"));
        }
        {
            let mut inner = self.database.lock();
            let Some(table) = inner.tables.get_mut(to) else {
                return Err(bug("finish_table", "the table does not exist"));
            };
            let table = Arc::make_mut(table);
            if !table.add_unique(table.definition().unique_of(schema)) {
                return Err(TargetError::Refused(Problem::new(
                    format!("rows of {to} violate a unique key"),
                    "remove the duplicates",
                )));
            }
            add_foreign_keys(&mut inner.tables, schema, to, route)?;
        }
        call.leave().await
    }

    async fn is_empty(&mut self, to: &TableId) -> Result<bool, TargetError> {
        let call = self.database.enter(Op::IsEmpty).await?;
        let empty = self.database.lock().tables.get(to).is_none_or(|table| table.row_count() == 0);
        call.leave().await?;
        Ok(empty)
    }

    async fn begin(&mut self) -> Result<(), TargetError> {
        let call = self.database.enter(Op::Begin).await?;
        if self.transaction.is_some() {
            return Err(bug("begin", "a transaction is running"));
        }
        let tables = self.database.lock().tables.clone();
        self.transaction = Some(Transaction { tables, touched: BTreeSet::new(), savepoint: None });
        call.leave().await
    }

    async fn clear(&mut self, tables: &[Arc<Table>]) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter(Op::Clear).await?;
        for table in tables {
            self.table(&table.target.name)?.clear();
        }
        call.leave().await
    }

    async fn savepoint(&mut self) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter(Op::Savepoint).await?;
        let transaction = self.running()?;
        transaction.savepoint = Some(transaction.tables.clone());
        call.leave().await
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter(Op::RollbackToSavepoint).await?;
        let transaction = self.running()?;
        match &transaction.savepoint {
            Some(tables) => transaction.tables = tables.clone(),
            None => return Err(bug("rollback_to_savepoint", "there is none")),
        }
        call.leave().await
    }

    async fn step(&mut self, step: &Step) -> Result<StepOutcome, TargetError> {
        let database = self.database.clone();
        let call = database.enter(Op::Step).await?;
        let outcome = match step {
            Step::Truncate(tables) => {
                for table in tables {
                    self.table(&table.target.name)?.clear();
                }
                StepOutcome::Applied
            }
            Step::Delete { table, rows } => {
                delete_all(self.table(&table.target.name)?, rows).map_err(damaged)?
            }
            Step::Update { table, rows } => {
                update_all(self.table(&table.target.name)?, rows).map_err(damaged)?
            }
            Step::Insert { table, rows } => {
                let planted = database.lock().planted;
                insert_all(self.table(&table.target.name)?, rows, planted).map_err(damaged)?
            }
        };
        if database.has(Planted::CommitsEachStep) {
            self.publish();
        }
        call.leave().await?;
        Ok(outcome)
    }

    async fn replay(
        &mut self,
        changes: &[Change],
        policy: ConflictPolicy,
    ) -> Result<u64, TargetError> {
        let database = self.database.clone();
        let call = database.enter(Op::Replay).await?;
        let mut repaired = 0;
        let unasked = database.has(Planted::RepairsUnasked);
        let policy = if unasked { ConflictPolicy::Repair } else { policy };
        for change in changes {
            let table = self.table(&change.table.target.name)?;
            repaired += u64::from(replay(table, change, policy)?);
        }
        call.leave().await?;
        Ok(repaired)
    }

    async fn commit(&mut self, progress: &Progress) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter(Op::Commit).await?;
        let Some(transaction) = self.transaction.take() else {
            return Err(bug("commit", "no transaction is running"));
        };
        {
            let mut inner = self.database.lock();
            let forgets = inner.planted == Some(Planted::ForgetsFence);
            let saves = inner.planted.is_none_or(|bug| bug.saves_progress(inner.commits));
            let kept = inner.progress.get_mut(&progress.pipeline);
            match kept {
                Some(kept) if kept.fence == progress.fence || forgets => {
                    if saves {
                        kept.clone_from(progress);
                    }
                }
                _ => return Err(TargetError::Fenced { ours: progress.fence }),
            }
            for name in transaction.touched {
                if let Some(table) = transaction.tables.get(&name) {
                    inner.tables.insert(name, Arc::clone(table));
                }
            }
            inner.commits += 1;
            let committed = Committed { progress: progress.clone(), tables: inner.tables.clone() };
            if let Some(history) = &mut inner.history {
                history.push(committed);
            }
        }
        call.leave().await
    }

    async fn rollback(&mut self) -> Result<(), TargetError> {
        let call = self.database.enter(Op::Rollback).await?;
        self.transaction = None;
        call.leave().await
    }
}

impl MemoryTarget {
    fn running(&mut self) -> Result<&mut Transaction, TargetError> {
        self.transaction.as_mut().ok_or_else(|| bug("statement", "no transaction is running"))
    }

    /// Puts what the transaction has done so far where everybody sees it.
    fn publish(&self) {
        let Some(transaction) = &self.transaction else { return };
        let mut inner = self.database.lock();
        for name in &transaction.touched {
            if let Some(table) = transaction.tables.get(name) {
                inner.tables.insert(name.clone(), Arc::clone(table));
            }
        }
        let Some(progress) = inner.progress.values().next().cloned() else { return };
        let seen = Committed { progress, tables: inner.tables.clone() };
        if let Some(history) = &mut inner.history {
            history.push(seen);
        }
    }

    fn table(&mut self, name: &TableId) -> Result<&mut MemoryTable, TargetError> {
        let transaction = self.running()?;
        transaction.touched.insert(name.clone());
        match transaction.tables.get_mut(name) {
            Some(table) => Ok(Arc::make_mut(table)),
            None => Err(TargetError::Refused(Problem::new(
                format!("table {name} does not exist"),
                "create it",
            ))),
        }
    }
}

fn bug(operation: &str, detail: &str) -> TargetError {
    TargetError::Bug { operation: operation.into(), detail: detail.into() }
}

fn damaged(error: DecodeError) -> TargetError {
    bug("read a row image", &error.to_string())
}

fn missing_column(table: &MemoryTable, schema: &TableSchema, to: &TableId) -> Result<(), Problem> {
    let has = |name: &String| table.definition().columns.contains(name);
    match schema.columns.iter().find(|column| column.flows() && !has(&column.name)) {
        None => Ok(()),
        Some(column) => {
            Err(Problem::new(format!("{to} has no column {}", column.name), "add the column"))
        }
    }
}

/// As databases do: what a foreign key references must be unique by then.
fn add_foreign_keys(
    tables: &mut Tables,
    schema: &TableSchema,
    to: &TableId,
    route: &(dyn for<'a> Fn(&'a TableId) -> Option<TableId> + Sync),
) -> Result<(), TargetError> {
    for key in &schema.foreign_keys {
        let Some(referenced) = route(&key.referenced) else { continue };
        let there = tables.get(&referenced);
        if !there.is_some_and(|table| table.definition().is_unique(&key.referenced_columns)) {
            return Err(TargetError::Refused(Problem::new(
                format!("{} references what is not unique in {referenced}", key.name),
                "make it unique",
            )));
        }
        if let Some(table) = tables.get_mut(to) {
            Arc::make_mut(table).add_foreign_key(&key.name);
        }
    }
    Ok(())
}

fn refused(what: &str) -> StepOutcome {
    StepOutcome::Refused(what.to_owned())
}

fn delete_all(table: &mut MemoryTable, rows: &[Change]) -> Result<StepOutcome, DecodeError> {
    for change in rows.iter().rev() {
        let Some(key) = table.locate(change)? else { return Ok(refused("a row is missing")) };
        table.remove(&key);
    }
    Ok(StepOutcome::Applied)
}

/// Rows in the reverse of the order they were given in: a statement promises none.
fn update_all(table: &mut MemoryTable, rows: &[Change]) -> Result<StepOutcome, DecodeError> {
    let mut replacements = Vec::with_capacity(rows.len());
    for change in rows.iter().rev() {
        let Some(key) = table.locate(change)? else { return Ok(refused("a row is missing")) };
        let after = change.after.as_deref().unwrap_or_default();
        let cells = table.cells(&change.table.schema, after, &change.unsent)?;
        let Some(row) = MemoryTable::filled(cells, table.get(&key)) else {
            return Ok(refused("a row is missing"));
        };
        replacements.push((key, row));
    }
    if table.definition().checks == UniqueChecks::Statement {
        for (key, _) in &replacements {
            table.remove(key);
        }
        for (_, row) in replacements {
            if table.insert(row).is_err() {
                return Ok(refused("a unique key"));
            }
        }
        return Ok(StepOutcome::Applied);
    }
    for (key, row) in replacements {
        if table.replace(&key, row).is_err() {
            return Ok(refused("a unique key"));
        }
    }
    Ok(StepOutcome::Applied)
}

fn insert_all(
    table: &mut MemoryTable,
    rows: &[Change],
    planted: Option<Planted>,
) -> Result<StepOutcome, DecodeError> {
    for change in rows.iter().rev() {
        let after = change.after.as_deref().unwrap_or_default();
        let cells = table.cells(&change.table.schema, after, &change.unsent)?;
        let Some(row) = MemoryTable::filled(cells, None) else {
            return Ok(refused("a column was not sent"));
        };
        let row = match planted {
            Some(bug) => bug.row(row),
            None => row,
        };
        if table.insert(row).is_err() && planted != Some(Planted::SkipsDuplicates) {
            return Ok(refused("a row is there"));
        }
    }
    Ok(StepOutcome::Applied)
}

/// Executes one change; whether the row had to be repaired.
fn replay(
    table: &mut MemoryTable,
    change: &Change,
    policy: ConflictPolicy,
) -> Result<bool, TargetError> {
    let conflict = |detail: &str| TargetError::Conflict {
        table: change.table.target.name.clone(),
        detail: detail.to_owned(),
    };
    if change.operation == Operation::Truncate {
        table.clear();
        return Ok(false);
    }
    let found = match change.operation {
        Operation::Insert | Operation::Read if change.table.schema.key().is_empty() => None,
        _ => table.locate(change).map_err(damaged)?,
    };
    let expected = !matches!(change.operation, Operation::Insert | Operation::Read);
    let repaired = found.is_some() != expected;
    if repaired && policy == ConflictPolicy::Stop {
        return Err(conflict(if expected { "a row is missing" } else { "a row is there" }));
    }
    let Some(after) = &change.after else {
        if let Some(key) = found {
            table.remove(&key);
        }
        return Ok(repaired);
    };
    let cells = table.cells(&change.table.schema, after, &change.unsent).map_err(damaged)?;
    let old = found.as_ref().and_then(|key| table.get(key));
    let row = MemoryTable::filled(cells, old)
        .ok_or_else(|| conflict("a row is missing and not all of it was sent"))?;
    let written = match &found {
        Some(key) => table.replace(key, row.clone()),
        None => table.insert(row.clone()),
    };
    match written {
        Ok(()) => Ok(repaired),
        // The identity that the row moves to is taken.
        Err(Denied::Exists) if policy == ConflictPolicy::Repair => {
            if let Some(key) = &found {
                table.remove(key);
            }
            table.remove(&table.key_of(&row));
            table.insert(row).map_err(|_| conflict("a unique key"))?;
            Ok(true)
        }
        Err(Denied::Exists) => Err(conflict("a row is there")),
        Err(Denied::Unique) => Err(conflict("a unique key has this value already")),
    }
}
