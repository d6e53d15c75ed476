//! Reading rows by key on either end: what `verify` compares.
//!
//! The table may stand in a source or in a target, and the schema may come from another engine: so
//! columns are found by name, and what this server prints becomes the value that the *schema's*
//! kind says. Equal rows are equal bytes, on whichever end they were read.
//!
//! | the schema's kind | stored here as | taken as |
//! |---|---|---|
//! | any int, unsigned too | `smallint` … `bigint`, `numeric(20)` | the number; one without a fraction |
//! | int | `boolean` | 0, 1 |
//! | text, fixed, of MySQL | `character(n)` | without the padding, which MySQL does not show either |
//! | timestamp with(out) zone | the other one | its text with (without) `+00` |
//! | everything else | its own type | as printed |

use std::borrow::Cow;
use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use tailwater_capture::{ReadRow, SourceError, TableReader, Wanted};
use tailwater_change::{
    Column, Dialect, Identity, Kind, Problem, RowReader, RowWriter, TableId, TableSchema, Value,
};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::catalog::read_tables;
use crate::connect::{Server, Session, literal, quote, quote_table, source_error};
use crate::source::bad_column;
use crate::types::{Cell, Scratch};

/// Keys looked up by one statement: a few kilobytes of SQL each, well below any limit.
const KEYS_PER_STATEMENT: usize = 500;

/// Reads tables of one PostgreSQL database.
#[derive(Debug)]
pub(crate) struct PostgresReader {
    session: Session,
    natives: HashMap<TableId, HashMap<String, String>>,
}

/// Reads rows of the database at `url` by key, whichever end of a pipeline it is.
///
/// # Errors
/// The url does not parse, or the server cannot be reached.
pub async fn table_reader(url: &str) -> Result<Box<dyn TableReader>, SourceError> {
    let server = Server::parse(url).map_err(SourceError::Refused)?;
    Ok(Box::new(PostgresReader::new(server.connect("tailwater verify").await?)))
}

impl PostgresReader {
    /// Reads by `session`.
    pub(crate) fn new(session: Session) -> Self {
        Self { session, natives: HashMap::new() }
    }

    /// How the columns of the schema that flow lie in the table here.
    async fn layout<'s>(
        &mut self,
        schema: &'s TableSchema,
        name: &TableId,
    ) -> Result<Layout<'s>, SourceError> {
        if !self.natives.contains_key(name) {
            let tables = read_tables(&self.session, |table| table == name)
                .await
                .map_err(|error| source_error("reading the catalog", error))?;
            // Types that are not captured are read all the same: a target may store a value of
            // another engine in one (MySQL's TIME as an interval).
            let mut natives = HashMap::new();
            for table in tables {
                let taken = table.schema.columns.into_iter().map(|c| (c.name, c.native));
                natives.extend(taken);
                natives.extend(table.refused.into_iter().map(|c| (c.name, c.native)));
            }
            self.natives.insert(name.clone(), natives);
        }
        let natives = &self.natives[name];
        let mut columns = Vec::new();
        for (index, column) in schema.columns.iter().enumerate().filter(|(_, c)| c.flows()) {
            let Some(native) = natives.get(&column.name) else {
                return Err(SourceError::Refused(Problem::new(
                    format!("{name} has no column {} that can be compared", column.name),
                    "make the tables alike, or leave the table out of the comparison",
                )));
            };
            columns.push(Stored { index, column, native: native.clone() });
        }
        Ok(Layout { schema, table: quote_table(name), columns })
    }

    async fn select(
        &mut self,
        layout: &Layout<'_>,
        sql: &str,
        each: &mut (dyn FnMut(ReadRow) + Send),
    ) -> Result<(), SourceError> {
        let operation = format!("reading {}", layout.table);
        let failed = |error| source_error(&operation, error);
        let found = self.session.simple_query_raw(sql).await.map_err(failed)?;
        let mut found = std::pin::pin!(found);
        let mut scratch = Scratch::default();
        while let Some(message) = found.try_next().await.map_err(failed)? {
            if let SimpleQueryMessage::Row(row) = message {
                each(layout.row(&row, &mut scratch)?);
            }
        }
        Ok(())
    }
}

/// A column of the schema and the type it has here.
#[derive(Debug)]
struct Stored<'s> {
    index: usize,
    column: &'s Column,
    native: String,
}

#[derive(Debug)]
struct Layout<'s> {
    schema: &'s TableSchema,
    table: String,
    columns: Vec<Stored<'s>>,
}

impl Layout<'_> {
    fn select(&self) -> String {
        let columns: Vec<String> =
            self.columns.iter().map(|stored| quote(&stored.column.name)).collect();
        format!("SELECT {} FROM {}", columns.join(", "), self.table)
    }

    /// The key's columns; for tables without one, all.
    fn key(&self) -> Vec<&Stored<'_>> {
        match &self.schema.identity {
            Identity::Full => self.columns.iter().collect(),
            Identity::Key(key) => key
                .iter()
                .filter_map(|index| self.columns.iter().find(|stored| stored.index == *index))
                .collect(),
        }
    }

    fn key_names(&self) -> String {
        let names: Vec<String> =
            self.key().iter().map(|stored| quote(&stored.column.name)).collect();
        names.join(", ")
    }

    /// The key in a row message as SQL, in the order of [`key`](Self::key).
    fn key_literals(&self, key: &[u8]) -> Result<Vec<String>, SourceError> {
        let mut values = Vec::new();
        RowReader::new(self.schema).read(key, &mut values).map_err(|error| {
            SourceError::Protocol {
                operation: format!("reading {} by key", self.table),
                detail: error.to_string(),
            }
        })?;
        Ok(self.key().iter().map(|stored| stored.literal(values[stored.index])).collect())
    }

    /// The condition that a row has one of `keys`.
    fn is_one_of(&self, keys: &[Vec<u8>]) -> Result<String, SourceError> {
        let literals = keys.iter().map(|key| self.key_literals(key));
        let literals = literals.collect::<Result<Vec<_>, _>>()?;
        if self.schema.identity != Identity::Full {
            let keys: Vec<String> =
                literals.iter().map(|key| format!("({})", key.join(", "))).collect();
            return Ok(format!("({}) IN ({})", self.key_names(), keys.join(", ")));
        }
        // Compared as text: not every type has an equality, and the text is what we compare.
        let columns = self.key();
        let same = |key: &Vec<String>| {
            let equal = columns.iter().zip(key).map(|(stored, literal)| {
                let name = quote(&stored.column.name);
                format!("{name}::text IS NOT DISTINCT FROM {literal}::text")
            });
            format!("({})", equal.collect::<Vec<_>>().join(" AND "))
        };
        Ok(literals.iter().map(same).collect::<Vec<_>>().join(" OR "))
    }

    fn row(&self, row: &SimpleQueryRow, scratch: &mut Scratch) -> Result<ReadRow, SourceError> {
        let dialect = self.schema.dialect;
        let texts: Vec<Option<Cow<'_, str>>> = (0..)
            .zip(&self.columns)
            .map(|(at, stored)| row.get(at).map(|text| stored.converted(text, dialect)))
            .collect();
        let cells: Vec<Cell<'_>> = texts
            .iter()
            .map(|text| text.as_deref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes())))
            .collect();
        let map: Vec<usize> = self.columns.iter().map(|stored| stored.index).collect();
        let mut values = Vec::new();
        scratch
            .decode(self.schema, &map, &cells, &mut values)
            .map_err(|bad| bad_column(self.schema, bad))?;
        let written = |columns: &mut dyn Iterator<Item = &Stored<'_>>| {
            let mut bytes = Vec::new();
            let mut writer = RowWriter::new(&mut bytes);
            for stored in columns {
                writer.column(stored.column.field, values[stored.index]);
            }
            bytes
        };
        Ok(ReadRow {
            key: written(&mut self.key().into_iter()),
            row: written(&mut self.columns.iter()),
        })
    }
}

impl Stored<'_> {
    /// A value of the schema's as SQL, of the type it has here.
    fn literal(&self, value: Value<'_>) -> String {
        let text = match value {
            Value::Null | Value::Unsent => return format!("NULL::{}", self.native),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Uint(value) => value.to_string(),
            // `{:?}` prints what reads back as the same bits.
            Value::Float32(value) => float(&format!("{value:?}")),
            Value::Float64(value) => float(&format!("{value:?}")),
            Value::Text(text) => text.to_owned(),
            Value::Bytes(bytes) => {
                let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("\\x{digits}")
            }
        };
        format!("{}::{}", literal(&text), self.native)
    }

    /// What this server prints, as the schema's kind is written.
    fn converted<'t>(&self, text: &'t str, dialect: Dialect) -> Cow<'t, str> {
        let native = self.native.as_str();
        match &self.column.kind {
            Kind::Int { .. } if native == "boolean" => {
                Cow::Borrowed(if text == "t" { "1" } else { "0" })
            }
            Kind::Int { .. } if native.starts_with("numeric") => match text.split_once('.') {
                Some((whole, fraction)) if fraction.bytes().all(|digit| digit == b'0') => {
                    Cow::Borrowed(whole)
                }
                _ => Cow::Borrowed(text),
            },
            Kind::Text { fixed: true, .. } if !dialect.is_like(Dialect::Postgres) => {
                Cow::Borrowed(text.trim_end_matches(' '))
            }
            Kind::Timestamp if native.ends_with("with time zone") => {
                Cow::Owned(text.replacen("+00", "", 1))
            }
            Kind::TimestampTz
                if native.ends_with("without time zone") && !text.ends_with("infinity") =>
            {
                Cow::Owned(match text.strip_suffix(" BC") {
                    Some(text) => format!("{text}+00 BC"),
                    None => format!("{text}+00"),
                })
            }
            _ => Cow::Borrowed(text),
        }
    }
}

/// Rust's spelling of a float as PostgreSQL's.
fn float(text: &str) -> String {
    match text {
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        other => other.to_owned(),
    }
}

#[async_trait]
impl TableReader for PostgresReader {
    async fn read(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        wanted: Wanted<'_>,
        each: &mut (dyn FnMut(ReadRow) + Send),
    ) -> Result<(), SourceError> {
        let layout = self.layout(schema, name).await?;
        let mut sql = layout.select();
        match wanted {
            Wanted::All => {}
            Wanted::Above { .. } if schema.identity == Identity::Full => {
                return Err(SourceError::Refused(Problem::new(
                    format!("{name} has no key to read it by in parts"),
                    "read it whole",
                )));
            }
            Wanted::Above { after, limit } => {
                let names = layout.key_names();
                if let Some(after) = after {
                    let key = layout.key_literals(after)?;
                    sql.push_str(&format!(" WHERE ({names}) > ({})", key.join(", ")));
                }
                sql.push_str(&format!(" ORDER BY {names} LIMIT {limit}"));
            }
            Wanted::Keys(keys) => {
                for keys in keys.chunks(KEYS_PER_STATEMENT) {
                    let sql = format!("{sql} WHERE {}", layout.is_one_of(keys)?);
                    self.select(&layout, &sql, each).await?;
                }
                return Ok(());
            }
        }
        self.select(&layout, &sql, each).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(kind: Kind, native: &str) -> (Column, String) {
        let column = Column::nullable("c", 1, kind, "whatever");
        (column, native.to_owned())
    }

    #[test]
    fn what_is_printed_here_is_taken_as_the_schema_says() {
        let check = |kind: Kind, native: &str, text: &str, expected: &str| {
            let (column, native) = stored(kind, native);
            let stored = Stored { index: 0, column: &column, native };
            assert_eq!(stored.converted(text, Dialect::Mysql), expected);
        };
        let int = |bits, signed| Kind::Int { bits, signed };
        check(int(8, true), "boolean", "t", "1");
        check(int(8, true), "smallint", "-5", "-5");
        check(int(64, false), "numeric(20,0)", "18446744073709551615", "18446744073709551615");
        check(int(64, false), "numeric", "7.00", "7");
        check(Kind::Text { length: Some(4), fixed: true }, "character(4)", "ab  ", "ab");
        check(
            Kind::Timestamp,
            "timestamp with time zone",
            "2024-01-01 00:00:00+00",
            "2024-01-01 00:00:00",
        );
        check(
            Kind::TimestampTz,
            "timestamp(6) without time zone",
            "0044-03-15 00:00:00 BC",
            "0044-03-15 00:00:00+00 BC",
        );
        check(Kind::TimestampTz, "timestamp without time zone", "-infinity", "-infinity");
    }

    #[test]
    fn a_key_is_written_in_the_type_it_has_here() {
        let (column, native) = stored(Kind::Float64, "double precision");
        let stored = Stored { index: 0, column: &column, native };
        assert_eq!(stored.literal(Value::Float64(-0.0)), "'-0.0'::double precision");
        assert_eq!(stored.literal(Value::Float64(f64::INFINITY)), "'Infinity'::double precision");
        let (column, native) = self::stored(Kind::Bytes { length: None, fixed: false }, "bytea");
        let stored = Stored { index: 0, column: &column, native };
        assert_eq!(stored.literal(Value::Bytes(&[1, 255])), "E'\\\\x01ff'::bytea");
    }
}
