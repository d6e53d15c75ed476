//! What the server must allow before anything is read: every problem with its remedy.

use tailwater_change::{Problem, TableId};

use crate::catalog::{CatalogTable, ReplicaIdentity, read_tables};
use crate::connect::{Session, quote, quote_table, with_causes};
use crate::source::slot::{
    create_publication, foreign, may_not_publish, publication, set_publication, slot_status,
};
use crate::source::wire::{Connection, Mode};
use crate::source::{APPLICATION, Config};

/// Everything that is wrong.
pub(crate) async fn check(config: &Config) -> Vec<Problem> {
    let session = match config.server.connect(APPLICATION).await {
        Ok(session) => session,
        Err(error) => return vec![error.into_problem()],
    };
    let mut problems = Vec::new();
    let found = async {
        of_server(config, &session, &mut problems).await?;
        let tables = read_tables(&session, |table| config.patterns.matches(table)).await?;
        problems.extend(of_tables(config, &tables));
        of_publication(config, &session, &tables, &mut problems).await
    };
    if let Err(error) = found.await {
        let what = format!("the catalog cannot be read: {}", with_causes(&error));
        problems.push(Problem::new(what, "do what the server's message says"));
    }
    problems
}

const SETTINGS: &str = "
    SELECT current_setting('server_version_num')::int4, current_setting('wal_level'),
           pg_is_in_recovery(),
           current_setting('max_replication_slots')::int4,
           (SELECT count(*)::int4 FROM pg_catalog.pg_replication_slots),
           current_setting('max_wal_senders')::int4,
           (SELECT count(*)::int4 FROM pg_catalog.pg_stat_replication),
           (SELECT rolreplication OR rolsuper FROM pg_catalog.pg_roles
             WHERE rolname = current_user),
           current_setting('server_encoding')";

async fn of_server(
    config: &Config,
    session: &Session,
    problems: &mut Vec<Problem>,
) -> Result<(), tokio_postgres::Error> {
    let mut say = |what: String, remedy: String| problems.push(Problem::new(what, remedy));
    let row = session.query_one(SETTINGS, &[]).await?;
    let version: i32 = row.get(0);
    if version < 140_000 {
        say(
            format!("the server is PostgreSQL {}", version / 10_000),
            "upgrade it to 14 or newer".into(),
        );
    }
    let wal_level: String = row.get(1);
    if wal_level != "logical" {
        say(
            format!("wal_level is {wal_level}"),
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server".into(),
        );
    }
    if row.get(2) {
        say("the server is a standby".into(), "name its primary in `url`".into());
    }
    let own = slot_status(session, &config.slot).await.ok().flatten();
    let (slots, used): (i32, i32) = (row.get(3), row.get(4));
    if own.is_none() && used >= slots {
        say(
            format!("all {slots} replication slots are in use"),
            format!(
                "drop one that is not needed, or ALTER SYSTEM SET max_replication_slots = {}; \
                 then restart the server",
                slots.max(1) * 2
            ),
        );
    }
    let (senders, used): (i32, i32) = (row.get(5), row.get(6));
    let reading = own.as_ref().is_some_and(|own| own.active_pid.is_some());
    if !reading && used >= senders {
        say(
            format!("all {senders} WAL senders are in use"),
            format!(
                "ALTER SYSTEM SET max_wal_senders = {}; then restart the server",
                senders.max(1) * 2
            ),
        );
    }
    if let Some(problem) = own.and_then(|own| foreign(&config.server, &config.slot, &own)) {
        problems.push(problem);
        return Ok(());
    }
    if row.get(7) {
        of_replication(config, problems).await;
    } else {
        let user = quote(config.server.user());
        say(
            format!("the role {} may not replicate", config.server.user()),
            format!("as a superuser: ALTER ROLE {user} REPLICATION"),
        );
    }
    Ok(())
}

/// Whether a replication connection gets through: `pg_hba.conf` may tell it from others.
async fn of_replication(config: &Config, problems: &mut Vec<Problem>) {
    if let Err(error) = Connection::open(&config.server, APPLICATION, Mode::Replication).await {
        problems.push(error.into_problem());
    }
}

async fn of_publication(
    config: &Config,
    session: &Session,
    tables: &[CatalogTable],
    problems: &mut Vec<Problem>,
) -> Result<(), tokio_postgres::Error> {
    if tables.is_empty() {
        return Ok(());
    }
    let name = &config.slot;
    let has =
        |published: &[TableId]| tables.iter().all(|table| published.contains(&table.schema.table));
    let existing = match publication(session, name).await {
        Ok(existing) => existing,
        Err(error) => {
            problems.push(Problem::new(error.to_string(), "do what the server's message says"));
            return Ok(());
        }
    };
    if existing.as_ref().is_some_and(|one| one.whole && !one.filtered && has(&one.tables)) {
        return Ok(());
    }
    let row = session
        .query_one("SELECT pg_catalog.has_database_privilege(current_database(), 'CREATE')", &[])
        .await?;
    let may_create: bool = row.get(0);
    let owned_by_others: Vec<String> = tables
        .iter()
        .filter(|table| !table.owned)
        .map(|table| format!("{} belongs to {}", table.schema.table, table.owner))
        .collect();
    let statement = match existing {
        Some(_) => set_publication(name, tables),
        None => create_publication(name, tables),
    };
    let why = match existing {
        Some(one) if !one.owned => Some(format!("the publication {name} belongs to another role")),
        None if !may_create => Some("it has no CREATE privilege on the database".to_owned()),
        _ if !owned_by_others.is_empty() => Some(owned_by_others.join(", ")),
        _ => None,
    };
    problems.extend(why.map(|why| may_not_publish(&config.server, &statement, &why)));
    Ok(())
}

/// What keeps tables from being captured.
pub(crate) fn of_tables(config: &Config, tables: &[CatalogTable]) -> Vec<Problem> {
    let found: Vec<TableId> = tables.iter().map(|table| table.schema.table.clone()).collect();
    let mut problems: Vec<Problem> = config
        .patterns
        .idle(&found)
        .into_iter()
        .map(|pattern| {
            Problem::new(
                format!("{pattern:?} in `tables` matches no table of {}", config.server.database()),
                "correct it, or create the table first; tables in the schema tailwater are never \
                 captured",
            )
        })
        .collect();
    if problems.is_empty() && tables.is_empty() {
        problems.push(Problem::new("every table is excluded", "correct `tables` or `exclude`"));
    }
    problems.extend(tables.iter().flat_map(|table| of_table(config, table)));
    problems
}

fn of_table(config: &Config, table: &CatalogTable) -> Vec<Problem> {
    let (name, sql) = (&table.schema.table, quote_table(&table.schema.table));
    let mut problems = Vec::new();
    let mut say = |what: String, remedy: String| problems.push(Problem::new(what, remedy));
    for column in &table.refused {
        say(
            format!("column {} of {name} has the type {}", column.name, column.native),
            format!(
                "name {name} in `exclude`, or change the column to a type that is captured \
                 (such as text)"
            ),
        );
    }
    if !table.readable {
        let user = quote(config.server.user());
        say(
            format!("the role {} may not read {name}", config.server.user()),
            format!(
                "GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {sql} TO {user}",
                quote(&name.schema)
            ),
        );
    }
    if table.row_security {
        say(
            format!("row security policies hide rows of {name} from the role"),
            format!("as a superuser: ALTER ROLE {} BYPASSRLS", quote(config.server.user())),
        );
    }
    if !table.logged {
        say(
            format!("{name} is unlogged: its changes are not in the WAL"),
            format!("ALTER TABLE {sql} SET LOGGED, or name it in `exclude`"),
        );
    }
    problems.extend(of_identity(table));
    problems
}

fn of_identity(table: &CatalogTable) -> Option<Problem> {
    let (name, sql) = (&table.schema.table, quote_table(&table.schema.table));
    if let Some(partition) = table.deviating_partitions.first() {
        return Some(Problem::new(
            format!("the partition {partition} has another replica identity than {name}"),
            format!(
                "give both the same: ALTER TABLE {} REPLICA IDENTITY …, for each of its partitions",
                quote_table(partition)
            ),
        ));
    }
    if table.identifiable {
        return None;
    }
    let what = match table.replica_identity {
        ReplicaIdentity::Default => "no primary key, and its replica identity is the default",
        ReplicaIdentity::Nothing => "the replica identity NOTHING",
        ReplicaIdentity::Index => "a replica identity whose index is gone",
        ReplicaIdentity::Full => return None,
    };
    Some(Problem::new(
        format!("{name} has {what}: its updates and deletes could not be told apart"),
        format!(
            "ALTER TABLE {sql} REPLICA IDENTITY FULL (for each of its partitions too), or add a \
             primary key"
        ),
    ))
}
