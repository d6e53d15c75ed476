//! The first snapshot: every table as it was exactly where the slot's stream begins.
//!
//! ```text
//!   publication ─► slot, exporting its snapshot ─► a reader imports it ─► COPY, table by table
//! ```
//!
//! What committed below the slot's consistent point is in the snapshot, what committed from there
//! on is in the stream, nothing is in both. The reader streams: it holds one read buffer, whatever
//! the size of a table. If reading fails, the slot stays: what was read to its end can be completed
//! by a second snapshot of the other tables, which a temporary slot exports. That one is gone as
//! soon as its snapshot is imported.

use async_trait::async_trait;
use tailwater_capture::{
    Changes, Event, ServerIdentity, Snapshot, SourceError, SourceState, TableSlot,
};
use tailwater_change::{Commit, Ordinal, Problem, TableId};

use crate::catalog::{CatalogTable, read_tables};
use crate::connect::{Session, literal, quote_table, source_error};
use crate::source::copy::CopyDecoder;
use crate::source::slot::{
    Kept, NewSlot, create_slot, drop_slot, ensure_publication, identify, rest_slot_name,
};
use crate::source::state::{KnownTable, State, System};
use crate::source::wire::{Connection, Mode, frame, server_error, unexpected};
use crate::source::{APPLICATION, Config};

/// A snapshot being read.
#[derive(Debug)]
pub(crate) struct PostgresSnapshot {
    reader: Connection,
    state: State,
    source_state: SourceState,
    commit: Commit,
    tables: Vec<(CopyDecoder, bool)>,
    at: usize,
    copying: bool,
    ordinal: Ordinal,
}

impl PostgresSnapshot {
    /// Makes publication and slot anew and opens a reader at the slot's consistent point.
    ///
    /// # Errors
    /// As the variants say; the slot is then gone again.
    pub(crate) async fn take(
        config: &Config,
        session: &Session,
        tables: Vec<CatalogTable>,
    ) -> Result<Self, SourceError> {
        let name = &config.slot;
        drop_slot(&config.server, session, name).await?;
        ensure_publication(&config.server, session, name, &tables).await?;
        let mut replication =
            Connection::open(&config.server, APPLICATION, Mode::Replication).await?;
        let system = identify(&mut replication).await?;
        let slot = create_slot(&mut replication, session, name, Kept::Exporting).await?;
        let opened = open_reader(config, &slot, &tables, &[]).await;
        // Imported: its own connection may go, and with it the lock on the slot.
        drop(replication);
        match opened {
            Ok((reader, tables)) => Self::new(config, system, &slot, reader, tables, &[]),
            Err(error) => Err(give_up(config, error).await),
        }
    }

    /// Opens a reader of the tables that are not `finished`, at a point of now. The source's own
    /// slot stays as it is.
    ///
    /// # Errors
    /// As the variants say.
    pub(crate) async fn take_rest(
        config: &Config,
        session: &Session,
        tables: Vec<CatalogTable>,
        finished: &[TableId],
    ) -> Result<Self, SourceError> {
        let name = rest_slot_name(&config.slot);
        let mut replication =
            Connection::open(&config.server, APPLICATION, Mode::Replication).await?;
        let system = identify(&mut replication).await?;
        let slot = create_slot(&mut replication, session, &name, Kept::Temporary).await?;
        let (reader, tables) = open_reader(config, &slot, &tables, finished).await?;
        drop(replication);
        Self::new(config, system, &slot, reader, tables, finished)
    }

    fn new(
        config: &Config,
        system: System,
        slot: &NewSlot,
        reader: Connection,
        tables: Vec<CatalogTable>,
        finished: &[TableId],
    ) -> Result<Self, SourceError> {
        let partitioned: Vec<bool> = tables.iter().map(|table| table.partitioned).collect();
        let state = State {
            system,
            slot: config.slot.clone(),
            publication: config.slot.clone(),
            tables: tables.into_iter().map(KnownTable::from).collect(),
        };
        let tables = state.tables.iter().enumerate().zip(partitioned);
        let read = tables.filter(|((_, table), _)| !finished.contains(&table.schema.table));
        let read = read.map(|((index, table), partitioned)| {
            (CopyDecoder::new(TableSlot(index), table), partitioned)
        });
        Ok(Self {
            reader,
            source_state: state.to_source_state()?,
            commit: Commit::lsn(slot.consistent_point.saturating_sub(1)),
            tables: read.collect(),
            state,
            at: 0,
            copying: false,
            ordinal: Ordinal::ZERO,
        })
    }

    async fn read(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        while out.bytes() < bytes {
            if self.copying {
                if !self.decode(out, bytes)? {
                    let filled = self.reader.fill().await;
                    filled.map_err(|error| SourceError::unavailable("reading a table", error))?;
                }
                continue;
            }
            let Some((decoder, partitioned)) = self.tables.get(self.at) else {
                let ended = self.reader.query("COMMIT").await;
                ended.map_err(|error| error.into_source_error("ending the snapshot"))?;
                out.push(Event::SnapshotEnd);
                return Ok(());
            };
            let sql = decoder.statement(*partitioned);
            let operation = format!("reading {}", decoder.schema().table);
            let started = self.reader.start_copy(&sql).await;
            started.map_err(|error| error.into_source_error(&operation))?;
            out.schema(decoder.slot(), std::sync::Arc::clone(decoder.schema()));
            out.push(Event::TableBegin(decoder.slot()));
            self.copying = true;
        }
        Ok(())
    }

    /// Decodes what has been read; false if there is no whole message left.
    fn decode(&mut self, out: &mut Changes, bytes: usize) -> Result<bool, SourceError> {
        let Some((decoder, _)) = self.tables.get_mut(self.at) else { return Ok(true) };
        let operation = "reading a table";
        let mut done = 0;
        let whole = loop {
            if out.bytes() >= bytes {
                break true;
            }
            let found = frame(&self.reader.input()[done..])
                .map_err(|error| error.into_source_error(operation))?;
            let Some(frame) = found else { break false };
            done += frame.total;
            match frame.tag {
                b'd' => {
                    decoder.row(frame.body, self.ordinal, out)?;
                    self.ordinal = self.ordinal.next();
                }
                // CopyDone, CommandComplete, NoticeResponse, ParameterStatus.
                b'c' | b'C' | b'N' | b'S' => {}
                b'Z' => {
                    out.push(Event::TableEnd(decoder.slot()));
                    self.copying = false;
                    self.at += 1;
                    break true;
                }
                b'E' => return Err(server_error(frame.body).into_source_error(operation)),
                tag => return Err(unexpected(tag).into_source_error(operation)),
            }
        };
        self.reader.consume(done);
        Ok(whole)
    }
}

/// Opens a session in the slot's exported snapshot, with the tables as they are in it. Locks on
/// those that are not `finished` keep DDL away until they have been read: a rewritten table would
/// look empty.
async fn open_reader(
    config: &Config,
    slot: &NewSlot,
    published: &[CatalogTable],
    finished: &[TableId],
) -> Result<(Connection, Vec<CatalogTable>), SourceError> {
    let Some(snapshot) = slot.snapshot.as_deref() else {
        return Err(SourceError::Protocol {
            operation: "creating the replication slot".into(),
            detail: "no snapshot".into(),
        });
    };
    let mut reader = Connection::open(&config.server, APPLICATION, Mode::Sql).await?;
    let import = [
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned(),
        format!("SET TRANSACTION SNAPSHOT {}", literal(snapshot)),
    ];
    let read = published.iter().filter(|table| !finished.contains(&table.schema.table));
    let names: Vec<String> = read.map(|table| quote_table(&table.schema.table)).collect();
    let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
    for sql in import.iter().chain((!names.is_empty()).then_some(&lock)) {
        let ran = reader.query(sql).await;
        ran.map_err(|error| error.into_source_error("importing the snapshot"))?;
    }
    let session = config.server.connect(APPLICATION).await?;
    session
        .batch_execute(&import.join(";"))
        .await
        .map_err(|error| source_error("importing the snapshot", error))?;
    let tables =
        read_tables(&session, |table| published.iter().any(|other| other.schema.table == *table))
            .await
            .map_err(|error| source_error("reading the catalog", error))?;
    let same = tables.len() == published.len()
        && tables.iter().all(|table| published.iter().any(|other| same_table(table, other)));
    if !same {
        return Err(SourceError::Refused(Problem::new(
            "a captured table changed while the snapshot began",
            "nothing was lost: start again when the schema change is complete",
        )));
    }
    Ok((reader, tables))
}

/// Whether nothing that `check` looked at has changed since.
fn same_table(now: &CatalogTable, then: &CatalogTable) -> bool {
    now.oid == then.oid
        && now.schema.columns == then.schema.columns
        && now.replica_identity == then.replica_identity
        && now.refused == then.refused
}

/// Drops the slot of a snapshot that could not begin: `error` says why.
async fn give_up(config: &Config, error: SourceError) -> SourceError {
    let dropped = async {
        let session = config.server.connect(APPLICATION).await?;
        drop_slot(&config.server, &session, &config.slot).await
    };
    if let Err(left) = dropped.await {
        tracing::warn!(
            slot = config.slot,
            error = %left,
            "the slot of the failed snapshot could not be dropped; the next snapshot drops it"
        );
    }
    error
}

#[async_trait]
impl Snapshot for PostgresSnapshot {
    fn commit(&self) -> Commit {
        self.commit
    }

    fn server(&self) -> ServerIdentity {
        self.state.system.identity()
    }

    fn state(&self) -> SourceState {
        self.source_state.clone()
    }

    async fn next(&mut self, out: &mut Changes, bytes: usize) -> Result<(), SourceError> {
        self.read(out, bytes).await
    }
}
