//! SQL and dumps through the databases' own clients, so that tests do not judge our drivers by
//! our drivers.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::flavor::Flavor;

/// Runs `sql` up to the first statement that fails.
pub(crate) fn sql(flavor: Flavor, port: u16, database: &str, sql: &str) -> Result<String> {
    let mut command = if flavor.is_postgres() { psql(port) } else { mariadb(port) };
    command.arg(database);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    let mut stdin = child.stdin.take().context("the client's input")?;
    let output = std::thread::scope(|scope| {
        // A client that fails stops reading: what it says on its way out is the error, not this.
        scope.spawn(move || stdin.write_all(sql.as_bytes()));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut text = String::from_utf8(output.stdout).context("the client's output is not UTF-8")?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// A heading per table, then its rows, sorted by their bytes: no collation has a say.
pub(crate) fn dump(flavor: Flavor, port: u16, database: &str) -> Result<String> {
    let tables = if flavor.is_postgres() { POSTGRES_TABLES } else { MYSQL_TABLES };
    let selects = if flavor.is_postgres() {
        sql(flavor, port, database, tables)?
    } else {
        sql(flavor, port, database, &tables.replace("$DATABASE", database))?
    };
    let mut dump = String::new();
    for line in selects.lines() {
        let Some((heading, select)) = line.split_once('\t') else {
            bail!("not a heading and a statement: {line}");
        };
        let rows = sql(flavor, port, database, select)?;
        let mut rows: Vec<&str> = rows.lines().collect();
        rows.sort_unstable();
        writeln!(dump, "# {heading}: {} rows", rows.len())?;
        for row in rows {
            writeln!(dump, "{row}")?;
        }
    }
    Ok(dump)
}

fn psql(port: u16) -> Command {
    let mut command = Command::new("psql");
    command.args(["-X", "-q", "-A", "-t", "-F", "\t", "-P", "null=NULL", "-v", "ON_ERROR_STOP=1"]);
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-f", "-", "-p", &port.to_string()]);
    command.env("PGCLIENTENCODING", "UTF8").env("PGTZ", "UTC").env_remove("PGOPTIONS");
    command
}

fn mariadb(port: u16) -> Command {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "--batch", "--skip-column-names", "--binary-mode", "--quick"]);
    command.args([
        "--default-character-set=utf8mb4",
        "--max-allowed-packet=1G",
        "--local-infile=1",
    ]);
    // A statement that is lost must fail, not be sent again; a proxy must be able to read it.
    command.args(["--skip-reconnect", "--skip-ssl"]);
    command.args(["-h", "127.0.0.1", "-u", "root", "-P", &port.to_string()]);
    command
}

/// Heading and statement per table, columns by name. COPY's text form escapes what would break a
/// line, and says NULL as `\N`.
const POSTGRES_TABLES: &str = r"
SELECT format('%I.%I (%s)', n.nspname, c.relname, string_agg(a.attname, ', ' ORDER BY a.attname)),
       format('COPY (SELECT %s FROM %I.%I) TO STDOUT',
              string_agg(quote_ident(a.attname), ', ' ORDER BY a.attname), n.nspname, c.relname)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
   AND n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'tailwater')
 GROUP BY n.nspname, c.relname
 ORDER BY n.nspname, c.relname";

/// As above. `QUOTE` keeps NULL and 'NULL' apart. Bytes go as hexadecimal digits; a FLOAT as
/// DOUBLE, because the server prints six digits of a FLOAT whatever it holds.
const MYSQL_TABLES: &str = r"
SET SESSION group_concat_max_len = 1000000;
SELECT CONCAT(t.table_name, ' (', GROUP_CONCAT(c.column_name ORDER BY c.column_name SEPARATOR ', '), ')'),
       CONCAT('SELECT ', GROUP_CONCAT(
         CASE WHEN c.data_type IN ('binary', 'varbinary', 'tinyblob', 'blob', 'mediumblob', 'longblob',
                                   'bit', 'geometry', 'point', 'linestring', 'polygon', 'multipoint',
                                   'multilinestring', 'multipolygon', 'geometrycollection', 'geomcollection')
              THEN CONCAT('HEX(`', REPLACE(c.column_name, '`', '``'), '`)')
              WHEN c.data_type = 'float'
              THEN CONCAT('QUOTE(CAST(`', REPLACE(c.column_name, '`', '``'), '` AS DOUBLE))')
              ELSE CONCAT('QUOTE(`', REPLACE(c.column_name, '`', '``'), '`)') END
         ORDER BY c.column_name SEPARATOR ', '),
         ' FROM `', REPLACE(t.table_name, '`', '``'), '`')
  FROM information_schema.tables t
  JOIN information_schema.columns c
    ON c.table_schema = t.table_schema AND c.table_name = t.table_name
 WHERE t.table_schema = '$DATABASE' AND t.table_type = 'BASE TABLE' AND t.table_schema <> 'tailwater'
 GROUP BY t.table_name
 ORDER BY t.table_name";
