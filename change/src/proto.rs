//! The few Protocol Buffers primitives we need, written once: varints, tags, lengths.
//!
//! Ours and not prost's because row messages are dynamic (their fields come from a table at run
//! time) and are written and read without an allocation per field.
//! <https://protobuf.dev/programming-guides/encoding/>

/// Bytes that are not a message of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("message ends inside a field")]
    Truncated,
    /// A varint of more than ten bytes, or above 64 bits.
    #[error("varint is longer than 64 bits")]
    Varint,
    /// A wire type that protobuf does not have, or not the one this field has.
    #[error("field {field} has wire type {wire_type}, which does not fit it")]
    WireType {
        /// The field's number.
        field: u32,
        /// The wire type found.
        wire_type: u8,
    },
    /// Text that is not UTF-8.
    #[error("field {field} is not valid UTF-8")]
    Utf8 {
        /// The field's number.
        field: u32,
    },
    /// A number outside the range of what it stands for.
    #[error("field {field} holds {value}, which it cannot mean")]
    Range {
        /// The field's number.
        field: u32,
        /// The number found.
        value: u64,
    },
    /// A field that every such message has is not there.
    #[error("field {field} is missing")]
    Missing {
        /// The field's number.
        field: u32,
    },
    /// A field that the schema does not have.
    #[error("field {field} is not in the schema")]
    UnknownField {
        /// The field's number.
        field: u32,
    },
}

/// Wire types.
pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const LEN: u8 = 2;
pub(crate) const FIXED32: u8 = 5;

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "masked to seven bits")]
        out.push((value as u8 & 0x7F) | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.push(value as u8);
}

pub(crate) fn put_tag(out: &mut Vec<u8>, field: u32, wire_type: u8) {
    put_varint(out, (u64::from(field) << 3) | u64::from(wire_type));
}

pub(crate) fn put_uint(out: &mut Vec<u8>, field: u32, value: u64) {
    put_tag(out, field, VARINT);
    put_varint(out, value);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    put_tag(out, field, LEN);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

pub(crate) const fn zigzag(value: i64) -> u64 {
    #[expect(clippy::cast_sign_loss, reason = "zigzag maps the bits, not the number")]
    {
        ((value << 1) ^ (value >> 63)) as u64
    }
}

pub(crate) const fn unzigzag(value: u64) -> i64 {
    #[expect(clippy::cast_possible_wrap, reason = "zigzag maps the bits, not the number")]
    {
        ((value >> 1) as i64) ^ -((value & 1) as i64)
    }
}

/// One field's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    pub(crate) fn wire_type(&self) -> u8 {
        match self {
            Self::Varint(_) => VARINT,
            Self::Fixed64(_) => FIXED64,
            Self::Bytes(_) => LEN,
            Self::Fixed32(_) => FIXED32,
        }
    }

    pub(crate) fn uint(self, field: u32) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(value) => Ok(value),
            other => Err(DecodeError::WireType { field, wire_type: other.wire_type() }),
        }
    }

    pub(crate) fn bytes(self, field: u32) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(value) => Ok(value),
            other => Err(DecodeError::WireType { field, wire_type: other.wire_type() }),
        }
    }

    pub(crate) fn text(self, field: u32) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| DecodeError::Utf8 { field })
    }
}

/// Walks the fields of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What is not yet walked.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field's number and content; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Field<'a>)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = take_varint(&mut self.rest)?;
        let field = u32::try_from(tag >> 3)
            .ok()
            .filter(|&field| field != 0)
            .ok_or(DecodeError::Range { field: 0, value: tag })?;
        #[expect(clippy::cast_possible_truncation, reason = "masked to three bits")]
        let wire_type = tag as u8 & 7;
        let content = match wire_type {
            VARINT => Field::Varint(take_varint(&mut self.rest)?),
            FIXED64 => Field::Fixed64(u64::from_le_bytes(take(&mut self.rest)?)),
            FIXED32 => Field::Fixed32(u32::from_le_bytes(take(&mut self.rest)?)),
            LEN => {
                let length = take_varint(&mut self.rest)?;
                let length = usize::try_from(length).map_err(|_| DecodeError::Truncated)?;
                let (value, rest) =
                    self.rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
                self.rest = rest;
                Field::Bytes(value)
            }
            _ => return Err(DecodeError::WireType { field, wire_type }),
        };
        Ok(Some((field, content)))
    }
}

pub(crate) fn take_varint(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    // Most varints of ours are one byte: tags, small numbers, short lengths.
    if let [first @ 0..=0x7F, tail @ ..] = *rest {
        *rest = tail;
        return Ok(u64::from(*first));
    }
    let mut value = 0_u64;
    for (index, &byte) in rest.iter().enumerate().take(10) {
        if index == 9 && byte > 1 {
            return Err(DecodeError::Varint);
        }
        value |= u64::from(byte & 0x7F) << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(if rest.len() < 10 { DecodeError::Truncated } else { DecodeError::Varint })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (value, tail) = rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
    *rest = tail;
    Ok(*value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    proptest! {
        #[test]
        fn varints_come_back(value in any::<u64>(), signed in any::<i64>()) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            put_varint(&mut bytes, zigzag(signed));
            let mut rest = bytes.as_slice();
            assert_eq!(take_varint(&mut rest), Ok(value));
            assert_eq!(take_varint(&mut rest).map(unzigzag), Ok(signed));
            assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_are_walked_without_a_panic(bytes in any::<Vec<u8>>()) {
            let mut fields = Fields::new(&bytes);
            while let Ok(Some(_)) = fields.next() {}
        }
    }

    #[test]
    fn overlong_and_cut_varints_are_told_apart() {
        assert_eq!(take_varint(&mut [0xFF; 11].as_slice()), Err(DecodeError::Varint));
        assert_eq!(take_varint(&mut [0xFF; 3].as_slice()), Err(DecodeError::Truncated));
    }
}
