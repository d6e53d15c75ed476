//! What the log holds besides rows: markers that say who writes, where transactions and snapshots
//! begin and end, and pieces of rows too large for one record.
//!
//! One fixed schema for all of them, so that one id tells a marker from a row. A control record
//! has no key.
//!
//! | field | marker | its fields |
//! |---|---|---|
//! | 1 | open | 1 producer id, 2 producer epoch, 3 place epoch, 4 server (text) |
//! | 2 | end | 1 epoch, 2 file, 3 position, 4 committed at (µs, sint), 5 transaction, 6 rows |
//! | 3 | idle | 1 epoch, 2 file, 3 position |
//! | 4 | snapshot begin | 1 epoch, 2 file, 3 position |
//! | 5 | table begin | 1 epoch, 2 file, 3 position, 4 ordinal, 5 schema id |
//! | 6 | table end | 1 epoch, 2 file, 3 position, 4 ordinal, 5 schema id, 6 rows |
//! | 7 | snapshot end | 1 epoch, 2 file, 3 position |
//! | 8 | schema change | 1 epoch, 2 file, 3 position, 4 ordinal, 5 schema, 6 table, 7 description |
//! | 9 | chunk | 1 attempt, 2 index, 3 last, 4 bytes |
//! | 10 | snapshot cut | 1 epoch, 2 file, 3 position |
//! | 11 | snapshot rest | 1 epoch, 2 file, 3 position |
//! | 12 | reached | 1 epoch, 2 file, 3 position, 4 ordinal, 5 snapshot |

use crate::proto::{
    DecodeError, Field, Fields, put_bytes, put_tag, put_uint, put_varint, unzigzag, zigzag,
};
use crate::{Commit, Epoch, Ordinal, Place, SchemaId, TableId};

/// The subject under which the schema of control records stands in the registry.
pub const CONTROL_SUBJECT: &str = "tailwater-control";

/// The schema of control records, for readers that are not Tailwater.
pub const CONTROL_SCHEMA: &str = r#"syntax = "proto3";
package tailwater;

message Control {
  oneof marker {
    Open open = 1;
    End end = 2;
    Position idle = 3;
    Position snapshot_begin = 4;
    Table table_begin = 5;
    Table table_end = 6;
    Position snapshot_end = 7;
    SchemaChange schema_change = 8;
    Chunk chunk = 9;
    Position snapshot_cut = 10;
    Position snapshot_rest = 11;
    Reached reached = 12;
  }
}

message Open {
  uint64 producer_id = 1;
  uint64 producer_epoch = 2;
  uint64 epoch = 3;
  string server = 4;
}

message End {
  uint64 epoch = 1;
  uint64 file = 2;
  uint64 position = 3;
  sint64 committed_at_us = 4;
  string transaction = 5;
  uint64 rows = 6;
}

message Position {
  uint64 epoch = 1;
  uint64 file = 2;
  uint64 position = 3;
}

message Table {
  uint64 epoch = 1;
  uint64 file = 2;
  uint64 position = 3;
  uint64 ordinal = 4;
  uint64 schema_id = 5;
  uint64 rows = 6;
}

message SchemaChange {
  uint64 epoch = 1;
  uint64 file = 2;
  uint64 position = 3;
  uint64 ordinal = 4;
  string schema = 5;
  string table = 6;
  string description = 7;
}

message Chunk {
  uint64 attempt = 1;
  uint64 index = 2;
  bool last = 3;
  bytes data = 4;
}

message Reached {
  uint64 epoch = 1;
  uint64 file = 2;
  uint64 position = 3;
  uint64 ordinal = 4;
  bool snapshot = 5;
}
"#;

/// How every version of [`CONTROL_SCHEMA`] begins, and no table's schema.
const CONTROL_HEAD: &str = "syntax = \"proto3\";\npackage tailwater;\n\nmessage Control {\n";

/// Whether a registered text is the schema of control records, of this version of Tailwater or of
/// another: markers are only ever added, and one that is not known is an error where it is read.
pub fn is_control_schema(text: &str) -> bool {
    text.starts_with(CONTROL_HEAD)
}

/// A control record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control<'a> {
    /// This producer writes from here on; what an older one appends later does not count.
    Open {
        /// The writer's producer id.
        producer_id: u64,
        /// Its producer epoch.
        producer_epoch: u64,
        /// The epoch of the places it writes.
        epoch: Epoch,
        /// The source server's identity: positions of two servers do not compare.
        server: &'a str,
    },
    /// The transaction at `(epoch, commit)` ends here: its last row carried no flag.
    End {
        /// The stream.
        epoch: Epoch,
        /// The transaction.
        commit: Commit,
        /// When the source committed: microseconds since 1970, UTC.
        committed_at_us: Option<i64>,
        /// xid or GTID.
        transaction: Option<&'a str>,
        /// How many of its rows are in this partition.
        rows: u64,
    },
    /// The source committed nothing for us up to and including this commit.
    Idle {
        /// The stream.
        epoch: Epoch,
        /// Through here.
        commit: Commit,
    },
    /// A snapshot at this consistent point begins.
    SnapshotBegin {
        /// The stream that will follow.
        epoch: Epoch,
        /// The consistent point.
        commit: Commit,
    },
    /// The rows of one table begin: what the target has of it is replaced.
    TableBegin {
        /// Where: the ordinal is that of the table's first row.
        place: Place,
        /// The table.
        schema: SchemaId,
    },
    /// The rows of one table are complete.
    TableEnd {
        /// Where: the ordinal after the table's last row.
        place: Place,
        /// The table.
        schema: SchemaId,
        /// How many rows it had.
        rows: u64,
    },
    /// The snapshot is complete: the stream goes on after `commit`.
    SnapshotEnd {
        /// The stream that follows.
        epoch: Epoch,
        /// The consistent point.
        commit: Commit,
    },
    /// The snapshot at this consistent point broke off. Its tables that have their end stay, as of
    /// that point: the stream follows, with rows of theirs alone. The others are void: they come
    /// again after a [`SnapshotRest`](Self::SnapshotRest).
    SnapshotCut {
        /// The snapshot's stream.
        epoch: Epoch,
        /// The consistent point.
        commit: Commit,
    },
    /// What a cut snapshot lacks begins, read at this later consistent point, up to which the stream
    /// has brought the tables that stayed.
    SnapshotRest {
        /// The snapshot's stream.
        epoch: Epoch,
        /// The consistent point.
        commit: Commit,
    },
    /// A captured table changed its definition here.
    SchemaChange {
        /// Where.
        place: Place,
        /// The table.
        table: TableId,
        /// The statement, or what differs.
        description: &'a str,
    },
    /// With several partitions: this one has everything up to and including this place of the
    /// transaction (or snapshot) that is being written. What others have of it need not wait.
    Reached {
        /// Inclusive.
        place: Place,
        /// Whether it is a snapshot's.
        snapshot: bool,
    },
    /// A piece of a record too large for one.
    Chunk {
        /// Which record: no other attempt to write it has the same number.
        attempt: u64,
        /// Which piece, from 0.
        index: u64,
        /// Whether the record ends with it.
        last: bool,
        /// The bytes.
        data: &'a [u8],
    },
}

impl<'a> Control<'a> {
    /// Appends the message to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let number = match self {
            Self::Open { producer_id, producer_epoch, epoch, server } => {
                put_uint(&mut body, 1, *producer_id);
                put_uint(&mut body, 2, *producer_epoch);
                put_uint(&mut body, 3, u64::from(epoch.get()));
                put_bytes(&mut body, 4, server.as_bytes());
                1
            }
            Self::End { epoch, commit, committed_at_us, transaction, rows } => {
                put_position(&mut body, *epoch, *commit);
                if let Some(at) = committed_at_us {
                    put_uint(&mut body, 4, zigzag(*at));
                }
                if let Some(transaction) = transaction {
                    put_bytes(&mut body, 5, transaction.as_bytes());
                }
                put_uint(&mut body, 6, *rows);
                2
            }
            Self::Idle { epoch, commit } => {
                put_position(&mut body, *epoch, *commit);
                3
            }
            Self::SnapshotBegin { epoch, commit } => {
                put_position(&mut body, *epoch, *commit);
                4
            }
            Self::TableBegin { place, schema } => {
                put_place(&mut body, *place);
                put_uint(&mut body, 5, u64::from(schema.get()));
                5
            }
            Self::TableEnd { place, schema, rows } => {
                put_place(&mut body, *place);
                put_uint(&mut body, 5, u64::from(schema.get()));
                put_uint(&mut body, 6, *rows);
                6
            }
            Self::SnapshotEnd { epoch, commit } => {
                put_position(&mut body, *epoch, *commit);
                7
            }
            Self::SchemaChange { place, table, description } => {
                put_place(&mut body, *place);
                put_bytes(&mut body, 5, table.schema.as_bytes());
                put_bytes(&mut body, 6, table.name.as_bytes());
                put_bytes(&mut body, 7, description.as_bytes());
                8
            }
            Self::SnapshotCut { epoch, commit } => {
                put_position(&mut body, *epoch, *commit);
                10
            }
            Self::SnapshotRest { epoch, commit } => {
                put_position(&mut body, *epoch, *commit);
                11
            }
            Self::Reached { place, snapshot } => {
                put_place(&mut body, *place);
                put_uint(&mut body, 5, u64::from(*snapshot));
                12
            }
            Self::Chunk { attempt, index, last, data } => {
                return encode_chunk(out, *attempt, *index, *last, data);
            }
        };
        put_bytes(out, number, &body);
    }

    /// Reads a control record.
    ///
    /// # Errors
    /// The bytes are not a marker of a version we know.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let Some((number, content)) = fields.next()? else {
            return Err(DecodeError::Missing { field: 1 });
        };
        let body = Body::read(content.bytes(number)?)?;
        if let Some((field, _)) = fields.next()? {
            return Err(DecodeError::UnknownField { field });
        }
        Ok(match number {
            1 => Self::Open {
                producer_id: body.uint(1)?,
                producer_epoch: body.uint(2)?,
                epoch: body.epoch(3)?,
                server: body.text(4)?.unwrap_or_default(),
            },
            2 => Self::End {
                epoch: body.epoch(1)?,
                commit: body.commit()?,
                committed_at_us: body.optional_uint(4)?.map(unzigzag),
                transaction: body.text(5)?,
                rows: body.uint(6)?,
            },
            3 => Self::Idle { epoch: body.epoch(1)?, commit: body.commit()? },
            4 => Self::SnapshotBegin { epoch: body.epoch(1)?, commit: body.commit()? },
            5 => Self::TableBegin { place: body.place()?, schema: body.schema()? },
            6 => {
                Self::TableEnd { place: body.place()?, schema: body.schema()?, rows: body.uint(6)? }
            }
            7 => Self::SnapshotEnd { epoch: body.epoch(1)?, commit: body.commit()? },
            8 => Self::SchemaChange {
                place: body.place()?,
                table: TableId::new(
                    body.text(5)?.unwrap_or_default(),
                    body.text(6)?.unwrap_or_default(),
                ),
                description: body.text(7)?.unwrap_or_default(),
            },
            9 => Self::Chunk {
                attempt: body.uint(1)?,
                index: body.uint(2)?,
                last: body.optional_uint(3)?.is_some_and(|last| last != 0),
                data: body.get(4).map_or(Ok(&[][..]), |content| content.bytes(4))?,
            },
            10 => Self::SnapshotCut { epoch: body.epoch(1)?, commit: body.commit()? },
            11 => Self::SnapshotRest { epoch: body.epoch(1)?, commit: body.commit()? },
            12 => Self::Reached { place: body.place()?, snapshot: body.uint(5)? != 0 },
            field => return Err(DecodeError::UnknownField { field }),
        })
    }
}

/// A chunk is written without a second copy of its bytes.
fn encode_chunk(out: &mut Vec<u8>, attempt: u64, index: u64, last: bool, data: &[u8]) {
    let mut head = Vec::with_capacity(32);
    put_uint(&mut head, 1, attempt);
    put_uint(&mut head, 2, index);
    if last {
        put_uint(&mut head, 3, 1);
    }
    put_tag(&mut head, 4, crate::proto::LEN);
    put_varint(&mut head, data.len() as u64);
    put_tag(out, 9, crate::proto::LEN);
    put_varint(out, (head.len() + data.len()) as u64);
    out.extend_from_slice(&head);
    out.extend_from_slice(data);
}

fn put_position(out: &mut Vec<u8>, epoch: Epoch, commit: Commit) {
    put_uint(out, 1, u64::from(epoch.get()));
    put_uint(out, 2, commit.file());
    put_uint(out, 3, commit.position());
}

fn put_place(out: &mut Vec<u8>, place: Place) {
    put_position(out, place.epoch, place.commit);
    put_uint(out, 4, place.ordinal.get());
}

/// The fields of a marker, by number.
struct Body<'a> {
    fields: [Option<Field<'a>>; 8],
}

impl<'a> Body<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut body = Self { fields: [None; 8] };
        let mut fields = Fields::new(bytes);
        while let Some((field, content)) = fields.next()? {
            let slot = usize::try_from(field)
                .ok()
                .and_then(|field| body.fields.get_mut(field))
                .ok_or(DecodeError::UnknownField { field })?;
            *slot = Some(content);
        }
        Ok(body)
    }

    fn get(&self, field: usize) -> Option<Field<'a>> {
        self.fields[field]
    }

    fn optional_uint(&self, field: u32) -> Result<Option<u64>, DecodeError> {
        self.get(field as usize).map(|content| content.uint(field)).transpose()
    }

    fn uint(&self, field: u32) -> Result<u64, DecodeError> {
        self.optional_uint(field)?.ok_or(DecodeError::Missing { field })
    }

    fn text(&self, field: u32) -> Result<Option<&'a str>, DecodeError> {
        self.get(field as usize).map(|content| content.text(field)).transpose()
    }

    fn epoch(&self, field: u32) -> Result<Epoch, DecodeError> {
        let value = self.uint(field)?;
        u32::try_from(value).map(Epoch::new).map_err(|_| DecodeError::Range { field, value })
    }

    fn commit(&self) -> Result<Commit, DecodeError> {
        Ok(Commit::binlog(self.uint(2)?, self.uint(3)?))
    }

    fn place(&self) -> Result<Place, DecodeError> {
        Ok(Place::new(self.epoch(1)?, self.commit()?, Ordinal::new(self.uint(4)?)))
    }

    fn schema(&self) -> Result<SchemaId, DecodeError> {
        let value = self.uint(5)?;
        u32::try_from(value).map(SchemaId::new).map_err(|_| DecodeError::Range { field: 5, value })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn markers_come_back() {
        let (epoch, commit) = (Epoch::new(3), Commit::binlog(7, 1 << 40));
        let place = Place::new(epoch, commit, Ordinal::new(5));
        let schema = SchemaId::new(9);
        for control in [
            Control::Open { producer_id: 4, producer_epoch: 0, epoch, server: "7 timeline 1" },
            Control::End {
                epoch,
                commit,
                committed_at_us: Some(-5),
                transaction: Some("0-1-7"),
                rows: 3,
            },
            Control::End { epoch, commit, committed_at_us: None, transaction: None, rows: 0 },
            Control::Idle { epoch, commit },
            Control::SnapshotBegin { epoch, commit },
            Control::TableBegin { place, schema },
            Control::TableEnd { place, schema, rows: 12 },
            Control::SnapshotEnd { epoch, commit },
            Control::SnapshotCut { epoch, commit },
            Control::SnapshotRest { epoch, commit },
            Control::Reached { place, snapshot: true },
            Control::Reached { place, snapshot: false },
            Control::SchemaChange {
                place,
                table: TableId::new("public", "orders"),
                description: "column total became numeric(12,2)",
            },
            Control::Chunk { attempt: 99, index: 2, last: true, data: b"bytes" },
            Control::Chunk { attempt: 99, index: 0, last: false, data: b"" },
        ] {
            let mut bytes = Vec::new();
            control.encode(&mut bytes);
            assert_eq!(Control::decode(&bytes), Ok(control));
        }
    }

    /// Records of an earlier version name its text, and are still there after an upgrade.
    #[test]
    fn a_schema_of_control_records_is_known_in_every_version() {
        let before = CONTROL_SCHEMA.replace(
            "    Position snapshot_cut = 10;\n    Position snapshot_rest = 11;\n    Reached \
             reached = 12;\n",
            "",
        );
        assert_ne!(before, CONTROL_SCHEMA);
        assert!(is_control_schema(CONTROL_SCHEMA) && is_control_schema(&before));
        let table = crate::schema_text(&crate::TableSchema {
            table: TableId::new("public", "Control"),
            dialect: crate::Dialect::Postgres,
            columns: Vec::new(),
            identity: crate::Identity::Full,
            indexes: Vec::new(),
            foreign_keys: Vec::new(),
            hides_cascades: false,
            options: None,
        });
        assert!(!is_control_schema(&table.unwrap()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in any::<Vec<u8>>()) {
            drop(Control::decode(&bytes));
        }
    }
}
