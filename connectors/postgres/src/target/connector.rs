//! The target as the daemon configures it: how to connect, and everything `check` looks at.

use async_trait::async_trait;
use tailwater_apply::{Target, TargetConnector, TargetError};
use tailwater_change::{Dialect, Problem, TableId, TableSchema};

use super::create::table_sql;
use super::described::{CatalogEntry, type_problem};
use super::error::target_error;
use super::progress;
use super::session::PgTarget;
use crate::connect::{Server, quote, quote_table};

/// The oldest server that is supported.
const OLDEST: i32 = 140_000;

/// From here on a setting can be granted.
const GRANTABLE_SETTINGS: i32 = 150_000;

/// Which database is the target.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// Its name in the configuration.
    pub name: String,
    /// `postgres://user:password@host:port/database?sslmode=…`
    pub url: String,
}

/// A PostgreSQL target: configuration, no connection.
#[derive(Debug, Clone)]
pub struct PostgresTarget {
    name: String,
    server: Server,
}

/// Reads the configuration.
///
/// # Errors
/// The URL is not one.
pub fn connector(config: TargetConfig) -> Result<PostgresTarget, Problem> {
    Ok(PostgresTarget { server: Server::parse(&config.url)?, name: config.name })
}

#[async_trait]
impl TargetConnector for PostgresTarget {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn check(&self) -> Vec<Problem> {
        let target = match self.open().await {
            Ok(target) => target,
            Err(problem) => return vec![problem],
        };
        match self.problems(&target).await {
            Ok(problems) => problems,
            Err(error) => vec![self.unanswered(error)],
        }
    }

    async fn check_table(&self, schema: &TableSchema, to: &TableId) -> Vec<Problem> {
        let target = match self.open().await {
            Ok(target) => target,
            Err(problem) => return vec![problem],
        };
        match self.table_problems(&target, schema, to).await {
            Ok(problems) => problems,
            Err(error) => vec![self.unanswered(error)],
        }
    }

    async fn connect(&self) -> Result<Box<dyn Target>, TargetError> {
        Ok(Box::new(PgTarget::connect(&self.server).await?))
    }

    async fn forget(&self, pipeline: &str) -> Result<(), TargetError> {
        progress::forget(&PgTarget::connect(&self.server).await?.session, pipeline).await
    }
}

impl PostgresTarget {
    async fn open(&self) -> Result<PgTarget, Problem> {
        // What `check` says of an unreachable server is more than the error does.
        self.server.connect("tailwater check").await.map_err(|error| error.into_problem())?;
        PgTarget::connect(&self.server).await.map_err(|error| match error {
            TargetError::Refused(problem) => problem,
            other => Problem::new(
                format!("target {}: {other}", self.name),
                "look at the server's log, then check again",
            ),
        })
    }

    fn unanswered(&self, error: tokio_postgres::Error) -> Problem {
        Problem::new(
            format!("target {}: {}", self.name, target_error("reading the catalog", error)),
            "look at the server's log, then check again",
        )
    }

    async fn problems(&self, target: &PgTarget) -> Result<Vec<Problem>, tokio_postgres::Error> {
        let row = target.session.query_one(STATE, &[]).await?;
        let (user, database): (String, String) = (row.get(0), row.get(1));
        let (user, database) = (quote(&user), quote(&database));
        let mut problems = Vec::new();
        let mut add = |wrong: bool, what: String, remedy: String| {
            if wrong {
                problems.push(Problem::new(format!("target {}: {what}", self.name), remedy));
            }
        };
        add(
            target.version < OLDEST,
            format!("the server's version is {}", row.get::<_, String>(2)),
            "use PostgreSQL 14 or newer".into(),
        );
        add(
            row.get(3),
            "the server is a standby: it takes no writes".into(),
            "give the primary's address in `url`, or promote the server".into(),
        );
        add(
            row.get::<_, &str>(4) != "UTF8",
            format!("the database's encoding is {}, which lacks characters", row.get::<_, &str>(4)),
            format!(
                "create it anew: CREATE DATABASE {database} ENCODING 'UTF8' TEMPLATE template0"
            ),
        );
        add(
            !row.get::<_, bool>(5),
            format!("{user} may not make temporary tables, which large updates go through"),
            format!("GRANT TEMPORARY ON DATABASE {database} TO {user}"),
        );
        add(
            !row.get::<_, bool>(6),
            format!("{user} may not create the schema tailwater, where the progress is kept"),
            format!(
                "GRANT CREATE ON DATABASE {database} TO {user}, or as a superuser: \
                 CREATE SCHEMA tailwater AUTHORIZATION {user}"
            ),
        );
        add(
            !row.get::<_, bool>(7),
            format!("{user} may not read and write tailwater.progress"),
            format!(
                "GRANT USAGE ON SCHEMA tailwater TO {user}; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON tailwater.progress TO {user}"
            ),
        );
        let remedy = if target.version >= GRANTABLE_SETTINGS {
            format!("GRANT SET ON PARAMETER session_replication_role TO {user}")
        } else {
            format!("ALTER ROLE {user} SUPERUSER (from PostgreSQL 15 on, one GRANT does it)")
        };
        add(
            !target.replica,
            format!(
                "{user} may not set session_replication_role: triggers and foreign keys of the \
                 target fire as well, doing twice what the source has logged"
            ),
            remedy,
        );
        Ok(problems)
    }

    async fn table_problems(
        &self,
        target: &PgTarget,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<Vec<Problem>, tokio_postgres::Error> {
        let entry = CatalogEntry::read(&target.session, to, target.replica).await?;
        let mut problems = hidden_cascades(schema, to);
        let Some(entry) = entry else {
            problems.extend(table_sql(schema, to, target.version).err());
            problems.extend(self.may_create(target, to).await?);
            return Ok(problems);
        };
        problems.extend(structure(schema, to, &entry, &quote(self.server.user())));
        problems.extend(schema.columns.iter().filter(|column| column.flows()).filter_map(
            |column| {
                let found = entry.column(&column.name)?;
                type_problem(to, column, schema.dialect, found)
            },
        ));
        Ok(problems)
    }

    async fn may_create(
        &self,
        target: &PgTarget,
        to: &TableId,
    ) -> Result<Option<Problem>, tokio_postgres::Error> {
        let row = target.session.query_one(MAY_CREATE, &[&to.schema]).await?;
        if row.get(0) {
            return Ok(None);
        }
        let user = quote(self.server.user());
        Ok(Some(Problem::new(
            format!("{to} is not there and {user} may not create it"),
            format!(
                "create it, or: CREATE SCHEMA IF NOT EXISTS {schema}; \
                 GRANT USAGE, CREATE ON SCHEMA {schema} TO {user}",
                schema = quote(&to.schema)
            ),
        )))
    }
}

/// What the server and our role are, in the order that `problems` reads.
const STATE: &str = "
    SELECT current_user::text, pg_catalog.current_database()::text,
           pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery(),
           pg_catalog.current_setting('server_encoding'),
           pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY'),
           CASE WHEN pg_catalog.to_regclass('tailwater.progress') IS NOT NULL THEN true
                WHEN pg_catalog.to_regnamespace('tailwater') IS NOT NULL
                THEN pg_catalog.has_schema_privilege('tailwater', 'CREATE')
                ELSE pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') END,
           CASE WHEN pg_catalog.to_regclass('tailwater.progress') IS NULL THEN true
                ELSE pg_catalog.has_schema_privilege('tailwater', 'USAGE')
                     AND pg_catalog.has_table_privilege('tailwater.progress', 'SELECT')
                     AND pg_catalog.has_table_privilege('tailwater.progress', 'INSERT')
                     AND pg_catalog.has_table_privilege('tailwater.progress', 'UPDATE') END";

const MAY_CREATE: &str = "
    SELECT CASE WHEN pg_catalog.to_regnamespace(pg_catalog.quote_ident($1)) IS NULL
                THEN pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
                ELSE pg_catalog.has_schema_privilege($1, 'CREATE') END";

/// A source that changes rows by cascades without logging them needs the same cascade to act
/// here, which it does not in a session like ours.
pub(super) fn hidden_cascades(schema: &TableSchema, to: &TableId) -> Vec<Problem> {
    use tailwater_change::ReferentialAction::{NoAction, Restrict};
    if !schema.hides_cascades {
        return Vec::new();
    }
    let acts = |action| !matches!(action, NoAction | Restrict);
    schema
        .foreign_keys
        .iter()
        .filter(|key| acts(key.on_delete) || acts(key.on_update))
        .map(|key| {
            Problem::new(
                format!(
                    "{to}: the foreign key {} cascades on the source, which does not log the rows \
                     that it changes",
                    key.name
                ),
                "replace the cascade by statements of the application, or upgrade the source to \
                 MySQL 9.6 or newer",
            )
        })
        .collect()
}

/// Everything but the types of columns that are there.
fn structure(schema: &TableSchema, to: &TableId, entry: &CatalogEntry, user: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    let table = quote_table(to);
    let mut add = |what: String, remedy: String| {
        problems.push(Problem::new(format!("{to}: {what}"), remedy));
    };
    if !matches!(entry.relkind, b'r' | b'p') {
        add("it is not an ordinary table".into(), "route the source's table elsewhere".into());
    }
    if entry.row_security {
        add(
            format!("row-level security applies to {user}"),
            format!("ALTER ROLE {user} BYPASSRLS"),
        );
    }
    let missing: Vec<&str> = entry
        .missing_privileges
        .iter()
        .map(String::as_str)
        .filter(|&privilege| privilege != "TRUNCATE")
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        add(format!("{user} may not {missing}"), format!("GRANT {missing} ON {table} TO {user}"));
    }
    for column in &schema.columns {
        match entry.column(&column.name) {
            None if column.flows() => add(
                format!("it has no column {}", column.name),
                format!("ALTER TABLE {table} ADD COLUMN {} …", quote(&column.name)),
            ),
            Some(found) if found.generated && column.flows() => add(
                format!("column {} is generated, so it takes no value", column.name),
                format!("ALTER TABLE {table} ALTER COLUMN {} DROP EXPRESSION", quote(&column.name)),
            ),
            Some(found) if found.not_null && column.nullable && column.flows() => add(
                format!("column {} takes no NULL, the source's does", column.name),
                format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", quote(&column.name)),
            ),
            _ => {}
        }
    }
    for column in &entry.columns {
        let filled = column.has_default || column.identity || column.generated;
        if column.not_null && !filled && schema.column(&column.name).is_none() {
            add(
                format!("column {} is not in the source and must have a value", column.name),
                format!("ALTER TABLE {table} ALTER COLUMN {} SET DEFAULT …", quote(&column.name)),
            );
        }
    }
    if !schema.key().is_empty() && !has_key(schema, entry) {
        let key: Vec<String> =
            schema.key().iter().map(|&index| quote(&schema.columns[index].name)).collect();
        let key = key.join(", ");
        add(
            format!("no unique index is on ({key}), by which the source tells rows apart"),
            format!("ALTER TABLE {table} ADD PRIMARY KEY ({key})"),
        );
    }
    problems
}

/// Whether any unique index, deferrable or not, is over the identity.
fn has_key(schema: &TableSchema, entry: &CatalogEntry) -> bool {
    let mut key: Vec<&str> =
        schema.key().iter().map(|&index| schema.columns[index].name.as_str()).collect();
    key.sort_unstable();
    entry.uniques.iter().filter_map(|unique| unique.plain.as_ref()).any(|plain| {
        let mut plain: Vec<&str> = plain.iter().map(String::as_str).collect();
        plain.sort_unstable();
        plain == key
    })
}
