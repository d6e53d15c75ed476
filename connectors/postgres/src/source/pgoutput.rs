//! The messages of `pgoutput`, protocol version 1, taken apart where they lie.
//!
//! No IO and no state: any bytes give a message or an error. Tuples become [`Cell`]s in vectors of
//! the caller's, so that nothing is allocated per row.
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>

use crate::types::Cell;

/// Microseconds between 1970 and 2000, where PostgreSQL's clock begins.
const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PgoutputError {
    /// They end early.
    #[error("a {0} message that ends early")]
    Truncated(&'static str),
    /// They go on after the message.
    #[error("a {0} message with {1} bytes too many")]
    Trailing(&'static str, usize),
    /// A letter that has no meaning in its place.
    #[error("a {0} message with the unknown letter {1:?}")]
    Letter(&'static str, char),
    /// A name that is not UTF-8.
    #[error("a {0} message with a name that is not UTF-8")]
    Name(&'static str),
}

/// How much of an old row was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Old {
    /// Nothing.
    None,
    /// The replica identity's columns; the others read NULL.
    Key,
    /// All of it.
    Full,
}

/// A column of a Relation message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelationColumn<'a> {
    /// Whether it belongs to the replica identity.
    pub(crate) key: bool,
    /// Its name.
    pub(crate) name: &'a str,
    /// Its type.
    pub(crate) type_oid: u32,
    /// The type's modifier.
    pub(crate) typmod: i32,
}

/// A table as the server had it when the rows that follow were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Relation<'a> {
    /// Its OID.
    pub(crate) oid: u32,
    /// Its schema.
    pub(crate) namespace: &'a str,
    /// Its name.
    pub(crate) name: &'a str,
    /// `relreplident`.
    pub(crate) replica_identity: u8,
    /// Its published columns.
    pub(crate) columns: Vec<RelationColumn<'a>>,
}

/// One message. Tuples stand in [`Tuples`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A transaction begins.
    Begin {
        /// Where its commit record stands.
        commit_lsn: u64,
        /// Microseconds since 1970.
        committed_at_us: i64,
        /// Its id.
        xid: u32,
    },
    /// It is complete.
    Commit {
        /// Where its commit record stands.
        commit_lsn: u64,
        /// Behind it.
        end_lsn: u64,
    },
    /// The server it came from first.
    Origin,
    /// A table's definition.
    Relation(Relation<'a>),
    /// A type that is not built in.
    Type,
    /// A row was inserted: `new`.
    Insert {
        /// Its table.
        relation: u32,
    },
    /// A row was updated: `old`, `new`.
    Update {
        /// Its table.
        relation: u32,
        /// How much of `old` there is.
        old: Old,
    },
    /// A row was deleted: `old`.
    Delete {
        /// Its table.
        relation: u32,
        /// How much of `old` there is.
        old: Old,
    },
    /// Tables were emptied.
    Truncate {
        /// Their OIDs, four bytes each.
        relations: &'a [[u8; 4]],
    },
    /// `pg_logical_emit_message`.
    Logical,
}

/// The rows of a message.
#[derive(Debug, Default)]
pub(crate) struct Tuples<'a> {
    /// The old row, as much as was sent.
    pub(crate) old: Vec<Cell<'a>>,
    /// The new row.
    pub(crate) new: Vec<Cell<'a>>,
}

/// Takes a message apart; its rows go to `tuples`.
///
/// # Errors
/// The bytes are not a message.
pub(crate) fn parse<'a>(
    bytes: &'a [u8],
    tuples: &mut Tuples<'a>,
) -> Result<Message<'a>, PgoutputError> {
    let (&letter, rest) = bytes.split_first().ok_or(PgoutputError::Truncated("empty"))?;
    let mut reader = Reader { rest, message: name_of(letter) };
    tuples.old.clear();
    tuples.new.clear();
    let message = match letter {
        b'I' => {
            let relation = reader.u32()?;
            reader.letter(b'N')?;
            reader.tuple(&mut tuples.new)?;
            Message::Insert { relation }
        }
        b'U' => update(&mut reader, tuples)?,
        b'D' => {
            let relation = reader.u32()?;
            let letter = reader.u8()?;
            let old = old_kind(letter).ok_or(reader.unknown(letter))?;
            reader.tuple(&mut tuples.old)?;
            Message::Delete { relation, old }
        }
        b'B' => Message::Begin {
            commit_lsn: reader.u64()?,
            committed_at_us: reader.i64()?.saturating_add(EPOCH_2000_US),
            xid: reader.u32()?,
        },
        b'C' => {
            reader.u8()?;
            let (commit_lsn, end_lsn) = (reader.u64()?, reader.u64()?);
            reader.i64()?;
            Message::Commit { commit_lsn, end_lsn }
        }
        b'R' => Message::Relation(relation(&mut reader)?),
        b'T' => truncate(&mut reader)?,
        b'O' => {
            reader.u64()?;
            reader.name()?;
            Message::Origin
        }
        b'Y' => {
            reader.u32()?;
            reader.name()?;
            reader.name()?;
            Message::Type
        }
        b'M' => {
            reader.u8()?;
            reader.u64()?;
            reader.name()?;
            let length = reader.length()?;
            reader.bytes(length)?;
            Message::Logical
        }
        other => return Err(PgoutputError::Letter("pgoutput", char::from(other))),
    };
    match reader.rest.len() {
        0 => Ok(message),
        left => Err(PgoutputError::Trailing(reader.message, left)),
    }
}

fn name_of(letter: u8) -> &'static str {
    match letter {
        b'B' => "Begin",
        b'C' => "Commit",
        b'R' => "Relation",
        b'I' => "Insert",
        b'U' => "Update",
        b'D' => "Delete",
        b'T' => "Truncate",
        b'O' => "Origin",
        b'Y' => "Type",
        b'M' => "Message",
        _ => "pgoutput",
    }
}

fn old_kind(letter: u8) -> Option<Old> {
    match letter {
        b'K' => Some(Old::Key),
        b'O' => Some(Old::Full),
        _ => None,
    }
}

fn update<'a>(
    reader: &mut Reader<'a>,
    tuples: &mut Tuples<'a>,
) -> Result<Message<'a>, PgoutputError> {
    let relation = reader.u32()?;
    let letter = reader.u8()?;
    let old = match old_kind(letter) {
        Some(old) => {
            reader.tuple(&mut tuples.old)?;
            reader.letter(b'N')?;
            old
        }
        None if letter == b'N' => Old::None,
        None => return Err(reader.unknown(letter)),
    };
    reader.tuple(&mut tuples.new)?;
    Ok(Message::Update { relation, old })
}

fn relation<'a>(reader: &mut Reader<'a>) -> Result<Relation<'a>, PgoutputError> {
    let oid = reader.u32()?;
    // The server writes an empty string for pg_catalog.
    let namespace = match reader.name()? {
        "" => "pg_catalog",
        namespace => namespace,
    };
    let name = reader.name()?;
    let replica_identity = reader.u8()?;
    let count = reader.u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        columns.push(RelationColumn {
            key: reader.u8()? & 1 == 1,
            name: reader.name()?,
            type_oid: reader.u32()?,
            typmod: reader.i32()?,
        });
    }
    Ok(Relation { oid, namespace, name, replica_identity, columns })
}

fn truncate<'a>(reader: &mut Reader<'a>) -> Result<Message<'a>, PgoutputError> {
    let count = reader.length()?;
    reader.u8()?;
    let bytes = reader.bytes(count.saturating_mul(4))?;
    let (relations, _) = bytes.as_chunks::<4>();
    Ok(Message::Truncate { relations })
}

#[derive(Debug)]
struct Reader<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Reader<'a> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], PgoutputError> {
        let (array, rest) =
            self.rest.split_first_chunk().ok_or(PgoutputError::Truncated(self.message))?;
        self.rest = rest;
        Ok(*array)
    }

    fn u8(&mut self) -> Result<u8, PgoutputError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, PgoutputError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, PgoutputError> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, PgoutputError> {
        self.array().map(i32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, PgoutputError> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, PgoutputError> {
        self.array().map(i64::from_be_bytes)
    }

    fn length(&mut self) -> Result<usize, PgoutputError> {
        usize::try_from(self.i32()?).map_err(|_| PgoutputError::Truncated(self.message))
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], PgoutputError> {
        let (bytes, rest) =
            self.rest.split_at_checked(length).ok_or(PgoutputError::Truncated(self.message))?;
        self.rest = rest;
        Ok(bytes)
    }

    fn name(&mut self) -> Result<&'a str, PgoutputError> {
        let end = memchr::memchr(0, self.rest).ok_or(PgoutputError::Truncated(self.message))?;
        let name = self.bytes(end)?;
        self.rest = &self.rest[1..];
        std::str::from_utf8(name).map_err(|_| PgoutputError::Name(self.message))
    }

    fn letter(&mut self, expected: u8) -> Result<(), PgoutputError> {
        match self.u8()? {
            letter if letter == expected => Ok(()),
            letter => Err(self.unknown(letter)),
        }
    }

    fn unknown(&self, letter: u8) -> PgoutputError {
        PgoutputError::Letter(self.message, char::from(letter))
    }

    fn tuple(&mut self, cells: &mut Vec<Cell<'a>>) -> Result<(), PgoutputError> {
        let count = self.u16()?;
        for _ in 0..count {
            let cell = match self.u8()? {
                b't' => {
                    let length = self.length()?;
                    Cell::Text(self.bytes(length)?)
                }
                b'n' => Cell::Null,
                b'u' => Cell::Unsent,
                letter => return Err(self.unknown(letter)),
            };
            cells.push(cell);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(letter in "[BCRIUDTOYM]", bytes in any::<Vec<u8>>()) {
            let _any = parse(&bytes, &mut Tuples::default());
            let bytes = [letter.as_bytes(), &bytes].concat();
            let _any = parse(&bytes, &mut Tuples::default());
        }
    }

    #[test]
    fn a_row_is_taken_apart_where_it_lies() {
        let bytes = b"U\0\0\x40\x01O\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012u";
        let mut tuples = Tuples::default();
        assert_eq!(
            parse(bytes, &mut tuples),
            Ok(Message::Update { relation: 16385, old: Old::Full })
        );
        assert_eq!(tuples.old, [Cell::Text(b"1"), Cell::Null]);
        assert_eq!(tuples.new, [Cell::Text(b"2"), Cell::Unsent]);
    }

    #[test]
    fn what_is_too_short_or_too_long_is_refused() {
        let whole = b"U\0\0\x40\x01O\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012u".to_vec();
        for length in 0..whole.len() {
            assert!(parse(&whole[..length], &mut Tuples::default()).is_err());
        }
        let longer = [whole, vec![0]].concat();
        assert_eq!(
            parse(&longer, &mut Tuples::default()),
            Err(PgoutputError::Trailing("Update", 1))
        );
    }
}
