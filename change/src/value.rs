//! One column's value, lying where it was read.

/// A value as it flows: fixed-width numbers by value, everything else as a slice of the buffer it
/// was read from. What a `Text` means (a decimal, a timestamp, …) says the column's
/// [`Kind`](crate::Kind); the canonical text forms stand there.
///
/// `Null` and `Unsent` are different things: a source that did not send a column (unchanged
/// TOAST, partial images) has said nothing about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// The source did not send this column: it keeps the value it has.
    Unsent,
    /// A boolean.
    Bool(bool),
    /// A signed integer of up to 64 bits.
    Int(i64),
    /// An unsigned integer of up to 64 bits.
    Uint(u64),
    /// IEEE 754 binary32, all bit patterns.
    Float32(f32),
    /// IEEE 754 binary64, all bit patterns.
    Float64(f64),
    /// Text in UTF-8, or the canonical text form of the column's kind.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

impl Value<'_> {
    /// Whether this is NULL.
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether the source did not send this column.
    pub const fn is_unsent(&self) -> bool {
        matches!(self, Self::Unsent)
    }
}
