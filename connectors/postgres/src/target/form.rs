//! How a column's values are written to the server: which binary form its type reads.
//!
//! A [`Form`] is chosen once per table and column, from the canonical kind and the target's type.
//! A table whose columns all have a binary form takes `COPY … BINARY`; one column without
//! ([`Form::Input`]) makes it text for the whole table, since a COPY has one format.

use bytes::{BufMut, BytesMut};
use tailwater_change::{Kind, Value};

use super::datetime;
use super::numeric;
use super::unfit::Unfit;

/// How values of one column go to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    /// The characters themselves: text, varchar, char, json, enums.
    Text,
    Jsonb,
    Bytea,
    Uuid,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    /// By the type's input function, as text.
    Input,
}

/// `pg_type.typtype` of an enum.
const ENUM: u8 = b'e';

impl Form {
    /// The form of `kind` for the type with this OID (a domain's base type).
    pub(super) fn of(kind: &Kind, oid: u32, typtype: u8) -> Self {
        match (kind, oid) {
            (Kind::Bool, 16) => Self::Bool,
            (Kind::Int { .. }, 21) => Self::Int2,
            (Kind::Int { .. }, 23) => Self::Int4,
            (Kind::Int { .. }, 20) => Self::Int8,
            (Kind::Int { .. } | Kind::Decimal { .. }, 1700) => Self::Numeric,
            (Kind::Float32, 700) => Self::Float4,
            (Kind::Float32 | Kind::Float64, 701) => Self::Float8,
            (Kind::Bytes { .. }, 17) => Self::Bytea,
            (Kind::Uuid, 2950) => Self::Uuid,
            (Kind::Date, 1082) => Self::Date,
            (Kind::Time, 1083) => Self::Time,
            (Kind::Timestamp, 1114) => Self::Timestamp,
            (Kind::TimestampTz, 1184) => Self::TimestampTz,
            (Kind::Json, 3802) => Self::Jsonb,
            (Kind::Json, 114) => Self::Text,
            (
                Kind::Text { .. }
                | Kind::Enum { .. }
                | Kind::Json
                | Kind::Uuid
                | Kind::Decimal { .. }
                | Kind::Date
                | Kind::Time
                | Kind::Timestamp
                | Kind::TimestampTz,
                25 | 1043 | 1042,
            ) => Self::Text,
            (Kind::Text { .. } | Kind::Enum { .. }, _) if typtype == ENUM => Self::Text,
            _ => Self::Input,
        }
    }

    /// The bytes that are the value as it is, where there are: what may be large goes to the
    /// server in pieces, not through a buffer of its size.
    pub(super) fn raw<'a>(self, value: &Value<'a>) -> Option<&'a [u8]> {
        match (self, value) {
            (Self::Text, Value::Text(text)) => Some(text.as_bytes()),
            (Self::Bytea, Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// The value as the column has it: a float as the double that equals it. Its own shortest
    /// spelling, read as a double, is another number.
    pub(super) fn widen(self, value: Value<'_>) -> Value<'_> {
        match (self, value) {
            (Self::Float8, Value::Float32(value)) => Value::Float64(f64::from(value)),
            _ => value,
        }
    }

    /// Appends the binary form of a value that is not NULL, without its length.
    pub(super) fn put(self, out: &mut BytesMut, value: &Value<'_>) -> Result<(), Unfit> {
        match (self, *value) {
            (Self::Bool, Value::Bool(value)) => out.put_u8(u8::from(value)),
            (Self::Int2, value) => out.put_i16(int(value)?),
            (Self::Int4, value) => out.put_i32(int(value)?),
            (Self::Int8, value) => out.put_i64(int(value)?),
            (Self::Float4, Value::Float32(value)) => out.put_u32(value.to_bits()),
            (Self::Float8, Value::Float64(value)) => out.put_u64(value.to_bits()),
            (Self::Float8, Value::Float32(value)) => out.put_f64(f64::from(value)),
            (Self::Numeric, Value::Text(text)) => numeric::put(out, text)?,
            (Self::Numeric, Value::Int(value)) => {
                numeric::put(out, itoa::Buffer::new().format(value))?;
            }
            (Self::Numeric, Value::Uint(value)) => {
                numeric::put(out, itoa::Buffer::new().format(value))?;
            }
            (Self::Text, Value::Text(text)) => out.put_slice(text.as_bytes()),
            (Self::Jsonb, Value::Text(text)) => {
                // The one version there is.
                out.put_u8(1);
                out.put_slice(text.as_bytes());
            }
            (Self::Bytea, Value::Bytes(bytes)) => out.put_slice(bytes),
            (Self::Uuid, Value::Text(text)) => uuid(out, text)?,
            (Self::Date, Value::Text(text)) => out.put_i32(datetime::date(text)?),
            (Self::Time, Value::Text(text)) => out.put_i64(datetime::time(text)?),
            (Self::Timestamp, Value::Text(text)) => out.put_i64(datetime::timestamp(text)?),
            (Self::TimestampTz, Value::Text(text)) => out.put_i64(datetime::timestamptz(text)?),
            _ => return Err(Unfit::Malformed),
        }
        Ok(())
    }

    /// Whether the value's text may go to the type's input function: finds what PostgreSQL
    /// would refuse, or read as something else.
    pub(super) fn check(self, value: &Value<'_>) -> Result<(), Unfit> {
        let Value::Text(text) = *value else {
            return match (self, *value) {
                (_, Value::Null | Value::Unsent) => Ok(()),
                (Self::Int2, value) => int::<i16>(value).map(drop),
                (Self::Int4, value) => int::<i32>(value).map(drop),
                (Self::Int8, value) => int::<i64>(value).map(drop),
                _ => Ok(()),
            };
        };
        match self {
            Self::Date => datetime::date(text).map(drop),
            Self::Time => datetime::time(text).map(drop),
            Self::Timestamp => datetime::timestamp(text).map(drop),
            Self::TimestampTz => datetime::timestamptz(text).map(drop),
            Self::Text | Self::Jsonb | Self::Input => no_nul(text),
            _ => Ok(()),
        }
    }
}

/// NUL ends PostgreSQL's strings: its text cannot hold it.
pub(super) fn no_nul(text: &str) -> Result<(), Unfit> {
    if memchr::memchr(0, text.as_bytes()).is_some() { Err(Unfit::Nul) } else { Ok(()) }
}

fn int<T: TryFrom<i64> + TryFrom<u64>>(value: Value<'_>) -> Result<T, Unfit> {
    match value {
        Value::Int(value) => T::try_from(value).map_err(|_| Unfit::Range),
        Value::Uint(value) => T::try_from(value).map_err(|_| Unfit::Range),
        _ => Err(Unfit::Malformed),
    }
}

fn uuid(out: &mut BytesMut, text: &str) -> Result<(), Unfit> {
    let mut digits = text.bytes().filter(|&byte| byte != b'-');
    for _ in 0..16 {
        let mut digit = || {
            digits
                .next()
                .and_then(|byte| char::from(byte).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
                .ok_or(Unfit::Malformed)
        };
        let (high, low) = (digit()?, digit()?);
        out.put_u8(high << 4 | low);
    }
    if digits.next().is_some() { Err(Unfit::Malformed) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(form: Form, value: Value<'_>) -> Result<Vec<u8>, Unfit> {
        let mut out = BytesMut::new();
        form.put(&mut out, &value).map(|()| out.to_vec())
    }

    #[test]
    fn numbers_must_fit_the_type() {
        assert_eq!(put(Form::Int2, Value::Uint(32_767)), Ok(vec![0x7F, 0xFF]));
        assert_eq!(put(Form::Int2, Value::Uint(32_768)), Err(Unfit::Range));
        assert_eq!(put(Form::Int4, Value::Int(-1)), Ok(vec![0xFF; 4]));
        assert_eq!(put(Form::Int8, Value::Uint(u64::MAX)), Err(Unfit::Range));
        assert_eq!(Form::Int2.check(&Value::Int(-32_769)), Err(Unfit::Range));
    }

    #[test]
    fn uuids_are_sixteen_bytes() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let bytes = put(Form::Uuid, Value::Text(text)).unwrap();
        assert_eq!(bytes[..3], [0x00, 0x11, 0x22]);
        assert_eq!(bytes.len(), 16);
        for text in
            ["", "00112233-4455-6677-8899-aabbccddeef", "g", "00112233445566778899aabbccddeeff0"]
        {
            assert_eq!(put(Form::Uuid, Value::Text(text)), Err(Unfit::Malformed), "{text}");
        }
    }

    #[test]
    fn a_value_of_another_kind_is_refused() {
        assert_eq!(put(Form::Bool, Value::Int(1)), Err(Unfit::Malformed));
        assert_eq!(put(Form::Int4, Value::Text("1")), Err(Unfit::Malformed));
        assert_eq!(Form::Text.check(&Value::Text("a\0b")), Err(Unfit::Nul));
    }
}
