//! PostgreSQL 14 to 18 as a source, by logical replication with `pgoutput`.
//!
//! The life of one change here: the server's walsender decodes it at its transaction's commit and
//! sends it on a connection that `wire` frames; `pgoutput` takes the message apart where it lies,
//! `decoder` gives it ordinal and images by the schemas that `state` keeps, and `stream` hands it
//! to capture and confirms what the log holds. Before that, `snapshot` reads every table exactly
//! where the stream begins (`copy`); `slot` is what we keep on the server, `check` what it must
//! allow.

mod check;
mod copy;
mod decoder;
#[cfg(test)]
mod golden;
mod lock;
mod patterns;
mod pgoutput;
mod silence;
mod slot;
mod snapshot;
mod state;
mod stream;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use tailwater_capture::{
    Rest, Resume, ServerIdentity, Snapshot, SourceConnector, SourceError, SourceLock, Stream,
    TableReader,
};
use tailwater_change::{Commit, Problem, TableId, TableSchema};

use crate::catalog::{CatalogTable, read_tables};
use crate::connect::{Server, Session, quote, source_error};
use crate::reader::PostgresReader;
use crate::source::decoder::Decoder;
pub(crate) use crate::source::decoder::bad_column;
use crate::source::lock::{Lock, below_end};
use crate::source::patterns::Patterns;
use crate::source::slot::{
    Kept, SlotStatus, create_slot, drop_slot, ensure_publication, foreign, has_free_slot, identify,
    publication, slot_name, slot_status, switch_point,
};
use crate::source::snapshot::PostgresSnapshot;
use crate::source::state::{KnownTable, State, System, schema_changed};
use crate::source::stream::PostgresStream;
use crate::source::wire::{Connection, Mode};

/// How our sessions are called in `pg_stat_activity`.
pub(crate) const APPLICATION: &str = "tailwater";

/// What the configuration says of a PostgreSQL source.
#[derive(Clone)]
pub struct SourceConfig {
    /// The source's name: slot and publication are called after it.
    pub name: String,
    /// `postgres://user:password@host:port/database?sslmode=…`.
    pub url: String,
    /// Tables to capture: `schema.table`, with `*`.
    pub tables: Vec<String>,
    /// Tables of those not to capture.
    pub exclude: Vec<String>,
}

impl std::fmt::Debug for SourceConfig {
    /// Without the URL, which holds a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceConfig")
            .field("name", &self.name)
            .field("tables", &self.tables)
            .field("exclude", &self.exclude)
            .finish_non_exhaustive()
    }
}

/// The configuration, understood.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) server: Server,
    pub(crate) patterns: Patterns,
    pub(crate) slot: String,
}

/// A PostgreSQL source.
///
/// # Errors
/// The configuration cannot be understood.
pub fn connector(config: SourceConfig) -> Result<impl SourceConnector, Problem> {
    Ok(PostgresSource {
        config: Config {
            server: Server::parse(&config.url)?,
            patterns: Patterns::new(&config.tables, &config.exclude)?,
            slot: slot_name(&config.name),
        },
    })
}

#[derive(Debug)]
struct PostgresSource {
    config: Config,
}

impl PostgresSource {
    async fn session(&self) -> Result<Session, SourceError> {
        Ok(self.config.server.connect(APPLICATION).await?)
    }

    async fn catalog(&self, session: &Session) -> Result<Vec<CatalogTable>, SourceError> {
        read_tables(session, |table| self.config.patterns.matches(table))
            .await
            .map_err(|error| source_error("reading the catalog", error))
    }

    /// The captured tables, or the first reason why not.
    async fn accepted(&self, session: &Session) -> Result<Vec<CatalogTable>, SourceError> {
        let tables = self.catalog(session).await?;
        let mut problems = check::of_tables(&self.config, &tables);
        match problems.is_empty() {
            true => Ok(tables),
            false => Err(SourceError::Refused(problems.swap_remove(0))),
        }
    }

    async fn replication(&self) -> Result<(Connection, System), SourceError> {
        let server = &self.config.server;
        let mut connection = Connection::open(server, APPLICATION, Mode::Replication).await?;
        let system = identify(&mut connection).await?;
        Ok((connection, system))
    }

    /// From now on, without a snapshot.
    async fn stream_from_now(&self) -> Result<PostgresStream, SourceError> {
        let (session, slot) = (self.session().await?, &self.config.slot);
        let tables = self.accepted(&session).await?;
        drop_slot(&self.config.server, &session, slot).await?;
        ensure_publication(&self.config.server, &session, slot, &tables).await?;
        let (mut connection, system) = self.replication().await?;
        let made = create_slot(&mut connection, &session, slot, Kept::Streaming).await?;
        let state = State {
            system,
            slot: slot.clone(),
            publication: slot.clone(),
            tables: tables.into_iter().map(KnownTable::from).collect(),
        };
        Ok(self.start(connection, state, made.consistent_point).await?.announced())
    }

    async fn stream_after(&self, resume: &Resume) -> Result<PostgresStream, SourceError> {
        let mut state = State::from_source_state(&resume.state)?;
        let session = self.session().await?;
        let (connection, system) = self.still_streams(&session, &state, resume).await?;
        let from = first_wanted(resume);
        let now = self.catalog(&session).await?;
        // What is not captured any more leaves the state, so that capturing it again is noticed.
        state.tables.retain(|known| self.config.patterns.matches(&known.schema.table));
        still_published(&session, &state, &now).await?;
        still_the_same(&state, &now)?;
        for known in &mut state.tables {
            // Partitions that were made empty since.
            if let Some(now) = now.iter().find(|now| now.oid == known.oid) {
                known.leaves = Some(now.leaves.keys().copied().collect());
            }
        }
        state.system = system;
        self.start(connection, state, from).await
    }

    /// Whether the server's history and the slot still have what comes after `resume`: then a
    /// connection, and who the server is now.
    async fn still_streams(
        &self,
        session: &Session,
        state: &State,
        resume: &Resume,
    ) -> Result<(Connection, System), SourceError> {
        let (mut connection, system) = self.replication().await?;
        same_history(&mut connection, &state.system, &system, resume.after).await?;
        let status = slot_status(session, &state.slot).await?;
        self.slot_holds(state, status, first_wanted(resume), resume.after)?;
        Ok((connection, system))
    }

    async fn start(
        &self,
        connection: Connection,
        state: State,
        from: u64,
    ) -> Result<PostgresStream, SourceError> {
        let patterns = self.config.patterns.clone();
        let wanted = Box::new(move |table: &TableId| patterns.matches(table));
        let decoder = Decoder::new(state.tables.clone(), wanted, from.saturating_sub(1));
        PostgresStream::start(connection, &state, decoder, from).await
    }

    /// Whether the slot still has everything from `from` on.
    fn slot_holds(
        &self,
        state: &State,
        status: Option<SlotStatus>,
        from: u64,
        after: Commit,
    ) -> Result<(), SourceError> {
        let slot = &state.slot;
        let lost = |what: String| Err(position_lost(after, what));
        let Some(status) = status else {
            return lost(format!("the replication slot {slot} is gone"));
        };
        if let Some(problem) = foreign(&self.config.server, slot, &status) {
            return Err(SourceError::Refused(problem));
        }
        if status.wal_status.as_deref() == Some("lost") {
            return lost(format!(
                "the replication slot {slot} was invalidated and its WAL removed \
                 (max_slot_wal_keep_size)"
            ));
        }
        match status.confirmed_flush {
            None => lost(format!("the replication slot {slot} has no position")),
            Some(confirmed) if confirmed > from => lost(format!(
                "the replication slot {slot} is ahead of the log: it starts at {}, the log ends \
                 at {after}",
                Commit::lsn(confirmed)
            )),
            Some(_) if status.active_pid.is_some() => {
                Err(SourceError::InUse(format!("the replication slot {slot}")))
            }
            Some(_) => Ok(()),
        }
    }
}

/// The first position whose transaction a stream from `resume` delivers.
fn first_wanted(resume: &Resume) -> u64 {
    let position = resume.after.position();
    if resume.again { position } else { position.saturating_add(1) }
}

/// Why a snapshot of the tables that `state` has cannot be completed with those of `now`.
fn cannot_complete(state: &State, now: &[CatalogTable]) -> Option<String> {
    for table in now {
        let name = &table.schema.table;
        let Some(known) = state.tables.iter().find(|known| known.schema.table == *name) else {
            return Some(format!("{name} was added"));
        };
        let same = known.oid == table.oid
            && known.schema.columns == table.schema.columns
            && known.schema.identity == table.schema.identity
            && known.types == table.types
            && known.replica_identity == table.replica_identity
            && known.repartitioned(table).is_none();
        if !same {
            return Some(format!("the definition of {name} changed"));
        }
    }
    let gone = |known: &&KnownTable| !now.iter().any(|now| now.oid == known.oid);
    let gone = state.tables.iter().find(gone);
    gone.map(|known| format!("{} is no longer captured", known.schema.table))
}

/// Whether the publication still has every table that is still there.
async fn still_published(
    session: &Session,
    state: &State,
    now: &[CatalogTable],
) -> Result<(), SourceError> {
    let name = &state.publication;
    let refuse = |what: String| {
        Err(SourceError::Refused(Problem::new(what, "take a new snapshot: `tailwater resync`")))
    };
    let Some(published) = publication(session, name).await? else {
        return refuse(format!("the publication {name} is gone"));
    };
    if !published.whole || published.filtered {
        return refuse(format!(
            "the publication {name} was changed: it no longer publishes whole rows of every \
             operation by partition root"
        ));
    }
    // By today's names: a renamed table is still published.
    let missing = now.iter().map(|table| (table.oid, &table.schema.table)).find(|(oid, table)| {
        state.tables.iter().any(|known| known.oid == *oid) && !published.tables.contains(table)
    });
    match missing {
        None => Ok(()),
        Some((_, table)) => refuse(format!("the publication {name} no longer has {table}")),
    }
}

/// Whether today's catalog shows what the stream never would: tables that were made again or were
/// added, partitions that came with rows or left with them.
fn still_the_same(state: &State, now: &[CatalogTable]) -> Result<(), SourceError> {
    for table in now {
        let name = &table.schema.table;
        let known = state.tables.iter().find(|known| known.schema.table == *name);
        let what = match known {
            Some(known) => known.replaced(table).or_else(|| known.repartitioned(table)),
            // Renamed: the stream says so where it happened.
            None if state.tables.iter().any(|known| known.oid == table.oid) => None,
            None => Some("added after the snapshot".into()),
        };
        if let Some(what) = what {
            let mut problem = schema_changed(name, &what);
            if known.is_none() {
                problem.remedy = format!("name {name} in `exclude`, or {}", problem.remedy);
            }
            return Err(SourceError::Refused(problem));
        }
    }
    for known in &state.tables {
        if !now.iter().any(|table| table.oid == known.oid) {
            tracing::warn!(table = %known.schema.table, "the table is no longer on the source");
        }
    }
    Ok(())
}

fn position_lost(after: Commit, what: String) -> SourceError {
    SourceError::PositionLost {
        after: after.to_string(),
        problem: Problem::new(
            what,
            "changes may be missing that only a new snapshot brings: `tailwater resync`",
        ),
    }
}

/// Whether the server's history goes through what the log holds.
async fn same_history(
    connection: &mut Connection,
    then: &System,
    now: &System,
    after: Commit,
) -> Result<(), SourceError> {
    if now.identifier != then.identifier {
        return Err(position_lost(
            after,
            format!(
                "this is another server: its system identifier is {}, the log's is {}",
                now.identifier, then.identifier
            ),
        ));
    }
    if now.timeline == then.timeline {
        return Ok(());
    }
    let switched = match now.timeline > then.timeline {
        true => switch_point(connection, now.timeline, then.timeline).await?,
        false => None,
    };
    match switched {
        Some(point) if after.position() < point => Ok(()),
        Some(point) => Err(position_lost(
            after,
            format!(
                "the log holds transactions up to {after} that this server lacks: it left \
                 timeline {} at {}",
                then.timeline,
                Commit::lsn(point)
            ),
        )),
        None => Err(position_lost(
            after,
            format!(
                "the server is on timeline {}, which does not come from the log's timeline {}",
                now.timeline, then.timeline
            ),
        )),
    }
}

#[async_trait]
impl SourceConnector for PostgresSource {
    async fn check(&self) -> Vec<Problem> {
        check::check(&self.config).await
    }

    async fn server(&self) -> Result<ServerIdentity, SourceError> {
        let (_connection, system) = self.replication().await?;
        Ok(system.identity())
    }

    async fn tables(&self) -> Result<Vec<Arc<TableSchema>>, SourceError> {
        let session = self.session().await?;
        let tables = self.accepted(&session).await?;
        Ok(tables.into_iter().map(|table| Arc::new(table.schema)).collect())
    }

    /// A message of our own in the WAL marks the spot: it stands behind every commit so far, and
    /// its transaction's commit record, flushed when this returns, stands behind it, so that the
    /// stream's keepalives pass it even if nothing else ever happens.
    async fn current(&self) -> Result<Commit, SourceError> {
        let session = self.session().await?;
        // Not waiting for standbys: only our own server must have flushed it.
        let marked = session.batch_execute("BEGIN; SET LOCAL synchronous_commit TO local").await;
        let mark = "SELECT (pg_catalog.pg_logical_emit_message(true, 'tailwater', '') \
                    - '0/0')::int8";
        let position = match marked {
            Ok(()) => match session.query_one(mark, &[]).await {
                Ok(row) => session.batch_execute("COMMIT").await.map(|()| row.get::<_, i64>(0)),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match position {
            Ok(position) => Ok(Commit::lsn(u64::try_from(position).unwrap_or_default())),
            Err(error) if error.as_db_error().is_some() => current_without_mark(self).await,
            Err(error) => Err(source_error("marking the current position", error)),
        }
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        let session = self.session().await?;
        let tables = self.accepted(&session).await?;
        Ok(Box::new(PostgresSnapshot::take(&self.config, &session, tables).await?))
    }

    async fn snapshot_rest(
        &self,
        resume: &Resume,
        finished: &[TableId],
    ) -> Result<Rest, SourceError> {
        let state = State::from_source_state(&resume.state)?;
        let session = self.session().await?;
        drop(self.still_streams(&session, &state, resume).await?);
        let now = self.accepted(&session).await?;
        if let Some(why) = cannot_complete(&state, &now) {
            return Ok(Rest::Void(why));
        }
        match still_published(&session, &state, &now).await {
            Err(SourceError::Refused(problem)) => return Ok(Rest::Void(problem.what)),
            published => published?,
        }
        if !has_free_slot(&session).await? {
            let why = "no replication slot is free (max_replication_slots) for a second snapshot";
            return Ok(Rest::Void(why.into()));
        }
        let rest = PostgresSnapshot::take_rest(&self.config, &session, now, finished).await?;
        Ok(Rest::Snapshot(Box::new(rest)))
    }

    async fn stream(&self, resume: Option<&Resume>) -> Result<Box<dyn Stream>, SourceError> {
        Ok(Box::new(match resume {
            None => self.stream_from_now().await?,
            Some(resume) => self.stream_after(resume).await?,
        }))
    }

    async fn lock_session(&self) -> Result<SourceLock, SourceError> {
        Ok(SourceLock::new(Lock::new(self.session().await?, &self.config.slot).await?))
    }

    async fn table_reader(&self) -> Result<Box<dyn TableReader>, SourceError> {
        Ok(Box::new(PostgresReader::new(self.session().await?)))
    }

    async fn release(&self) -> Result<(), SourceError> {
        let session = self.session().await?;
        let name = &self.config.slot;
        drop_slot(&self.config.server, &session, name).await?;
        session
            .batch_execute(&format!("DROP PUBLICATION IF EXISTS {}", quote(name)))
            .await
            .map_err(|error| source_error(&format!("dropping the publication {name}"), error))
    }
}

/// Where messages of ours are not allowed: the end of the WAL.
async fn current_without_mark(source: &PostgresSource) -> Result<Commit, SourceError> {
    let row = source
        .session()
        .await?
        .query_one("SELECT (pg_catalog.pg_current_wal_insert_lsn() - '0/0')::int8", &[])
        .await
        .map_err(|error| source_error("asking for the current position", error))?;
    Ok(below_end(row.get::<_, i64>(0)))
}
