//! The five bytes and an index in front of every key and value: Confluent's framing.
//!
//! | bytes | content |
//! |---|---|
//! | 0 | magic, 0 |
//! | 1..5 | schema id, big endian |
//! | 5 | message index: a single 0, the first message of the schema |
//!
//! <https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>

use std::fmt;

use serde::{Deserialize, Serialize};

/// A schema's id in the registry; positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SchemaId(u32);

impl SchemaId {
    /// The schema with this id.
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The id's number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes that are not framed as ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a frame has.
    #[error("{length} bytes are too few for a framed message")]
    Short {
        /// How many bytes there were.
        length: usize,
    },
    /// Another magic byte.
    #[error("magic byte is {0}, not 0")]
    Magic(u8),
    /// Not the first message of the schema.
    #[error("message index is {0}, not 0")]
    Index(u8),
}

/// Bytes in front of a framed message.
const PREFIX: usize = 6;

/// A message and the schema it was written by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which schema.
    pub schema: SchemaId,
    /// The message.
    pub message: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Bytes in front of the message.
    pub const PREFIX: usize = PREFIX;

    /// What stands in front of a message written by `schema`.
    pub const fn prefix(schema: SchemaId) -> [u8; PREFIX] {
        let id = schema.0.to_be_bytes();
        [0, id[0], id[1], id[2], id[3], 0]
    }

    /// Splits framed bytes.
    ///
    /// # Errors
    /// The bytes were not written by us: the record cannot be read, the reader stops there.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let Some((prefix, message)) = bytes.split_first_chunk::<PREFIX>() else {
            return Err(FrameError::Short { length: bytes.len() });
        };
        let [magic, a, b, c, d, index] = *prefix;
        if magic != 0 {
            return Err(FrameError::Magic(magic));
        }
        if index != 0 {
            return Err(FrameError::Index(index));
        }
        Ok(Self { schema: SchemaId(u32::from_be_bytes([a, b, c, d])), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_foreign_bytes_do_not() {
        let mut bytes = Frame::prefix(SchemaId::new(0x0102_0304)).to_vec();
        bytes.extend_from_slice(b"row");
        assert_eq!(bytes[..6], [0, 1, 2, 3, 4, 0]);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.schema.get(), frame.message), (0x0102_0304, b"row".as_slice()));
        assert_eq!(Frame::parse(b"{\"a\":1}"), Err(FrameError::Magic(b'{')));
        assert_eq!(Frame::parse(&bytes[..5]), Err(FrameError::Short { length: 5 }));
    }
}
