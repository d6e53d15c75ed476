//! A source of several tables whose connection breaks where a test wants it, and what a consumer
//! makes of the topic that comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tailwater_capture::{
    Changes, Event, Rest, Resume, ServerIdentity, Snapshot, SourceConnector, SourceError,
    SourceState, Stream, TableReader, TableSlot,
};
use tailwater_change::{
    Commit, Control, Envelope, Epoch, ForeignKey, Operation, Ordinal, Place, Problem,
    ReferentialAction, RowReader, TableId, TableSchema, Value, is_control_schema, parse_schema,
};
use tailwater_kafka::Client;
use tailwater_registry::Registry;
use tokio::sync::Notify;

use crate::reading::records;
use crate::script::schema;

/// Rows of a table: ids.
pub(crate) type Rows = BTreeMap<String, BTreeSet<i64>>;

/// The source. A transaction inserts rows; its commit is a multiple of ten.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    inner: Mutex<Inner>,
    pub(crate) news: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) tables: Vec<Arc<TableSchema>>,
    log: Vec<(u64, Vec<(usize, i64)>)>,
    /// Everything that snapshots and streams have said so far.
    pub(crate) steps: usize,
    /// Before these steps the connection breaks.
    pub(crate) breaks: BTreeSet<usize>,
    /// From this step on nothing more comes.
    pub(crate) hangs_at: Option<usize>,
    /// Whether something commits at each break.
    pub(crate) busy: bool,
    /// The source no longer has what a stream would go on from.
    pub(crate) lost: bool,
    /// Why a snapshot cannot go on.
    pub(crate) void: Option<String>,
    /// Planted: a rest says that it was read before the last transaction, which it has.
    pub(crate) inexact: bool,
    /// Behind this commit the definition of the last table changes.
    pub(crate) ddl_behind: Option<u64>,
    /// Rows that snapshots have read, by table.
    pub(crate) reads: BTreeMap<String, usize>,
    pub(crate) snapshots: usize,
    pub(crate) rests: usize,
    pub(crate) releases: usize,
}

pub(crate) fn table(name: &str) -> TableSchema {
    TableSchema { table: TableId::new("public", name), ..(*schema()).clone() }
}

/// A table whose rows the source deletes without saying so.
pub(crate) fn cascaded(name: &str) -> TableSchema {
    let mut table = table(name);
    table.hides_cascades = true;
    table.foreign_keys = vec![ForeignKey {
        name: "parent".into(),
        columns: vec!["id".into()],
        referenced: TableId::new("public", "a"),
        referenced_columns: vec!["id".into()],
        on_delete: ReferentialAction::Cascade,
        on_update: ReferentialAction::NoAction,
        deferrable: false,
        initially_deferred: false,
    }];
    table
}

impl Parts {
    /// Tables with three rows each.
    pub(crate) fn new(tables: Vec<TableSchema>) -> Arc<Self> {
        let parts = Self::default();
        let mut inner = parts.inner();
        inner.tables = tables.into_iter().map(Arc::new).collect();
        for _ in 0..3 {
            inner.commit_to_all();
        }
        drop(inner);
        Arc::new(parts)
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Counts what is about to be said.
    async fn step(&self) -> Result<(), SourceError> {
        let hangs = {
            let mut inner = self.inner();
            inner.steps += 1;
            let step = inner.steps;
            if inner.breaks.remove(&step) {
                if inner.busy {
                    inner.commit_to_all();
                    // And one of which nothing remains where the last table is left out.
                    let last = inner.tables.len() - 1;
                    inner.commit(vec![last]);
                }
                return Err(broken("read"));
            }
            inner.hangs_at.is_some_and(|at| step >= at)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

impl Inner {
    pub(crate) fn commit_to_all(&mut self) {
        self.commit((0..self.tables.len()).collect());
    }

    pub(crate) fn commit(&mut self, tables: Vec<usize>) {
        let commit = self.now() + 10;
        let id = i64::try_from(commit).unwrap();
        self.log.push((commit, tables.into_iter().map(|table| (table, id)).collect()));
    }

    pub(crate) fn now(&self) -> u64 {
        self.log.last().map_or(0, |(commit, _)| *commit)
    }

    /// Behind everything that has committed.
    pub(crate) fn point(&self) -> u64 {
        self.now() + 5
    }

    fn ids(&self, table: usize) -> Vec<i64> {
        let rows = self.log.iter().flat_map(|(_, rows)| rows);
        rows.filter(|(of, _)| *of == table).map(|(_, id)| *id).collect()
    }

    pub(crate) fn rows(&self) -> Rows {
        let tables = self.tables.iter().enumerate();
        tables
            .map(|(at, table)| (table.table.name.clone(), self.ids(at).into_iter().collect()))
            .collect()
    }

    fn snapshot(&self, parts: &Arc<Parts>, finished: &[TableId]) -> PartsSnapshot {
        let mut events = Vec::new();
        for (at, table) in self.tables.iter().enumerate() {
            if !finished.contains(&table.table) {
                events.push(Said::TableBegin(at));
                events.extend(self.ids(at).into_iter().map(|id| Said::Read(at, id)));
                events.push(Said::TableEnd(at));
            }
        }
        events.push(Said::SnapshotEnd);
        events.reverse();
        let (tables, commit) = (self.tables.clone(), Commit::lsn(self.point()));
        PartsSnapshot { parts: Arc::clone(parts), tables, commit, events, ordinal: 0 }
    }
}

fn broken(what: &str) -> SourceError {
    SourceError::unavailable(what, std::io::Error::other("as the script says"))
}

fn server() -> ServerIdentity {
    ServerIdentity("parts".into())
}

#[derive(Debug, Clone)]
pub(crate) struct PartsSource(pub(crate) Arc<Parts>);

#[async_trait]
impl SourceConnector for PartsSource {
    async fn check(&self) -> Vec<Problem> {
        Vec::new()
    }

    async fn server(&self) -> Result<ServerIdentity, SourceError> {
        Ok(server())
    }

    async fn tables(&self) -> Result<Vec<Arc<TableSchema>>, SourceError> {
        Ok(self.0.inner().tables.clone())
    }

    async fn current(&self) -> Result<Commit, SourceError> {
        Ok(Commit::lsn(self.0.inner().point()))
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        let mut inner = self.0.inner();
        inner.snapshots += 1;
        inner.lost = false;
        Ok(Box::new(inner.snapshot(&self.0, &[])))
    }

    async fn snapshot_rest(
        &self,
        resume: &Resume,
        finished: &[TableId],
    ) -> Result<Rest, SourceError> {
        let mut inner = self.0.inner();
        if inner.lost {
            return Err(lost(resume));
        }
        if let Some(why) = inner.void.take() {
            return Ok(Rest::Void(why));
        }
        inner.rests += 1;
        let mut rest = inner.snapshot(&self.0, finished);
        if inner.inexact {
            rest.commit = Commit::lsn(rest.commit.position() - 10);
        }
        Ok(Rest::Snapshot(Box::new(rest)))
    }

    async fn stream(&self, resume: Option<&Resume>) -> Result<Box<dyn Stream>, SourceError> {
        let resume = resume.unwrap();
        if self.0.inner().lost {
            return Err(lost(resume));
        }
        let after = resume.after.position() - u64::from(resume.again);
        Ok(Box::new(PartsStream {
            parts: Arc::clone(&self.0),
            after,
            idled: resume.after.position(),
            events: Vec::new(),
            bound: false,
        }))
    }

    async fn table_reader(&self) -> Result<Box<dyn TableReader>, SourceError> {
        Err(broken("read a table"))
    }

    async fn release(&self) -> Result<(), SourceError> {
        self.0.inner().releases += 1;
        Ok(())
    }
}

fn lost(resume: &Resume) -> SourceError {
    SourceError::PositionLost {
        after: resume.after.to_string(),
        problem: Problem::new("its slot is gone", "`tailwater resync`"),
    }
}

/// One event, not yet said.
#[derive(Debug, Clone)]
enum Said {
    TableBegin(usize),
    Read(usize, i64),
    TableEnd(usize),
    SnapshotEnd,
    Begin(u64),
    Insert(u64, usize, i64),
    End(u64),
    Ddl(usize),
    Idle,
}

struct PartsSnapshot {
    parts: Arc<Parts>,
    tables: Vec<Arc<TableSchema>>,
    commit: Commit,
    events: Vec<Said>,
    ordinal: u64,
}

#[async_trait]
impl Snapshot for PartsSnapshot {
    fn commit(&self) -> Commit {
        self.commit
    }

    fn server(&self) -> ServerIdentity {
        server()
    }

    fn state(&self) -> SourceState {
        SourceState("{}".into())
    }

    async fn next(&mut self, out: &mut Changes, _bytes: usize) -> Result<(), SourceError> {
        self.parts.step().await?;
        // What a snapshot calls a table and what a stream does are two things.
        let slot = |table| TableSlot(table + 7);
        match self.events.pop().expect("nobody asks behind the end") {
            Said::TableBegin(table) => {
                out.schema(slot(table), Arc::clone(&self.tables[table]));
                out.push(Event::TableBegin(slot(table)));
            }
            Said::Read(table, id) => {
                let schema = &self.tables[table];
                let name = schema.table.name.clone();
                *self.parts.inner().reads.entry(name).or_default() += 1;
                let values = [Value::Int(id), Value::Text("")];
                let ordinal = Ordinal::new(self.ordinal);
                out.row(slot(table), schema, Operation::Read, ordinal, None, Some(&values));
                self.ordinal += 1;
            }
            Said::TableEnd(table) => out.push(Event::TableEnd(slot(table))),
            _ => out.push(Event::SnapshotEnd),
        }
        Ok(())
    }
}

struct PartsStream {
    parts: Arc<Parts>,
    after: u64,
    idled: u64,
    events: Vec<Said>,
    bound: bool,
}

impl PartsStream {
    fn refill(&mut self) {
        let inner = self.parts.inner();
        if let Some((commit, rows)) = inner.log.iter().find(|(commit, _)| *commit > self.after) {
            self.events.push(Said::Begin(*commit));
            let inserts = (0..).zip(rows).map(|(at, (table, id))| Said::Insert(at, *table, *id));
            self.events.extend(inserts);
            self.events.push(Said::End(*commit));
            if inner.ddl_behind == Some(*commit) {
                self.events.push(Said::Ddl(inner.tables.len() - 1));
            }
            self.after = *commit;
        } else if self.idled < inner.point() {
            self.idled = inner.point();
            self.events.push(Said::Idle);
        }
        self.events.reverse();
    }
}

#[async_trait]
impl Stream for PartsStream {
    fn server(&self) -> ServerIdentity {
        server()
    }

    fn state(&self) -> SourceState {
        SourceState("{}".into())
    }

    async fn next(&mut self, out: &mut Changes, _bytes: usize) -> Result<(), SourceError> {
        while self.events.is_empty() {
            self.refill();
            if self.events.is_empty() {
                self.parts.news.notified().await;
            }
        }
        self.parts.step().await?;
        let tables = self.parts.inner().tables.clone();
        if !std::mem::replace(&mut self.bound, true) {
            for (at, schema) in tables.iter().enumerate() {
                out.schema(TableSlot(at), Arc::clone(schema));
            }
        }
        match self.events.pop().expect("filled") {
            Said::Begin(commit) => out.begin(Commit::lsn(commit), Some(7)),
            Said::Insert(ordinal, table, id) => {
                let values = [Value::Int(id), Value::Text("")];
                let (slot, ordinal) = (TableSlot(table), Ordinal::new(ordinal));
                out.row(slot, &tables[table], Operation::Insert, ordinal, None, Some(&values));
            }
            Said::End(commit) => out.end(Some(commit.to_string())),
            Said::Ddl(table) => out.push(Event::SchemaChange {
                slot: Some(TableSlot(table)),
                table: tables[table].table.clone(),
                description: "column c added".into(),
            }),
            _ => out.push(Event::Idle { through: Commit::lsn(self.idled) }),
        }
        Ok(())
    }

    async fn confirm(&mut self, _through: Commit) -> Result<(), SourceError> {
        Ok(())
    }

    async fn probe(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
}

/// What a consumer has after reading the topic.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    pub(crate) rows: Rows,
    /// Tables that have not had their end in the snapshot that was cut.
    void: BTreeSet<String>,
    ended: BTreeSet<String>,
    writer: Option<(u64, u64)>,
    newest: Place,
    /// Rows of the transaction that has no end yet.
    open: Vec<(String, i64)>,
    /// Markers, in their order: `begin`, `cut`, `rest`, `end`.
    pub(crate) markers: Vec<&'static str>,
    pub(crate) epoch: u32,
}

/// Reads it as a consumer should; anything that no consumer could make sense of is a panic.
pub(crate) async fn copy(client: &Client, registry: &Registry) -> Copy {
    let mut copy = Copy::default();
    for record in records(client, registry, "shop").await {
        if is_control_schema(&record.text) {
            let control = Control::decode(record.message()).unwrap();
            let table = match &control {
                Control::TableBegin { schema, .. } | Control::TableEnd { schema, .. } => {
                    let text = registry.schema(*schema).await.unwrap();
                    parse_schema(&text).unwrap().table.name
                }
                _ => String::new(),
            };
            copy.control(&control, table, record.writer);
        } else if copy.writer == Some(record.writer) {
            copy.row(&parse_schema(&record.text).unwrap(), record.message());
        }
    }
    assert!(copy.open.is_empty(), "{copy:?}");
    copy
}

/// The place before a snapshot's first row.
fn before(epoch: Epoch, commit: Commit) -> Place {
    Place::end_of(epoch, Commit::lsn(commit.position() - 1))
}

impl Copy {
    fn row(&mut self, schema: &TableSchema, message: &[u8]) {
        let envelope = Envelope::decode(message).unwrap();
        let (name, place) = (schema.table.name.clone(), envelope.place);
        let mut values = Vec::new();
        RowReader::new(schema).read(envelope.after.unwrap(), &mut values).unwrap();
        let Value::Int(id) = values[0] else { panic!("an id") };
        if place <= self.newest {
            // Twice, across a take-over.
            assert_ne!(envelope.operation, Operation::Read, "{place} is taken: {self:?}");
            return;
        }
        if !place.same_transaction(&self.newest) {
            self.open.clear();
        }
        self.newest = place;
        if envelope.operation == Operation::Read {
            assert!(self.rows.entry(name).or_default().insert(id));
            return;
        }
        assert!(!self.void.contains(&name), "a row of {name}, which is void: {self:?}");
        self.open.push((name, id));
        if envelope.last {
            self.end();
        }
    }

    fn end(&mut self) {
        for (name, id) in std::mem::take(&mut self.open) {
            let new = self.rows.entry(name).or_default().insert(id);
            assert!(new, "{id} a second time: {:?}", self.markers);
        }
    }

    fn passes(&mut self, place: Place) {
        assert!(place > self.newest, "{place} behind {}: {:?}", self.newest, self.markers);
        self.newest = place;
        self.open.clear();
    }

    fn control(&mut self, control: &Control<'_>, table: String, writer: (u64, u64)) {
        if let Control::Open { .. } = control {
            self.writer = Some(writer);
        }
        if self.writer != Some(writer) {
            return;
        }
        match control {
            Control::SnapshotBegin { epoch, commit } => {
                self.passes(before(*epoch, *commit));
                (self.rows, self.epoch) = (Rows::new(), epoch.get());
                self.void.clear();
                self.ended.clear();
                self.markers.push("begin");
            }
            Control::SnapshotCut { epoch, commit } => {
                self.newest = Place::end_of(*epoch, *commit);
                for (name, rows) in &mut self.rows {
                    if !self.ended.contains(name) {
                        rows.clear();
                        self.void.insert(name.clone());
                    }
                }
                self.markers.push("cut");
            }
            Control::SnapshotRest { epoch, commit } => {
                self.passes(before(*epoch, *commit));
                self.markers.push("rest");
            }
            Control::SnapshotEnd { epoch, commit } => {
                self.newest = Place::end_of(*epoch, *commit);
                assert!(self.void.is_empty(), "{self:?}");
                self.markers.push("end");
            }
            Control::TableBegin { .. } => {
                self.rows.insert(table.clone(), BTreeSet::new());
                self.void.remove(&table);
                self.ended.remove(&table);
            }
            Control::TableEnd { .. } => {
                self.ended.insert(table);
            }
            Control::End { epoch, commit, .. } => {
                self.newest = self.newest.max(Place::end_of(*epoch, *commit));
                self.end();
            }
            Control::Idle { epoch, commit } => self.passes(Place::end_of(*epoch, *commit)),
            Control::Open { .. }
            | Control::SchemaChange { .. }
            | Control::Reached { .. }
            | Control::Chunk { .. } => {}
        }
    }
}
