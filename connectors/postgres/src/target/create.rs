//! Making a target table as the source's is: columns, identity, defaults.
//!
//! Between PostgreSQL servers everything is spelled as the source's catalog prints it; enum types
//! that the target lacks are made. From elsewhere types follow the mapping, and of defaults only
//! what means the same is taken. Expressions of generated columns are not translated: such a
//! column would look alike and compute something else.

use std::fmt::Write as _;

use tailwater_apply::TargetError;
use tailwater_change::{
    Column, Dialect, Generated, Identity, Index, Kind, Problem, TableId, TableSchema,
};
use tokio_postgres::Client;

use super::error::target_error;
use super::mapping::choose;
use crate::connect::{literal, quote, quote_table};

/// From here on generated columns need not be stored.
const VIRTUAL_COLUMNS: i32 = 180_000;

/// Makes the table, and the schema and enum types it needs. No error if it is there.
pub(super) async fn create(
    client: &Client,
    version: i32,
    schema: &TableSchema,
    to: &TableId,
) -> Result<(), TargetError> {
    let sql = table_sql(schema, to, version).map_err(TargetError::Refused)?;
    let operation = format!("creating {to}");
    let failed = |error| target_error(&operation, error);
    make_schema(client, &to.schema).await.map_err(failed)?;
    with_path(client, to, async || {
        for column in &schema.columns {
            if let (Kind::Enum { labels }, Dialect::Postgres) = (&column.kind, schema.dialect) {
                make_enum(client, to, &column.native, labels).await?;
            }
        }
        client.batch_execute(&sql).await
    })
    .await
    .map_err(failed)
}

/// Runs `work` with unqualified names found as in the source: its catalog leaves out the schema of
/// what its own path finds.
pub(super) async fn with_path(
    client: &Client,
    to: &TableId,
    work: impl AsyncFnOnce() -> Result<(), tokio_postgres::Error>,
) -> Result<(), tokio_postgres::Error> {
    let path = format!("SET search_path TO {}, public", quote(&to.schema));
    client.batch_execute(&path).await?;
    let done = work().await;
    client.batch_execute("SET search_path TO ''").await?;
    done
}

/// CREATE SCHEMA needs a privilege even where IF NOT EXISTS finds it.
async fn make_schema(client: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    let there = client
        .query_opt("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", &[&name])
        .await?;
    if there.is_some() {
        return Ok(());
    }
    client.batch_execute(&format!("CREATE SCHEMA IF NOT EXISTS {}", quote(name))).await
}

/// Makes an enum type, or adds the labels it lacks.
async fn make_enum(
    client: &Client,
    to: &TableId,
    native: &str,
    labels: &[String],
) -> Result<(), tokio_postgres::Error> {
    let row = client
        .query_one(
            "SELECT t.oid, ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e
                                  WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)
               FROM (SELECT pg_catalog.to_regtype($1)::oid AS oid) t",
            &[&native],
        )
        .await?;
    let list = |labels: &[String]| labels.iter().map(|l| literal(l)).collect::<Vec<_>>().join(", ");
    if row.get::<_, Option<u32>>(0).is_none() {
        let name = match qualified(native) {
            Some(schema) => {
                make_schema(client, &schema).await?;
                native.to_owned()
            }
            None => format!("{}.{native}", quote(&to.schema)),
        };
        return client
            .batch_execute(&format!("CREATE TYPE {name} AS ENUM ({})", list(labels)))
            .await;
    }
    let known: Vec<String> = row.get(1);
    let mut previous: Option<&String> = None;
    for label in labels {
        if !known.contains(label) {
            let place = previous.map_or_else(String::new, |p| format!(" AFTER {}", literal(p)));
            let add =
                format!("ALTER TYPE {native} ADD VALUE IF NOT EXISTS {}{place}", literal(label));
            client.batch_execute(&add).await?;
        }
        previous = Some(label);
    }
    Ok(())
}

/// The schema in a type's name as the catalog prints it, if it has one.
fn qualified(native: &str) -> Option<String> {
    if let Some(rest) = native.strip_prefix('"') {
        // A quote within is doubled, so the first that is followed by a point ends the name.
        let (schema, _) = rest.split_once("\".")?;
        return Some(schema.replace("\"\"", "\""));
    }
    native.split_once('.').map(|(schema, _)| schema.to_owned())
}

/// `CREATE TABLE`, or why there is none.
pub(super) fn table_sql(
    schema: &TableSchema,
    to: &TableId,
    version: i32,
) -> Result<String, Problem> {
    let like = schema.dialect.is_like(Dialect::Postgres);
    let mut sql = format!("CREATE TABLE IF NOT EXISTS {} (", quote_table(to));
    for (number, column) in schema.columns.iter().enumerate() {
        let comma = if number > 0 { "," } else { "" };
        let spelled = column_sql(schema, column, like, version)?;
        let _infallible = write!(sql, "{comma}\n  {spelled}");
    }
    if let Identity::Key(key) = &schema.identity {
        let columns: Vec<&str> = key.iter().map(|&i| schema.columns[i].name.as_str()).collect();
        let _infallible = write!(sql, ",\n  {}", key_sql(schema, &columns, like));
    }
    sql.push_str("\n)");
    Ok(sql)
}

fn key_sql(schema: &TableSchema, columns: &[&str], like: bool) -> String {
    let list = columns.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
    let index = key_index(schema, columns);
    let what = if index.is_none_or(|index| index.primary) { "PRIMARY KEY" } else { "UNIQUE" };
    match index {
        Some(index) if like => format!("CONSTRAINT {} {what} ({list})", quote(&index.name)),
        _ => format!("{what} ({list})"),
    }
}

/// The source's index that keeps the identity unique.
pub(super) fn key_index<'a>(schema: &'a TableSchema, columns: &[&str]) -> Option<&'a Index> {
    let over = |index: &&Index| {
        index.unique
            && index.columns.len() == columns.len()
            && columns.iter().all(|name| index.columns.iter().any(|column| column == name))
    };
    let mut candidates: Vec<&Index> = schema.indexes.iter().filter(over).collect();
    candidates.sort_by_key(|index| !index.primary);
    candidates.first().copied()
}

/// `ALTER TABLE … ADD COLUMN`, for a table that has rows: without NOT NULL.
pub(super) fn add_column_sql(
    schema: &TableSchema,
    column: &Column,
    to: &TableId,
) -> Option<String> {
    let like = schema.dialect.is_like(Dialect::Postgres);
    let nullable = Column { nullable: true, ..column.clone() };
    let spelled = column_sql(schema, &nullable, like, VIRTUAL_COLUMNS).ok()?;
    Some(format!("ALTER TABLE {} ADD COLUMN {spelled}", quote_table(to)))
}

fn column_sql(
    schema: &TableSchema,
    column: &Column,
    like: bool,
    version: i32,
) -> Result<String, Problem> {
    let native = if like { column.native.clone() } else { choose(&column.kind).0 };
    let mut sql = format!("{} {native}", quote(&column.name));
    if let (true, Some(collation)) = (like, &column.collation) {
        let _infallible = write!(sql, " COLLATE {collation}");
    }
    if !column.nullable {
        sql.push_str(" NOT NULL");
    }
    let integer = matches!(native.as_str(), "smallint" | "integer" | "bigint");
    match column.generated {
        Some(kind @ (Generated::Stored | Generated::Virtual)) => {
            let expression = column.expression.as_ref().filter(|_| like).ok_or_else(|| {
                Problem::new(
                    format!(
                        "column {} of {} is generated by an expression of {}, which PostgreSQL \
                         may compute otherwise",
                        column.name, schema.table, schema.dialect
                    ),
                    "create the target's table yourself, with a generated column of your wording",
                )
            })?;
            let keep = if kind == Generated::Virtual && version >= VIRTUAL_COLUMNS {
                "VIRTUAL"
            } else {
                "STORED"
            };
            let _infallible = write!(sql, " GENERATED ALWAYS AS ({expression}) {keep}");
        }
        Some(Generated::IdentityAlways) if integer => sql.push_str(" GENERATED ALWAYS AS IDENTITY"),
        Some(Generated::IdentityByDefault) if integer => {
            sql.push_str(" GENERATED BY DEFAULT AS IDENTITY");
        }
        _ => {
            if let Some(default) = default_sql(column, like) {
                let _infallible = write!(sql, " DEFAULT {default}");
            }
        }
    }
    Ok(sql)
}

/// The default, if it means the same here. Those with a sequence come when that is made.
fn default_sql(column: &Column, like: bool) -> Option<String> {
    let default = column.default.as_deref()?;
    if like {
        return (!default.contains("nextval(")).then(|| default.to_owned());
    }
    let taken = foreign_default(&column.kind, default);
    if taken.is_none() && !default.eq_ignore_ascii_case("null") {
        tracing::info!(column = column.name, "the source's default is not taken over");
    }
    taken
}

/// A default of MySQL's: numbers, strings (MariaDB prints them quoted, MySQL does not), now.
fn foreign_default(kind: &Kind, default: &str) -> Option<String> {
    if default.eq_ignore_ascii_case("null") {
        return None;
    }
    let bare = default.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    let text = bare.map_or_else(|| default.to_owned(), |bare| bare.replace("''", "'"));
    match kind {
        Kind::Int { .. } | Kind::Decimal { .. } | Kind::Float32 | Kind::Float64 => {
            let number = text.trim_start_matches('-');
            let plain = !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
                && number.parse::<f64>().is_ok();
            plain.then_some(text)
        }
        Kind::Timestamp | Kind::TimestampTz => {
            let now = default.to_ascii_lowercase();
            (now.starts_with("current_timestamp") || now.starts_with("now("))
                .then(|| "CURRENT_TIMESTAMP".to_owned())
        }
        // An unquoted default with a bracket may be an expression.
        Kind::Text { .. } | Kind::Enum { .. } if bare.is_some() || !default.contains('(') => {
            (!text.contains('\\')).then(|| literal(&text))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: Kind, native: &str) -> Column {
        Column { nullable: false, ..Column::nullable(name, 1, kind, native) }
    }

    fn table(dialect: Dialect, columns: Vec<Column>) -> TableSchema {
        TableSchema {
            table: TableId::new("shop", "orders"),
            dialect,
            columns,
            identity: Identity::Key(vec![0]),
            indexes: Vec::new(),
            foreign_keys: Vec::new(),
            hides_cascades: false,
            options: None,
        }
    }

    #[test]
    fn a_table_of_mysqls_takes_the_mapping() {
        let mut id = column("id", Kind::Int { bits: 32, signed: false }, "int unsigned");
        id.generated = Some(Generated::IdentityByDefault);
        let mut state = column("state", Kind::Enum { labels: vec!["new".into()] }, "enum('new')");
        state.default = Some("new".into());
        let mut at = column("at", Kind::Timestamp, "datetime");
        at.default = Some("current_timestamp()".into());
        at.nullable = true;
        let schema = table(Dialect::Mysql, vec![id, state, at]);
        let sql = table_sql(&schema, &TableId::new("copy", "or\"ders"), 150_000).unwrap();
        assert_eq!(
            sql,
            "CREATE TABLE IF NOT EXISTS \"copy\".\"or\"\"ders\" (\n  \
             \"id\" bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY,\n  \
             \"state\" text NOT NULL DEFAULT 'new',\n  \
             \"at\" timestamp DEFAULT CURRENT_TIMESTAMP,\n  \
             PRIMARY KEY (\"id\")\n)"
        );
    }

    #[test]
    fn foreign_expressions_are_refused() {
        let mut total = column("total", Kind::Float64, "double");
        total.generated = Some(Generated::Stored);
        total.expression = Some("`a` / 2".into());
        let schema = table(Dialect::Mariadb, vec![total]);
        let problem = table_sql(&schema, &schema.table, 150_000).unwrap_err();
        assert!(problem.what.contains("total"), "{problem}");
    }

    #[test]
    fn schemas_of_types_are_found() {
        assert_eq!(qualified("public.mood"), Some("public".into()));
        assert_eq!(qualified("\"a\"\"b\".\"c.d\""), Some("a\"b".into()));
        assert_eq!(qualified("mood"), None);
        assert_eq!(qualified("\"mo.od\""), None);
    }
}
