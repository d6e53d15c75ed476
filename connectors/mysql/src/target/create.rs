//! Tables that are missing on the target: made before the load with their key, finished after it
//! with indexes and foreign keys.
//!
//! Like to like, definitions stay as the source spells them, as far as the other brand reads them.
//! From PostgreSQL, defaults that are plain constants come along; values always flow, so a default
//! matters only to who writes to the target himself.

use std::fmt::Write as _;

use tailwater_apply::TargetError;
use tailwater_change::{
    Column, Dialect, ForeignKey, Generated, Index, Problem, ReferentialAction, TableId, TableSchema,
};

use super::collation;
use super::mapping::{Abilities, Usage, exact_collation, mapping};
use super::session::{Session, refused};
use super::table::{on, same_names};
use crate::catalog::{self, CatalogTable};
use crate::connect::{quote_name, quote_table};

/// Characters of a long text column that an index of a PostgreSQL table keeps.
const PREFIX: u32 = 191;

impl Session {
    /// Makes the table; see [`tailwater_apply::Target::create_table`].
    pub(super) async fn create(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
    ) -> Result<(), TargetError> {
        let made = definition(schema, to, &self.abilities).map_err(|it| refused(&it))?;
        for remark in &made.remarks {
            tracing::warn!(table = %to, "{remark}");
        }
        let database = format!("CREATE DATABASE IF NOT EXISTS {}", quote_name(&to.schema));
        let operation = on("create table", to);
        // Asked first: an account may have all privileges on a database and not the one to make it.
        if !self.has_database(&to.schema).await? {
            self.execute(&database).await.map_err(|it| it.into_target(&operation))?;
        }
        self.execute(&made.sql).await.map_err(|it| it.into_target(&operation))?;
        self.forget_shapes();
        Ok(())
    }

    async fn has_database(&mut self, name: &str) -> Result<bool, TargetError> {
        use mysql_async::prelude::Queryable;
        let sql = format!(
            "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = {}",
            crate::connect::quote_text(name)
        );
        let count: Result<Option<u64>, _> = self.conn.query_first(sql).await;
        count.map(|count| count.unwrap_or(0) > 0).map_err(|error| {
            super::failure::Failure::of(error).into_target("look for the database")
        })
    }

    /// Indexes and foreign keys; see [`tailwater_apply::Target::finish_table`].
    ///
    /// AUTO_INCREMENT needs nothing: InnoDB raises it with every explicit value.
    pub(super) async fn finish(
        &mut self,
        schema: &TableSchema,
        to: &TableId,
        route: &(dyn for<'a> Fn(&'a TableId) -> Option<TableId> + Sync),
    ) -> Result<(), TargetError> {
        let operation = on("add indexes to", to);
        let found = catalog::table(&mut self.conn, self.server, to)
            .await
            .map_err(|error| super::failure::Failure::of(error).into_target(&operation))?;
        let Some(found) = found else {
            return Err(TargetError::Refused(Problem::new(
                format!("table {to} is gone from the target"),
                "restore it, or `tailwater resync`",
            )));
        };
        let additions = index_additions(schema, &found, &self.abilities);
        // All at once: the server reads the table once.
        if !additions.is_empty() {
            let sql = format!("ALTER TABLE {} {}", quote_table(to), additions.join(", "));
            self.execute(&sql).await.map_err(|it| it.into_target(&operation))?;
        }
        for key in &schema.foreign_keys {
            if let Some(referenced) = route(&key.referenced)
                && !has_foreign_key(&found, key, &referenced)
            {
                self.add_foreign_key(schema.dialect, to, key, &referenced).await?;
            }
        }
        self.forget_shapes();
        Ok(())
    }

    async fn add_foreign_key(
        &mut self,
        source: Dialect,
        to: &TableId,
        key: &ForeignKey,
        referenced: &TableId,
    ) -> Result<(), TargetError> {
        // MySQL's names are unique in a database, PostgreSQL's in a table.
        let name = source.is_like(Dialect::Mysql).then_some(key.name.as_str());
        let add = |name| foreign_key_sql(to, key, name, referenced);
        let result = match self.execute(&add(name)).await {
            // The name is taken: MySQL says so, MariaDB in errno 121 of a failed creation, or that
            // its system tables do not take it.
            Err(failure)
                if name.is_some()
                    && failure
                        .data()
                        .is_some_and(|it| matches!(it.code, 1826 | 1005 | 121 | 1823)) =>
            {
                self.execute(&add(None)).await
            }
            other => other,
        };
        result
            .map(drop)
            .map_err(|it| it.into_target(&format!("add foreign key {} to {to}", key.name)))
    }
}

/// A table's definition.
struct Made {
    sql: String,
    remarks: Vec<String>,
}

/// Every problem that keeps the table from being made.
pub(super) fn creation_problems(
    schema: &TableSchema,
    to: &TableId,
    abilities: &Abilities,
) -> Vec<Problem> {
    definition(schema, to, abilities).err().unwrap_or_default()
}

fn definition(
    schema: &TableSchema,
    to: &TableId,
    abilities: &Abilities,
) -> Result<Made, Vec<Problem>> {
    let like = schema.dialect.is_like(abilities.dialect);
    let (mut lines, mut remarks, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    let (counter, counter_index) = counter(schema, like);
    for (at, column) in schema.columns.iter().enumerate() {
        match mapping(schema.dialect, column, Usage::of(schema, at), abilities) {
            Ok(_) if !like && !column.flows() => problems.push(Problem::new(
                format!("column {}.{} is computed by an expression of PostgreSQL", to, column.name),
                "create the target's table by hand, with the expression in MySQL's words or \
                 without the column",
            )),
            Ok(made) => {
                remarks.extend(made.remark);
                let is_key = schema.key().contains(&at);
                let counts = counter == Some(at);
                lines.push(column_line(schema, column, &made.spelled, is_key, counts, abilities));
            }
            Err(mut problem) => {
                problem.what = format!("table {to}, {}", problem.what);
                problems.push(problem);
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    lines.extend(primary_key(schema, like));
    lines.extend(counter_index);
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {} (\n{}\n) {}",
        quote_table(to),
        lines.join(",\n"),
        options(schema, like, abilities)
    );
    Ok(Made { sql, remarks })
}

fn column_line(
    schema: &TableSchema,
    column: &Column,
    spelled: &str,
    is_key: bool,
    counts: bool,
    abilities: &Abilities,
) -> String {
    let mut line = format!("{} {spelled}", quote_name(&column.name));
    let like = schema.dialect.is_like(abilities.dialect);
    if let (Some(expression), false) = (&column.expression, column.flows()) {
        let kept = if column.generated == Some(Generated::Stored) { "STORED" } else { "VIRTUAL" };
        let _infallible = write!(line, " GENERATED ALWAYS AS ({expression}) {kept}");
        // MariaDB has no NOT NULL here.
        if !column.nullable && abilities.dialect == Dialect::Mysql {
            line.push_str(" NOT NULL");
        }
        return line;
    }
    line.push_str(if column.nullable && !is_key { " NULL" } else { " NOT NULL" });
    if counts {
        line.push_str(" AUTO_INCREMENT");
        return line;
    }
    let default = column.default.as_deref().and_then(|default| {
        if like {
            Some(like_default(default, column, abilities))
        } else {
            constant_default(default, column)
        }
    });
    if let Some(default) = default {
        let _infallible = write!(line, " DEFAULT {default}");
    }
    line
}

/// MySQL wants expressions in parentheses, and every default of a text or blob is one to it.
fn like_default(default: &str, column: &Column, abilities: &Abilities) -> String {
    let lower = default.to_ascii_lowercase();
    let literal = default.starts_with(['\'', '-'])
        || default.starts_with(|first: char| first.is_ascii_digit())
        || lower.starts_with("b'")
        || lower.starts_with("x'")
        || lower == "null"
        || lower.starts_with("current_timestamp");
    let large = ["text", "blob", "json"].iter().any(|name| column.native.contains(name));
    let wrap = abilities.dialect == Dialect::Mysql
        && !default.starts_with('(')
        && (!literal || (large && lower != "null"));
    if wrap { format!("({default})") } else { default.to_owned() }
}

/// PostgreSQL's constants: `0`, `'new'::text`, `true`. Everything else is left out.
fn constant_default(default: &str, column: &Column) -> Option<String> {
    use tailwater_change::Kind;
    let bare = match default.strip_prefix('\'') {
        Some(rest) => {
            let (text, _) = rest.rsplit_once('\'')?;
            text.replace("''", "'")
        }
        None => default.to_owned(),
    };
    match &column.kind {
        Kind::Bool => matches!(bare.as_str(), "true" | "false").then_some(bare),
        Kind::Int { .. } | Kind::Decimal { .. } => {
            let number = bare.trim_start_matches('-');
            let digits = |text: &str| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            };
            digits(number).then_some(bare)
        }
        Kind::Text { length: Some(length), .. } if *length <= 255 && default.starts_with('\'') => {
            Some(crate::connect::quote_text(&bare))
        }
        Kind::Enum { labels } if labels.contains(&bare) => Some(crate::connect::quote_text(&bare)),
        _ => None,
    }
}

/// The column that counts, and the index that it needs where it does not lead the key.
fn counter(schema: &TableSchema, like: bool) -> (Option<usize>, Option<String>) {
    let counts = |column: &Column| {
        matches!(column.generated, Some(Generated::IdentityAlways | Generated::IdentityByDefault))
            && matches!(column.kind, tailwater_change::Kind::Int { .. })
    };
    let leads = |at: &usize| schema.key().first() == Some(at);
    let candidates: Vec<usize> = schema
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| counts(column))
        .map(|(at, _)| at)
        .collect();
    if let Some(at) = candidates.iter().copied().find(|at| leads(at)) {
        return (Some(at), None);
    }
    let index = candidates.first().filter(|_| like).and_then(|at| {
        let name = &schema.columns[*at].name;
        let index = schema
            .indexes
            .iter()
            .find(|index| !index.primary && index.columns.first() == Some(name))?;
        Some((*at, index.definition.clone()))
    });
    index.map_or((None, None), |(at, definition)| (Some(at), Some(definition)))
}

fn primary_key(schema: &TableSchema, like: bool) -> Option<String> {
    let own = schema.indexes.iter().find(|index| index.primary).filter(|_| like);
    if let Some(own) = own.filter(|own| !own.definition.is_empty()) {
        return Some(own.definition.clone());
    }
    let names: Vec<String> =
        schema.key().iter().map(|at| quote_name(&schema.columns[*at].name)).collect();
    (!names.is_empty()).then(|| format!("PRIMARY KEY ({})", names.join(",")))
}

/// The table's character set, for columns added later.
fn options(schema: &TableSchema, like: bool, abilities: &Abilities) -> String {
    let source = schema
        .options
        .as_deref()
        .filter(|_| like)
        .and_then(|options| options.split("COLLATE=").nth(1))
        .and_then(|name| name.split_whitespace().next())
        .and_then(|name| collation::stand_in(name, &abilities.collations));
    let collation = source.map_or_else(
        || exact_collation(abilities),
        |it| {
            let charset = it.name.split('_').next().unwrap_or("utf8mb4").to_owned();
            format!("CHARACTER SET {charset} COLLATE {}", it.name)
        },
    );
    format!("ENGINE=InnoDB DEFAULT {collation}")
}

fn index_additions(
    schema: &TableSchema,
    found: &CatalogTable,
    abilities: &Abilities,
) -> Vec<String> {
    let like = schema.dialect.is_like(abilities.dialect);
    let there = |name: &str| found.indexes.iter().any(|it| it.name.eq_ignore_ascii_case(name));
    let missing = schema.indexes.iter().filter(|index| !index.primary && !there(&index.name));
    let mut additions = Vec::new();
    for index in missing {
        let addition = if like { like_index(index, abilities) } else { own_index(schema, index) };
        match addition {
            Ok(definition) => additions.push(format!("ADD {definition}")),
            Err(why) => tracing::warn!(
                table = %found.table,
                index = %index.name,
                "the index is not made on the target: {why}"
            ),
        }
    }
    additions
}

fn like_index(index: &Index, abilities: &Abilities) -> Result<String, &'static str> {
    if index.definition.is_empty() {
        return Err("the source did not say how it is defined");
    }
    if abilities.dialect == Dialect::Mariadb && index.definition.contains("((") {
        return Err("MariaDB has no indexes of expressions");
    }
    Ok(index.definition.clone())
}

/// An index of a PostgreSQL table.
fn own_index(schema: &TableSchema, index: &Index) -> Result<String, &'static str> {
    if index.columns.is_empty() || index.definition.contains(" WHERE ") {
        return Err("MySQL has no partial indexes, and expressions are PostgreSQL's");
    }
    if !index.definition.contains("USING btree") && !index.definition.contains("USING hash") {
        return Err("MySQL has no index of its kind");
    }
    let mut columns = Vec::new();
    for name in &index.columns {
        let at = schema.column(name).ok_or("it is of columns that do not flow")?;
        let mut part = quote_name(name);
        match &schema.columns[at].kind {
            tailwater_change::Kind::Json => return Err("MySQL does not index JSON"),
            tailwater_change::Kind::Text { length, .. }
            | tailwater_change::Kind::Bytes { length, .. }
                if length.is_none_or(|length| length > 768) =>
            {
                if index.unique {
                    return Err("MySQL cannot keep a text without a length unique");
                }
                let _infallible = write!(part, "({PREFIX})");
            }
            _ => {}
        }
        columns.push(part);
    }
    let unique = if index.unique { "UNIQUE " } else { "" };
    Ok(format!("{unique}KEY {} ({})", quote_name(&index.name), columns.join(",")))
}

fn has_foreign_key(found: &CatalogTable, key: &ForeignKey, referenced: &TableId) -> bool {
    found.foreign_keys.iter().any(|it| {
        same_names(&it.columns, &key.columns)
            && it.referenced == *referenced
            && same_names(&it.referenced_columns, &key.referenced_columns)
    })
}

fn foreign_key_sql(
    to: &TableId,
    key: &ForeignKey,
    name: Option<&str>,
    referenced: &TableId,
) -> String {
    let list =
        |names: &[String]| names.iter().map(|name| quote_name(name)).collect::<Vec<_>>().join(",");
    let action = |action| match action {
        ReferentialAction::Cascade => "CASCADE",
        ReferentialAction::SetNull => "SET NULL",
        ReferentialAction::Restrict => "RESTRICT",
        // InnoDB has no SET DEFAULT; PostgreSQL logs what it does.
        ReferentialAction::NoAction | ReferentialAction::SetDefault => "NO ACTION",
    };
    let name = name.map_or(String::new(), |name| format!("CONSTRAINT {} ", quote_name(name)));
    format!(
        "ALTER TABLE {} ADD {name}FOREIGN KEY ({}) REFERENCES {} ({}) ON DELETE {} ON UPDATE {}",
        quote_table(to),
        list(&key.columns),
        quote_table(referenced),
        list(&key.referenced_columns),
        action(key.on_delete),
        action(key.on_update),
    )
}

#[cfg(test)]
mod tests {
    use tailwater_change::Kind;

    use super::*;

    fn column(kind: Kind) -> Column {
        Column::nullable("c", 1, kind, "longtext")
    }

    #[test]
    fn constants_of_postgres_are_taken_and_expressions_are_not() {
        let check = |default: &str, kind: Kind, expected: Option<&str>| {
            assert_eq!(constant_default(default, &column(kind)).as_deref(), expected, "{default}");
        };
        let int = Kind::Int { bits: 32, signed: true };
        check("0", int.clone(), Some("0"));
        check("'-5'::integer", int.clone(), Some("-5"));
        check("nextval('t_id_seq'::regclass)", int, None);
        check("true", Kind::Bool, Some("true"));
        let text = Kind::Text { length: Some(20), fixed: false };
        check("'it''s'::character varying", text.clone(), Some("'it''s'"));
        check("now()", text, None);
        check("now()", Kind::TimestampTz, None);
    }

    #[test]
    fn mysql_gets_its_parentheses() {
        let mysql = Abilities { dialect: Dialect::Mysql, collations: Default::default() };
        let text = column(Kind::Text { length: None, fixed: false });
        let mut int = column(Kind::Int { bits: 32, signed: true });
        int.native = "int".into();
        assert_eq!(like_default("'a'", &text, &mysql), "('a')");
        assert_eq!(like_default("uuid()", &int, &mysql), "(uuid())");
        assert_eq!(like_default("current_timestamp()", &int, &mysql), "current_timestamp()");
        assert_eq!(like_default("(1 + 1)", &int, &mysql), "(1 + 1)");
        assert_eq!(like_default("'1'", &int, &mysql), "'1'");
    }
}
