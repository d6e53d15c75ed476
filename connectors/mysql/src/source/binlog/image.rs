//! Row images: a bitmap of NULLs, then the values that are there, one behind the other.
//!
//! Values are decoded where they lie. Columns that an image leaves out (`binlog_row_image` MINIMAL
//! or NOBLOB) become `Unsent`.

use tailwater_change::Value;

use super::take::{Broken, Take, bit};
use super::{json, number};
use crate::cell::{Cell, Scratch};
use crate::charset::Charset;
use crate::text::decode_text;

/// Bytes that a value takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Always as many.
    Fixed(usize),
    /// A length of so many bytes, and that many bytes.
    Prefixed(usize),
    /// A type that we do not know, by its number.
    Unknown(u8),
}

/// How a column's value is decoded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Form {
    Int {
        bytes: usize,
        signed: bool,
    },
    Year,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Float,
    Double,
    Date,
    Time {
        digits: u8,
    },
    DateTime {
        digits: u8,
    },
    Timestamp {
        digits: u8,
    },
    /// `padded`: CHAR, whose trailing spaces are not part of the value.
    Text {
        prefix: usize,
        charset: Charset,
        padded: bool,
    },
    /// `padded_to`: BINARY(n), whose trailing zero bytes the image leaves out; else 0.
    Bytes {
        prefix: usize,
        padded_to: usize,
    },
    Json {
        prefix: usize,
    },
    Enum {
        bytes: usize,
        labels: Vec<String>,
    },
    /// A value of no interest.
    Skip(Shape),
}

/// Which columns an image has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present<'b> {
    pub(crate) bitmap: &'b [u8],
    /// Columns in the bitmap that are set.
    pub(crate) count: usize,
}

impl<'b> Present<'b> {
    /// Takes the bitmap of `width` columns.
    pub(crate) fn read(take: &mut Take<'b>, width: usize) -> Result<Self, Broken> {
        let bitmap = take.bytes(width.div_ceil(8))?;
        let count = (0..width).filter(|at| bit(bitmap, *at)).count();
        Ok(Self { bitmap, count })
    }
}

/// Decodes an image: one cell per column. Columns for which `wanted` says no stay `Unsent`.
pub(crate) fn read<'b>(
    take: &mut Take<'b>,
    forms: &[Form],
    present: Present<'_>,
    wanted: impl Fn(usize) -> bool,
    cells: &mut Vec<Cell<'b>>,
    scratch: &mut Scratch,
) -> Result<(), Broken> {
    let nulls = take.bytes(present.count.div_ceil(8))?;
    let mut seen = 0;
    for (at, form) in forms.iter().enumerate() {
        if !bit(present.bitmap, at) {
            cells.push(Cell::Ready(Value::Unsent));
            continue;
        }
        let null = bit(nulls, seen);
        seen += 1;
        cells.push(if null {
            Cell::Ready(Value::Null)
        } else if wanted(at) {
            form.read(take, scratch)?
        } else {
            form.skip(take)?;
            Cell::Ready(Value::Unsent)
        });
    }
    Ok(())
}

/// Passes an image.
pub(crate) fn skip(
    take: &mut Take<'_>,
    forms: &[Form],
    present: Present<'_>,
) -> Result<(), Broken> {
    let nulls = take.bytes(present.count.div_ceil(8))?;
    let mut seen = 0;
    for (at, form) in forms.iter().enumerate() {
        if !bit(present.bitmap, at) {
            continue;
        }
        if !bit(nulls, seen) {
            form.skip(take)?;
        }
        seen += 1;
    }
    Ok(())
}

impl Form {
    fn shape(&self) -> Result<Shape, Broken> {
        Ok(match self {
            Self::Int { bytes, .. } | Self::Enum { bytes, .. } => Shape::Fixed(*bytes),
            Self::Year => Shape::Fixed(1),
            Self::Decimal { precision, scale } => {
                Shape::Fixed(number::decimal_bytes(*precision, *scale)?)
            }
            Self::Float => Shape::Fixed(4),
            Self::Double => Shape::Fixed(8),
            Self::Date => Shape::Fixed(3),
            Self::Time { digits } => Shape::Fixed(3 + number::fraction_bytes(*digits)?),
            Self::DateTime { digits } => Shape::Fixed(5 + number::fraction_bytes(*digits)?),
            Self::Timestamp { digits } => Shape::Fixed(4 + number::fraction_bytes(*digits)?),
            Self::Text { prefix, .. } | Self::Bytes { prefix, .. } | Self::Json { prefix } => {
                Shape::Prefixed(*prefix)
            }
            Self::Skip(shape) => *shape,
        })
    }

    fn skip(&self, take: &mut Take<'_>) -> Result<(), Broken> {
        match self.shape()? {
            Shape::Fixed(bytes) => take.bytes(bytes).map(drop),
            Shape::Prefixed(prefix) => take.prefixed(prefix).map(drop),
            Shape::Unknown(_) => Err(Broken("a column of an unknown type")),
        }
    }

    fn read<'b>(&self, take: &mut Take<'b>, scratch: &mut Scratch) -> Result<Cell<'b>, Broken> {
        let from = scratch.text.len();
        match self {
            Self::Int { bytes, signed: false } => {
                return Ok(Cell::Ready(Value::Uint(take.uint(*bytes)?)));
            }
            Self::Int { bytes, signed: true } => {
                let unused = u32::try_from(64 - 8 * bytes).map_err(|_| Broken("an integer"))?;
                // Up to the top, so that its sign is where an i64 has it, and back.
                let value = (take.uint(*bytes)? << unused).cast_signed() >> unused;
                return Ok(Cell::Ready(Value::Int(value)));
            }
            Self::Year => {
                let year = match take.u8()? {
                    0 => 0,
                    year => u64::from(year) + 1900,
                };
                return Ok(Cell::Ready(Value::Uint(year)));
            }
            Self::Float => {
                return Ok(Cell::Ready(Value::Float32(f32::from_le_bytes(take.array()?))));
            }
            Self::Double => {
                return Ok(Cell::Ready(Value::Float64(f64::from_le_bytes(take.array()?))));
            }
            Self::Text { prefix, charset, padded } => {
                return decode_text(take.prefixed(*prefix)?, *charset, *padded, scratch)
                    .map_err(|_| Broken("text that its character set does not have"));
            }
            Self::Bytes { prefix, padded_to } => {
                let bytes = take.prefixed(*prefix)?;
                return Ok(pad(bytes, *padded_to, scratch));
            }
            Self::Enum { bytes, labels } => {
                let number = usize::try_from(take.uint(*bytes)?).map_err(|_| Broken("a label"))?;
                let label = match number.checked_sub(1) {
                    None => "",
                    Some(at) => labels.get(at).ok_or(Broken("a label that the column lacks"))?,
                };
                scratch.text.push_str(label);
            }
            Self::Skip(_) => {
                self.skip(take)?;
                return Ok(Cell::Ready(Value::Unsent));
            }
            Self::Decimal { precision, scale } => {
                number::decimal(take, *precision, *scale, &mut scratch.text)?;
            }
            Self::Date => number::date(take, &mut scratch.text)?,
            Self::Time { digits } => number::time(take, *digits, &mut scratch.text)?,
            Self::DateTime { digits } => number::datetime(take, *digits, &mut scratch.text)?,
            Self::Timestamp { digits } => number::timestamp(take, *digits, &mut scratch.text)?,
            Self::Json { prefix } => json::text(take.prefixed(*prefix)?, &mut scratch.text)?,
        }
        Ok(Cell::Text(from..scratch.text.len()))
    }
}

fn pad<'b>(bytes: &'b [u8], padded_to: usize, scratch: &mut Scratch) -> Cell<'b> {
    if bytes.len() >= padded_to {
        return Cell::Ready(Value::Bytes(bytes));
    }
    let from = scratch.bytes.len();
    scratch.bytes.extend_from_slice(bytes);
    scratch.bytes.resize(from + padded_to, 0);
    Cell::Bytes(from..scratch.bytes.len())
}
