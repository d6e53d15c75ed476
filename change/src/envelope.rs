//! What stands around a row in the log: the operation, the place, the images.
//!
//! | field | name | type | written |
//! |---|---|---|---|
//! | 1 | `op` | uint | always: [`Operation`] |
//! | 2 | `epoch` | uint | always |
//! | 3 | `file` | uint | if not 0: [`Commit::file`] |
//! | 4 | `position` | uint | always: [`Commit::position`] |
//! | 5 | `ordinal` | uint | always |
//! | 6 | `committed_at_us` | sint, microseconds since 1970, UTC | if known |
//! | 7 | `unsent` | packed uint, field numbers of `after` | if any |
//! | 8 | `before` | row: the old row's key, or all of it | as the source logged it |
//! | 9 | `before_full` | bool | if `before` is a whole row |
//! | 10 | `after` | row | insert, update, read |
//! | 11 | `last` | bool | on the transaction's last row |
//! | 12 | `transaction` | string: xid or GTID | with `last` |
//!
//! `last` stands behind the images, so that a writer can decide it when it sees what follows.
//! Decoders read version 1 of this table for ever: a field is never reused.

use crate::proto::{DecodeError, Fields, put_bytes, put_uint, take_varint, unzigzag, zigzag};
use crate::{Commit, Epoch, Ordinal, Place};

/// What happened to the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A row was inserted.
    Insert,
    /// A row was changed.
    Update,
    /// A row was deleted.
    Delete,
    /// The table was emptied.
    Truncate,
    /// A row as a snapshot found it.
    Read,
}

impl Operation {
    const fn number(self) -> u64 {
        match self {
            Self::Insert => 1,
            Self::Update => 2,
            Self::Delete => 3,
            Self::Truncate => 4,
            Self::Read => 5,
        }
    }

    fn of(number: u64) -> Result<Self, DecodeError> {
        Ok(match number {
            1 => Self::Insert,
            2 => Self::Update,
            3 => Self::Delete,
            4 => Self::Truncate,
            5 => Self::Read,
            value => return Err(DecodeError::Range { field: 1, value }),
        })
    }
}

/// A change, read. Images are slices of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// What happened.
    pub operation: Operation,
    /// Where in the source's order.
    pub place: Place,
    /// When the source committed: microseconds since 1970, UTC.
    pub committed_at_us: Option<i64>,
    /// The old row: its key, or all of it if `before_full`.
    pub before: Option<&'a [u8]>,
    /// Whether `before` has every column.
    pub before_full: bool,
    /// The new row.
    pub after: Option<&'a [u8]>,
    /// Field numbers of `after` that the source did not send. Empty for nearly every row, and an
    /// empty vector does not allocate.
    pub unsent: Vec<u32>,
    /// Whether this row ends its transaction.
    pub last: bool,
    /// The transaction's xid or GTID, with `last`.
    pub transaction: Option<&'a str>,
}

impl<'a> Envelope<'a> {
    /// Reads an envelope.
    ///
    /// # Errors
    /// The bytes are not an envelope of a version we know.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (mut operation, mut epoch, mut file, mut position, mut ordinal) =
            (None, None, 0, None, None);
        let mut envelope = Envelope {
            operation: Operation::Insert,
            place: Place::default(),
            committed_at_us: None,
            before: None,
            before_full: false,
            after: None,
            unsent: Vec::new(),
            last: false,
            transaction: None,
        };
        let mut fields = Fields::new(bytes);
        while let Some((field, content)) = fields.next()? {
            match field {
                1 => operation = Some(Operation::of(content.uint(field)?)?),
                2 => epoch = Some(content.uint(field)?),
                3 => file = content.uint(field)?,
                4 => position = Some(content.uint(field)?),
                5 => ordinal = Some(content.uint(field)?),
                6 => envelope.committed_at_us = Some(unzigzag(content.uint(field)?)),
                7 => envelope.unsent = decode_packed(content.bytes(field)?)?,
                8 => envelope.before = Some(content.bytes(field)?),
                9 => envelope.before_full = content.uint(field)? != 0,
                10 => envelope.after = Some(content.bytes(field)?),
                11 => envelope.last = content.uint(field)? != 0,
                12 => envelope.transaction = Some(content.text(field)?),
                _ => return Err(DecodeError::UnknownField { field }),
            }
        }
        envelope.operation = operation.ok_or(DecodeError::Missing { field: 1 })?;
        envelope.place = decode_place(epoch, file, position, ordinal)?;
        Ok(envelope)
    }
}

fn decode_place(
    epoch: Option<u64>,
    file: u64,
    position: Option<u64>,
    ordinal: Option<u64>,
) -> Result<Place, DecodeError> {
    let epoch = epoch.ok_or(DecodeError::Missing { field: 2 })?;
    let epoch = u32::try_from(epoch).map_err(|_| DecodeError::Range { field: 2, value: epoch })?;
    let position = position.ok_or(DecodeError::Missing { field: 4 })?;
    let ordinal = ordinal.ok_or(DecodeError::Missing { field: 5 })?;
    Ok(Place::new(Epoch::new(epoch), Commit::binlog(file, position), Ordinal::new(ordinal)))
}

fn decode_packed(mut bytes: &[u8]) -> Result<Vec<u32>, DecodeError> {
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        let value = take_varint(&mut bytes)?;
        numbers.push(u32::try_from(value).map_err(|_| DecodeError::Range { field: 7, value })?);
    }
    Ok(numbers)
}

/// Writes envelopes; fields in the order of their numbers.
#[derive(Debug)]
pub struct EnvelopeWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> EnvelopeWriter<'a> {
    /// Begins an envelope at the end of `out`.
    pub fn begin(
        out: &'a mut Vec<u8>,
        operation: Operation,
        place: Place,
        committed_at_us: Option<i64>,
    ) -> Self {
        put_uint(out, 1, operation.number());
        put_uint(out, 2, u64::from(place.epoch.get()));
        if place.commit.file() != 0 {
            put_uint(out, 3, place.commit.file());
        }
        put_uint(out, 4, place.commit.position());
        put_uint(out, 5, place.ordinal.get());
        if let Some(at) = committed_at_us {
            put_uint(out, 6, zigzag(at));
        }
        Self { out }
    }

    /// Goes on with the envelope that ends `out`: a writer that held it back until it knew whether
    /// the row was the last of its transaction.
    pub fn resume(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// The field numbers of columns that `after` lacks because the source did not send them.
    pub fn unsent(&mut self, fields: &[u32]) {
        if fields.is_empty() {
            return;
        }
        let mut packed = Vec::with_capacity(fields.len() * 2);
        for &field in fields {
            crate::proto::put_varint(&mut packed, u64::from(field));
        }
        put_bytes(self.out, 7, &packed);
    }

    /// The old row, or its key.
    pub fn before(&mut self, row: &[u8], full: bool) {
        put_bytes(self.out, 8, row);
        if full {
            put_uint(self.out, 9, 1);
        }
    }

    /// The new row.
    pub fn after(&mut self, row: &[u8]) {
        put_bytes(self.out, 10, row);
    }

    /// Marks the row as the last of the transaction named `transaction`.
    pub fn last(&mut self, transaction: Option<&str>) {
        put_uint(self.out, 11, 1);
        if let Some(transaction) = transaction {
            put_bytes(self.out, 12, transaction.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    proptest! {
        #[test]
        fn envelopes_come_back(
            (epoch, file, position, ordinal) in any::<(u32, u64, u64, u64)>(),
            at in any::<Option<i64>>(),
            before in any::<Option<(Vec<u8>, bool)>>(),
            after in any::<Option<Vec<u8>>>(),
            unsent in any::<Vec<u32>>(),
            last in any::<Option<Option<String>>>(),
        ) {
            let place = Place::new(
                Epoch::new(epoch), Commit::binlog(file, position), Ordinal::new(ordinal));
            let mut bytes = Vec::new();
            let mut writer =
                EnvelopeWriter::begin(&mut bytes, Operation::Update, place, at);
            writer.unsent(&unsent);
            if let Some((row, full)) = &before { writer.before(row, *full); }
            if let Some(row) = &after { writer.after(row); }
            if let Some(transaction) = &last { writer.last(transaction.as_deref()); }
            let expected = Envelope {
                operation: Operation::Update,
                place,
                committed_at_us: at,
                before: before.as_ref().map(|(row, _)| row.as_slice()),
                before_full: before.as_ref().is_some_and(|(_, full)| *full),
                after: after.as_deref(),
                unsent,
                last: last.is_some(),
                transaction: last.as_ref().and_then(Option::as_deref),
            };
            assert_eq!(Envelope::decode(&bytes), Ok(expected));
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
            drop(Envelope::decode(&bytes));
        }
    }
}
