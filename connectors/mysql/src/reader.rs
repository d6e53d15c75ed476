//! Reading rows of a table by key, on either end: what `verify` compares.
//!
//! Columns are found by name in the table as it is now; what their values look like says the
//! caller's schema, which may be another database's.

use std::collections::HashMap;
use std::fmt::Write as _;

use async_trait::async_trait;
use tailwater_capture::{ReadRow, SourceError, TableReader, Wanted};
use tailwater_change::{Kind, Problem, RowReader, RowWriter, TableId, TableSchema, Value};

use crate::catalog::{self, CatalogTable};
use crate::cell::{Scratch, recycle};
use crate::connect::{Endpoint, in_time, quote_name, quote_table};
use crate::source::Session;
use crate::text::{RAW_RESULTS, TextColumn, read_row};
use crate::types::ColumnType;
use crate::wire::Wire;

/// Reads rows over a connection of its own.
#[derive(Debug)]
pub(crate) struct KeyReader {
    wire: Wire,
    /// For the catalog.
    session: Session,
    tables: HashMap<TableId, Plan>,
}

/// How a table is read for a schema.
#[derive(Debug, Clone)]
struct Plan {
    schema: TableSchema,
    columns: Vec<TextColumn>,
    /// Index into `columns` per column of the schema; none for those that do not flow.
    at: Vec<Option<usize>>,
    select: String,
    /// The key's columns as literals know them.
    key: Vec<KeyColumn>,
}

#[derive(Debug, Clone)]
struct KeyColumn {
    name: String,
    /// Labels in the table's own order, if it is an ENUM: it sorts by number, not by label.
    labels: Option<Vec<String>>,
}

/// Reads rows of the database at `url` by key, whichever end of a pipeline it is.
///
/// # Errors
/// The url does not parse, or the server cannot be reached.
pub async fn table_reader(url: &str) -> Result<Box<dyn TableReader>, SourceError> {
    let endpoint = Endpoint::parse(url).map_err(SourceError::Refused)?;
    Ok(Box::new(KeyReader::connect(&endpoint).await?))
}

impl KeyReader {
    /// Connects, in reasonable time or not at all.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self, SourceError> {
        let late = |error| SourceError::unavailable(format!("connect to {endpoint}"), error);
        in_time(Self::connect_now(endpoint), late).await
    }

    async fn connect_now(endpoint: &Endpoint) -> Result<Self, SourceError> {
        let failed = |error| SourceError::unavailable(format!("connect to {endpoint}"), error);
        // First: it tells what a person must see to from what passes.
        let session = Session::open(endpoint).await?;
        let mut wire = Wire::connect(endpoint).await.map_err(failed)?;
        wire.execute(RAW_RESULTS).await.map_err(failed)?;
        Ok(Self { wire, session, tables: HashMap::new() })
    }

    async fn plan(&mut self, schema: &TableSchema, name: &TableId) -> Result<Plan, SourceError> {
        if let Some(plan) = self.tables.get(name).filter(|plan| plan.schema == *schema) {
            return Ok(plan.clone());
        }
        let table = catalog::table(&mut self.session.conn, self.session.server, name)
            .await
            .map_err(|error| SourceError::unavailable(format!("describe {name}"), error))?;
        let table = table.ok_or_else(|| missing(format!("table {name}")))?;
        let plan = Plan::new(schema, name, &table)?;
        self.tables.insert(name.clone(), plan.clone());
        Ok(plan)
    }

    async fn select(
        &mut self,
        plan: &Plan,
        rest: &str,
        each: &mut (dyn FnMut(ReadRow) + Send),
    ) -> Result<(), SourceError> {
        let table = &plan.schema.table;
        let failed = |error| SourceError::unavailable(format!("read rows of {table}"), error);
        self.wire.query(&format!("{}{rest}", plan.select)).await.map_err(failed)?;
        let (mut scratch, mut values) = (Scratch::default(), Vec::new());
        while let Some(row) = self.wire.next_row().await.map_err(failed)? {
            scratch.clear();
            let mut cells = Vec::with_capacity(plan.columns.len());
            read_row(&plan.columns, &row, &mut cells, &mut scratch).map_err(|error| {
                SourceError::Protocol {
                    operation: format!("read rows of {table}"),
                    detail: error.to_string(),
                }
            })?;
            let mut read = recycle(values);
            scratch.values(&cells, &mut read);
            each(plan.encode(&read));
            values = recycle(read);
        }
        Ok(())
    }
}

#[async_trait]
impl TableReader for KeyReader {
    async fn read(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        wanted: Wanted<'_>,
        each: &mut (dyn FnMut(ReadRow) + Send),
    ) -> Result<(), SourceError> {
        let plan = self.plan(schema, name).await?;
        let mut rest = String::new();
        match wanted {
            Wanted::All => {}
            Wanted::Above { .. } | Wanted::Keys(_) if plan.key.is_empty() => {
                return Err(keyless(name));
            }
            Wanted::Above { after, limit } => {
                if let Some(after) = after {
                    let above = plan.above(&plan.key_literals(after)?);
                    write_sql(&mut rest, format_args!(" WHERE {above}"));
                }
                let order: Vec<String> =
                    plan.key.iter().map(|column| quote_name(&column.name)).collect();
                write_sql(&mut rest, format_args!(" ORDER BY {} LIMIT {limit}", order.join(", ")));
            }
            Wanted::Keys([]) => return Ok(()),
            Wanted::Keys(keys) => {
                let mut conditions = Vec::with_capacity(keys.len());
                for key in keys {
                    conditions.push(format!("({})", plan.equal(&plan.key_literals(key)?)));
                }
                write_sql(&mut rest, format_args!(" WHERE {}", conditions.join(" OR ")));
            }
        }
        self.select(&plan, &rest, each).await
    }
}

impl Plan {
    fn new(
        schema: &TableSchema,
        name: &TableId,
        table: &CatalogTable,
    ) -> Result<Self, SourceError> {
        let (mut columns, mut at) = (Vec::new(), Vec::new());
        for column in &schema.columns {
            if !column.flows() {
                at.push(None);
                continue;
            }
            let found = table.columns.iter().find(|found| found.name == column.name);
            let found = found.ok_or_else(|| missing(format!("column {name}.{}", column.name)))?;
            let read =
                TextColumn::new(&found.name, &found.native, found.charset.as_deref(), &column.kind);
            at.push(Some(columns.len()));
            columns.push(read.ok_or_else(|| {
                SourceError::Refused(Problem::new(
                    format!("column {name}.{} has type {}", column.name, found.native),
                    "convert it to a type that holds the source's values",
                ))
            })?);
        }
        let selected: Vec<String> = columns.iter().map(TextColumn::selected).collect();
        let key = schema.key().iter().filter_map(|&index| schema.columns.get(index));
        let key = key.map(|column| KeyColumn {
            name: column.name.clone(),
            labels: labels(table, &column.name),
        });
        Ok(Self {
            columns,
            at,
            select: format!("SELECT {} FROM {}", selected.join(", "), quote_table(name)),
            key: key.collect(),
            schema: schema.clone(),
        })
    }

    fn encode(&self, values: &[Value<'_>]) -> ReadRow {
        let value = |index: usize| {
            self.at.get(index).copied().flatten().and_then(|at| values.get(at).copied())
        };
        let mut row = Vec::new();
        let mut writer = RowWriter::new(&mut row);
        for (index, column) in self.schema.columns.iter().enumerate() {
            writer.column(column.field, value(index).unwrap_or(Value::Null));
        }
        if self.key.is_empty() {
            return ReadRow { key: row.clone(), row };
        }
        let mut key = Vec::new();
        let mut writer = RowWriter::new(&mut key);
        for &index in self.schema.key() {
            let field = self.schema.columns.get(index).map_or(0, |column| column.field);
            writer.column(field, value(index).unwrap_or(Value::Null));
        }
        ReadRow { key, row }
    }

    /// The key's values as SQL, in the key's order.
    fn key_literals(&self, key: &[u8]) -> Result<Vec<String>, SourceError> {
        let bad = |detail: String| SourceError::Protocol {
            operation: format!("read a key of {}", self.schema.table),
            detail,
        };
        let mut values = Vec::new();
        RowReader::new(&self.schema)
            .read(key, &mut values)
            .map_err(|error| bad(error.to_string()))?;
        let columns = self.schema.key().iter().zip(&self.key);
        let literals = columns.map(|(&index, column)| {
            let kind = &self.schema.columns.get(index)?.kind;
            literal(*values.get(index)?, kind, column.labels.as_deref())
        });
        literals.collect::<Option<_>>().ok_or_else(|| bad("a value is missing".into()))
    }

    fn equal(&self, literals: &[String]) -> String {
        let parts = self.key.iter().zip(literals);
        let parts: Vec<_> = parts
            .map(|(column, literal)| format!("{} = {literal}", quote_name(&column.name)))
            .collect();
        parts.join(" AND ")
    }

    /// Lexicographically greater, spelled out: the servers use no index for a comparison of rows.
    fn above(&self, literals: &[String]) -> String {
        let mut alternatives = Vec::new();
        for last in 0..self.key.len() {
            let mut parts = Vec::new();
            for (at, (column, literal)) in self.key.iter().zip(literals).take(last + 1).enumerate()
            {
                let operator = if at == last { ">" } else { "=" };
                parts.push(format!("{} {operator} {literal}", quote_name(&column.name)));
            }
            alternatives.push(format!("({})", parts.join(" AND ")));
        }
        alternatives.join(" OR ")
    }
}

fn labels(table: &CatalogTable, column: &str) -> Option<Vec<String>> {
    let column = table.columns.get(table.column(column)?)?;
    match ColumnType::parse(&column.native) {
        Ok(ColumnType::Enum { labels }) => Some(labels),
        _ => None,
    }
}

/// A value as an SQL literal that compares as the column does.
fn literal(value: Value<'_>, kind: &Kind, labels: Option<&[String]>) -> Option<String> {
    Some(match value {
        Value::Null | Value::Unsent => return None,
        Value::Bool(value) => u8::from(value).to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Float32(value) => format!("{:e}", f64::from(value)),
        Value::Float64(value) => format!("{value:e}"),
        Value::Text(text) => {
            if let Some(labels) = labels {
                let number = labels.iter().position(|label| label == text).map_or(0, |at| at + 1);
                return Some(number.to_string());
            }
            match kind {
                Kind::Decimal { .. } => text.to_owned(),
                Kind::TimestampTz => crate::connect::quote_text(text.trim_end_matches("+00")),
                _ => crate::connect::quote_text(text),
            }
        }
        Value::Bytes(bytes) => {
            let mut hex = String::with_capacity(bytes.len() * 2 + 3);
            hex.push_str("x'");
            for byte in bytes {
                write_sql(&mut hex, format_args!("{byte:02x}"));
            }
            hex.push('\'');
            hex
        }
    })
}

fn write_sql(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a String takes everything");
}

fn missing(what: String) -> SourceError {
    SourceError::Refused(Problem::new(
        format!("{what} does not exist"),
        "create it as it is on the other end, or exclude the table",
    ))
}

fn keyless(name: &TableId) -> SourceError {
    SourceError::Refused(Problem::new(
        format!("{name} has no primary key: its rows cannot be read one by one"),
        "add a primary key",
    ))
}
