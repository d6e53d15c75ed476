//! A source database in memory: what a [`Script`] does, as capture sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tailwater_capture::{
    Changes, Event, Image, ReadRow, Rest, Resume, ServerIdentity, Snapshot, SourceConnector,
    SourceError, SourceState, Stream, TableReader, TableSlot, Wanted,
};
use tailwater_change::{
    Commit, Operation, Ordinal, Problem, RowWriter, TableId, TableSchema, Value, identity,
};
use tokio::sync::watch;

use crate::{Cell, Script, ScriptedChange};

/// A source that says what its script did. Cheap to clone; clones share the script.
#[derive(Debug, Clone)]
pub struct MemorySource {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    script: Mutex<Script>,
    confirmed: Mutex<Commit>,
    /// Rises with every commit and probe.
    news: watch::Sender<u64>,
}

impl MemorySource {
    /// A source with this script.
    pub fn new(script: Script) -> Self {
        let (confirmed, news) = (Mutex::new(Commit::ZERO), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { script: Mutex::new(script), confirmed, news }) }
    }

    /// Lets the script go on; streams hear of it.
    pub fn with<R>(&self, act: impl FnOnce(&mut Script) -> R) -> R {
        let result = act(&mut self.script());
        self.shared.news.send_modify(|news| *news += 1);
        result
    }

    /// What capture has confirmed.
    pub fn confirmed(&self) -> Commit {
        *self.shared.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SERVER: &str = "memory";

#[async_trait]
impl SourceConnector for MemorySource {
    async fn check(&self) -> Vec<Problem> {
        Vec::new()
    }

    async fn server(&self) -> Result<ServerIdentity, SourceError> {
        Ok(ServerIdentity(SERVER.into()))
    }

    async fn tables(&self) -> Result<Vec<Arc<TableSchema>>, SourceError> {
        Ok(self.script().schemas().to_vec())
    }

    async fn current(&self) -> Result<Commit, SourceError> {
        Ok(self.script().current())
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        Ok(Box::new(MemorySnapshot::of(self.script().clone(), &[])))
    }

    async fn snapshot_rest(
        &self,
        _resume: &Resume,
        finished: &[TableId],
    ) -> Result<Rest, SourceError> {
        let script = self.script().clone();
        Ok(Rest::Snapshot(Box::new(MemorySnapshot::of(script, finished))))
    }

    async fn stream(&self, resume: Option<&Resume>) -> Result<Box<dyn Stream>, SourceError> {
        let script = self.script();
        let after = resume.map_or_else(|| script.current(), |resume| resume.after);
        let again = resume.is_some_and(|resume| resume.again);
        let log = script.log();
        let next = log.partition_point(|transaction| {
            if again { transaction.commit < after } else { transaction.commit <= after }
        });
        Ok(Box::new(MemoryStream {
            source: self.clone(),
            news: self.shared.news.subscribe(),
            bound: false,
            next,
            // Without a position the first thing to say is where it begins.
            probed: resume.is_none(),
        }))
    }

    async fn table_reader(&self) -> Result<Box<dyn TableReader>, SourceError> {
        Ok(Box::new(MemoryReader(self.clone())))
    }

    async fn release(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[derive(Debug)]
struct MemorySnapshot {
    script: Script,
    commit: Commit,
    /// The script's tables that are read, the next one last.
    tables: Vec<usize>,
    row: usize,
    ordinal: u64,
}

impl MemorySnapshot {
    /// All tables of it but those that are finished.
    fn of(script: Script, finished: &[TableId]) -> Self {
        let schemas = script.schemas().iter().enumerate().rev();
        let read = schemas.filter(|(_, schema)| !finished.contains(&schema.table));
        let tables = read.map(|(table, _)| table).collect();
        Self { commit: script.current(), script, tables, row: 0, ordinal: 0 }
    }
}

#[async_trait]
impl Snapshot for MemorySnapshot {
    fn commit(&self) -> Commit {
        self.commit
    }

    fn server(&self) -> ServerIdentity {
        ServerIdentity(SERVER.into())
    }

    fn state(&self) -> SourceState {
        SourceState("{}".into())
    }

    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        while out.bytes() < bytes {
            let Some(&table) = self.tables.last() else {
                out.push(Event::SnapshotEnd);
                return Ok(());
            };
            let (schema, slot) = (&self.script.schemas()[table], TableSlot(table));
            if self.row == 0 {
                out.schema(slot, Arc::clone(schema));
                out.push(Event::TableBegin(slot));
            }
            let rows = self.script.rows(table);
            match rows.get(self.row) {
                Some(row) => {
                    let values: Vec<Value<'_>> = row.iter().map(Cell::value).collect();
                    let ordinal = Ordinal::new(self.ordinal);
                    out.row(slot, schema, Operation::Read, ordinal, None, Some(&values));
                    self.ordinal += 1;
                    self.row += 1;
                }
                None => {
                    out.push(Event::TableEnd(slot));
                    self.tables.pop();
                    self.row = 0;
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryStream {
    source: MemorySource,
    news: watch::Receiver<u64>,
    bound: bool,
    next: usize,
    probed: bool,
}

#[async_trait]
impl Stream for MemoryStream {
    fn server(&self) -> ServerIdentity {
        ServerIdentity(SERVER.into())
    }

    fn state(&self) -> SourceState {
        SourceState("{}".into())
    }

    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        loop {
            self.news.borrow_and_update();
            if self.tell(out, bytes) {
                return Ok(());
            }
            if self.news.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn confirm(&mut self, through: Commit) -> Result<(), SourceError> {
        let mut confirmed =
            self.source.shared.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        *confirmed = through.max(*confirmed);
        Ok(())
    }

    async fn probe(&mut self) -> Result<(), SourceError> {
        self.probed = true;
        self.source.shared.news.send_modify(|news| *news += 1);
        Ok(())
    }
}

impl MemoryStream {
    /// Tells what the script has done since; whether there was anything.
    fn tell(&mut self, out: &mut Changes, bytes: usize) -> bool {
        let script = self.source.script();
        if !self.bound {
            for (slot, schema) in script.schemas().iter().enumerate() {
                out.schema(TableSlot(slot), Arc::clone(schema));
            }
            self.bound = true;
        }
        let mut told = false;
        while let Some(transaction) = script.log().get(self.next) {
            if out.bytes() >= bytes {
                return true;
            }
            out.begin(transaction.commit, Some(transaction.committed_at_us));
            for (ordinal, change) in (0..).zip(&transaction.changes) {
                let schema = &script.schemas()[change.table];
                tell_change(out, schema, change, Ordinal::new(ordinal));
            }
            out.end(Some(transaction.commit.to_string()));
            self.next += 1;
            told = true;
        }
        if std::mem::take(&mut self.probed) {
            out.push(Event::Idle { through: script.current() });
            told = true;
        }
        told
    }
}

fn tell_change(out: &mut Changes, schema: &TableSchema, change: &ScriptedChange, ordinal: Ordinal) {
    let values = |row: &'_ Option<Vec<Cell>>| row.clone().unwrap_or_default();
    let (before, after) = (values(&change.before), values(&change.after));
    let before_values: Vec<Value<'_>> = before.iter().map(Cell::value).collect();
    let mut after_values: Vec<Value<'_>> = after.iter().map(Cell::value).collect();
    for &column in &change.unsent {
        after_values[column] = Value::Unsent;
    }
    let keyless = schema.key().is_empty();
    let moved = schema.key().iter().any(|&at| before.get(at) != after.get(at));
    let before = match change.operation {
        _ if before.is_empty() => None,
        _ if keyless => Some(Image::Full(&before_values)),
        Operation::Update if !moved => None,
        _ => Some(Image::Key(&before_values)),
    };
    let after = change.after.is_some().then_some(after_values.as_slice());
    out.row(TableSlot(change.table), schema, change.operation, ordinal, before, after);
}

#[derive(Debug)]
struct MemoryReader(MemorySource);

impl MemoryReader {
    fn rows_of(&self, schema: &TableSchema, name: &TableId) -> Vec<ReadRow> {
        let script = self.0.script();
        let at = script.schemas().iter().position(|schema| schema.table == *name);
        let rows = at.map(|at| script.rows(at)).unwrap_or_default();
        rows.iter().map(|row| read_row(schema, row)).collect()
    }
}

fn read_row(schema: &TableSchema, cells: &[Cell]) -> ReadRow {
    let mut row = Vec::new();
    let mut writer = RowWriter::new(&mut row);
    for (column, cell) in schema.columns.iter().zip(cells) {
        writer.column(column.field, cell.value());
    }
    let key = match identity(schema, &row) {
        Ok(key) if !key.is_empty() => key.into_owned(),
        _ => row.clone(),
    };
    ReadRow { key, row }
}

fn key_cells(schema: &TableSchema, key: &[u8]) -> Result<Vec<Option<Cell>>, SourceError> {
    let mut values = Vec::new();
    tailwater_change::RowReader::new(schema).read(key, &mut values).map_err(|error| {
        SourceError::Protocol { operation: "read a key".into(), detail: error.to_string() }
    })?;
    Ok(schema.key().iter().map(|&column| Cell::of(values[column])).collect())
}

#[async_trait]
impl TableReader for MemoryReader {
    async fn read(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        wanted: Wanted<'_>,
        each: &mut (dyn FnMut(ReadRow) + Send),
    ) -> Result<(), SourceError> {
        let mut rows = self.rows_of(schema, name);
        match wanted {
            Wanted::All => {}
            Wanted::Keys(keys) => rows.retain(|row| keys.contains(&row.key)),
            Wanted::Above { after, limit } => {
                if let Some(after) = after {
                    let after = key_cells(schema, after)?;
                    let mut above = Vec::new();
                    for row in rows {
                        if key_cells(schema, &row.key)? > after {
                            above.push(row);
                        }
                    }
                    rows = above;
                }
                rows.truncate(limit);
            }
        }
        rows.into_iter().for_each(each);
        Ok(())
    }
}
