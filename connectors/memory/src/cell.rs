//! A value that is kept: owned, ordered, equal exactly if its bits are.

use tailwater_change::Value;

/// One column of a kept row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// A boolean.
    Bool(bool),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// The bits of a binary32.
    Float32(u32),
    /// The bits of a binary64.
    Float64(u64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Cell {
    /// Keeps a value; `None` for one that was not sent.
    pub fn of(value: Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Unsent => return None,
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Int(value) => Self::Int(value),
            Value::Uint(value) => Self::Uint(value),
            Value::Float32(value) => Self::Float32(value.to_bits()),
            Value::Float64(value) => Self::Float64(value.to_bits()),
            Value::Text(value) => Self::Text(value.to_owned()),
            Value::Bytes(value) => Self::Bytes(value.to_owned()),
        })
    }

    /// The value, as it flows.
    pub fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Uint(value) => Value::Uint(*value),
            Self::Float32(bits) => Value::Float32(f32::from_bits(*bits)),
            Self::Float64(bits) => Value::Float64(f64::from_bits(*bits)),
            Self::Text(value) => Value::Text(value),
            Self::Bytes(value) => Value::Bytes(value),
        }
    }

    /// As a reader prints it; `None` is NULL.
    pub fn text(&self) -> Option<String> {
        Some(match self {
            Self::Null => return None,
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Uint(value) => value.to_string(),
            Self::Float32(bits) => f32::from_bits(*bits).to_string(),
            Self::Float64(bits) => f64::from_bits(*bits).to_string(),
            Self::Text(value) => value.clone(),
            Self::Bytes(value) => format!("{value:02x?}"),
        })
    }

    /// The cell under a collation that knows no case.
    pub(crate) fn folded(&self) -> Self {
        match self {
            Self::Text(value) => Self::Text(value.to_lowercase()),
            other => other.clone(),
        }
    }
}
