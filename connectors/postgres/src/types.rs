//! PostgreSQL's types: which are captured, as what, and how their text becomes a value.
//!
//! One decoder for the stream, the snapshot and `verify`: all three read what the types' output
//! functions print in a session that [`SESSION`](crate::connect::SESSION) has set up, which is the
//! canonical text form of each [`Kind`] already. What is not listed here is refused by name.
//!
//! | type | kind |
//! |---|---|
//! | `boolean` | bool |
//! | `smallint`, `integer`, `bigint` | int 16, 32, 64 |
//! | `real`, `double precision` | float32, float64 |
//! | `numeric` | decimal |
//! | `text`, `character varying`, `character`, `name` | text |
//! | `bytea` | bytes |
//! | `date`, `time`, `timestamp`, `timestamp with time zone` | the same |
//! | `uuid`, `json`, `jsonb`, enums | uuid, json, json, enum |

use std::ops::Range;

use tailwater_change::{Kind, TableSchema, Value};

/// What the first four bytes of every length-limited type's modifier are for.
const TYPMOD_OFFSET: i32 = 4;

/// The kind of a built-in type; `None` for types that are refused.
pub(crate) fn builtin(oid: u32, typmod: i32) -> Option<Kind> {
    let length = u32::try_from(typmod.saturating_sub(TYPMOD_OFFSET)).ok();
    Some(match oid {
        16 => Kind::Bool,
        21 => Kind::Int { bits: 16, signed: true },
        23 => Kind::Int { bits: 32, signed: true },
        20 => Kind::Int { bits: 64, signed: true },
        700 => Kind::Float32,
        701 => Kind::Float64,
        1700 => numeric(typmod),
        25 | 19 => Kind::Text { length: None, fixed: false },
        1043 => Kind::Text { length, fixed: false },
        1042 => Kind::Text { length, fixed: true },
        17 => Kind::Bytes { length: None, fixed: false },
        1082 => Kind::Date,
        1083 => Kind::Time,
        1114 => Kind::Timestamp,
        1184 => Kind::TimestampTz,
        2950 => Kind::Uuid,
        114 | 3802 => Kind::Json,
        _ => return None,
    })
}

/// `numeric`'s modifier: the precision in the upper half, the scale in eleven bits with a sign.
fn numeric(typmod: i32) -> Kind {
    let Ok(packed) = u32::try_from(typmod.saturating_sub(TYPMOD_OFFSET)) else {
        return Kind::Decimal { precision: None, scale: None };
    };
    let scale = i32::try_from((packed & 0x7FF) ^ 0x400).map(|scale| scale - 0x400);
    Kind::Decimal { precision: Some(packed >> 16), scale: scale.ok() }
}

/// Why a column's text is not a value of its kind. Never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ValueError {
    /// Not what the type's output function prints.
    #[error("text that the type does not print")]
    Malformed,
    /// The database's encoding let something else through.
    #[error("text that is not UTF-8")]
    Utf8,
    /// The enum has got a label since the table was captured.
    #[error("a label that its enum did not have when the table was captured")]
    Label,
}

/// Text, as the type's output function prints it, as a value of `kind`.
///
/// # Errors
/// It is not. For bytes, use [`unhex`]: they need room of their own.
pub(crate) fn value<'a>(kind: &Kind, text: &'a [u8]) -> Result<Value<'a>, ValueError> {
    Ok(match kind {
        Kind::Bool => match text {
            b"t" | b"true" | b"1" => Value::Bool(true),
            b"f" | b"false" | b"0" => Value::Bool(false),
            _ => return Err(ValueError::Malformed),
        },
        Kind::Int { signed: true, bits } => Value::Int(signed(text, *bits)?),
        Kind::Int { signed: false, bits } => Value::Uint(unsigned(text, *bits)?),
        Kind::Float32 => Value::Float32(number(text)?),
        Kind::Float64 => Value::Float64(number(text)?),
        Kind::Bytes { .. } => return Err(ValueError::Malformed),
        Kind::Enum { labels } => {
            let text = utf8(text)?;
            if !labels.iter().any(|label| label == text) {
                return Err(ValueError::Label);
            }
            Value::Text(text)
        }
        Kind::Decimal { .. }
        | Kind::Text { .. }
        | Kind::Date
        | Kind::Time
        | Kind::Timestamp
        | Kind::TimestampTz
        | Kind::Uuid
        | Kind::Json => Value::Text(utf8(text)?),
    })
}

/// Decodes `bytea`'s text (`\x0102`) to the end of `out`.
///
/// # Errors
/// It is something else.
pub(crate) fn unhex(text: &[u8], out: &mut Vec<u8>) -> Result<Range<usize>, ValueError> {
    let digits = text.strip_prefix(b"\\x").ok_or(ValueError::Malformed)?;
    let (pairs, odd) = digits.as_chunks::<2>();
    if !odd.is_empty() {
        return Err(ValueError::Malformed);
    }
    let from = out.len();
    out.reserve(pairs.len());
    // One look at the end instead of a branch per digit: a bad digit leaves high bits behind.
    let mut bad = 0;
    out.extend(pairs.iter().map(|[high, low]| {
        let (high, low) = (HEX[usize::from(*high)], HEX[usize::from(*low)]);
        bad |= high | low;
        high << 4 | (low & 0xF)
    }));
    if bad > 0xF {
        return Err(ValueError::Malformed);
    }
    Ok(from..out.len())
}

/// A digit's value; 0xFF for what is none.
const HEX: [u8; 256] = {
    let mut table = [0xFF; 256];
    let mut digit = 0_u8;
    while digit < 16 {
        let lower = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        table[lower as usize] = digit;
        table[lower.to_ascii_uppercase() as usize] = digit;
        digit += 1;
    }
    table
};

fn utf8(text: &[u8]) -> Result<&str, ValueError> {
    std::str::from_utf8(text).map_err(|_| ValueError::Utf8)
}

/// Rust reads all that PostgreSQL prints for floats: `NaN`, `Infinity`, `-0`, `1e+20`.
fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, ValueError> {
    utf8(text)?.parse().map_err(|_| ValueError::Malformed)
}

fn signed(text: &[u8], bits: u8) -> Result<i64, ValueError> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let magnitude = magnitude(digits)?;
    let value =
        if negative { 0_i64.checked_sub_unsigned(magnitude) } else { magnitude.try_into().ok() };
    let value = value.ok_or(ValueError::Malformed)?;
    let fits = bits >= 64 || (value >> (bits - 1) == 0) || (value >> (bits - 1) == -1);
    if fits { Ok(value) } else { Err(ValueError::Malformed) }
}

fn unsigned(text: &[u8], bits: u8) -> Result<u64, ValueError> {
    let value = magnitude(text)?;
    if bits >= 64 || value >> bits == 0 { Ok(value) } else { Err(ValueError::Malformed) }
}

fn magnitude(digits: &[u8]) -> Result<u64, ValueError> {
    if digits.is_empty() {
        return Err(ValueError::Malformed);
    }
    let mut value = 0_u64;
    for &digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return Err(ValueError::Malformed);
        }
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or(ValueError::Malformed)?;
    }
    Ok(value)
}

/// One column of a row as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    /// NULL.
    Null,
    /// TOASTed and unchanged: not sent.
    Unsent,
    /// What its type prints.
    Text(&'a [u8]),
}

/// Which column could not be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadColumn {
    /// Index in the schema.
    pub(crate) index: usize,
    /// Why.
    pub(crate) error: ValueError,
}

/// Room for one row's decoded bytes, used over and over.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    bytes: Vec<u8>,
}

/// Room above this is given back: one large row must not hold its size for ever.
const KEPT_SCRATCH_BYTES: usize = 1 << 20;

impl Scratch {
    /// Decodes `cells`, which stand for the columns `map` (indexes into the schema), to one value
    /// per column of the schema; columns that `map` does not name are NULL.
    ///
    /// # Errors
    /// The first column that cannot be read.
    pub(crate) fn decode<'a>(
        &'a mut self,
        schema: &TableSchema,
        map: &[usize],
        cells: &[Cell<'a>],
        values: &mut Vec<Value<'a>>,
    ) -> Result<(), BadColumn> {
        self.unhex_all(schema, map, cells)?;
        let mut bytes = self.bytes.as_slice();
        values.clear();
        values.resize(schema.columns.len(), Value::Null);
        for (&index, cell) in map.iter().zip(cells) {
            let Some(column) = schema.columns.get(index) else { continue };
            values[index] = match (cell, &column.kind) {
                (Cell::Null, _) => Value::Null,
                (Cell::Unsent, _) => Value::Unsent,
                (Cell::Text(text), Kind::Bytes { .. }) => {
                    let (own, rest) = bytes.split_at(text.len() / 2 - 1);
                    bytes = rest;
                    Value::Bytes(own)
                }
                (Cell::Text(text), kind) => {
                    value(kind, text).map_err(|error| BadColumn { index, error })?
                }
            };
        }
        Ok(())
    }

    /// Gives back the room of a large row, whose values are no longer looked at.
    pub(crate) fn give_back(&mut self) {
        if self.bytes.capacity() > KEPT_SCRATCH_BYTES {
            self.bytes = Vec::new();
        }
    }

    fn unhex_all(
        &mut self,
        schema: &TableSchema,
        map: &[usize],
        cells: &[Cell<'_>],
    ) -> Result<(), BadColumn> {
        self.bytes.clear();
        for (&index, cell) in map.iter().zip(cells) {
            let column = schema.columns.get(index);
            let is_bytes = column.is_some_and(|column| matches!(column.kind, Kind::Bytes { .. }));
            if let (Cell::Text(text), true) = (cell, is_bytes) {
                unhex(text, &mut self.bytes).map_err(|error| BadColumn { index, error })?;
            }
        }
        Ok(())
    }
}

/// An empty vector in the room of a used one, for values of another buffer.
///
/// The elements are gone, so nothing of the old lifetime is left; collecting in place keeps the
/// allocation, without unsafe code.
pub(crate) fn recycle<'b>(mut values: Vec<Value<'_>>) -> Vec<Value<'b>> {
    values.clear();
    values.into_iter().map(|_| Value::Null).collect()
}

/// As [`recycle`], for cells.
pub(crate) fn recycle_cells<'b>(mut cells: Vec<Cell<'_>>) -> Vec<Cell<'b>> {
    cells.clear();
    cells.into_iter().map(|_| Cell::Null).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    proptest! {
        #[test]
        fn integers_are_read_as_printed(signed in any::<i64>(), unsigned in any::<u64>()) {
            let kind = |signed| Kind::Int { bits: 64, signed };
            let text = signed.to_string();
            assert_eq!(value(&kind(true), text.as_bytes()), Ok(Value::Int(signed)));
            let text = unsigned.to_string();
            assert_eq!(value(&kind(false), text.as_bytes()), Ok(Value::Uint(unsigned)));
        }

        #[test]
        fn bytes_are_read_as_printed(bytes in any::<Vec<u8>>()) {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut out = b"before".to_vec();
            assert_eq!(unhex(format!("\\x{text}").as_bytes(), &mut out), Ok(6..6 + bytes.len()));
            assert_eq!(out[6..], bytes);
        }

        #[test]
        fn any_text_is_read_or_refused(text in any::<Vec<u8>>()) {
            for oid in [16, 20, 21, 23, 700, 701, 1700, 25, 17, 1082, 2950] {
                let _any = value(&builtin(oid, -1).unwrap(), &text);
            }
            let _any = unhex(&text, &mut Vec::new());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let small = Kind::Int { bits: 16, signed: true };
        assert_eq!(value(&small, b"-32768"), Ok(Value::Int(-32768)));
        assert_eq!(value(&small, b"32768"), Err(ValueError::Malformed));
        assert_eq!(value(&small, b""), Err(ValueError::Malformed));
        assert_eq!(value(&Kind::Bool, b"yes"), Err(ValueError::Malformed));
        assert_eq!(value(&builtin(25, -1).unwrap(), b"\xFF"), Err(ValueError::Utf8));
        let state = Kind::Enum { labels: vec!["new".into()] };
        assert_eq!(value(&state, b"old"), Err(ValueError::Label));
        assert_eq!(unhex(b"\\x0g", &mut Vec::new()), Err(ValueError::Malformed));
        assert_eq!(unhex(b"\\x012", &mut Vec::new()), Err(ValueError::Malformed));
    }

    #[test]
    fn floats_keep_their_bits() {
        let bits = |text: &str| match value(&Kind::Float64, text.as_bytes()) {
            Ok(Value::Float64(value)) => value.to_bits(),
            other => panic!("{other:?}"),
        };
        assert_eq!(bits("-0"), (-0.0_f64).to_bits());
        assert_eq!(bits("Infinity"), f64::INFINITY.to_bits());
        assert_eq!(bits("NaN"), f64::NAN.to_bits());
        assert_eq!(bits("5e-324"), 1);
    }

    #[test]
    fn modifiers_say_lengths_and_scales() {
        assert_eq!(builtin(1043, 44), Some(Kind::Text { length: Some(40), fixed: false }));
        let numeric = |typmod| match builtin(1700, typmod) {
            Some(Kind::Decimal { precision, scale }) => (precision, scale),
            other => panic!("{other:?}"),
        };
        assert_eq!(numeric(-1), (None, None));
        assert_eq!(numeric((12 << 16) + 4 + 2), (Some(12), Some(2)));
        // numeric(5, -2), allowed since 15.
        assert_eq!(numeric((5 << 16) + 4 + 0x7FE), (Some(5), Some(-2)));
    }

    #[test]
    fn a_used_vector_keeps_its_room() {
        let text = "x".to_owned();
        let mut values = vec![Value::Text(&text); 100];
        values.truncate(3);
        let capacity = values.capacity();
        let empty: Vec<Value<'static>> = recycle(values);
        assert!(empty.is_empty());
        assert_eq!(empty.capacity(), capacity);
    }
}
