//! A database of its own per test, and what a source says, written down to be compared.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tailwater_capture::{
    Changes, Event, Resume, RowEvent, Snapshot, SourceConnector, SourceError, SourceState, Stream,
    TableSlot,
};
use tailwater_change::{Commit, RowReader, TableSchema, Value};
use tailwater_postgres::source::{SourceConfig, connector};
use tailwater_scratch::{Flavor, Server};

/// The servers of a matrix test. Those this machine lacks are named once, at the end of the run's
/// output.
pub(crate) fn flavors() -> Vec<Flavor> {
    let found: Vec<Flavor> = Flavor::matrix().into_iter().filter(|f| f.is_postgres()).collect();
    if !found.contains(&Flavor::Postgres18) {
        println!("not tested: {}", Flavor::Postgres18.available().unwrap_err());
    }
    found
}

pub(crate) struct Database {
    pub(crate) server: &'static Server,
    pub(crate) name: String,
}

impl Database {
    pub(crate) fn new(flavor: Flavor) -> Self {
        let server = Server::shared(flavor);
        let name = server.create_database().unwrap();
        Self { server, name }
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.server.sql(&self.name, sql).unwrap()
    }

    /// A source of all tables of `public`, called as the database: slots are the server's.
    pub(crate) fn source(&self) -> Box<dyn SourceConnector> {
        self.source_of(&["public.*"])
    }

    pub(crate) fn source_of(&self, tables: &[&str]) -> Box<dyn SourceConnector> {
        source_at(&self.server.url(&self.name), &self.name, tables)
    }

    pub(crate) async fn session(&self) -> tokio_postgres::Client {
        let url = self.server.url(&self.name);
        let (client, connection) =
            tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Database {
    /// A slot that stays would hold back WAL and keep later tests waiting for room.
    fn drop(&mut self) {
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
              WHERE database = '{0}' AND active_pid IS NOT NULL;",
            self.name
        );
        drop(self.server.sql(&self.name, &sql));
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
              WHERE database = '{0}' AND active_pid IS NULL;",
            self.name
        );
        drop(self.server.sql(&self.name, &sql));
    }
}

pub(crate) fn source_at(url: &str, name: &str, tables: &[&str]) -> Box<dyn SourceConnector> {
    let config = SourceConfig {
        name: name.to_owned(),
        url: url.to_owned(),
        tables: tables.iter().map(|&table| table.to_owned()).collect(),
        exclude: Vec::new(),
    };
    Box::new(connector(config).unwrap())
}

/// Runs `future`; a test that waits for what never comes must fail, not hang.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect("came in time")
}

/// One row as capture gets it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) commit: Commit,
    pub(crate) ordinal: u64,
    pub(crate) table: String,
    /// `insert [Int(1), …]`, with the old row, the key and what was not sent.
    pub(crate) text: String,
    /// The new row as bytes.
    pub(crate) after: Option<Vec<u8>>,
}

/// What a source has said so far.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) schemas: HashMap<TableSlot, Arc<TableSchema>>,
    pub(crate) rows: Vec<Row>,
    /// Commits that are complete, with the number of their rows.
    pub(crate) ended: Vec<(Commit, usize)>,
    pub(crate) schema_changes: Vec<String>,
    pub(crate) through: Commit,
    pub(crate) open: Option<(Commit, usize)>,
    pub(crate) snapshot_ended: bool,
    pub(crate) largest_round: usize,
}

impl Log {
    pub(crate) fn take(&mut self, changes: &Changes) {
        self.largest_round = self.largest_round.max(changes.bytes());
        for event in changes.events() {
            match event {
                Event::Schema { slot, schema } => {
                    self.schemas.insert(*slot, Arc::clone(schema));
                }
                Event::Begin { commit, committed_at_us } => {
                    assert!(self.open.is_none(), "a transaction inside another");
                    assert!(*commit > self.through, "{commit} after {}", self.through);
                    assert!(committed_at_us.unwrap() > 1_700_000_000_000_000);
                    self.open = Some((*commit, 0));
                }
                Event::Row(row) => self.row(changes, row),
                Event::End { transaction } => {
                    assert!(transaction.is_some());
                    let (commit, rows) = self.open.take().expect("an end has a beginning");
                    self.ended.push((commit, rows));
                    self.through = commit;
                }
                Event::SchemaChange { table, description, .. } => {
                    self.schema_changes.push(format!("{table}: {description}"));
                }
                Event::Idle { through } => {
                    assert!(self.open.is_none(), "idle inside a transaction");
                    assert!(*through > self.through, "{through} after {}", self.through);
                    self.through = *through;
                }
                Event::SnapshotEnd => self.snapshot_ended = true,
                Event::TableBegin(_) | Event::TableEnd(_) => {}
            }
        }
    }

    fn row(&mut self, changes: &Changes, row: &RowEvent) {
        let schema = &self.schemas[&row.slot];
        let commit = match &mut self.open {
            Some((commit, rows)) => {
                *rows += 1;
                *commit
            }
            None => Commit::ZERO,
        };
        let mut text = format!("{:?}", row.operation).to_lowercase();
        let mut write = |what: &str, range: &std::ops::Range<usize>| {
            let mut values = Vec::new();
            RowReader::new(schema).read(changes.image(range), &mut values).unwrap();
            let values: Vec<String> = values.iter().map(print).collect();
            let _infallible = write!(text, " {what}[{}]", values.join(" "));
        };
        if let Some(before) = &row.before {
            write(if row.before_full { "full " } else { "key " }, before);
        }
        if let Some(after) = &row.after {
            write("", after);
        }
        let unsent = changes.unsent(&row.unsent);
        if !unsent.is_empty() {
            let _infallible = write!(text, " unsent {unsent:?}");
        }
        self.rows.push(Row {
            commit,
            ordinal: row.ordinal.get(),
            table: schema.table.name.clone(),
            text,
            after: row.after.as_ref().map(|after| changes.image(after).to_vec()),
        });
    }

    pub(crate) fn texts(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row.text.as_str()).collect()
    }
}

fn print(value: &Value<'_>) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Unsent => "?".into(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Float32(value) => format!("{value:?}"),
        Value::Float64(value) => format!("{value:?}"),
        Value::Text(text) if text.len() > 40 => format!("{}…{}", &text[..4], text.len()),
        Value::Text(text) => format!("'{text}'"),
        Value::Bytes(bytes) => format!("{bytes:02x?}"),
    }
}

/// A snapshot, read to its end.
pub(crate) async fn snapshot(source: &dyn SourceConnector) -> (Log, Resume) {
    let mut snapshot = soon(source.snapshot()).await.unwrap();
    let log = read_snapshot(&mut *snapshot, 1 << 20).await;
    let resume = Resume { after: snapshot.commit(), again: false, state: snapshot.state() };
    (log, resume)
}

pub(crate) async fn read_snapshot(snapshot: &mut dyn Snapshot, bytes: usize) -> Log {
    let (mut log, mut changes) = (Log::default(), Changes::new());
    while !log.snapshot_ended {
        soon(snapshot.next(&mut changes, bytes)).await.unwrap();
        log.take(&changes);
        changes.clear();
    }
    log
}

/// Reads until everything that has committed by now is there.
pub(crate) async fn catch_up(
    source: &dyn SourceConnector,
    stream: &mut dyn Stream,
    log: &mut Log,
) -> Result<(), SourceError> {
    let target = source.current().await.unwrap();
    read_through(stream, log, target).await
}

pub(crate) async fn read_through(
    stream: &mut dyn Stream,
    log: &mut Log,
    target: Commit,
) -> Result<(), SourceError> {
    let mut changes = Changes::new();
    soon(async {
        while log.through < target {
            stream.probe().await?;
            stream.next(&mut changes, 1 << 20).await?;
            log.take(&changes);
            changes.clear();
        }
        Ok(())
    })
    .await
}

/// What the stream says from `resume` until now.
pub(crate) async fn changes_after(source: &dyn SourceConnector, resume: &Resume) -> Log {
    let mut stream = stream_at(source, resume).await.unwrap();
    let mut log = Log { through: before(resume), ..Log::default() };
    catch_up(source, &mut *stream, &mut log).await.unwrap();
    log
}

fn before(resume: &Resume) -> Commit {
    let position = resume.after.position();
    Commit::lsn(if resume.again { position - 1 } else { position })
}

/// Opens a stream. The server notices the end of the last one a moment later.
pub(crate) async fn stream_at(
    source: &dyn SourceConnector,
    resume: &Resume,
) -> Result<Box<dyn Stream>, SourceError> {
    soon(async {
        loop {
            match source.stream(Some(resume)).await {
                Err(SourceError::InUse(_)) => tokio::task::yield_now().await,
                other => return other,
            }
        }
    })
    .await
}

pub(crate) fn resume_after(after: Commit, again: bool, state: &SourceState) -> Resume {
    Resume { after, again, state: state.clone() }
}

/// Everything an error says.
pub(crate) fn said(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _infallible = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
