//! Keys as people read them.

use tailwater_change::{RowReader, TableSchema, Value};

/// Characters of a text that are printed: the key of a table without one is the whole row.
const CHARACTERS: usize = 100;

/// A key as people read it: `id=7, line=2`.
pub(super) fn key_text(schema: &TableSchema, key: &[u8]) -> anyhow::Result<String> {
    let mut values = Vec::new();
    RowReader::new(schema).read(key, &mut values)?;
    let all: Vec<usize> = (0..schema.columns.len()).collect();
    let columns = if schema.key().is_empty() { all.as_slice() } else { schema.key() };
    let parts: Vec<String> = columns
        .iter()
        .map(|&index| format!("{}={}", schema.columns[index].name, value_text(values[index])))
        .collect();
    Ok(parts.join(", "))
}

fn value_text(value: Value<'_>) -> String {
    match value {
        Value::Null | Value::Unsent => "NULL".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Float32(value) => value.to_string(),
        Value::Float64(value) => value.to_string(),
        Value::Text(text) => match text.char_indices().nth(CHARACTERS) {
            Some((end, _)) => format!("{:?}…", &text[..end]),
            None => format!("{text:?}"),
        },
        Value::Bytes(value) => format!("{} bytes", value.len()),
    }
}
