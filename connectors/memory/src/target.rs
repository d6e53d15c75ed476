//! A session on a database in memory.
//!
//! It works on a copy of the tables and a commit puts those it touched in place, under the fence:
//! readers of [`MemoryDatabase::rows`] see whole transactions or nothing of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use tailwater_apply::{
    Change, ConflictPolicy, Progress, Step, StepOutcome, Table, Target, TargetError, TargetTable,
};
use tailwater_change::{DecodeError, Problem, TableId, TableSchema};

use crate::database::{Tables, missing_column};
use crate::effect::{delete_all, insert_all, replay, update_all};
use crate::{Committed, Definition, MemoryDatabase, MemoryTable, Op, Planted};

/// A session.
#[derive(Debug)]
pub struct MemoryTarget {
    database: MemoryDatabase,
    session: u64,
    /// How often the database had crashed when it began.
    crashes: u64,
    transaction: Option<Transaction>,
}

#[derive(Debug)]
struct Transaction {
    tables: Tables,
    /// As they were when it began.
    base: Tables,
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
        let call = self.database.enter_in(self.crashes, Op::TryLock).await?;
        let got = {
            let mut inner = self.database.lock();
            let holder = inner.locks.entry(pipeline.to_owned()).or_insert(self.session);
            *holder == self.session
        };
        call.leave().await?;
        Ok(got)
    }

    async fn held(&mut self, locks: &[String]) -> Result<Vec<bool>, TargetError> {
        let call = self.database.enter_in(self.crashes, Op::TryLock).await?;
        let held = {
            let inner = self.database.lock();
            locks.iter().map(|lock| inner.locks.contains_key(lock)).collect()
        };
        call.leave().await?;
        Ok(held)
    }

    async fn progress(&mut self, pipeline: &str) -> Result<Option<Progress>, TargetError> {
        let call = self.database.enter_in(self.crashes, Op::Progress).await?;
        let progress = self.database.progress(pipeline);
        call.leave().await?;
        Ok(progress)
    }

    async fn take_over(&mut self, initial: &Progress) -> Result<Progress, TargetError> {
        let call = self.database.enter_in(self.crashes, Op::TakeOver).await?;
        let progress = {
            let mut inner = self.database.lock();
            inner.flush();
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
        let call = self.database.enter_in(self.crashes, Op::Describe).await?;
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
        let call = self.database.enter_in(self.crashes, Op::CreateTable).await?;
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
        let call = self.database.enter_in(self.crashes, Op::FinishTable).await?;
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
        let call = self.database.enter_in(self.crashes, Op::IsEmpty).await?;
        let empty = self.database.lock().tables.get(to).is_none_or(|table| table.row_count() == 0);
        call.leave().await?;
        Ok(empty)
    }

    async fn begin(&mut self) -> Result<(), TargetError> {
        let call = self.database.enter_in(self.crashes, Op::Begin).await?;
        if self.transaction.is_some() {
            return Err(bug("begin", "a transaction is running"));
        }
        let tables = self.database.lock().tables.clone();
        let (base, touched) = (tables.clone(), BTreeSet::new());
        self.transaction = Some(Transaction { tables, base, touched, savepoint: None });
        call.leave().await
    }

    async fn clear(&mut self, tables: &[Arc<Table>]) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter_in(self.crashes, Op::Clear).await?;
        for table in tables {
            self.table(&table.target.name)?.clear();
        }
        call.leave().await
    }

    async fn savepoint(&mut self) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter_in(self.crashes, Op::Savepoint).await?;
        let transaction = self.running()?;
        transaction.savepoint = Some(transaction.tables.clone());
        call.leave().await
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter_in(self.crashes, Op::RollbackToSavepoint).await?;
        let transaction = self.running()?;
        match &transaction.savepoint {
            Some(tables) => transaction.tables = tables.clone(),
            None => return Err(bug("rollback_to_savepoint", "there is none")),
        }
        call.leave().await
    }

    async fn step(&mut self, step: &Step) -> Result<StepOutcome, TargetError> {
        let database = self.database.clone();
        let call = database.enter_in(self.crashes, Op::Step).await?;
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
        let call = database.enter_in(self.crashes, Op::Replay).await?;
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
        self.commit_with(progress, true).await
    }

    async fn commit_soon(&mut self, progress: &Progress) -> Result<bool, TargetError> {
        self.commit_with(progress, false).await?;
        Ok(self.database.has(Planted::ClaimsToFlush))
    }

    async fn rollback(&mut self) -> Result<(), TargetError> {
        let call = self.database.enter_in(self.crashes, Op::Rollback).await?;
        self.transaction = None;
        call.leave().await
    }
}

impl Transaction {
    /// The tables that it touched as they are to be, with what others have committed meanwhile in
    /// `current`.
    fn written(&self, current: &Tables) -> Result<Tables, TargetError> {
        let mut written = Tables::new();
        for name in &self.touched {
            let Some(mine) = self.tables.get(name) else { continue };
            let table = match (self.base.get(name), current.get(name)) {
                (Some(base), Some(current)) if !Arc::ptr_eq(base, current) => {
                    let rebased = mine.rebased(base, current).map_err(|_denied| {
                        TargetError::unavailable("commit", "another session wrote the same rows")
                    })?;
                    Arc::new(rebased)
                }
                _ => Arc::clone(mine),
            };
            written.insert(name.clone(), table);
        }
        Ok(written)
    }
}

impl MemoryTarget {
    pub(crate) fn new(database: MemoryDatabase, session: u64, crashes: u64) -> Self {
        Self { database, session, crashes, transaction: None }
    }

    async fn commit_with(&mut self, progress: &Progress, flush: bool) -> Result<(), TargetError> {
        let database = self.database.clone();
        let call = database.enter_in(self.crashes, Op::Commit).await?;
        let Some(transaction) = self.transaction.take() else {
            return Err(bug("commit", "no transaction is running"));
        };
        {
            let mut inner = self.database.lock();
            if flush {
                inner.flush();
            } else {
                inner.owe();
            }
            let written = transaction.written(&inner.tables)?;
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
            inner.tables.extend(written);
            inner.commits += 1;
            let committed = Committed { progress: progress.clone(), tables: inner.tables.clone() };
            if let Some(history) = &mut inner.history {
                history.push(committed);
            }
        }
        call.leave().await
    }

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

pub(crate) fn damaged(error: DecodeError) -> TargetError {
    bug("read a row image", &error.to_string())
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
