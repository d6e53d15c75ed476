//! A value as a statement's parameter: bytes as they are, everything else as text.
//!
//! The type's input function reads the text, so that one form serves every type of the target.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use bytes::{BufMut, BytesMut};
use tailwater_change::Value;
use tokio_postgres::types::{Format, IsNull, ToSql, Type};

use super::form::Form;
use super::unfit::Unfit;

/// One parameter. Its `Debug` does not show the value: the driver logs parameters.
pub(super) enum Param<'a> {
    Null,
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
}

impl<'a> Param<'a> {
    /// The parameter for `value` in a column of this form. An unsent column is NULL: the
    /// statement does not name it.
    pub(super) fn new(form: Form, value: &Value<'a>) -> Result<Self, Unfit> {
        form.check(value)?;
        Ok(match form.widen(*value) {
            Value::Null | Value::Unsent => Self::Null,
            Value::Bytes(bytes) if form == Form::Bytea => Self::Bytes(bytes),
            Value::Text(text) => Self::Text(Cow::Borrowed(text)),
            other => {
                let mut text = String::new();
                put_text(&mut text, &other);
                Self::Text(Cow::Owned(text))
            }
        })
    }
}

/// Appends the text that the type's input function reads; nothing for NULL.
pub(super) fn put_text(out: &mut String, value: &Value<'_>) {
    match *value {
        Value::Null | Value::Unsent => {}
        Value::Bool(value) => out.push(if value { 't' } else { 'f' }),
        Value::Int(value) => out.push_str(itoa::Buffer::new().format(value)),
        Value::Uint(value) => out.push_str(itoa::Buffer::new().format(value)),
        // ryu prints what PostgreSQL reads, but for the names of the infinities.
        Value::Float32(value) if value.is_infinite() => infinity(out, value < 0.0),
        Value::Float64(value) if value.is_infinite() => infinity(out, value < 0.0),
        Value::Float32(value) => out.push_str(ryu::Buffer::new().format(value)),
        Value::Float64(value) => out.push_str(ryu::Buffer::new().format(value)),
        Value::Text(text) => out.push_str(text),
        Value::Bytes(bytes) => {
            out.push_str("\\x");
            for byte in bytes {
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 0xF)]));
            }
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn infinity(out: &mut String, negative: bool) {
    out.push_str(if negative { "-Infinity" } else { "Infinity" });
}

impl fmt::Debug for Param<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl ToSql for Param<'_> {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => return Ok(IsNull::Yes),
            Self::Text(text) => out.put_slice(text.as_bytes()),
            Self::Bytes(bytes) => out.put_slice(bytes),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        self.to_sql(ty, out)
    }

    fn encode_format(&self, _: &Type) -> Format {
        match self {
            Self::Null | Self::Text(_) => Format::Text,
            Self::Bytes(_) => Format::Binary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_print_as_postgres_reads_them() {
        let check = |value: Value<'_>, expected: &str| {
            let mut text = String::new();
            put_text(&mut text, &value);
            assert_eq!(text, expected);
        };
        check(Value::Bool(true), "t");
        check(Value::Int(-7), "-7");
        check(Value::Float64(1e300), "1e300");
        check(Value::Float64(-0.0), "-0.0");
        check(Value::Float32(f32::NEG_INFINITY), "-Infinity");
        check(Value::Float64(f64::NAN), "NaN");
        check(Value::Bytes(&[0, 0xAB]), "\\x00ab");
    }

    #[test]
    fn a_float_in_a_double_column_is_the_same_number() {
        let param = Param::new(Form::Float8, &Value::Float32(0.1)).unwrap();
        assert!(matches!(param, Param::Text(text) if text == "0.10000000149011612"));
        let param = Param::new(Form::Float4, &Value::Float32(0.1)).unwrap();
        assert!(matches!(param, Param::Text(text) if text == "0.1"));
    }

    #[test]
    fn a_parameter_does_not_show_its_value() {
        let param = Param::new(Form::Text, &Value::Text("secret")).unwrap();
        assert_eq!(format!("{param:?}"), "…");
    }
}
