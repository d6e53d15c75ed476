//! Tables, rows and logs for the tests.

use std::sync::Arc;

use bytes::Bytes;
use tailwater_apply::{Change, RowImage, Table, TargetTable};
use tailwater_change::{
    Column, Commit, Control, Dialect, EnvelopeWriter, Epoch, Frame, Identity, Index, Kind,
    Operation, Ordinal, Place, RowWriter, SchemaId, TableId, TableSchema, Value,
};
use tailwater_kafka::{
    BatchBuilder, BatchStamp, Offset, ProducerEpoch, ProducerId, RecordBatch, Sequence,
};
use tailwater_memory::{Cell, ScriptedChange};

pub(crate) fn column(name: &str, field: u32, kind: Kind) -> Column {
    Column::nullable(name, field, kind, "native")
}

pub(crate) fn text() -> Kind {
    Kind::Text { length: None, fixed: false }
}

pub(crate) fn int() -> Kind {
    Kind::Int { bits: 64, signed: true }
}

/// `(id, a, b, c)` with key `id`, and unique keys over the columns named.
pub(crate) fn schema(name: &str, unique: &[&[&str]]) -> Arc<TableSchema> {
    let indexes = unique.iter().map(|columns| Index {
        name: format!("{name}_{}", columns.join("_")),
        columns: columns.iter().map(|&column| column.to_owned()).collect(),
        unique: true,
        primary: false,
        definition: String::new(),
    });
    Arc::new(TableSchema {
        table: TableId::new("public", name),
        dialect: Dialect::Postgres,
        columns: vec![
            column("id", 1, int()),
            column("a", 2, int()),
            column("b", 3, text()),
            column("c", 4, text()),
        ],
        identity: Identity::Key(vec![0]),
        indexes: indexes.collect(),
        foreign_keys: Vec::new(),
        hides_cascades: false,
        options: None,
    })
}

/// A table without a key.
pub(crate) fn keyless(name: &str) -> Arc<TableSchema> {
    let mut schema = (*schema(name, &[])).clone();
    schema.identity = Identity::Full;
    Arc::new(schema)
}

/// The table as a target with exactly the schema's unique keys describes it.
pub(crate) fn table(schema: &Arc<TableSchema>) -> Arc<Table> {
    let unique = schema.indexes.iter().filter(|index| index.unique);
    let target = TargetTable {
        name: schema.table.clone(),
        identity_is_bytes: true,
        unique_keys: unique
            .map(|index| index.columns.iter().filter_map(|name| schema.column(name)).collect())
            .collect(),
        fires: false,
    };
    Arc::new(Table { schema: Arc::clone(schema), target })
}

pub(crate) fn row(id: i64, a: Option<i64>, b: &str, c: &str) -> Vec<Cell> {
    let text = |text: &str| Cell::Text(text.to_owned());
    vec![Cell::Int(id), a.map_or(Cell::Null, Cell::Int), text(b), text(c)]
}

pub(crate) fn write(schema: &TableSchema, cells: &[Cell], unsent: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = RowWriter::new(&mut out);
    for (at, (column, cell)) in schema.columns.iter().zip(cells).enumerate() {
        let value = if unsent.contains(&at) { Value::Unsent } else { cell.value() };
        writer.column(column.field, value);
    }
    out
}

pub(crate) fn write_key(schema: &TableSchema, cells: &[Cell]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = RowWriter::new(&mut out);
    for &at in schema.key() {
        writer.column(schema.columns[at].field, cells[at].value());
    }
    out
}

/// `(before and whether it is whole, after, unsent)`.
type Images = (Option<(Vec<u8>, bool)>, Option<Vec<u8>>, Vec<u32>);

/// The images of a change, as capture writes them.
pub(crate) fn images(schema: &TableSchema, change: &ScriptedChange) -> Images {
    let key_of = |row: &Vec<Cell>| write_key(schema, row);
    let keyless = schema.key().is_empty();
    let before = change.before.as_ref().and_then(|before| {
        let moved = change.after.as_ref().is_none_or(|after| key_of(before) != key_of(after));
        match change.operation {
            _ if keyless => Some((write(schema, before, &[]), true)),
            Operation::Update if !moved => None,
            _ => Some((key_of(before), false)),
        }
    });
    let after = change.after.as_ref().map(|after| write(schema, after, &change.unsent));
    let unsent = change.unsent.iter().map(|&at| schema.columns[at].field).collect();
    (before, after, unsent)
}

pub(crate) fn change(table: &Arc<Table>, scripted: &ScriptedChange, place: Place) -> Change {
    let (before, after, unsent) = images(&table.schema, scripted);
    Change {
        table: Arc::clone(table),
        operation: scripted.operation,
        before: before.map(|(bytes, full)| RowImage { bytes: Bytes::from(bytes), full }),
        after: after.map(Bytes::from),
        unsent,
        place,
    }
}

/// The id of the control schema in these logs.
pub(crate) const CONTROL: SchemaId = SchemaId::new(1);

/// Writes a partition as capture does, and as capture should not.
#[derive(Debug)]
pub(crate) struct LogWriter {
    next_offset: i64,
    builder: BatchBuilder,
    batches: Vec<RecordBatch>,
    producer: (i64, i16),
}

impl LogWriter {
    pub(crate) fn new() -> Self {
        Self::from(0)
    }

    pub(crate) fn from(next_offset: i64) -> Self {
        Self {
            next_offset,
            builder: BatchBuilder::with_capacity(1 << 12),
            batches: Vec::new(),
            producer: (7, 0),
        }
    }

    /// From here on this producer writes; without an open marker.
    pub(crate) fn producer(&mut self, id: i64, epoch: i16) -> &mut Self {
        self.seal();
        self.producer = (id, epoch);
        self
    }

    pub(crate) fn value(&mut self, value: &[u8]) -> &mut Self {
        self.builder.append(None, Some(&[value]), 0, &[]);
        self
    }

    pub(crate) fn control(&mut self, control: &Control<'_>) -> &mut Self {
        let mut value = Frame::prefix(CONTROL).to_vec();
        control.encode(&mut value);
        self.value(&value)
    }

    /// The open marker of the current producer, for the place epoch `epoch`.
    pub(crate) fn open(&mut self, epoch: u32) -> &mut Self {
        self.open_of("server", epoch)
    }

    /// As [`open`](Self::open), of a capture that reads `server`.
    pub(crate) fn open_of(&mut self, server: &str, epoch: u32) -> &mut Self {
        let (id, producer_epoch) = self.producer;
        self.control(&Control::Open {
            producer_id: id.unsigned_abs(),
            producer_epoch: u64::from(producer_epoch.unsigned_abs()),
            epoch: Epoch::new(epoch),
            server,
        })
    }

    pub(crate) fn end(&mut self, commit: u64) -> &mut Self {
        self.control(&Control::End {
            epoch: Epoch::FIRST,
            commit: Commit::lsn(commit),
            committed_at_us: Some(1000),
            transaction: None,
            rows: 0,
        })
    }

    /// A row of schema `id`.
    pub(crate) fn change(
        &mut self,
        id: SchemaId,
        schema: &TableSchema,
        change: &ScriptedChange,
        place: Place,
        last: bool,
    ) -> &mut Self {
        let value = change_value(id, schema, change, place, last);
        self.value(&value)
    }

    /// An inserted row of schema 2, whose key is the ordinal, in the transaction `commit`.
    pub(crate) fn insert(&mut self, commit: u64, ordinal: u64, last: bool) -> &mut Self {
        self.insert_in(Epoch::FIRST, commit, ordinal, last)
    }

    pub(crate) fn insert_in(
        &mut self,
        epoch: Epoch,
        commit: u64,
        ordinal: u64,
        last: bool,
    ) -> &mut Self {
        let value = insert_value(Operation::Insert, epoch, commit, ordinal, last);
        self.value(&value)
    }

    /// A snapshot's row.
    pub(crate) fn read(&mut self, commit: u64, ordinal: u64) -> &mut Self {
        self.read_in(Epoch::FIRST, commit, ordinal)
    }

    pub(crate) fn read_in(&mut self, epoch: Epoch, commit: u64, ordinal: u64) -> &mut Self {
        let value = insert_value(Operation::Read, epoch, commit, ordinal, false);
        self.value(&value)
    }

    /// Ends the batch.
    pub(crate) fn seal(&mut self) -> &mut Self {
        let builder = std::mem::replace(&mut self.builder, BatchBuilder::with_capacity(1 << 12));
        if builder.is_empty() {
            return self;
        }
        let stamp = BatchStamp {
            producer_id: ProducerId::new(self.producer.0),
            producer_epoch: ProducerEpoch::new(self.producer.1),
            base_sequence: Sequence::ZERO,
            base_offset: Offset::new(self.next_offset),
            ..BatchStamp::default()
        };
        let bytes = builder.finish(stamp).unwrap();
        let (batch, _) = RecordBatch::parse(bytes).unwrap().unwrap();
        self.next_offset = batch.next_offset().get();
        self.batches.push(batch);
        self
    }

    pub(crate) fn batches(&mut self) -> Vec<RecordBatch> {
        self.seal();
        std::mem::take(&mut self.batches)
    }
}

pub(crate) fn change_value(
    id: SchemaId,
    schema: &TableSchema,
    change: &ScriptedChange,
    place: Place,
    last: bool,
) -> Vec<u8> {
    let (before, after, unsent) = images(schema, change);
    let mut value = Frame::prefix(id).to_vec();
    let mut writer = EnvelopeWriter::begin(&mut value, change.operation, place, Some(1000));
    writer.unsent(&unsent);
    if let Some((before, full)) = before {
        writer.before(&before, full);
    }
    if let Some(after) = after {
        writer.after(&after);
    }
    if last {
        writer.last(Some("tx"));
    }
    value
}

pub(crate) fn insert_value(
    operation: Operation,
    epoch: Epoch,
    commit: u64,
    ordinal: u64,
    last: bool,
) -> Vec<u8> {
    let id = i64::try_from(ordinal).unwrap();
    let change = ScriptedChange {
        table: 0,
        operation,
        before: None,
        after: Some(row(id, None, "b", "c")),
        unsent: Vec::new(),
    };
    let place = Place::new(epoch, Commit::lsn(commit), Ordinal::new(ordinal));
    change_value(SchemaId::new(2), &schema("t", &[]), &change, place, last)
}
