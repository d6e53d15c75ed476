//! A row image as a protobuf message whose fields are the table's columns.
//!
//! NULL is an absent field; a column that the source did not send is absent too and listed in the
//! envelope (`unsent`). Nothing is allocated per field: text and bytes stay slices of the buffer.
//!
//! | kind | field type |
//! |---|---|
//! | bool | `bool` |
//! | int | `sint64` if signed, `uint64` if not |
//! | float32, float64 | `float`, `double` |
//! | bytes | `bytes` |
//! | everything else | `string`, in the canonical form of its [`Kind`] |

use std::borrow::Cow;

use crate::proto::{
    DecodeError, FIXED32, FIXED64, Field, Fields, VARINT, put_bytes, put_tag, put_uint, unzigzag,
    zigzag,
};
use crate::{Column, Kind, TableSchema, Value};

/// Writes row messages into one growing buffer.
#[derive(Debug)]
pub struct RowWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> RowWriter<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Appends one column. `Null` and `Unsent` write nothing: the caller lists unsent columns in
    /// the envelope.
    pub fn column(&mut self, field: u32, value: Value<'_>) {
        match value {
            Value::Null | Value::Unsent => {}
            Value::Bool(value) => put_uint(self.out, field, u64::from(value)),
            Value::Int(value) => put_uint(self.out, field, zigzag(value)),
            Value::Uint(value) => put_uint(self.out, field, value),
            Value::Float32(value) => {
                put_tag(self.out, field, FIXED32);
                self.out.extend_from_slice(&value.to_bits().to_le_bytes());
            }
            Value::Float64(value) => {
                put_tag(self.out, field, FIXED64);
                self.out.extend_from_slice(&value.to_bits().to_le_bytes());
            }
            Value::Text(value) => put_bytes(self.out, field, value.as_bytes()),
            Value::Bytes(value) => put_bytes(self.out, field, value),
        }
    }
}

/// Reads row messages of one table.
#[derive(Debug, Clone, Copy)]
pub struct RowReader<'s> {
    schema: &'s TableSchema,
}

impl<'s> RowReader<'s> {
    /// Reads rows written by `schema`.
    pub fn new(schema: &'s TableSchema) -> Self {
        Self { schema }
    }

    /// Fills `values` with one value per column of the schema: what the row has, else NULL.
    ///
    /// # Errors
    /// The bytes are not a row of this schema; `values` is then unspecified.
    pub fn read<'b>(&self, row: &'b [u8], values: &mut Vec<Value<'b>>) -> Result<(), DecodeError> {
        values.clear();
        values.resize(self.schema.columns.len(), Value::Null);
        let mut fields = Fields::new(row);
        while let Some((field, content)) = fields.next()? {
            let index = self.schema.field(field).ok_or(DecodeError::UnknownField { field })?;
            values[index] = value_of(&self.schema.columns[index], content)?;
        }
        Ok(())
    }

    /// As [`read`](Self::read), and marks the columns in `unsent` (field numbers) as not sent.
    ///
    /// # Errors
    /// The bytes are not a row of this schema.
    pub fn read_with_unsent<'b>(
        &self,
        row: &'b [u8],
        unsent: &[u32],
        values: &mut Vec<Value<'b>>,
    ) -> Result<(), DecodeError> {
        self.read(row, values)?;
        for &field in unsent {
            let index = self.schema.field(field).ok_or(DecodeError::UnknownField { field })?;
            values[index] = Value::Unsent;
        }
        Ok(())
    }
}

fn value_of<'b>(column: &Column, content: Field<'b>) -> Result<Value<'b>, DecodeError> {
    let field = column.field;
    Ok(match (&column.kind, content) {
        (Kind::Bool, Field::Varint(value @ 0..=1)) => Value::Bool(value == 1),
        (Kind::Bool, Field::Varint(value)) => return Err(DecodeError::Range { field, value }),
        (Kind::Int { signed: true, .. }, Field::Varint(value)) => Value::Int(unzigzag(value)),
        (Kind::Int { signed: false, .. }, Field::Varint(value)) => Value::Uint(value),
        (Kind::Float32, Field::Fixed32(bits)) => Value::Float32(f32::from_bits(bits)),
        (Kind::Float64, Field::Fixed64(bits)) => Value::Float64(f64::from_bits(bits)),
        (Kind::Bytes { .. }, Field::Bytes(value)) => Value::Bytes(value),
        (
            Kind::Decimal { .. }
            | Kind::Text { .. }
            | Kind::Date
            | Kind::Time
            | Kind::Timestamp
            | Kind::TimestampTz
            | Kind::Uuid
            | Kind::Json
            | Kind::Enum { .. },
            content @ Field::Bytes(_),
        ) => Value::Text(content.text(field)?),
        (_, other) => {
            return Err(DecodeError::WireType { field, wire_type: other.wire_type() });
        }
    })
}

/// Writes `newer` with every column in `unsent` (field numbers) taken from `older`: what the row
/// is after both, when the newer change did not send all of it.
///
/// # Errors
/// One of them is not a message.
pub fn overlay(
    older: &[u8],
    newer: &[u8],
    unsent: &[u32],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    out.extend_from_slice(newer);
    let mut fields = Fields::new(older);
    loop {
        let before = fields.rest();
        let Some((field, _)) = fields.next()? else { return Ok(()) };
        if unsent.contains(&field) {
            out.extend_from_slice(&before[..before.len() - fields.rest().len()]);
        }
    }
}

/// What tells the row apart, cut out of an image of it (whole, or only the key): the fields of the
/// key's columns in the key's order, so that images of one row give equal bytes. A slice where the
/// fields stand together, as a key in front of the row does.
///
/// # Errors
/// The bytes are not a message, or lack a column of the key.
pub fn identity<'b>(schema: &TableSchema, row: &'b [u8]) -> Result<Cow<'b, [u8]>, DecodeError> {
    let field_of = |index: usize| schema.columns.get(index).map_or(0, |column| column.field);
    let key = schema.key();
    let mut fields = Fields::new(row);
    let (mut from, mut found) = (0, 0);
    loop {
        let at = row.len() - fields.rest().len();
        let Some((field, _)) = fields.next()? else { break };
        if key.get(found).is_some_and(|&index| field_of(index) == field) {
            if found == 0 {
                from = at;
            }
            found += 1;
            if found == key.len() {
                return Ok(Cow::Borrowed(&row[from..row.len() - fields.rest().len()]));
            }
        } else if found > 0 {
            break;
        }
    }
    gather(row, key.iter().map(|&index| field_of(index))).map(Cow::Owned)
}

/// About where a row lies in its key's order, from its [`identity`]: rows that are near each other
/// there are so by this too, as far as sixteen bytes of the key tell. Collations, floats and decimals
/// go their own ways, so nothing but speed may hang on it.
pub fn rank(schema: &TableSchema, identity: &[u8]) -> u128 {
    let mut fields = Fields::new(identity);
    let (mut rank, mut room) = (0, u128::BITS);
    while room > 0
        && let Ok(Some((field, content))) = fields.next()
    {
        let column = schema.field(field).and_then(|index| schema.columns.get(index));
        let signed = column.is_some_and(|c| matches!(c.kind, Kind::Int { signed: true, .. }));
        let (bits, part) = match content {
            // Negative numbers come first.
            Field::Varint(value) if signed => {
                (u64::BITS, u128::from(unzigzag(value).cast_unsigned() ^ (1 << 63)))
            }
            Field::Varint(value) | Field::Fixed64(value) => (u64::BITS, u128::from(value)),
            Field::Fixed32(value) => (u32::BITS, u128::from(value)),
            Field::Bytes(value) => {
                let mut first = [0; 16];
                let length = value.len().min(first.len());
                first[..length].copy_from_slice(&value[..length]);
                (u128::BITS, u128::from_be_bytes(first))
            }
        };
        let taken = bits.min(room);
        room -= taken;
        rank |= (part >> (bits - taken)) << room;
    }
    rank
}

/// The fields `wanted`, in this order, wherever they stand.
fn gather(row: &[u8], wanted: impl Iterator<Item = u32>) -> Result<Vec<u8>, DecodeError> {
    let mut out = Vec::new();
    for wanted in wanted {
        let mut fields = Fields::new(row);
        loop {
            let before = fields.rest();
            let Some((field, _)) = fields.next()? else {
                return Err(DecodeError::Missing { field: wanted });
            };
            if field == wanted {
                out.extend_from_slice(&before[..before.len() - fields.rest().len()]);
                break;
            }
        }
    }
    Ok(out)
}

const _: () = assert!(VARINT == 0, "bool, sint64 and uint64 share a wire type");

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;
    use crate::schema::tests_support::{column, table};

    proptest! {
        #[test]
        fn rows_come_back(
            int in any::<Option<i64>>(),
            uint in any::<Option<u64>>(),
            float in any::<Option<u64>>(),
            text in any::<Option<String>>(),
            bytes in any::<Option<Vec<u8>>>(),
        ) {
            let schema = table(vec![
                column("i", 1, Kind::Int { bits: 64, signed: true }),
                column("u", 2, Kind::Int { bits: 64, signed: false }),
                column("f", 5, Kind::Float64),
                column("t", 6, Kind::Text { length: None, fixed: false }),
                column("b", 4000, Kind::Bytes { length: None, fixed: false }),
            ]);
            let values = [
                int.map_or(Value::Null, Value::Int),
                uint.map_or(Value::Null, Value::Uint),
                float.map_or(Value::Null, |bits| Value::Float64(f64::from_bits(bits))),
                text.as_deref().map_or(Value::Null, Value::Text),
                bytes.as_deref().map_or(Value::Null, Value::Bytes),
            ];
            let mut row = Vec::new();
            let mut writer = RowWriter::new(&mut row);
            for (column, value) in schema.columns.iter().zip(values) {
                writer.column(column.field, value);
            }
            let mut read = Vec::new();
            RowReader::new(&schema).read(&row, &mut read).unwrap();
            // Bit patterns, since NaN does not equal itself.
            assert_eq!(format!("{read:?}"), format!("{values:?}"));
            if let (Value::Float64(read), Value::Float64(written)) = (read[2], values[2]) {
                assert_eq!(read.to_bits(), written.to_bits());
            }
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
            let schema = table(vec![
                column("i", 1, Kind::Int { bits: 64, signed: true }),
                column("t", 2, Kind::Json),
            ]);
            let mut values = Vec::new();
            if RowReader::new(&schema).read(&bytes, &mut values).is_ok() {
                assert_eq!(values.len(), 2);
            }
        }
    }

    #[test]
    fn an_overlay_takes_only_what_was_not_sent() {
        let schema = table(vec![
            column("a", 1, Kind::Json),
            column("b", 2, Kind::Json),
            column("c", 3, Kind::Json),
        ]);
        let write = |values: [Value<'_>; 3]| {
            let mut row = Vec::new();
            let mut writer = RowWriter::new(&mut row);
            for (field, value) in (1..).zip(values) {
                writer.column(field, value);
            }
            row
        };
        let older = write([Value::Text("a1"), Value::Text("b1"), Value::Text("c1")]);
        let newer = write([Value::Null, Value::Unsent, Value::Text("c2")]);
        let (mut row, mut values) = (Vec::new(), Vec::new());
        overlay(&older, &newer, &[2], &mut row).unwrap();
        RowReader::new(&schema).read(&row, &mut values).unwrap();
        assert_eq!(values, [Value::Null, Value::Text("b1"), Value::Text("c2")]);
    }

    #[test]
    fn an_identity_is_the_same_from_every_image_of_the_row() {
        let mut schema = table(vec![
            column("a", 1, Kind::Json),
            column("b", 2, Kind::Int { bits: 64, signed: true }),
            column("c", 3, Kind::Json),
        ]);
        let write = |values: &[(u32, Value<'_>)]| {
            let mut row = Vec::new();
            let mut writer = RowWriter::new(&mut row);
            for (field, value) in values {
                writer.column(*field, *value);
            }
            row
        };
        let (a, b, c) = ((1, Value::Text("a")), (2, Value::Int(-7)), (3, Value::Text("c")));
        let full = write(&[a, b, c]);
        for (key, image) in [
            (vec![0], write(&[a])),
            (vec![0, 1], write(&[a, b])),
            (vec![1, 0], write(&[b, a])),
            (vec![0, 2], write(&[a, c])),
            (vec![2], write(&[c])),
        ] {
            schema.identity = crate::Identity::Key(key);
            assert_eq!(identity(&schema, &full).unwrap(), image);
            assert_eq!(identity(&schema, &image).unwrap(), image);
        }
        schema.identity = crate::Identity::Key(vec![0, 2]);
        assert_eq!(identity(&schema, &write(&[a, b])), Err(DecodeError::Missing { field: 3 }));
    }

    proptest! {
        #[test]
        fn keys_of_numbers_rank_as_they_compare(
            one in any::<(i64, u32)>(),
            other in any::<(i64, u32)>(),
        ) {
            let mut schema = table(vec![
                column("a", 1, Kind::Int { bits: 64, signed: true }),
                column("b", 2, Kind::Int { bits: 32, signed: false }),
            ]);
            schema.identity = crate::Identity::Key(vec![0, 1]);
            let rank = |(a, b): (i64, u32)| {
                let mut row = Vec::new();
                let mut writer = RowWriter::new(&mut row);
                writer.column(1, Value::Int(a));
                writer.column(2, Value::Uint(b.into()));
                rank(&schema, &row)
            };
            assert_eq!(rank(one).cmp(&rank(other)), one.cmp(&other));
        }

        #[test]
        fn keys_of_text_rank_by_their_first_bytes(one in any::<String>(), other in any::<String>()) {
            let schema = table(vec![column("a", 1, Kind::Text { length: None, fixed: false })]);
            let rank = |text: &str| {
                let mut row = Vec::new();
                RowWriter::new(&mut row).column(1, Value::Text(text));
                rank(&schema, &row)
            };
            if one.bytes().take(16).ne(other.bytes().take(16)) && !one.contains('\0') && !other.contains('\0') {
                assert_eq!(rank(&one).cmp(&rank(&other)), one.cmp(&other));
            }
        }

        #[test]
        fn any_bytes_have_a_rank(bytes in any::<Vec<u8>>()) {
            let schema = table(vec![column("a", 1, Kind::Float32), column("b", 2, Kind::Json)]);
            let _any = rank(&schema, &bytes);
        }
    }
}
