//! A database in memory: its tables, what pipelines have committed, and what is to go wrong.
//!
//! Sessions ([`MemoryTarget`]) work on copies of the tables; here stands what everybody sees.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tailwater_apply::{Progress, Target, TargetConnector, TargetError};
use tailwater_change::{Dialect, Problem, TableId, TableSchema};

use crate::{Cell, Definition, Fault, Faults, MemoryTable, MemoryTarget, Op, Planted};

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

pub(crate) type Tables = BTreeMap<TableId, Arc<MemoryTable>>;

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) tables: Tables,
    pub(crate) progress: HashMap<String, Progress>,
    /// Which session holds a pipeline's lock.
    pub(crate) locks: HashMap<String, u64>,
    sessions: u64,
    pub(crate) commits: u64,
    /// What every commit left, while it is recorded.
    pub(crate) history: Option<Vec<Committed>>,
    pub(crate) planted: Option<Planted>,
    /// What a crash leaves, while that is not what everybody sees.
    unflushed: Option<(Tables, HashMap<String, Progress>)>,
    /// How often it has crashed: sessions from before are gone.
    pub(crate) crashes: u64,
}

impl Inner {
    /// Before a commit that is not flushed.
    pub(crate) fn owe(&mut self) {
        if self.unflushed.is_none() {
            self.unflushed = Some((self.tables.clone(), self.progress.clone()));
        }
    }

    /// All that is committed is flushed.
    pub(crate) fn flush(&mut self) {
        self.unflushed = None;
    }
}

/// The database as a commit left it.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The progress that was committed.
    pub progress: Progress,
    pub(crate) tables: Tables,
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

    /// Takes back what is committed and not flushed, and ends all sessions.
    pub fn crash(&self) {
        let mut inner = self.lock();
        if let Some((tables, progress)) = inner.unflushed.take() {
            (inner.tables, inner.progress) = (tables, progress);
        }
        inner.locks.clear();
        inner.crashes += 1;
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
        MemoryTarget::new(self.clone(), inner.sessions, inner.crashes)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has(&self, bug: Planted) -> bool {
        self.lock().planted == Some(bug)
    }

    /// As [`enter`](Self::enter), for a session that began after so many crashes: the next one has
    /// ended it.
    pub(crate) async fn enter_in(&self, crashes: u64, op: Op) -> Result<Leave<'_>, TargetError> {
        if self.lock().crashes != crashes {
            return Err(TargetError::unavailable(format!("{op:?}"), "the database has crashed"));
        }
        self.enter(op).await
    }

    pub(crate) async fn enter(&self, op: Op) -> Result<Leave<'_>, TargetError> {
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
pub(crate) struct Leave<'a> {
    database: &'a MemoryDatabase,
    op: Op,
    fault: Option<Fault>,
}

impl Leave<'_> {
    pub(crate) async fn leave(self) -> Result<(), TargetError> {
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

pub(crate) fn missing_column(
    table: &MemoryTable,
    schema: &TableSchema,
    to: &TableId,
) -> Result<(), Problem> {
    let has = |name: &String| table.definition().columns.contains(name);
    match schema.columns.iter().find(|column| column.flows() && !has(&column.name)) {
        None => Ok(()),
        Some(column) => {
            Err(Problem::new(format!("{to} has no column {}", column.name), "add the column"))
        }
    }
}
