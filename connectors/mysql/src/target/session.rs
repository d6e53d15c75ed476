//! A session on the target: its settings, and how statements travel.
//!
//! Every setting that changes how a value is read or what a statement does besides what it says is
//! fixed here at connect:
//!
//! | setting | why |
//! |---|---|
//! | `sql_mode` strict, `NO_AUTO_VALUE_ON_ZERO`, `ALLOW_INVALID_DATES`, neither `NO_ZERO_DATE` nor `NO_ZERO_IN_DATE` | a bad value is an error; a 0 in an AUTO_INCREMENT column stays 0; every date that a source can hold is one; backslash escapes, quotes around names are backticks |
//! | `time_zone` `+00:00` | timestamps are UTC |
//! | `NAMES utf8mb4` | text literals are UTF-8; bytes go as `_binary` |
//! | READ COMMITTED | no gap locks: nobody else's inserts wait for us |
//! | `foreign_key_checks` 0 | order between tables is the source's business; 1 only where the source hides cascades |
//! | `unique_checks` 1 | nothing may be there twice |
//! | `innodb_lock_wait_timeout` 50 s, `lock_wait_timeout` 60 s | who holds our rows longer than that makes us try again |
//! | `wait_timeout`, `net_read_timeout` | the lock's lease: who says nothing for so long, between statements or inside one, is gone |
//! | `net_write_timeout` | what the server has to say may wait |
//! | CLIENT_FOUND_ROWS | an update of a row to what it is counts as done |
//!
//! BEGIN and SAVEPOINT are not sent by themselves: they travel in front of the next statement.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};
use tailwater_apply::{SESSION_LEASE, Table, TargetError};
use tailwater_change::{TableId, TableSchema};

use super::failure::Failure;
use super::mapping::Abilities;
use super::sql::Batch;
use super::table::{Shape, Surroundings, on};
use crate::catalog;
use crate::connect::{Endpoint, Server, in_time, quote_text, silent};

fn contract() -> String {
    let lease = SESSION_LEASE.as_secs();
    format!("{CONTRACT}; SET SESSION wait_timeout = {lease}, net_read_timeout = {lease}")
}

const CONTRACT: &str = "SET NAMES utf8mb4; \
     SET SESSION sql_mode = 'STRICT_TRANS_TABLES,STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,\
     ALLOW_INVALID_DATES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'; \
     SET SESSION time_zone = '+00:00', autocommit = 1, foreign_key_checks = 0, unique_checks = 1, \
     innodb_lock_wait_timeout = 50, lock_wait_timeout = 60, net_write_timeout = 600, \
     sql_safe_updates = 0, sql_big_selects = 1, sql_auto_is_null = 0, sql_notes = 1, \
     sql_select_limit = DEFAULT; \
     SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// What a statement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Rows changed; for updates, rows found.
    pub(super) affected: u64,
    /// Warnings and notes.
    pub(super) warnings: u16,
}

impl Outcome {
    /// Whether it did exactly this, without a word.
    pub(super) fn is(self, rows: usize) -> bool {
        usize::try_from(self.affected) == Ok(rows) && self.warnings == 0
    }
}

/// A session on the target.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) conn: Conn,
    pub(super) server: Server,
    pub(super) abilities: Abilities,
    /// Whether `LOAD DATA LOCAL` is allowed.
    pub(super) local_infile: bool,
    /// Bytes of one packet to the server, at most.
    pub(super) max_packet: usize,
    /// Statements that travel in front of the next one.
    staged: Vec<String>,
    /// Whether foreign keys act at the moment.
    checks: bool,
    /// By the address of the plan's table, which is held so that it stays the same.
    shapes: HashMap<usize, (Arc<Table>, Arc<Shape>)>,
    /// Temporary tables so far.
    temporaries: u64,
    /// Tables whose rows were not all replaced lately, and for how many steps more they are joined.
    pub(super) joined: HashMap<TableId, u32>,
}

/// As many shapes are remembered as tables with their versions may change in one batch; more are
/// described again.
const SHAPE_LIMIT: usize = 100_000;

impl Session {
    /// Connects and fixes the settings, in reasonable time or not at all.
    pub(super) async fn open(endpoint: &Endpoint) -> Result<Self, Failure> {
        in_time(Self::open_now(endpoint), |late| Failure::of(silent(late))).await
    }

    async fn open_now(endpoint: &Endpoint) -> Result<Self, Failure> {
        let opts = OptsBuilder::from_opts(endpoint.opts().clone()).client_found_rows(true);
        let mut conn = Conn::new(opts).await.map_err(Failure::of)?;
        conn.query_drop(contract()).await.map_err(Failure::of)?;
        let server = Server::of(&mut conn).await.map_err(Failure::of)?;
        let limits: Option<(u8, u64)> = conn
            .query_first("SELECT @@GLOBAL.local_infile, @@SESSION.max_allowed_packet")
            .await
            .map_err(Failure::of)?;
        let (local_infile, max_packet) = limits.unwrap_or((0, 1 << 20));
        let collations = collations(&mut conn, server).await.map_err(Failure::of)?;
        Ok(Self {
            conn,
            server,
            abilities: Abilities { dialect: server.dialect, collations },
            local_infile: local_infile == 1,
            max_packet: usize::try_from(max_packet).unwrap_or(usize::MAX),
            staged: Vec::new(),
            checks: false,
            shapes: HashMap::new(),
            temporaries: 0,
            joined: HashMap::new(),
        })
    }

    /// Sends this in front of the next statement.
    pub(super) fn stage(&mut self, sql: impl Into<String>) {
        self.staged.push(sql.into());
    }

    /// A new batch, what is staged in front.
    pub(super) fn batch(&mut self, checks: bool) -> Batch {
        let mut batch = Batch::default();
        for sql in self.staged.drain(..) {
            batch.stage(&sql);
        }
        if checks != self.checks {
            batch.stage(if checks {
                "SET SESSION foreign_key_checks = 1"
            } else {
                "SET SESSION foreign_key_checks = 0"
            });
            self.checks = checks;
        }
        batch
    }

    /// Sends a batch; what each of its counted statements did.
    pub(super) async fn run(&mut self, batch: &Batch) -> Result<Vec<Outcome>, Failure> {
        let mut all: Vec<Outcome> = Vec::with_capacity(batch.counted.len());
        self.results(&batch.sql, &mut all).await.map_err(Failure::of)?;
        let counted = all.into_iter().zip(&batch.counted).filter(|(_, own)| **own);
        Ok(counted.map(|(outcome, _)| outcome).collect())
    }

    async fn results(
        &mut self,
        sql: &[u8],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<(), mysql_async::Error> {
        let mut result = self.conn.query_iter(sql).await?;
        loop {
            outcomes
                .push(Outcome { affected: result.affected_rows(), warnings: result.warnings() });
            let last = result.is_empty();
            while result.next().await?.is_some() {}
            if last {
                break;
            }
        }
        result.drop_result().await
    }

    /// Sends one statement.
    pub(super) async fn execute(&mut self, sql: &str) -> Result<Outcome, Failure> {
        let mut batch = self.batch(false);
        batch.statement().extend_from_slice(sql.as_bytes());
        let outcomes = self.run(&batch).await?;
        Ok(outcomes.first().copied().unwrap_or(Outcome { affected: 0, warnings: 0 }))
    }

    /// Describes `to` for `schema` from the catalog; the problems where it does not fit.
    pub(super) async fn look(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Option<Looked>, Failure> {
        let found = catalog::table(&mut self.conn, self.server, to).await;
        let Some(catalog) = found.map_err(Failure::of)? else { return Ok(None) };
        let around = self.surroundings(to).await.map_err(Failure::of)?;
        Ok(Some(Looked {
            shape: Shape::of(schema, &catalog, around, &self.abilities),
            catalog,
            around,
        }))
    }

    async fn surroundings(&mut self, to: &TableId) -> Result<Surroundings, mysql_async::Error> {
        let (schema, name) = (quote_text(&to.schema), quote_text(&to.name));
        let counts: Option<(u64, u64, u64)> = self
            .conn
            .query_first(format!(
                "SELECT (SELECT COUNT(*) FROM information_schema.triggers \
                 WHERE event_object_schema = {schema} AND event_object_table = {name}), \
                 COUNT(*), COUNT(IF(delete_rule IN ('RESTRICT', 'NO ACTION') \
                 AND update_rule IN ('RESTRICT', 'NO ACTION'), NULL, 1)) \
                 FROM information_schema.referential_constraints \
                 WHERE unique_constraint_schema = {schema} AND referenced_table_name = {name}"
            ))
            .await?;
        let (triggers, references, cascades) = counts.unwrap_or_default();
        Ok(Surroundings {
            triggers: triggers > 0,
            referenced: references > 0,
            cascades_from_here: cascades > 0,
        })
    }

    /// The shape of a plan's table, described anew where it is not remembered.
    pub(super) async fn shape(&mut self, table: &Arc<Table>) -> Result<Arc<Shape>, TargetError> {
        let address = Arc::as_ptr(table).addr();
        if let Some((_, shape)) = self.shapes.get(&address) {
            return Ok(Arc::clone(shape));
        }
        let shape = Arc::new(self.describe_shape(&table.schema, &table.target.name).await?);
        if self.shapes.len() >= SHAPE_LIMIT {
            self.shapes.clear();
        }
        self.shapes.insert(address, (Arc::clone(table), Arc::clone(&shape)));
        Ok(shape)
    }

    async fn describe_shape(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Shape, TargetError> {
        match self.look(schema, to).await {
            Ok(Some(Looked { shape: Ok(shape), .. })) => Ok(shape),
            Ok(Some(Looked { shape: Err(problems), .. })) => Err(refused(&problems)),
            Ok(None) => Err(TargetError::Refused(tailwater_change::Problem::new(
                format!("table {to} is gone from the target"),
                "restore it, or `tailwater resync`",
            ))),
            Err(failure) => Err(failure.into_target(&on("describe", to))),
        }
    }

    /// Forgets what tables are like: a definition changed.
    pub(super) fn forget_shapes(&mut self) {
        self.shapes.clear();
        self.joined.clear();
    }

    /// A name for a temporary table that this session has not used.
    pub(super) fn temporary(&mut self) -> String {
        self.temporaries += 1;
        format!("`tailwater`.`tailwater_rows_{}`", self.temporaries)
    }
}

/// What a look at the catalog found.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) shape: Result<Shape, Vec<tailwater_change::Problem>>,
    pub(super) catalog: catalog::CatalogTable,
    pub(super) around: Surroundings,
}

/// Several problems as one error.
pub(super) fn refused(problems: &[tailwater_change::Problem]) -> TargetError {
    let join = |parts: Vec<&str>| parts.join("; ");
    TargetError::Refused(tailwater_change::Problem::new(
        join(problems.iter().map(|problem| problem.what.as_str()).collect()),
        join(problems.iter().map(|problem| problem.remedy.as_str()).collect()),
    ))
}

/// The collations there are. MariaDB from 10.10 on spells some of them complete only here.
async fn collations(
    conn: &mut Conn,
    server: Server,
) -> Result<BTreeSet<String>, mysql_async::Error> {
    let mut names: Vec<String> =
        conn.query("SELECT collation_name FROM information_schema.collations").await?;
    if server.is_mariadb() && server.version >= (10, 10, 0) {
        names.extend(
            conn.query::<String, _>(
                "SELECT full_collation_name \
                 FROM information_schema.collation_character_set_applicability",
            )
            .await?,
        );
    }
    Ok(names.into_iter().collect())
}
