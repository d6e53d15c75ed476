//! The exact snapshot: what a reader saw at one position of the binlog.
//!
//! One session reads every table in one transaction with a consistent snapshot. Which binlog
//! position that is, MariaDB says itself. MySQL does not: there, commits are held for the moment in
//! which the transaction begins and the position is read, by `FLUSH TABLES WITH READ LOCK`, or
//! where that privilege is missing by `LOCK TABLES … READ` on the captured tables (which waits for
//! the transactions that have written to them, so that none of theirs is in the binlog but not yet
//! visible).
//!
//! What a snapshot that broke off lacks is read by a second one of the same kind.

use std::sync::Arc;

use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use tailwater_capture::{
    Changes, Event, LOCK_LEASE, ServerIdentity, Snapshot, SourceError, SourceState, TableSlot,
};
use tailwater_change::{Commit, Operation, Ordinal, Problem, TableId, TableSchema, Value};

use super::file::BinlogName;
use super::session::{End, Session, no_binlog};
use super::state::State;
use super::{MysqlSource, catalog};
use crate::cell::{Scratch, recycle};
use crate::connect::{quote_table, quote_text};
use crate::text::{RAW_RESULTS, TextColumn, read_row};
use crate::wire::Wire;

/// Tries to find the tables unchanged before and after the snapshot began.
const ATTEMPTS: usize = 10;

/// The server's errors for a missing privilege.
const DENIED: [u16; 3] = [1044, 1142, 1227];

/// A session that reads for long and may wait for us for long.
const PATIENCE: &[&str] = &[
    "SET SESSION net_write_timeout = 86400",
    "SET SESSION wait_timeout = 86400",
    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    RAW_RESULTS,
];

const BEGIN: &str = "START TRANSACTION WITH CONSISTENT SNAPSHOT";

/// A snapshot being read.
#[derive(Debug)]
pub(crate) struct TableSnapshot {
    wire: Wire,
    state: State,
    commit: Commit,
    /// The tables to read.
    tables: Vec<Arc<TableSchema>>,
    /// Index of the table that is read or comes next.
    table: usize,
    reading: Option<Vec<TextColumn>>,
    rows: u64,
    scratch: Scratch,
    values: Vec<Value<'static>>,
    ended: bool,
}

/// Takes it.
pub(crate) async fn take(source: &MysqlSource) -> Result<TableSnapshot, SourceError> {
    let mut session = Session::open(&source.endpoint).await?;
    let server = session.identity().await?;
    let mut wire = Wire::connect(&source.endpoint).await.map_err(|error| {
        SourceError::unavailable(format!("connect to {}", source.endpoint), error)
    })?;
    for statement in PATIENCE {
        execute(&mut wire, statement).await?;
    }
    let (end, schemas) = if session.server.is_mariadb() {
        begin_mariadb(source, &mut session, &mut wire).await?
    } else {
        begin_mysql(source, &mut session, &mut wire).await?
    };
    let gtids = if session.server.is_mariadb() {
        let file = quote_text(&end.file.to_string());
        let sql = format!("SELECT BINLOG_GTID_POS({file}, {})", end.position);
        let gtids = session.value(&sql).await;
        gtids.map_err(|error| SourceError::unavailable(sql, error))?.unwrap_or_default()
    } else {
        end.gtids.clone().unwrap_or_default()
    };
    let before = end.position.checked_sub(1).ok_or_else(no_binlog)?;
    Ok(TableSnapshot {
        wire,
        commit: Commit::binlog(end.file.number(), before),
        tables: schemas.clone(),
        state: State {
            server,
            base: end.file.base().to_owned(),
            gtids,
            files: Vec::new(),
            schemas,
        },
        table: 0,
        reading: None,
        rows: 0,
        scratch: Scratch::default(),
        values: Vec::new(),
        ended: false,
    })
}

/// MariaDB knows the position of the transaction's snapshot. Definitions are not part of it, so the
/// catalog must say the same before and after.
async fn begin_mariadb(
    source: &MysqlSource,
    session: &mut Session,
    wire: &mut Wire,
) -> Result<(End, Vec<Arc<TableSchema>>), SourceError> {
    for _ in 0..ATTEMPTS {
        let before = catalog(source, session).await?;
        execute(wire, BEGIN).await?;
        let status = "SHOW STATUS LIKE 'binlog_snapshot%'";
        let rows = wire.rows(status).await;
        let rows = rows.map_err(|error| SourceError::unavailable(status, error))?;
        let value = |name: &str| {
            let is_it = |row: &&Vec<Option<String>>| matches!(row.first(), Some(Some(key)) if key.eq_ignore_ascii_case(name));
            rows.iter().find(is_it).and_then(|row| row.get(1).cloned().flatten())
        };
        let file = value("binlog_snapshot_file").and_then(|name| BinlogName::parse(&name));
        let position = value("binlog_snapshot_position").and_then(|text| text.parse().ok());
        let (Some(file), Some(position)) = (file, position) else { return Err(no_binlog()) };
        if catalog(source, session).await? == before {
            return Ok((End { file, position, gtids: None }, before));
        }
        execute(wire, "ROLLBACK").await?;
    }
    Err(SourceError::unavailable(
        "begin the snapshot",
        "the definitions of captured tables keep changing",
    ))
}

/// MySQL: nothing commits between the beginning of the transaction and the reading of the position.
async fn begin_mysql(
    source: &MysqlSource,
    session: &mut Session,
    wire: &mut Wire,
) -> Result<(End, Vec<Arc<TableSchema>>), SourceError> {
    let failed = |what: &str, error| SourceError::unavailable(what.to_owned(), error);
    // While nobody can write, the server must not wait for a host that is gone.
    let lease = LOCK_LEASE.as_secs();
    let patience = format!("SET SESSION lock_wait_timeout = 60, wait_timeout = {lease}");
    session.conn.query_drop(&patience).await.map_err(|error| failed(&patience, error))?;
    let lock = "FLUSH TABLES WITH READ LOCK";
    match session.conn.query_drop(lock).await {
        Ok(()) => {}
        Err(mysql_async::Error::Server(error)) if DENIED.contains(&error.code) => {
            let tables = catalog(source, session).await?;
            let names: Vec<String> =
                tables.iter().map(|table| format!("{} READ", quote_table(&table.table))).collect();
            let lock = format!("LOCK TABLES {}", names.join(", "));
            session.conn.query_drop(&lock).await.map_err(|error| {
                SourceError::Refused(Problem::new(
                    format!("the snapshot can lock neither the server nor its tables: {error}"),
                    format!(
                        "GRANT RELOAD ON *.* TO {}; (or LOCK TABLES on the captured databases)",
                        source.account()
                    ),
                ))
            })?;
        }
        Err(error) => return Err(failed(lock, error)),
    }
    execute(wire, BEGIN).await?;
    let status = session.end_statement();
    let rows = wire.rows(status).await.map_err(|error| SourceError::unavailable(status, error))?;
    let end = rows.first().and_then(|row| End::read(row)).ok_or_else(no_binlog)?;
    let schemas = catalog(source, session).await?;
    let unlock = "UNLOCK TABLES";
    session.conn.query_drop(unlock).await.map_err(|error| failed(unlock, error))?;
    Ok((end, schemas))
}

async fn execute(wire: &mut Wire, sql: &str) -> Result<(), SourceError> {
    wire.execute(sql).await.map_err(|error| SourceError::unavailable(sql, error))
}

#[async_trait]
impl Snapshot for TableSnapshot {
    fn commit(&self) -> Commit {
        self.commit
    }

    fn server(&self) -> ServerIdentity {
        self.state.identity()
    }

    fn state(&self) -> SourceState {
        self.state.write()
    }

    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        while out.bytes() < bytes && !self.ended {
            let Some(schema) = self.tables.get(self.table).map(Arc::clone) else {
                out.push(Event::SnapshotEnd);
                self.ended = true;
                return Ok(());
            };
            let slot = TableSlot(self.table);
            let Some(columns) = self.reading.take() else {
                self.reading = Some(self.begin(&schema).await?);
                out.schema(slot, schema);
                out.push(Event::TableBegin(slot));
                continue;
            };
            if self.read(&schema, slot, &columns, out, bytes).await? {
                self.reading = Some(columns);
            } else {
                out.push(Event::TableEnd(slot));
                self.table += 1;
            }
        }
        Ok(())
    }
}

impl TableSnapshot {
    /// Leaves out tables that have been read, by a snapshot whose stream knows `then`. Otherwise,
    /// why the two do not go together.
    pub(crate) fn complete(&mut self, then: &State, finished: &[TableId]) -> Result<(), String> {
        let now = &self.state.schemas;
        for table in now {
            let known = then.schemas.iter().find(|known| known.table == table.table);
            let Some(known) = known else { return Err(format!("{} was added", table.table)) };
            if known.columns != table.columns || known.identity != table.identity {
                return Err(format!("the definition of {} changed", table.table));
            }
        }
        let gone = |known: &&Arc<TableSchema>| !now.iter().any(|now| now.table == known.table);
        if let Some(known) = then.schemas.iter().find(gone) {
            return Err(format!("{} is no longer captured", known.table));
        }
        self.state.files.clone_from(&then.files);
        self.tables.retain(|table| !finished.contains(&table.table));
        Ok(())
    }

    async fn begin(&mut self, schema: &TableSchema) -> Result<Vec<TextColumn>, SourceError> {
        let columns = schema.columns.iter().filter(|column| column.flows());
        let columns: Option<Vec<TextColumn>> = columns
            .map(|column| {
                let charset = column.charset.as_deref();
                TextColumn::new(&column.name, &column.native, charset, &column.kind)
            })
            .collect();
        let columns = columns.ok_or_else(|| SourceError::Protocol {
            operation: format!("read {}", schema.table),
            detail: "a column's type is not what it was".into(),
        })?;
        let mut selected: Vec<String> = columns.iter().map(TextColumn::selected).collect();
        if selected.is_empty() {
            selected.push("1".into());
        }
        let sql = format!("SELECT {} FROM {}", selected.join(", "), quote_table(&schema.table));
        let started = self.wire.query(&sql).await;
        started
            .map_err(|error| SourceError::unavailable(format!("read {}", schema.table), error))?;
        Ok(columns)
    }

    /// Reads rows until `out` has `bytes`. Whether there are more.
    async fn read(
        &mut self,
        schema: &TableSchema,
        slot: TableSlot,
        columns: &[TextColumn],
        out: &mut Changes,
        bytes: usize,
    ) -> Result<bool, SourceError> {
        let operation = || format!("read {}", schema.table);
        while out.bytes() < bytes {
            let row = match self.wire.buffered_row() {
                Ok(Some(row)) => row,
                Ok(None) => {
                    let filled = self.wire.fill().await;
                    filled.map_err(|error| SourceError::unavailable(operation(), error))?;
                    continue;
                }
                Err(error) => return Err(SourceError::unavailable(operation(), error)),
            };
            let Some(row) = row else { return Ok(false) };
            self.scratch.clear();
            let mut cells = Vec::with_capacity(columns.len());
            read_row(columns, &row, &mut cells, &mut self.scratch).map_err(|error| {
                SourceError::Protocol { operation: operation(), detail: error.to_string() }
            })?;
            let mut flowing = recycle(std::mem::take(&mut self.values));
            self.scratch.values(&cells, &mut flowing);
            let mut values = Vec::with_capacity(schema.columns.len());
            let mut next = flowing.iter();
            for column in &schema.columns {
                let value = if column.flows() { next.next().copied() } else { None };
                values.push(value.unwrap_or(Value::Unsent));
            }
            let ordinal = Ordinal::new(self.rows);
            out.row(slot, schema, Operation::Read, ordinal, None, Some(&values));
            self.rows += 1;
            self.values = recycle(flowing);
            self.scratch.clear();
        }
        Ok(true)
    }
}
