//! A session on the target: the contract of [`Target`], each promise delegated to its module.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use tailwater_apply::{
    Change, ConflictPolicy, Progress, SESSION_LEASE, Step, StepOutcome, Table, Target, TargetError,
    TargetTable,
};
use tailwater_change::{Problem, TableId, TableSchema};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, Statement};

use super::connector::hidden_cascades;
use super::described::{CatalogEntry, Described, Shared};
use super::error::{Failure, connect_error, target_error};
use super::param::Param;
use super::parking::{Parked, parking};
use super::progress::Flush;
use super::{create, finish, progress, statement};
use crate::connect::{Server, Session, quote_table};

/// Beyond what [`crate::connect::SESSION`] fixes. Nothing is found by an unqualified name but
/// the built-in; no limit of the server's ends a long batch.
const SETTINGS: &str = "
    SET search_path TO '';
    SET standard_conforming_strings TO on;
    SET lock_timeout TO 0;
    SET default_transaction_isolation TO 'read committed';
    SET default_transaction_read_only TO off;
    SET default_transaction_deferrable TO off;
    SET client_min_messages TO error;
    SET jit TO off;
    SET temp_buffers TO '32MB'";

/// How the server notices that we are gone without a word, or hang: between statements and between
/// those of a transaction by our silence, inside a COPY by the network's. What it sends us is small
/// and read at once, so the network's limit of what it may owe us is one, too.
fn lease() -> String {
    let (lease, probe) = (SESSION_LEASE.as_millis(), SESSION_LEASE.as_secs() / 3);
    format!(
        "SET idle_session_timeout TO {lease};
         SET idle_in_transaction_session_timeout TO {lease};
         SET tcp_user_timeout TO {lease};
         SET tcp_keepalives_idle TO {probe};
         SET tcp_keepalives_interval TO {probe};
         SET tcp_keepalives_count TO 2"
    )
}

/// Looks whether we are there while a statement runs or waits for a row. Not every system that
/// PostgreSQL runs on can.
const LOOK_AT_CLIENT: &str = "SET client_connection_check_interval TO '2s'";

/// From 17 on.
const TRANSACTION_TIMEOUT: &str = "SET transaction_timeout TO 0";

/// Statements kept prepared. Beyond it all are forgotten: tables have few sets of columns, so this
/// many mean that most were used once.
const STATEMENT_LIMIT: usize = 512;

/// A session under the session contract.
pub(super) struct PgTarget {
    pub(super) session: Session,
    /// Whether triggers, foreign keys and cascades keep still.
    pub(super) replica: bool,
    /// `server_version_num`.
    pub(super) version: i32,
    tables: HashMap<TableId, Shared>,
    described_count: u32,
    statements: HashMap<String, Statement>,
    /// Temporary tables that are there, by name.
    pub(super) temporary: HashSet<String>,
    /// Those of them that a rollback takes away.
    made: Vec<String>,
    /// Rows set aside by a replay, not yet back in their tables.
    pub(super) parked: Vec<Parked>,
    /// As it was at the savepoint.
    parked_before: Vec<Parked>,
}

impl PgTarget {
    /// Opens a session.
    pub(super) async fn connect(server: &Server) -> Result<Self, TargetError> {
        let session = server.connect("tailwater apply").await.map_err(connect_error)?;
        let failed = |error| target_error("setting up the session", error);
        session.batch_execute(SETTINGS).await.map_err(failed)?;
        session.batch_execute(&lease()).await.map_err(failed)?;
        if let Err(error) = session.batch_execute(LOOK_AT_CLIENT).await {
            tracing::debug!(%error, "the target does not look at its clients");
        }
        let version = "SELECT pg_catalog.current_setting('server_version_num')::integer";
        let version: i32 = session.query_one(version, &[]).await.map_err(failed)?.get(0);
        if version >= 170_000 {
            session.batch_execute(TRANSACTION_TIMEOUT).await.map_err(failed)?;
        }
        let replica = match session.batch_execute("SET session_replication_role TO replica").await {
            Ok(()) => true,
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => false,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            session,
            replica,
            version,
            tables: HashMap::new(),
            described_count: 0,
            statements: HashMap::new(),
            temporary: HashSet::new(),
            made: Vec::new(),
            parked: Vec::new(),
            parked_before: Vec::new(),
        })
    }

    /// What steps on `table` need; read anew if it was described for another schema.
    pub(super) async fn table(&mut self, table: &Table) -> Result<Shared, TargetError> {
        let name = &table.target.name;
        if let Some(known) = self.tables.get(name)
            && known.schema == *table.schema
        {
            return Ok(Arc::clone(known));
        }
        self.look(&table.schema, name).await?.ok_or_else(|| missing(name))
    }

    /// The table as it was described last.
    pub(super) fn known(&self, name: &TableId) -> Option<Shared> {
        self.tables.get(name).map(Arc::clone)
    }

    async fn look(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Option<Shared>, TargetError> {
        let entry = CatalogEntry::read(&self.session, to, self.replica)
            .await
            .map_err(|error| target_error(&format!("describing {to}"), error))?;
        let Some(entry) = entry else { return Ok(None) };
        refuse_hidden_cascades(schema, to)?;
        if let Some(old) = self.tables.remove(to) {
            self.forget(&old).await?;
        }
        self.described_count += 1;
        let table = Described::new(schema, to, self.described_count, entry)
            .map_err(TargetError::Refused)?;
        let table = Arc::new(table);
        self.tables.insert(to.clone(), Arc::clone(&table));
        Ok(Some(table))
    }

    /// Drops what belongs to an older description: its temporary tables would hold on to the
    /// types of columns that may have to go.
    async fn forget(&mut self, table: &Described) -> Result<(), TargetError> {
        self.statements.clear();
        for name in [statement::stage(table), parking(table)] {
            if self.temporary.remove(&name) {
                let drop = format!("DROP TABLE IF EXISTS {name}");
                self.run(&drop, "dropping a temporary table").await?;
            }
        }
        Ok(())
    }

    /// Executes SQL that returns nothing of interest.
    pub(super) async fn run(&self, sql: &str, operation: &str) -> Result<(), TargetError> {
        self.session.batch_execute(sql).await.map_err(|error| target_error(operation, error))
    }

    /// Prepares `sql`, once.
    pub(super) async fn statement(&mut self, sql: &str) -> Result<Statement, Failure> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        if self.statements.len() >= STATEMENT_LIMIT {
            self.statements.clear();
        }
        let statement = self
            .session
            .prepare(sql)
            .await
            .map_err(|error| Failure::of("preparing a statement", error))?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Executes one statement; returns how many rows it changed.
    pub(super) async fn execute(
        &mut self,
        sql: &str,
        params: &[Param<'_>],
    ) -> Result<u64, Failure> {
        let statement = self.statement(sql).await?;
        self.session
            .execute_raw(&statement, params)
            .await
            .map_err(|error| Failure::of("applying a change", error))
    }

    /// Executes statements without waiting in between; returns each one's count. After one that
    /// fails the transaction is over, up to a savepoint, and so the first failure is returned.
    pub(super) async fn pipeline(
        &self,
        jobs: &[(Statement, Vec<Param<'_>>)],
    ) -> Result<Vec<u64>, Failure> {
        let all =
            jobs.iter().map(|(statement, params)| self.session.execute_raw(statement, params));
        let results: Vec<Result<u64, Error>> = join_all(all).await;
        results
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::of("applying changes", error))
    }

    /// Makes a temporary table that was not there; empties one that was. Then come the `settings`
    /// for what follows in the transaction.
    pub(super) async fn fresh_temporary(
        &mut self,
        name: &str,
        create: &str,
        settings: &str,
    ) -> Result<(), Failure> {
        let sql = if self.temporary.contains(name) {
            format!("TRUNCATE {name}; {settings}")
        } else {
            format!("{create}; TRUNCATE {name}; {settings}")
        };
        self.session
            .batch_execute(&sql)
            .await
            .map_err(|error| Failure::of("making a temporary table", error))?;
        self.made_temporary(name);
        Ok(())
    }

    /// Remembers that a temporary table is there from now on, unless the transaction is undone.
    pub(super) fn made_temporary(&mut self, name: &str) {
        if self.temporary.insert(name.to_owned()) {
            self.made.push(name.to_owned());
        }
    }

    fn undone(&mut self) {
        for name in self.made.drain(..) {
            self.temporary.remove(&name);
        }
    }
}

/// Rows that the source changes by cascades that it does not log stay as they are here: triggers
/// keep still in this session, so the tables would part without a word.
fn refuse_hidden_cascades(schema: &TableSchema, to: &TableId) -> Result<(), TargetError> {
    match hidden_cascades(schema, to).into_iter().next() {
        Some(problem) => Err(TargetError::Refused(problem)),
        None => Ok(()),
    }
}

fn missing(table: &TableId) -> TargetError {
    TargetError::Refused(Problem::new(
        format!("the target has no table {table}"),
        "create it, or let Tailwater do so (`tailwater resync`), then `tailwater resume`",
    ))
}

#[async_trait]
impl Target for PgTarget {
    async fn try_lock(&mut self, pipeline: &str) -> Result<bool, TargetError> {
        progress::try_lock(&self.session, pipeline).await
    }

    async fn lock_holder(&mut self, pipeline: &str) -> Result<String, TargetError> {
        progress::lock_holder(&self.session, pipeline).await
    }

    async fn held(&mut self, locks: &[String]) -> Result<Vec<bool>, TargetError> {
        progress::held(&self.session, locks).await
    }

    async fn ping(&mut self) -> Result<(), TargetError> {
        self.run("", "holding the pipeline's lock").await
    }

    async fn progress(&mut self, pipeline: &str) -> Result<Option<Progress>, TargetError> {
        progress::create(&self.session).await?;
        progress::read(&self.session, pipeline).await
    }

    async fn take_over(&mut self, initial: &Progress) -> Result<Progress, TargetError> {
        progress::create(&self.session).await?;
        progress::take_over(&self.session, initial).await
    }

    async fn describe(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Option<TargetTable>, TargetError> {
        Ok(self.look(schema, to).await?.map(|table| table.target_table()))
    }

    async fn create_table(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<(), TargetError> {
        refuse_hidden_cascades(schema, to)?;
        create::create(&self.session, self.version, schema, to).await
    }

    async fn finish_table(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
        route: &(dyn for<'a> Fn(&'a TableId) -> Option<TableId> + Sync),
    ) -> Result<(), TargetError> {
        // What the plan was told of the table is about to change.
        if let Some(old) = self.tables.remove(to) {
            self.forget(&old).await?;
        }
        finish::finish(&self.session, schema, to, route).await
    }

    async fn is_empty(&mut self, to: &TableId) -> Result<bool, TargetError> {
        let sql = format!("SELECT NOT EXISTS (SELECT FROM {})", quote_table(to));
        let row = self.session.query_one(&sql, &[]).await;
        row.map(|row| row.get(0)).map_err(|error| target_error(&format!("reading {to}"), error))
    }

    async fn begin(&mut self) -> Result<(), TargetError> {
        self.run("BEGIN; SET CONSTRAINTS ALL DEFERRED", "BEGIN").await
    }

    async fn clear(&mut self, tables: &[Arc<Table>]) -> Result<(), TargetError> {
        self.truncate(tables).await.map_err(|failure| failure.into_error("emptying tables"))
    }

    async fn savepoint(&mut self) -> Result<(), TargetError> {
        self.run("SAVEPOINT tailwater", "SAVEPOINT").await?;
        self.parked_before = self.parked.clone();
        Ok(())
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), TargetError> {
        self.run("ROLLBACK TO SAVEPOINT tailwater", "ROLLBACK TO SAVEPOINT").await?;
        self.undone();
        self.parked = self.parked_before.clone();
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<StepOutcome, TargetError> {
        self.execute_step(step).await
    }

    async fn replay(
        &mut self,
        changes: &[Change],
        policy: ConflictPolicy,
    ) -> Result<u64, TargetError> {
        self.replay_changes(changes, policy).await
    }

    async fn commit(&mut self, progress: &Progress) -> Result<(), TargetError> {
        self.commit_with(progress, Flush::Wait).await
    }

    async fn commit_soon(&mut self, progress: &Progress) -> Result<bool, TargetError> {
        self.commit_with(progress, Flush::Later).await?;
        Ok(false)
    }

    async fn rollback(&mut self) -> Result<(), TargetError> {
        self.run("ROLLBACK", "ROLLBACK").await?;
        self.undone();
        self.parked.clear();
        Ok(())
    }
}

impl PgTarget {
    async fn commit_with(&mut self, progress: &Progress, flush: Flush) -> Result<(), TargetError> {
        if let Some(parked) = self.parked.first() {
            return Err(parked.conflict());
        }
        let statement = self
            .statement(progress::ADVANCE)
            .await
            .map_err(|failure| failure.into_error("preparing the progress statement"))?;
        progress::commit(&self.session, &statement, progress, flush).await?;
        self.made.clear();
        Ok(())
    }
}
