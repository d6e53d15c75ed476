//! What the assembler gives, and where reading could begin again after each of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tailwater_change::{Place, SchemaId, TableId};
use tailwater_kafka::Offset;

use crate::{Change, Table};

/// Who writes the partition: what another producer appends does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Kafka's producer id.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
}

/// Where reading of a partition goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The first offset not taken.
    pub next_offset: Offset,
    /// Whose batches count from there on, as far as an open marker has said.
    pub writer: Option<Writer>,
}

/// How far the log is taken when this is: what is kept as progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The last place taken, inclusive.
    pub place: Place,
    /// The first offset not taken.
    pub next_offset: Offset,
    /// Whose batches count from there on, as far as an open marker has said.
    pub writer: Option<Writer>,
    /// Of several partitions: the same of those after the first.
    pub others: Option<Arc<[Position]>>,
}

impl Mark {
    /// Where reading goes on, by the partition's number.
    pub fn positions(&self) -> impl Iterator<Item = Position> + '_ {
        let first = Position { next_offset: self.next_offset, writer: self.writer };
        std::iter::once(first).chain(self.others.iter().flat_map(|others| others.iter().copied()))
    }
}

/// Rows of one transaction: all of them, or a bounded part of a large one.
#[derive(Debug)]
pub struct Part {
    /// The rows in the source's order; those of tables that are not applied are left out.
    pub changes: Vec<Change>,
    /// About what the rows hold of memory: their own, and what was walked of the log since the last
    /// part. Rows that are left out lie in the read buffers that their neighbours keep.
    pub bytes: usize,
    /// Where the transaction's first record stands.
    pub from: Offset,
    /// Whether nothing of the transaction was given before.
    pub first: bool,
    /// Whether the transaction is complete with this.
    pub end: bool,
    /// Whether these are rows of a snapshot: may be committed in parts.
    pub snapshot: bool,
    /// When the source committed: microseconds since 1970, UTC.
    pub committed_at_us: Option<i64>,
    /// The last row of this part; after the end the whole transaction.
    pub mark: Mark,
}

/// What comes out of a partition, in order.
#[derive(Debug)]
pub enum Item {
    /// A record names this schema for the first time: [`learn`](super::Assembler::learn) it, then go on.
    Schema(SchemaId),
    /// Another writer writes from here on.
    Opened {
        /// The server that it reads: positions of two of them do not compare.
        server: String,
    },
    /// Rows.
    Part(Part),
    /// The transaction of which parts were given has no end and gets none: undo them.
    Voided {
        /// The transaction.
        transaction: Place,
        /// Whether it was a snapshot.
        snapshot: bool,
    },
    /// Nothing for us up to here.
    Idle(Mark),
    /// A snapshot begins.
    SnapshotBegin {
        /// Its synthetic transaction.
        snapshot: Place,
        /// How far: nothing of the snapshot yet.
        mark: Mark,
    },
    /// The rows of a table follow; they replace what the target has.
    TableBegin {
        /// The table.
        schema: SchemaId,
        /// The place of the table's first row. The mark's own place is the last row before it.
        begin: Place,
        /// How far.
        mark: Mark,
    },
    /// The rows of a table are complete.
    TableEnd {
        /// The table.
        schema: SchemaId,
        /// How far.
        mark: Mark,
    },
    /// The snapshot is complete.
    SnapshotEnd(Mark),
    /// The snapshot broke off. Of its tables, those that have had their end stay and follow the
    /// stream from here; the others come again in its rest.
    SnapshotCut(Mark),
    /// What a cut snapshot lacks begins, at a later point.
    SnapshotRest {
        /// Its synthetic transaction.
        snapshot: Place,
        /// How far: nothing of it yet.
        mark: Mark,
    },
    /// A table changed its definition.
    SchemaChange {
        /// The table in the source.
        table: TableId,
        /// What changed.
        description: String,
        /// Where in the source's order; between transactions: what it stands behind.
        place: Place,
        /// Where in the log.
        offset: Offset,
    },
}

/// What a schema id stands for.
#[derive(Debug, Clone)]
pub enum SchemaUse {
    /// Markers.
    Control,
    /// Rows of a table that this pipeline does not apply.
    Ignored,
    /// Rows of this table.
    Table(Arc<Table>),
}
