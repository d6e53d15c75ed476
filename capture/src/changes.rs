//! The hand-off from a connector to capture: many decoded rows in one arena.
//!
//! A connector decodes whatever its read buffer holds into [`Changes`], in one go and without an
//! allocation per row: images are encoded at once as row messages into the arena, events point
//! into it. Capture drains it and hands it back.

use std::ops::Range;
use std::sync::Arc;

use tailwater_change::{Commit, Operation, Ordinal, RowWriter, TableSchema, Value};

/// Which table a row belongs to: a number that the connector chooses, small and dense, and binds
/// with [`Changes::schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableSlot(pub usize);

/// A row image to be encoded: one value per column of the schema.
#[derive(Debug, Clone, Copy)]
pub enum Image<'a> {
    /// Only the identity's columns are known.
    Key(&'a [Value<'a>]),
    /// Every column is known.
    Full(&'a [Value<'a>]),
}

/// What a source says, in its order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// From here on `slot` is the table as `schema` says. Comes before the first row of a slot.
    Schema {
        /// The slot.
        slot: TableSlot,
        /// The table.
        schema: Arc<TableSchema>,
    },
    /// A transaction that committed at `commit` begins.
    Begin {
        /// Its place.
        commit: Commit,
        /// Microseconds since 1970, UTC.
        committed_at_us: Option<i64>,
    },
    /// One row of the transaction (or of the snapshot's table).
    Row(RowEvent),
    /// The transaction is complete.
    End {
        /// xid or GTID.
        transaction: Option<String>,
    },
    /// A captured table changed its definition in the transaction (or between transactions).
    SchemaChange {
        /// The table, as it was.
        slot: Option<TableSlot>,
        /// `schema.table`.
        table: tailwater_change::TableId,
        /// What changed, for the operator; no row values.
        description: String,
    },
    /// Outside a transaction: nothing of ours committed up to and including `through`.
    Idle {
        /// Inclusive.
        through: Commit,
    },
    /// Snapshot: the rows of this table follow.
    TableBegin(TableSlot),
    /// Snapshot: the rows of this table are complete.
    TableEnd(TableSlot),
    /// Snapshot: every table is complete.
    SnapshotEnd,
}

/// A row's images, as ranges of the arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowEvent {
    /// Its table.
    pub slot: TableSlot,
    /// What happened.
    pub operation: Operation,
    /// Its number in the transaction, counting every row the source sent.
    pub ordinal: Ordinal,
    /// The identity as a row message: the record's key. Empty for tables without one.
    pub key: Range<usize>,
    /// The old row.
    pub before: Option<Range<usize>>,
    /// Whether `before` has every column.
    pub before_full: bool,
    /// The new row.
    pub after: Option<Range<usize>>,
    /// Range of [`Changes::unsent`]'s numbers.
    pub unsent: Range<usize>,
}

/// Events and the bytes they point into.
#[derive(Debug, Default)]
pub struct Changes {
    arena: Vec<u8>,
    unsent: Vec<u32>,
    events: Vec<Event>,
}

/// An arena larger than this is given back after it was drained: one large row must not hold its
/// size for ever. Above what a read of the network buffer decodes to, so steady streams reuse it.
const KEPT_ARENA_BYTES: usize = 4 << 20;

impl Changes {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds `slot` to `schema` for the rows that follow.
    pub fn schema(&mut self, slot: TableSlot, schema: Arc<TableSchema>) {
        self.events.push(Event::Schema { slot, schema });
    }

    /// A transaction begins.
    pub fn begin(&mut self, commit: Commit, committed_at_us: Option<i64>) {
        self.events.push(Event::Begin { commit, committed_at_us });
    }

    /// The transaction is complete.
    pub fn end(&mut self, transaction: Option<String>) {
        self.events.push(Event::End { transaction });
    }

    /// Any event without images.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Adds a row of `schema`, which `slot` is bound to. Each image has one value per column of
    /// the schema; values of columns that do not flow are ignored.
    ///
    /// Updates of a table with a key give `before` only where the key changed (or where the source
    /// cannot say). Deletes always give it; tables without a key give `Image::Full`.
    pub fn row(
        &mut self,
        slot: TableSlot,
        schema: &TableSchema,
        operation: Operation,
        ordinal: Ordinal,
        before: Option<Image<'_>>,
        after: Option<&[Value<'_>]>,
    ) {
        let (before, before_full) = match before {
            None => (None, false),
            Some(Image::Key(values)) => (Some(self.write_key(schema, values)), false),
            Some(Image::Full(values)) => (Some(self.write(schema, values)), true),
        };
        let unsent_from = self.unsent.len();
        let (after, key) = match after {
            Some(values) => {
                let after = self.write(schema, values);
                self.note_unsent(schema, values);
                (Some(after), self.write_key(schema, values))
            }
            // A deleted row's key: the image is the key, or the key is cut out of the image.
            None if before_full && !schema.key().is_empty() => {
                (None, self.key_of(schema, before.clone()))
            }
            None if before_full => (None, 0..0),
            None => (None, before.clone().unwrap_or(0..0)),
        };
        let unsent = unsent_from..self.unsent.len();
        self.events.push(Event::Row(RowEvent {
            slot,
            operation,
            ordinal,
            key,
            before,
            before_full,
            after,
            unsent,
        }));
    }

    /// The events, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The bytes of an image.
    pub fn image(&self, range: &Range<usize>) -> &[u8] {
        &self.arena[range.clone()]
    }

    /// The field numbers that a row's `unsent` range names.
    pub fn unsent(&self, range: &Range<usize>) -> &[u32] {
        &self.unsent[range.clone()]
    }

    /// Bytes held: the connector stops adding when this passes what capture allowed.
    pub fn bytes(&self) -> usize {
        self.arena.len() + self.events.len() * size_of::<Event>()
    }

    /// Whether there is no event.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Empties it for the next round.
    pub fn clear(&mut self) {
        self.events.clear();
        self.unsent.clear();
        self.arena.clear();
        if self.arena.capacity() > KEPT_ARENA_BYTES {
            self.arena = Vec::new();
        }
    }

    fn write(&mut self, schema: &TableSchema, values: &[Value<'_>]) -> Range<usize> {
        let from = self.arena.len();
        let mut writer = RowWriter::new(&mut self.arena);
        for (column, value) in schema.columns.iter().zip(values) {
            if column.flows() {
                writer.column(column.field, *value);
            }
        }
        from..self.arena.len()
    }

    fn write_key(&mut self, schema: &TableSchema, values: &[Value<'_>]) -> Range<usize> {
        let from = self.arena.len();
        let mut writer = RowWriter::new(&mut self.arena);
        for &index in schema.key() {
            if let (Some(column), Some(value)) = (schema.columns.get(index), values.get(index)) {
                writer.column(column.field, *value);
            }
        }
        from..self.arena.len()
    }

    fn key_of(&mut self, schema: &TableSchema, full: Option<Range<usize>>) -> Range<usize> {
        let from = self.arena.len();
        let Some(full) = full else { return from..from };
        let image = self.arena[full].to_vec();
        let mut values = Vec::new();
        if tailwater_change::RowReader::new(schema).read(&image, &mut values).is_ok() {
            return self.write_key(schema, &values);
        }
        from..from
    }

    fn note_unsent(&mut self, schema: &TableSchema, values: &[Value<'_>]) {
        for (column, value) in schema.columns.iter().zip(values) {
            if value.is_unsent() && column.flows() {
                self.unsent.push(column.field);
            }
        }
    }
}
