//! The statements of single rows, as bytes: pure functions of a table's shape and a row's values.
//!
//! Statements are text and not prepared, because several go in one packet: a transaction of a few
//! rows costs one round trip. Values stand in them as literals of one encoder ([`spell`]).

use tailwater_apply::TargetError;
use tailwater_change::{RowReader, Value};

use super::spell::{self, Scratch, Spelled};
use super::table::{Field, Shape};
use crate::types::ColumnType;

/// Statements that are sent together. Those that only set the stage are not counted in results.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) sql: Vec<u8>,
    /// Per statement: whether it is one of the caller's.
    pub(super) counted: Vec<bool>,
}

impl Batch {
    /// Opens the next statement.
    pub(super) fn statement(&mut self) -> &mut Vec<u8> {
        self.open(true);
        &mut self.sql
    }

    /// Adds a statement that sets the stage.
    pub(super) fn stage(&mut self, sql: &str) {
        self.open(false);
        self.sql.extend_from_slice(sql.as_bytes());
    }

    fn open(&mut self, counted: bool) {
        if !self.counted.is_empty() {
            self.sql.push(b';');
        }
        self.counted.push(counted);
    }

    /// How many statements are the caller's.
    pub(super) fn len(&self) -> usize {
        self.counted.iter().filter(|counted| **counted).count()
    }
}

/// Reads a row message of the shape's schema.
pub(super) fn read<'b>(
    shape: &Shape,
    row: &'b [u8],
    unsent: &[u32],
    values: &mut Vec<Value<'b>>,
) -> Result<(), TargetError> {
    RowReader::new(&shape.schema).read_with_unsent(row, unsent, values).map_err(|error| {
        TargetError::Bug {
            operation: format!("read a row of {}", shape.schema.table),
            detail: error.to_string(),
        }
    })
}

fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn literal(
    shape: &Shape,
    field: &Field,
    values: &[Value<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    let mut scratch = Scratch::default();
    let spelled = spell::spell(values[field.source], field.form, &mut scratch)
        .map_err(|error| shape.unspeakable(field, error))?;
    spell::put_literal(out, spelled);
    Ok(())
}

/// `INSERT INTO t (…) VALUES `, to be followed by tuples.
pub(super) fn put_insert(shape: &Shape, out: &mut Vec<u8>) {
    push(out, "INSERT INTO ");
    push(out, &shape.table);
    push(out, " (");
    for (at, field) in shape.fields.iter().enumerate() {
        push(out, if at == 0 { "" } else { "," });
        push(out, &field.name);
    }
    push(out, ") VALUES ");
}

/// `(1,'a')`
pub(super) fn put_tuple(
    shape: &Shape,
    values: &[Value<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    for (at, field) in shape.fields.iter().enumerate() {
        out.push(if at == 0 { b'(' } else { b',' });
        literal(shape, field, values, out)?;
    }
    out.push(b')');
    Ok(())
}

/// `UPDATE t SET … WHERE …` for the row that `old` names.
///
/// `moved`: whether the identity changes. Unsent columns keep what they have, also those that the
/// server would set to the current time.
pub(super) fn put_update(
    shape: &Shape,
    old: &[Value<'_>],
    new: &[Value<'_>],
    moved: bool,
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    push(out, "UPDATE ");
    push(out, &shape.table);
    push(out, " SET ");
    let start = out.len();
    for (at, field) in shape.fields.iter().enumerate() {
        let keep = shape.is_unsent(field, new);
        let in_key = shape.key.contains(&at) && !moved;
        if (keep || in_key) && !field.on_update {
            continue;
        }
        push(out, if out.len() == start { "" } else { "," });
        push(out, &field.name);
        out.push(b'=');
        if keep || in_key {
            push(out, &field.name);
        } else {
            literal(shape, field, new, out)?;
        }
    }
    // A row of nothing but its key, or of which nothing was sent, is changed into itself.
    if out.len() == start {
        let field = &shape.fields[shape.key.first().copied().unwrap_or(0)];
        push(out, &format!("{0}={0}", field.name));
    }
    put_where(shape, old, out)
}

/// `DELETE FROM t WHERE …`
pub(super) fn put_delete(
    shape: &Shape,
    old: &[Value<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    push(out, "DELETE FROM ");
    push(out, &shape.table);
    put_where(shape, old, out)
}

/// ` WHERE` this one row: also where the target takes another's key for equal.
pub(super) fn put_where(
    shape: &Shape,
    old: &[Value<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    if !shape.is_full() {
        put_where_equal(shape, old, out)?;
        for at in &shape.folding {
            push(out, " AND ");
            put_same_bytes(shape, &shape.fields[*at], old, out)?;
        }
        return Ok(());
    }
    push(out, " WHERE ");
    for (at, field) in shape.fields.iter().enumerate() {
        push(out, if at == 0 { "" } else { " AND " });
        put_same(shape, field, old, out)?;
    }
    push(out, " LIMIT 1");
    Ok(())
}

/// ` WHERE` the row whose key the target takes for equal to this one.
pub(super) fn put_where_equal(
    shape: &Shape,
    values: &[Value<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    push(out, " WHERE ");
    for (nth, at) in shape.key.iter().enumerate() {
        push(out, if nth == 0 { "" } else { " AND " });
        let field = &shape.fields[*at];
        push(out, &field.name);
        out.push(b'=');
        literal(shape, field, values, out)?;
    }
    Ok(())
}

/// The key's texts of a row whose key is equal to this one and is other bytes; none where the two
/// are always one.
pub(super) fn other_key(
    shape: &Shape,
    values: &[Value<'_>],
) -> Result<Option<Vec<u8>>, TargetError> {
    if shape.folding.is_empty() {
        return Ok(None);
    }
    let texts: Vec<String> = shape
        .folding
        .iter()
        .map(|at| format!("CONVERT({} USING utf8mb4)", shape.fields[*at].name))
        .collect();
    let mut out = format!("SELECT {} FROM {}", texts.join(","), shape.table).into_bytes();
    put_where_equal(shape, values, &mut out)?;
    push(&mut out, " AND NOT (");
    for (nth, at) in shape.folding.iter().enumerate() {
        push(&mut out, if nth == 0 { "" } else { " AND " });
        put_same_bytes(shape, &shape.fields[*at], values, &mut out)?;
    }
    push(&mut out, ") LIMIT 1");
    Ok(Some(out))
}

/// A text as the bytes that the source has of it.
pub(super) fn as_bytes(column: &str) -> String {
    format!("CAST(CONVERT({column} USING utf8mb4) AS BINARY)")
}

/// A comparison that only the very same bytes pass.
fn put_same_bytes(
    shape: &Shape,
    field: &Field,
    values: &[Value<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    push(out, &as_bytes(&field.name));
    push(out, " <=> ");
    let mut scratch = Scratch::default();
    let spelled = spell::spell(values[field.source], field.form, &mut scratch)
        .map_err(|error| shape.unspeakable(field, error))?;
    spell::put_literal(
        out,
        match spelled {
            Spelled::Text(bytes) => Spelled::Bytes(bytes),
            other => other,
        },
    );
    Ok(())
}

/// A comparison that only the very same value passes, whatever the column's collation.
fn put_same(
    shape: &Shape,
    field: &Field,
    old: &[Value<'_>],
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    if old[field.source].is_null() {
        push(out, &field.name);
        push(out, " <=> NULL");
        return Ok(());
    }
    push(out, &field.name);
    push(out, " <=> ");
    if field.ty == ColumnType::Json {
        push(out, "CAST(");
        literal(shape, field, old, out)?;
        push(out, " AS JSON)");
        return Ok(());
    }
    literal(shape, field, old, out)?;
    if field.ty.has_charset() {
        // The first comparison lets an index serve; this one counts.
        push(out, " AND ");
        put_same_bytes(shape, field, old, out)?;
    }
    Ok(())
}

/// The row's identity for messages to the operator: `id=5`. Long values are cut.
pub(super) fn key_text(shape: &Shape, values: &[Value<'_>]) -> String {
    let mut text = String::new();
    for at in &shape.key {
        let field = &shape.fields[*at];
        let mut out = Vec::new();
        if literal(shape, field, values, &mut out).is_err() {
            out = b"?".to_vec();
        }
        let value: String = String::from_utf8_lossy(&out).chars().take(64).collect();
        text.push_str(&format!(
            "{}{}={value}",
            if text.is_empty() { "" } else { ", " },
            field.name
        ));
    }
    if text.is_empty() { "a row without a key".into() } else { format!("key {text}") }
}
