//! Rows of the text protocol as canonical values: what snapshots and key reads share.
//!
//! The session has `character_set_results = NULL`, so that text arrives in its column's own
//! character set and goes through the same decoder as the stream's. Floats are asked for as
//! `column * 1e0`: the server prints a FLOAT with six digits and a DOUBLE(M,D) with D decimals,
//! whatever they hold, but the product as the shortest text that reads back to the same bits (a
//! sum would lose the sign of zero).
//!
//! Which value comes out says the [`Kind`]; it may be another database's (`verify` reads a MySQL
//! target by a PostgreSQL source's schema).

use tailwater_change::{Kind, Value};

use crate::cell::{Cell, Scratch};
use crate::charset::{Charset, NotText};
use crate::connect::quote_name;
use crate::types::ColumnType;
use crate::wire::{TextRow, WireError};

/// What a session that reads rows must set besides the contract.
pub(crate) const RAW_RESULTS: &str = "SET character_set_results = NULL";

/// One selected column and how its text becomes a value.
#[derive(Debug, Clone)]
pub(crate) struct TextColumn {
    name: String,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Bool,
    Int,
    Uint,
    Float32,
    Float64,
    Decimal,
    /// `padded`: trailing spaces are not part of the value.
    Text {
        charset: Charset,
        padded: bool,
    },
    Bytes,
    /// Digits that are right as they are: DATE.
    Plain,
    /// A fraction without trailing zeros: TIME, DATETIME.
    Fraction,
    /// As `Fraction`, and `+00`.
    Utc,
    Uuid,
}

/// Why a row cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TextError {
    /// The protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A value that its type does not allow.
    #[error("column {column}: not a value of its type")]
    Value { column: String },
    /// A value that its character set does not allow.
    #[error("column {column}: {source}")]
    Charset { column: String, source: NotText },
}

impl TextColumn {
    /// Reads the column `name` of type `native` and character set `charset` as values of `kind`;
    /// `None` if that cannot be done.
    pub(crate) fn new(
        name: &str,
        native: &str,
        charset: Option<&str>,
        kind: &Kind,
    ) -> Option<Self> {
        let native = ColumnType::parse(native).ok()?;
        let padded = matches!(native, ColumnType::Char { .. });
        let text = || {
            let charset = Charset::named(charset.unwrap_or("utf8mb4"))?;
            Some(Form::Text { charset, padded })
        };
        let form = match kind {
            Kind::Bool => Form::Bool,
            Kind::Int { signed: true, .. } => Form::Int,
            Kind::Int { signed: false, .. } => Form::Uint,
            Kind::Float32 => Form::Float32,
            Kind::Float64 => Form::Float64,
            Kind::Decimal { .. } => Form::Decimal,
            Kind::Text { .. } | Kind::Json | Kind::Enum { .. } => text()?,
            Kind::Bytes { .. } => Form::Bytes,
            Kind::Date => Form::Plain,
            Kind::Time | Kind::Timestamp => Form::Fraction,
            Kind::TimestampTz => Form::Utc,
            Kind::Uuid => Form::Uuid,
        };
        Some(Self { name: name.to_owned(), form })
    }

    /// How it stands in a SELECT list.
    pub(crate) fn selected(&self) -> String {
        let name = quote_name(&self.name);
        if matches!(self.form, Form::Float32 | Form::Float64) {
            format!("{name} * 1e0")
        } else {
            name
        }
    }

    fn read<'b>(&self, text: &'b [u8], scratch: &mut Scratch) -> Result<Cell<'b>, TextError> {
        let invalid = || TextError::Value { column: self.name.clone() };
        let ascii = || std::str::from_utf8(text).map_err(|_| invalid());
        Ok(Cell::Ready(match self.form {
            Form::Bool => match text {
                b"0" => Value::Bool(false),
                b"1" => Value::Bool(true),
                _ => return Err(invalid()),
            },
            Form::Int => Value::Int(ascii()?.parse().map_err(|_| invalid())?),
            Form::Uint => Value::Uint(ascii()?.parse().map_err(|_| invalid())?),
            // The server prints the exact value of a FLOAT as a DOUBLE.
            Form::Float32 => {
                let wide: f64 = ascii()?.parse().map_err(|_| invalid())?;
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a FLOAT as DOUBLE goes back to the same bits"
                )]
                Value::Float32(wide as f32)
            }
            Form::Float64 => Value::Float64(ascii()?.parse().map_err(|_| invalid())?),
            Form::Decimal => Value::Text(trim_decimal(ascii()?)),
            Form::Text { charset, padded } => return self.text(text, charset, padded, scratch),
            Form::Bytes => Value::Bytes(text),
            Form::Plain => Value::Text(ascii()?),
            Form::Fraction => Value::Text(trim_fraction(ascii()?)),
            Form::Utc => {
                let from = scratch.text.len();
                scratch.text.push_str(trim_fraction(ascii()?));
                scratch.text.push_str("+00");
                return Ok(Cell::Text(from..scratch.text.len()));
            }
            Form::Uuid => {
                let from = scratch.text.len();
                scratch.text.push_str(ascii()?);
                scratch.text[from..].make_ascii_lowercase();
                return Ok(Cell::Text(from..scratch.text.len()));
            }
        }))
    }
}

impl TextColumn {
    fn text<'b>(
        &self,
        bytes: &'b [u8],
        charset: Charset,
        padded: bool,
        scratch: &mut Scratch,
    ) -> Result<Cell<'b>, TextError> {
        let failed = |source| TextError::Charset { column: self.name.clone(), source };
        decode_text(bytes, charset, padded, scratch).map_err(failed)
    }
}

/// Text of a column. `padded`: CHAR, whose trailing spaces are not part of the value.
pub(crate) fn decode_text<'b>(
    bytes: &'b [u8],
    charset: Charset,
    padded: bool,
    scratch: &mut Scratch,
) -> Result<Cell<'b>, NotText> {
    if let Some(text) = charset.borrow(bytes)? {
        let text = if padded { text.trim_end_matches(' ') } else { text };
        return Ok(Cell::Ready(Value::Text(text)));
    }
    let from = scratch.text.len();
    charset.decode(bytes, &mut scratch.text)?;
    if padded {
        let kept = scratch.text[from..].trim_end_matches(' ').len();
        scratch.text.truncate(from + kept);
    }
    Ok(Cell::Text(from..scratch.text.len()))
}

/// Reads a row: one cell per column, in their order.
///
/// # Errors
/// A value is not what its column's type allows; the row is named by nothing but its column.
pub(crate) fn read_row<'b>(
    columns: &[TextColumn],
    row: &'b TextRow,
    cells: &mut Vec<Cell<'b>>,
    scratch: &mut Scratch,
) -> Result<(), TextError> {
    let mut fields = row.fields();
    for column in columns {
        let field = fields.next()?.ok_or(WireError::Protocol("a row with too few values"))?;
        cells.push(match field {
            None => Cell::Ready(Value::Null),
            Some(text) => column.read(text, scratch)?,
        });
    }
    Ok(())
}

/// Without the zeros that ZEROFILL puts in front, and without the sign of a zero.
fn trim_decimal(text: &str) -> &str {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text),
    };
    if digits.bytes().all(|byte| matches!(byte, b'0' | b'.')) || sign.is_empty() {
        let zeros = digits.bytes().take_while(|byte| *byte == b'0').count();
        // One digit stays in front of the point.
        let more = digits[zeros..].starts_with(|c: char| c.is_ascii_digit());
        return &digits[if more { zeros } else { zeros.saturating_sub(1) }..];
    }
    text
}

/// Without the zeros that end a fraction, and without a point that then ends it.
fn trim_fraction(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_and_times_are_canonical() {
        for (text, expected) in [
            ("0012.50", "12.50"),
            ("-12.50", "-12.50"),
            ("-0.00", "0.00"),
            ("0.50", "0.50"),
            ("000", "0"),
            ("00.10", "0.10"),
        ] {
            assert_eq!(trim_decimal(text), expected);
        }
        assert_eq!(trim_fraction("12:00:00.120"), "12:00:00.12");
        assert_eq!(trim_fraction("12:00:00.000"), "12:00:00");
        assert_eq!(trim_fraction("12:00:00"), "12:00:00");
    }
}
