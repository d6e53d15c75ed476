//! What keeps a source from being captured, and the statement that repairs it.

use std::collections::BTreeSet;

use tailwater_capture::SourceError;
use tailwater_change::{Problem, TableId};

use super::MysqlSource;
use super::session::Session;
use crate::catalog::{self, CatalogTable};
use crate::connect::quote_text;

/// Engines whose changes are in transactions.
const TRANSACTIONAL: &[&str] = &["InnoDB", "RocksDB", "TokuDB", "ndbcluster"];

/// Everything that `snapshot` and `stream` need, tried.
pub(crate) async fn check(source: &MysqlSource) -> Vec<Problem> {
    let mut session = match Session::open(&source.endpoint).await {
        Ok(session) => session,
        Err(SourceError::Refused(problem)) => return vec![problem],
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return vec![Problem::new(
                format!("{error}: {}", cause.unwrap_or_default()),
                "start the server, or correct the url of the source",
            )];
        }
    };
    let mut problems = Vec::new();
    version(&session, &mut problems);
    settings(&mut session, &mut problems).await;
    let account = account(source, &mut session).await;
    privileges(&account, &mut session, &mut problems).await;
    tables(source, &account, &mut session, &mut problems).await;
    problems
}

/// The account as a GRANT names it: with the host for which the server let us in.
async fn account(source: &MysqlSource, session: &mut Session) -> String {
    let known = session.value("SELECT CURRENT_USER()").await.ok().flatten();
    match known.as_deref().and_then(|account| account.rsplit_once('@')) {
        Some((user, host)) => format!("{}@{}", quote_text(user), quote_text(host)),
        None => source.account(),
    }
}

fn version(session: &Session, problems: &mut Vec<Problem>) {
    let server = session.server;
    let (oldest, name) =
        if server.is_mariadb() { ((10, 6, 0), "MariaDB 10.6") } else { ((8, 0, 0), "MySQL 8.0") };
    if server.version < oldest {
        problems.push(Problem::new(
            format!("the server is {server}: older than what is captured"),
            format!("upgrade it to {name} or later"),
        ));
    }
}

async fn settings(session: &mut Session, problems: &mut Vec<Problem>) {
    let mut setting =
        async |name: &str| session.value(&format!("SELECT @@GLOBAL.{name}")).await.ok().flatten();
    let on = |value: &Option<String>| {
        value.as_deref().is_none_or(|value| matches!(value, "1" | "ON" | "on"))
    };
    if !on(&setting("log_bin").await) {
        problems.push(Problem::new(
            "log_bin is off: the server writes no binlog",
            "set log_bin = binlog in the server's configuration and restart it",
        ));
        return;
    }
    let wanted: &[(&str, &[&str])] = &[
        ("binlog_format", &["ROW"]),
        ("binlog_row_image", &["FULL", "NOBLOB", "MINIMAL"]),
        ("binlog_row_metadata", &["FULL"]),
        ("binlog_row_value_options", &[""]),
        ("binlog_checksum", &["CRC32", "NONE"]),
    ];
    for (name, allowed) in wanted {
        let Some(value) = setting(name).await else { continue };
        let right = allowed.iter().any(|allowed| value.eq_ignore_ascii_case(allowed));
        if let (false, Some(first)) = (right, allowed.first()) {
            problems.push(Problem::new(
                format!("{name} is {value:?}"),
                format!(
                    "run SET GLOBAL {name} = '{first}'; set it in the server's configuration too, \
                     and let the applications reconnect"
                ),
            ));
        }
    }
    if !on(&setting("binlog_order_commits").await) {
        problems.push(Problem::new(
            "binlog_order_commits is off: the binlog's order is not that of the commits",
            "run SET GLOBAL binlog_order_commits = ON; and set it in the server's configuration",
        ));
    }
    if setting("server_id").await.as_deref() == Some("0") {
        problems.push(Problem::new(
            "server_id is 0: the server refuses replicas",
            "set server_id to a number that no other server has, and restart the server",
        ));
    }
    if setting("gtid_mode").await.is_some_and(|mode| mode != "ON" && mode != "OFF") {
        problems.push(Problem::new(
            "gtid_mode is on its way between OFF and ON",
            "finish the change: SET GLOBAL gtid_mode = ON; (or OFF)",
        ));
    }
}

async fn privileges(account: &str, session: &mut Session, problems: &mut Vec<Problem>) {
    let Ok(rows) = session.rows("SHOW GRANTS").await else { return };
    let grants: Vec<String> = rows.into_iter().flatten().flatten().collect();
    let global: BTreeSet<String> = grants
        .iter()
        .filter(|grant| grant.contains(" ON *.* TO "))
        .filter_map(|grant| grant.strip_prefix("GRANT "))
        .filter_map(|grant| grant.split_once(" ON "))
        .flat_map(|(names, _)| names.split(',').map(|name| name.trim().to_ascii_uppercase()))
        .collect();
    // Privileges of a role do not show here; then only trying tells.
    let roles = grants.iter().any(|grant| !grant.contains(" ON "));
    let has = |names: &[&str]| {
        global.contains("ALL PRIVILEGES") || names.iter().any(|name| global.contains(*name))
    };
    let mut missing = Vec::new();
    if !has(&["REPLICATION SLAVE", "REPLICATION REPLICA", "SUPER"]) {
        missing.push("REPLICATION SLAVE");
    }
    if session.server.is_mariadb() {
        if !has(&["BINLOG MONITOR", "REPLICATION CLIENT", "SUPER"]) {
            missing.push("BINLOG MONITOR");
        }
    } else if !has(&["REPLICATION CLIENT", "SUPER"]) {
        missing.push("REPLICATION CLIENT");
    }
    for name in missing {
        // What can be tried is tried: roles may grant it.
        let tried = match name {
            "REPLICATION SLAVE" => roles,
            _ => session.end().await.is_ok(),
        };
        if !tried {
            problems.push(Problem::new(
                format!("the account lacks the privilege {name}"),
                format!("GRANT {name} ON *.* TO {account};"),
            ));
        }
    }
    let locks = has(&["RELOAD", "FLUSH_TABLES"])
        || grants.iter().any(|grant| {
            grant.contains("LOCK TABLES") || grant.starts_with("GRANT ALL PRIVILEGES")
        });
    if !session.server.is_mariadb() && !locks && !roles {
        problems.push(Problem::new(
            "the account can lock neither the server nor its tables, which the exact snapshot needs \
             for a moment",
            format!("GRANT RELOAD ON *.* TO {account}; (or LOCK TABLES on the captured databases)"),
        ));
    }
}

async fn tables(
    source: &MysqlSource,
    account: &str,
    session: &mut Session,
    problems: &mut Vec<Problem>,
) {
    let wanted = |table: &TableId| source.filter.captures(table);
    let tables = match catalog::tables(&mut session.conn, session.server, wanted).await {
        Ok(tables) => tables,
        Err(error) => {
            problems.push(Problem::new(
                format!("the catalog cannot be read: {error}"),
                source.filter.grants(account),
            ));
            return;
        }
    };
    let names: Vec<TableId> = tables.iter().map(|table| table.table.clone()).collect();
    for pattern in source.filter.unmatched(&names) {
        problems.push(Problem::new(
            format!("no table matches {pattern}"),
            format!(
                "correct the pattern, or {} (tables without it are not seen)",
                pattern.grant(account)
            ),
        ));
    }
    for table in &tables {
        problems.extend(of_table(source, session, table));
        let probe = format!("SELECT 1 FROM {} LIMIT 0", crate::connect::quote_table(&table.table));
        if let Err(error) = session.rows(&probe).await {
            problems.push(Problem::new(
                format!("table {} cannot be read: {error}", table.table),
                format!(
                    "GRANT SELECT ON {} TO {account};",
                    crate::connect::quote_table(&table.table),
                ),
            ));
        }
    }
}

fn of_table(source: &MysqlSource, session: &Session, table: &CatalogTable) -> Vec<Problem> {
    let mut problems = table.schema(session.server).err().unwrap_or_default();
    let name = &table.table;
    let engine = &table.engine;
    if !TRANSACTIONAL.iter().any(|known| engine.eq_ignore_ascii_case(known)) {
        problems.push(Problem::new(
            format!("table {name} has the engine {engine}, which has no transactions"),
            format!(
                "run ALTER TABLE {} ENGINE = InnoDB; or exclude {name} from source {}",
                crate::connect::quote_table(name),
                source.name
            ),
        ));
    }
    if table.system_versioned {
        problems.push(Problem::new(
            format!("table {name} is system-versioned: its old rows cannot be carried over"),
            format!("exclude {name}"),
        ));
    }
    problems
}
