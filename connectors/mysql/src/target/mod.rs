//! MySQL and MariaDB as a target.
//!
//! ```text
//!   session ── the contract of settings; statements and what they did
//!      ├─ progress ── lock, fence, the progress row, commit
//!      ├─ table ───── the target's table as rows need it        mapping ── types: one table
//!      ├─ step ────── set-based work ──► load (LOAD DATA, INSERT)  spell ── values as bytes
//!      ├─ replay ──── one by one, with repairs           settle ── unique values that swap
//!      └─ create ──── missing tables, their indexes and foreign keys
//! ```
//!
//! The invariant: what a statement did is compared with what it was to do, in rows and in warnings,
//! every time. MySQL changes values and skips rows without an error in more ways than one can list;
//! it does not do so without a count.

mod collation;
mod create;
mod failure;
mod load;
mod mapping;
mod page;
mod progress;
mod replay;
mod session;
mod settle;
mod spell;
mod sql;
mod step;
mod table;

use std::sync::Arc;

use async_trait::async_trait;
use mysql_async::prelude::Queryable;
use tailwater_apply::{
    Change, ConflictPolicy, Progress, Step, StepOutcome, Table, Target, TargetConnector,
    TargetError, TargetTable,
};
use tailwater_change::{Dialect, Problem, TableId, TableSchema};

pub use self::mapping::{Abilities, TargetType, Usage, mapping};
pub use self::page::{Fit, Mapped, mapped};
use self::session::{Looked, Session, refused};
use self::table::{missing_cascades, on};
use crate::connect::Endpoint;

/// The oldest versions that work: MySQL 8.0.13 makes temporary tables inside transactions, MariaDB
/// 10.6 is the oldest that is maintained.
const OLDEST_MYSQL: (u16, u16, u16) = (8, 0, 13);
const OLDEST_MARIADB: (u16, u16, u16) = (10, 6, 0);

/// Where a target is.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// The target's name in the configuration.
    pub name: String,
    /// `mysql://user:password@host:port/database?ssl-mode=…`
    pub url: String,
}

/// The connector for a MySQL or MariaDB target.
///
/// # Errors
/// The URL cannot be read.
pub fn connector(config: TargetConfig) -> Result<impl TargetConnector, Problem> {
    let endpoint = Endpoint::parse(&config.url)?;
    Ok(Connector { name: config.name, endpoint })
}

#[derive(Debug)]
struct Connector {
    name: String,
    endpoint: Endpoint,
}

impl Connector {
    async fn open(&self) -> Result<Session, TargetError> {
        Session::open(&self.endpoint).await.map_err(|failure| {
            match self.endpoint.refusal(failure.error()) {
                Some(problem) => TargetError::Refused(problem),
                None => failure.into_target(&format!("connect to {}", self.endpoint)),
            }
        })
    }
}

#[async_trait]
impl TargetConnector for Connector {
    /// MySQL's. Whether the server is MariaDB is only known once connected; the two are alike.
    fn dialect(&self) -> Dialect {
        Dialect::Mysql
    }

    async fn check(&self) -> Vec<Problem> {
        match self.open().await {
            Ok(mut session) => session.check().await,
            Err(error) => vec![problem_of(
                error,
                &format!("make sure that target {} is up and its url right", self.name),
            )],
        }
    }

    async fn check_table(&self, schema: &TableSchema, to: &TableId) -> Vec<Problem> {
        let mut session = match self.open().await {
            Ok(session) => session,
            Err(error) => return vec![problem_of(error, "make sure that the target is up")],
        };
        let looked = match session.look(schema, to).await {
            Ok(Some(looked)) => looked,
            Ok(None) => return create::creation_problems(schema, to, &session.abilities),
            Err(failure) => {
                let error = failure.into_target(&on("describe", to));
                return vec![problem_of(error, "repair the server and check again")];
            }
        };
        let mut problems = looked.shape.err().unwrap_or_default();
        let missing = missing_cascades(schema, &looked.catalog);
        if !missing.is_empty() {
            match session.is_loading(to).await {
                Ok(true) => {}
                Ok(false) => problems.extend(missing),
                Err(error) => problems.push(problem_of(error, "repair the server and check again")),
            }
        }
        problems
    }

    async fn connect(&self) -> Result<Box<dyn Target>, TargetError> {
        Ok(Box::new(self.open().await?))
    }

    async fn forget(&self, pipeline: &str) -> Result<(), TargetError> {
        self.open().await?.remove_progress(pipeline).await
    }
}

fn problem_of(error: TargetError, remedy: &str) -> Problem {
    match error {
        TargetError::Refused(problem) => problem,
        other => {
            let cause = std::error::Error::source(&other).map(|it| format!(": {it}"));
            Problem::new(format!("{other}{}", cause.unwrap_or_default()), remedy)
        }
    }
}

impl Session {
    async fn check(&mut self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let oldest = if self.server.is_mariadb() { OLDEST_MARIADB } else { OLDEST_MYSQL };
        if self.server.version < oldest {
            problems.push(Problem::new(
                format!("the target is {}", self.server),
                "use MySQL 8.0.13 or MariaDB 10.6, or newer",
            ));
        }
        match self.settings().await {
            Ok(found) => problems.extend(found),
            Err(error) => problems.push(problem_of(error, "repair the server and check again")),
        }
        if let Err(error) = self.ensure_progress().await {
            problems
                .push(problem_of(error, "let the target's account create `tailwater`.`progress`"));
            return problems;
        }
        if let Err(error) = self.try_temporary().await {
            problems.push(problem_of(
                error,
                "GRANT CREATE TEMPORARY TABLES, SELECT, INSERT, UPDATE, DELETE ON `tailwater`.* TO \
                 the target's account",
            ));
        }
        problems
    }

    async fn settings(&mut self) -> Result<Vec<Problem>, TargetError> {
        let row: Option<(u8, String)> = self
            .conn
            .query_first("SELECT @@GLOBAL.read_only, @@SESSION.binlog_format")
            .await
            .map_err(|error| failure::Failure::of(error).into_target("read the settings"))?;
        let (read_only, binlog_format) = row.unwrap_or_default();
        let mut problems = Vec::new();
        if read_only != 0 {
            problems.push(Problem::new(
                "the target is read-only",
                "connect to the primary, or SET GLOBAL read_only = OFF",
            ));
        }
        if binlog_format == "STATEMENT" {
            problems.push(Problem::new(
                "the target's binlog_format is STATEMENT, which READ COMMITTED cannot use",
                "SET GLOBAL binlog_format = ROW",
            ));
        }
        if !self.local_infile && self.max_packet < 16 << 20 {
            problems.push(Problem::new(
                format!(
                    "the target's max_allowed_packet is {} bytes and local_infile is off: larger \
                     rows cannot be written",
                    self.max_packet
                ),
                "SET GLOBAL local_infile = 1, or SET GLOBAL max_allowed_packet = 1073741824",
            ));
        }
        Ok(problems)
    }

    async fn try_temporary(&mut self) -> Result<(), TargetError> {
        let name = self.temporary();
        let failed = |failure: failure::Failure| failure.into_target("make a temporary table");
        self.execute(&format!(
            "CREATE TEMPORARY TABLE {name} (n INT NOT NULL PRIMARY KEY) ENGINE=InnoDB"
        ))
        .await
        .map_err(failed)?;
        self.execute(&format!("DROP TEMPORARY TABLE {name}")).await.map_err(failed)?;
        Ok(())
    }
}

#[async_trait]
impl Target for Session {
    async fn try_lock(&mut self, pipeline: &str) -> Result<bool, TargetError> {
        self.lock(pipeline).await
    }

    async fn lock_holder(&mut self, pipeline: &str) -> Result<String, TargetError> {
        Session::lock_holder(self, pipeline).await
    }

    async fn held(&mut self, locks: &[String]) -> Result<Vec<bool>, TargetError> {
        Session::held(self, locks).await
    }

    async fn ping(&mut self) -> Result<(), TargetError> {
        self.show_life().await
    }

    async fn progress(&mut self, pipeline: &str) -> Result<Option<Progress>, TargetError> {
        self.ensure_progress().await?;
        self.read_progress(pipeline, false).await
    }

    async fn take_over(&mut self, initial: &Progress) -> Result<Progress, TargetError> {
        self.raise_fence(initial).await
    }

    async fn describe(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Option<TargetTable>, TargetError> {
        let looked = self.look(schema, to).await;
        let looked = looked.map_err(|failure| failure.into_target(&on("describe", to)))?;
        let Some(Looked { shape, around, .. }) = looked else { return Ok(None) };
        let shape = shape.map_err(|problems| refused(&problems))?;
        if around.triggers {
            tracing::warn!(
                table = %to,
                "the target's table has triggers: they fire for what is replicated"
            );
        }
        self.forget_shapes();
        Ok(Some(shape.target))
    }

    async fn create_table(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<(), TargetError> {
        self.create(schema, to).await
    }

    async fn finish_table(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
        route: &(dyn for<'a> Fn(&'a TableId) -> Option<TableId> + Sync),
    ) -> Result<(), TargetError> {
        self.finish(schema, to, route).await
    }

    async fn follows(&mut self, schema: &TableSchema, to: &TableId) -> Result<(), TargetError> {
        if !schema.changes_unlogged() {
            return Ok(());
        }
        let found = crate::catalog::table(&mut self.conn, self.server, to).await;
        let found = found.map_err(|error| {
            failure::Failure::of(error).into_target(&on("read the foreign keys of", to))
        })?;
        let missing = found.map(|found| missing_cascades(schema, &found)).unwrap_or_default();
        if missing.is_empty() { Ok(()) } else { Err(refused(&missing)) }
    }

    async fn is_empty(&mut self, to: &TableId) -> Result<bool, TargetError> {
        let sql = format!("SELECT 1 FROM {} LIMIT 1", crate::connect::quote_table(to));
        let row: Result<Option<u8>, _> = self.conn.query_first(sql).await;
        row.map(|row| row.is_none())
            .map_err(|error| failure::Failure::of(error).into_target(&on("read", to)))
    }

    async fn begin(&mut self) -> Result<(), TargetError> {
        self.stage("BEGIN");
        Ok(())
    }

    async fn clear(&mut self, tables: &[Arc<Table>]) -> Result<(), TargetError> {
        self.delete_all(tables).await
    }

    async fn savepoint(&mut self) -> Result<(), TargetError> {
        self.stage("SAVEPOINT tailwater");
        Ok(())
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), TargetError> {
        self.stage("ROLLBACK TO SAVEPOINT tailwater");
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
        self.commit_with(progress).await
    }

    async fn rollback(&mut self) -> Result<(), TargetError> {
        self.execute("ROLLBACK").await.map(drop).map_err(|failure| failure.into_target("roll back"))
    }
}
