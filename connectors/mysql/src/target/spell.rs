//! How a value is written for the server: as a field of `LOAD DATA`, or as an SQL literal.
//!
//! Both come from one [`Spelled`] form, so that a row arrives the same whichever way it goes. What
//! MySQL has no value for (infinity, NaN, years before 0 and after 9999) is refused here, by name,
//! before anything is sent: no server setting can turn it into something else.
//!
//! | form | `LOAD DATA` (charset binary, escaped by `\`) | SQL |
//! |---|---|---|
//! | NULL | `\N` | `NULL` |
//! | number | its digits | its digits |
//! | text, dates and times | the bytes, escaped | `'…'` in utf8mb4 |
//! | bytes | the bytes, escaped | `_binary'…'` |

use memchr::memchr3_iter;
use tailwater_change::{Kind, Value};

use crate::types::ColumnType;

/// What a column's values become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Booleans and integers.
    Integer,
    /// YEAR: the text `0` would mean 2000, `0000` does not.
    Year,
    /// Exact numbers.
    Decimal,
    /// FLOAT and DOUBLE.
    Float,
    /// Characters, also of whatever else a character column was chosen for.
    Text,
    /// Bytes.
    Bytes,
    /// DATE, DATETIME and TIMESTAMP; `+00` is cut off: the session's zone is UTC.
    Moment,
    /// TIME.
    Time,
}

impl Form {
    /// The form of `kind`'s values in a column of this type; none where they do not fit together.
    pub(super) fn of(kind: &Kind, to: &ColumnType) -> Option<Self> {
        let characters = matches!(
            to,
            ColumnType::Char { .. }
                | ColumnType::VarChar { .. }
                | ColumnType::Text
                | ColumnType::Enum { .. }
                | ColumnType::Json
        );
        match kind {
            // Booleans would become the digits 0 and 1, floats one of many spellings.
            Kind::Bool => matches!(to, ColumnType::Int { .. }).then_some(Self::Integer),
            Kind::Int { .. } => match to {
                ColumnType::Int { .. } | ColumnType::Decimal { .. } => Some(Self::Integer),
                ColumnType::Year => Some(Self::Year),
                _ => characters.then_some(Self::Text),
            },
            Kind::Float32 => {
                matches!(to, ColumnType::Float | ColumnType::Double).then_some(Self::Float)
            }
            Kind::Float64 => matches!(to, ColumnType::Double).then_some(Self::Float),
            Kind::Decimal { .. } => match to {
                ColumnType::Decimal { .. } => Some(Self::Decimal),
                _ => characters.then_some(Self::Text),
            },
            Kind::Bytes { .. } => matches!(
                to,
                ColumnType::Binary { .. } | ColumnType::VarBinary { .. } | ColumnType::Blob
            )
            .then_some(Self::Bytes),
            Kind::Date => match to {
                ColumnType::Date | ColumnType::DateTime { .. } => Some(Self::Moment),
                _ => characters.then_some(Self::Text),
            },
            Kind::Timestamp | Kind::TimestampTz => match to {
                ColumnType::DateTime { .. } | ColumnType::Timestamp { .. } => Some(Self::Moment),
                _ => characters.then_some(Self::Text),
            },
            Kind::Time => match to {
                ColumnType::Time { .. } => Some(Self::Time),
                _ => characters.then_some(Self::Text),
            },
            Kind::Text { .. } | Kind::Uuid | Kind::Json | Kind::Enum { .. } => {
                characters.then_some(Self::Text)
            }
        }
    }
}

/// A value as MySQL will read it, lying in the row or in the caller's scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelled<'a> {
    /// NULL.
    Null,
    /// Digits.
    Number(&'a [u8]),
    /// UTF-8.
    Text(&'a [u8]),
    /// Anything.
    Bytes(&'a [u8]),
}

/// Why a value cannot be sent. Names the kind of value, never the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpellError {
    /// MySQL has no such value.
    #[error("MySQL cannot hold {0}")]
    Unholdable(&'static str),
    /// The row is not what the schema says, or a column is missing: our own mistake.
    #[error("the value does not fit its column's kind, or was not sent")]
    Mismatch,
}

/// Digits for numbers: enough for every 64-bit integer and float.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    digits: Vec<u8>,
}

/// Spells `value` in `form`.
pub(super) fn spell<'a>(
    value: Value<'a>,
    form: Form,
    scratch: &'a mut Scratch,
) -> Result<Spelled<'a>, SpellError> {
    Ok(match (value, form) {
        (Value::Null, _) => Spelled::Null,
        (Value::Bool(value), Form::Integer) => Spelled::Number(if value { b"1" } else { b"0" }),
        (Value::Int(value), Form::Integer) => Spelled::Number(scratch.integer(value)),
        (Value::Uint(value), Form::Integer) => Spelled::Number(scratch.integer(value)),
        (Value::Int(value), Form::Text) => Spelled::Text(scratch.integer(value)),
        (Value::Uint(value), Form::Text) => Spelled::Text(scratch.integer(value)),
        (Value::Uint(value), Form::Year) => Spelled::Number(scratch.year(value)),
        (Value::Int(value), Form::Year) => {
            Spelled::Number(scratch.year(u64::try_from(value).map_err(|_| SpellError::Mismatch)?))
        }
        // A float goes as the double that equals it: its own shortest spelling, read as a double
        // and then rounded, could end at a neighbour.
        (Value::Float32(value), Form::Float) => Spelled::Number(scratch.float(f64::from(value))?),
        (Value::Float64(value), Form::Float) => Spelled::Number(scratch.float(value)?),
        (Value::Text(text), Form::Decimal) => decimal(text)?,
        (Value::Text(text), Form::Text) => Spelled::Text(text.as_bytes()),
        (Value::Text(text), Form::Time) => Spelled::Text(text.as_bytes()),
        (Value::Text(text), Form::Moment) => Spelled::Text(moment(text)?),
        (Value::Bytes(bytes), Form::Bytes) => Spelled::Bytes(bytes),
        _ => return Err(SpellError::Mismatch),
    })
}

impl Scratch {
    fn integer(&mut self, value: impl itoa::Integer) -> &[u8] {
        self.digits.clear();
        self.digits.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        &self.digits
    }

    fn year(&mut self, year: u64) -> &[u8] {
        self.digits.clear();
        self.digits.extend_from_slice(b"0000");
        self.digits.extend_from_slice(itoa::Buffer::new().format(year).as_bytes());
        let surplus = self.digits.len().saturating_sub(4).min(4);
        &self.digits[surplus..]
    }

    fn float(&mut self, value: f64) -> Result<&[u8], SpellError> {
        if value.is_nan() {
            return Err(SpellError::Unholdable("NaN"));
        }
        if value.is_infinite() {
            return Err(SpellError::Unholdable("an infinite number"));
        }
        self.digits.clear();
        self.digits.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
        // Without an exponent SQL reads an exact decimal, and would compare as one.
        if !self.digits.contains(&b'e') {
            self.digits.extend_from_slice(b"e0");
        }
        Ok(&self.digits)
    }
}

/// Digits of a decimal literal that MySQL reads exactly, and those of them after the point.
const LITERAL_DIGITS: usize = 65;
const LITERAL_SCALE: usize = 30;

/// More digits than a decimal literal may have go as text, which the column itself judges. Not
/// fewer: MySQL compares a column with text as doubles, and then many decimals are one.
fn decimal(text: &str) -> Result<Spelled<'_>, SpellError> {
    match text.as_bytes() {
        b"NaN" => Err(SpellError::Unholdable("NaN")),
        b"Infinity" | b"-Infinity" => Err(SpellError::Unholdable("an infinite number")),
        digits if digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'.')) => {
            let count = digits.iter().filter(|byte| byte.is_ascii_digit()).count();
            let scale = memchr::memchr(b'.', digits).map_or(0, |at| digits.len() - at - 1);
            Ok(if count <= LITERAL_DIGITS && scale <= LITERAL_SCALE {
                Spelled::Number(digits)
            } else {
                Spelled::Text(digits)
            })
        }
        _ => Err(SpellError::Mismatch),
    }
}

fn moment(text: &str) -> Result<&[u8], SpellError> {
    let bytes = text.strip_suffix("+00").unwrap_or(text).as_bytes();
    if text.ends_with("infinity") {
        return Err(SpellError::Unholdable("an infinite date or timestamp"));
    }
    if text.ends_with(" BC") || bytes.first() == Some(&b'-') {
        return Err(SpellError::Unholdable("a date before the year 0"));
    }
    // `2024-…`: the year ends at the first hyphen.
    if memchr::memchr(b'-', bytes).is_none_or(|end| end > 4) {
        return Err(SpellError::Unholdable("a date after the year 9999"));
    }
    Ok(bytes)
}

/// Appends a field of `LOAD DATA … FIELDS TERMINATED BY '\t' ESCAPED BY '\\' LINES TERMINATED BY
/// '\n'`, without its terminator.
pub(super) fn put_field(out: &mut Vec<u8>, spelled: Spelled<'_>) {
    match spelled {
        Spelled::Null => out.extend_from_slice(b"\\N"),
        Spelled::Number(digits) => out.extend_from_slice(digits),
        Spelled::Text(bytes) | Spelled::Bytes(bytes) => put_escaped(out, bytes),
    }
}

/// Appends `bytes` as they stand inside a field.
pub(super) fn put_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut from = 0;
    for at in memchr3_iter(b'\\', b'\t', b'\n', bytes) {
        out.extend_from_slice(&bytes[from..at]);
        out.push(b'\\');
        out.push(match bytes[at] {
            b'\t' => b't',
            b'\n' => b'n',
            other => other,
        });
        from = at + 1;
    }
    out.extend_from_slice(&bytes[from..]);
}

/// Appends an SQL literal, for a session with utf8mb4 and without `NO_BACKSLASH_ESCAPES`.
pub(super) fn put_literal(out: &mut Vec<u8>, spelled: Spelled<'_>) {
    match spelled {
        Spelled::Null => out.extend_from_slice(b"NULL"),
        Spelled::Number(digits) => out.extend_from_slice(digits),
        Spelled::Text(bytes) => put_quoted(out, bytes),
        Spelled::Bytes(bytes) => {
            out.extend_from_slice(b"_binary");
            put_quoted(out, bytes);
        }
    }
}

fn put_quoted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'\'');
    let mut from = 0;
    for at in memchr3_iter(b'\\', b'\'', 0, bytes) {
        out.extend_from_slice(&bytes[from..at]);
        out.push(b'\\');
        out.push(if bytes[at] == 0 { b'0' } else { bytes[at] });
        from = at + 1;
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(value: Value<'_>, form: Form) -> String {
        let (mut out, mut scratch) = (Vec::new(), Scratch::default());
        put_field(&mut out, spell(value, form, &mut scratch).unwrap());
        String::from_utf8(out).unwrap()
    }

    fn literal(value: Value<'_>, form: Form) -> String {
        let (mut out, mut scratch) = (Vec::new(), Scratch::default());
        put_literal(&mut out, spell(value, form, &mut scratch).unwrap());
        String::from_utf8(out).unwrap()
    }

    fn refusal(value: Value<'_>, form: Form) -> SpellError {
        spell(value, form, &mut Scratch::default()).unwrap_err()
    }

    #[test]
    fn what_would_end_a_field_or_a_literal_is_escaped() {
        let text = Value::Text("a\tb\nc\\N'd\0");
        assert_eq!(field(text, Form::Text), "a\\tb\\nc\\\\N'd\0");
        assert_eq!(literal(text, Form::Text), "'a\tb\nc\\\\N\\'d\\0'");
        assert_eq!(literal(Value::Bytes(b"\\'\0x"), Form::Bytes), "_binary'\\\\\\'\\0x'");
        assert_eq!(field(Value::Null, Form::Bytes), "\\N");
        assert_eq!(field(Value::Text("\\N"), Form::Text), "\\\\N");
        assert_eq!(field(Value::Text(""), Form::Text), "");
    }

    #[test]
    fn numbers_keep_every_bit() {
        assert_eq!(literal(Value::Int(i64::MIN), Form::Integer), "-9223372036854775808");
        assert_eq!(literal(Value::Uint(u64::MAX), Form::Integer), "18446744073709551615");
        assert_eq!(literal(Value::Uint(0), Form::Year), "0000");
        assert_eq!(literal(Value::Uint(2024), Form::Year), "2024");
        assert_eq!(literal(Value::Float64(1.5), Form::Float), "1.5e0");
        assert_eq!(literal(Value::Float32(0.1), Form::Float), "0.10000000149011612e0");
        assert_eq!(literal(Value::Text("-1.50"), Form::Decimal), "-1.50");
        let most = format!("-{}.{}", "9".repeat(35), "9".repeat(30));
        assert_eq!(literal(Value::Text(&most), Form::Decimal), most);
        let beyond = "9".repeat(66);
        assert_eq!(literal(Value::Text(&beyond), Form::Decimal), format!("'{beyond}'"));
    }

    #[test]
    fn what_mysql_has_no_value_for_is_refused() {
        for (text, form) in [
            ("NaN", Form::Decimal),
            ("-Infinity", Form::Decimal),
            ("infinity", Form::Moment),
            ("-infinity", Form::Moment),
            ("0044-03-15 BC", Form::Moment),
            ("10000-01-01", Form::Moment),
        ] {
            assert!(
                matches!(refusal(Value::Text(text), form), SpellError::Unholdable(_)),
                "{text}"
            );
        }
        assert!(matches!(
            refusal(Value::Float32(f32::NAN), Form::Float),
            SpellError::Unholdable(_)
        ));
        assert_eq!(refusal(Value::Unsent, Form::Text), SpellError::Mismatch);
        assert_eq!(
            field(Value::Text("2024-02-29 23:59:59.5+00"), Form::Moment),
            "2024-02-29 23:59:59.5"
        );
        assert_eq!(field(Value::Text("0000-00-00"), Form::Moment), "0000-00-00");
    }
}
