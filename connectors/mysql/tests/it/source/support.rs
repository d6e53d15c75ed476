//! Reading a source in tests: rows as text, streams until something is true.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tailwater_capture::{
    Changes, Event, Resume, SourceConnector, SourceError, SourceState, Stream, TableSlot,
};
use tailwater_change::{Commit, Operation, RowReader, TableSchema, Value};
use tailwater_mysql::source::{SourceConfig, connector};
use tailwater_scratch::Server;

pub(crate) use crate::target::flavors;

/// What a busy machine may take for what takes a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// Captures every table of `database`.
pub(crate) fn source(server: &Server, database: &str) -> Box<dyn SourceConnector> {
    source_of(server, database, &["*"])
}

/// Captures the tables of `database` that match.
pub(crate) fn source_of(
    server: &Server,
    database: &str,
    tables: &[&str],
) -> Box<dyn SourceConnector> {
    let config = SourceConfig {
        name: database.to_owned(),
        url: server.url(database),
        tables: tables.iter().map(|table| format!("{database}.{table}")).collect(),
        exclude: Vec::new(),
    };
    Box::new(connector(config).unwrap())
}

/// Something a source said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    Begin(Commit),
    Row(Row),
    End(Option<String>),
    SchemaChange(String),
    Idle(Commit),
    SnapshotEnd,
}

/// A row as a test looks at it: columns by name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) table: String,
    pub(crate) operation: Operation,
    pub(crate) ordinal: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) before: Option<BTreeMap<String, String>>,
    pub(crate) after: Option<BTreeMap<String, String>>,
    /// The new row's bytes.
    pub(crate) image: Vec<u8>,
}

/// Turns `Changes` into items.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    tables: BTreeMap<usize, Arc<TableSchema>>,
    pub(crate) items: Vec<Item>,
}

impl Recorder {
    pub(crate) fn take(&mut self, changes: &mut Changes) {
        for event in changes.events() {
            let item = match event {
                Event::Schema { slot: TableSlot(slot), schema } => {
                    self.tables.insert(*slot, Arc::clone(schema));
                    continue;
                }
                Event::Begin { commit, committed_at_us } => {
                    // 2020: a time was found, and in microseconds.
                    assert!(committed_at_us.unwrap() > 1_577_836_800_000_000);
                    Item::Begin(*commit)
                }
                Event::End { transaction } => Item::End(transaction.clone()),
                Event::SchemaChange { table, description, .. } => {
                    Item::SchemaChange(format!("{}: {description}", table.name))
                }
                Event::Idle { through } => Item::Idle(*through),
                Event::SnapshotEnd => Item::SnapshotEnd,
                Event::TableBegin(_) | Event::TableEnd(_) => continue,
                Event::Row(row) => {
                    let schema = &self.tables[&row.slot.0];
                    let read = |range: &std::ops::Range<usize>, unsent: &[u32]| {
                        let mut values = Vec::new();
                        let bytes = changes.image(range);
                        RowReader::new(schema)
                            .read_with_unsent(bytes, unsent, &mut values)
                            .unwrap();
                        let columns = schema.columns.iter().zip(&values);
                        columns.map(|(c, v)| (c.name.clone(), show(v))).collect()
                    };
                    Item::Row(Row {
                        table: schema.table.name.clone(),
                        operation: row.operation,
                        ordinal: row.ordinal.get(),
                        key: changes.image(&row.key).to_vec(),
                        before: row.before.as_ref().map(|range| read(range, &[])),
                        after: row
                            .after
                            .as_ref()
                            .map(|range| read(range, changes.unsent(&row.unsent))),
                        image: row
                            .after
                            .as_ref()
                            .map(|range| changes.image(range).to_vec())
                            .unwrap_or_default(),
                    })
                }
            };
            self.items.push(item);
        }
        changes.clear();
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        let row = |item: &Item| match item {
            Item::Row(row) => Some(row.clone()),
            _ => None,
        };
        self.items.iter().filter_map(row).collect()
    }

    pub(crate) fn begins(&self) -> Vec<Commit> {
        let begin = |item: &Item| match item {
            Item::Begin(commit) => Some(*commit),
            _ => None,
        };
        self.items.iter().filter_map(begin).collect()
    }

    /// `+1`, `~1`, `-1` per row, by its first column; `|` at the end of a transaction.
    pub(crate) fn script(&self, column: &str) -> String {
        let mut words = Vec::new();
        for item in &self.items {
            match item {
                Item::Row(row) => {
                    let value = |image: &Option<BTreeMap<String, String>>| {
                        image.as_ref().map(|columns| columns[column].clone())
                    };
                    let (before, after) = (value(&row.before), value(&row.after));
                    words.push(match row.operation {
                        Operation::Insert => format!("+{}", after.unwrap()),
                        Operation::Update => match before {
                            Some(before) => format!("{before}>{}", after.unwrap()),
                            None => format!("~{}", after.unwrap()),
                        },
                        Operation::Delete => format!("-{}", before.unwrap()),
                        Operation::Truncate => "truncate".into(),
                        Operation::Read => format!("={}", after.unwrap()),
                    });
                }
                Item::End(_) => words.push("|".into()),
                Item::SchemaChange(_) => words.push("!".into()),
                Item::Begin(_) | Item::Idle(_) | Item::SnapshotEnd => {}
            }
        }
        words.join(" ")
    }
}

/// A value as text, unlike every other value.
fn show(value: &Value<'_>) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::Unsent => "unsent".into(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Float32(value) => format!("{value:?}f"),
        Value::Float64(value) => format!("{value:?}"),
        Value::Text(text) => (*text).to_owned(),
        Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// A whole snapshot, and where a stream goes on after it.
pub(crate) async fn snapshot(source: &dyn SourceConnector) -> (Recorder, Resume) {
    let mut snapshot = source.snapshot().await.unwrap();
    let (mut changes, mut recorder) = (Changes::new(), Recorder::default());
    while recorder.items.last() != Some(&Item::SnapshotEnd) {
        snapshot.next(&mut changes, 10_000).await.unwrap();
        recorder.take(&mut changes);
    }
    let resume = Resume { after: snapshot.commit(), again: false, state: snapshot.state() };
    (recorder, resume)
}

/// A stream and all it has said.
pub(crate) struct Tail {
    pub(crate) stream: Box<dyn Stream>,
    changes: Changes,
    pub(crate) recorder: Recorder,
}

impl Tail {
    pub(crate) async fn open(source: &dyn SourceConnector, resume: Option<&Resume>) -> Self {
        Self::of(source.stream(resume).await.unwrap())
    }

    pub(crate) fn of(stream: Box<dyn Stream>) -> Self {
        Self { stream, changes: Changes::new(), recorder: Recorder::default() }
    }

    pub(crate) async fn next(&mut self) -> Result<(), SourceError> {
        let next = self.stream.next(&mut self.changes, 10_000);
        let result = tokio::time::timeout(PATIENCE, next).await.expect("the stream says something");
        // Capture takes nothing that comes with an error.
        assert!(result.is_ok() || self.changes.is_empty(), "{:?}", self.changes.events());
        self.recorder.take(&mut self.changes);
        result
    }

    /// Reads until everything that has committed by now has been passed.
    pub(crate) async fn catch_up(&mut self, source: &dyn SourceConnector) {
        let current = source.current().await.unwrap();
        let passed = |item: &Item| matches!(item, Item::Idle(through) if *through >= current);
        while !self.recorder.items.iter().any(passed) {
            self.next().await.unwrap();
        }
    }

    /// Reads until the stream ends.
    pub(crate) async fn failure(&mut self) -> SourceError {
        loop {
            if let Err(error) = self.next().await {
                return error;
            }
        }
    }

    /// Where to go on after `commit`.
    pub(crate) fn resume(&self, after: Commit, again: bool) -> Resume {
        Resume { after, again, state: self.state() }
    }

    pub(crate) fn state(&self) -> SourceState {
        self.stream.state()
    }
}

/// Runs a test on every flavor: on its shared server, in a database of its own.
pub(crate) fn on_each(test: impl AsyncFn(&'static Server, &str)) {
    for flavor in flavors() {
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        println!("{flavor} {database}");
        run(test(server, &database));
    }
}

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}
