//! A table's schema as Protocol Buffers source text, and back.
//!
//! The text declares exactly the messages that [`envelope`](crate::Envelope) and
//! [`row`](crate::RowWriter) write, so any Confluent-compatible deserializer reads our topics. What
//! protobuf has no words for (source types, keys, collations) stands as JSON in one option of the
//! message `Row`; the extension that makes it legal is declared in the same text.

use std::fmt::Write as _;

use crate::{Column, Kind, TableSchema};

/// Text that is not a table schema of ours.
#[derive(Debug, thiserror::Error)]
pub enum SchemaTextError {
    /// The option that holds the table is missing.
    #[error("the schema has no tailwater_table option: it was not written by Tailwater")]
    NotOurs,
    /// The option does not hold a table.
    #[error("the schema's tailwater_table option does not parse")]
    Json(#[from] serde_json::Error),
}

const OPTION: &str = "  option (tailwater_table) = ";

/// The schema of `table`'s records: the registered text.
///
/// # Errors
/// Never in practice: a table schema has no map with keys that JSON lacks.
pub fn schema_text(table: &TableSchema) -> Result<String, SchemaTextError> {
    let mut text = format!("{SYNTAX}import \"google/protobuf/descriptor.proto\";\n{ENVELOPE}");
    // A JSON string literal is a protobuf string literal as long as it is ASCII with these escapes.
    let json = serde_json::to_string(&serde_json::to_string(table)?)?;
    let _infallible = writeln!(text, "message Row {{\n{OPTION}{};", ascii(&json));
    for (index, column) in table.columns.iter().enumerate() {
        if column.flows() {
            declare(&mut text, index, column)?;
        }
    }
    text.push_str("}\n");
    Ok(text)
}

/// The schema of the keys of `table`'s records; `None` for a table without a key.
///
/// # Errors
/// As [`schema_text`].
pub fn key_schema_text(table: &TableSchema) -> Result<Option<String>, SchemaTextError> {
    if table.key().is_empty() {
        return Ok(None);
    }
    let mut text = format!("{SYNTAX}\nmessage Key {{\n");
    for &index in table.key() {
        if let Some(column) = table.columns.get(index) {
            declare(&mut text, index, column)?;
        }
    }
    text.push_str("}\n");
    Ok(Some(text))
}

fn declare(text: &mut String, index: usize, column: &Column) -> Result<(), SchemaTextError> {
    let _infallible = writeln!(
        text,
        "  optional {} {} = {} [json_name = {}];",
        field_type(&column.kind),
        field_name(&column.name, index),
        column.field,
        ascii(&serde_json::to_string(&column.name)?),
    );
    Ok(())
}

/// The table that `text` was made from.
///
/// # Errors
/// The text was not made by [`schema_text`]: records that name it cannot be read.
pub fn parse_schema(text: &str) -> Result<TableSchema, SchemaTextError> {
    let option = text
        .lines()
        .find_map(|line| line.strip_prefix(OPTION)?.strip_suffix(';'))
        .ok_or(SchemaTextError::NotOurs)?;
    Ok(serde_json::from_str(&serde_json::from_str::<String>(option)?)?)
}

/// JSON's `\uXXXX` means the same to protobuf, so everything else may be ASCII.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for character in json.chars() {
        match character {
            ' '..='~' => out.push(character),
            other => {
                for unit in other.encode_utf16(&mut units) {
                    let _infallible = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out
}

/// The column's name where protobuf allows it, else its number.
fn field_name(name: &str, index: usize) -> String {
    let mut bytes = name.bytes();
    let legal = bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if legal { name.to_owned() } else { format!("column_{index}") }
}

fn field_type(kind: &Kind) -> &'static str {
    match kind {
        Kind::Bool => "bool",
        Kind::Int { signed: true, .. } => "sint64",
        Kind::Int { signed: false, .. } => "uint64",
        Kind::Float32 => "float",
        Kind::Float64 => "double",
        Kind::Bytes { .. } => "bytes",
        Kind::Decimal { .. }
        | Kind::Text { .. }
        | Kind::Date
        | Kind::Time
        | Kind::Timestamp
        | Kind::TimestampTz
        | Kind::Uuid
        | Kind::Json
        | Kind::Enum { .. } => "string",
    }
}

const SYNTAX: &str = "syntax = \"proto3\";\n";

const ENVELOPE: &str = r#"
message Envelope {
  enum Operation {
    UNKNOWN = 0;
    INSERT = 1;
    UPDATE = 2;
    DELETE = 3;
    TRUNCATE = 4;
    READ = 5;
  }
  Operation op = 1;
  uint64 epoch = 2;
  uint64 file = 3;
  uint64 position = 4;
  uint64 ordinal = 5;
  optional sint64 committed_at_us = 6;
  repeated uint32 unsent = 7;
  Row before = 8;
  bool before_full = 9;
  Row after = 10;
  bool last = 11;
  optional string transaction = 12;
}

extend google.protobuf.MessageOptions {
  optional string tailwater_table = 50371;
}

"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::tests_support::{column, table};

    #[test]
    fn tables_come_back_whatever_their_names() {
        let mut schema = table(vec![
            column("id", 1, Kind::Int { bits: 32, signed: true }),
            column("größe \"\\\n😀", 2, Kind::Decimal { precision: Some(12), scale: Some(2) }),
            column("state", 7, Kind::Enum { labels: vec!["new".into(), "it's".into()] }),
        ]);
        schema.table.name = "Order; }".into();
        let text = schema_text(&schema).unwrap();
        assert!(text.is_ascii());
        assert_eq!(parse_schema(&text).unwrap(), schema);
        assert!(text.contains("  optional sint64 id = 1 [json_name = \"id\"];\n"));
        assert!(text.contains("  optional string column_1 = 2 "));
        assert!(matches!(
            parse_schema("syntax = \"proto3\";\nmessage Row {}"),
            Err(SchemaTextError::NotOurs)
        ));
    }
}
