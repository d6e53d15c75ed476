//! Reads a source's topic as a consumer should: superseded writers, voided and repeated rows out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tailwater_change::{
    ChunkJoiner, Control, Envelope, Frame, Operation, Place, RowReader, Value, is_control_schema,
};
use tailwater_kafka::{Client, Limits, OffsetAt, PartitionId, ReaderConfig, TopicPartition};
use tailwater_registry::Registry;

use crate::script::schema;

/// What the topic says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// Rows of the snapshot that counts.
    pub(crate) snapshot: Vec<i64>,
    /// Rows of whole transactions, by commit.
    pub(crate) transactions: BTreeMap<u64, Vec<i64>>,
    /// Rows whose transaction has no end yet.
    pub(crate) open: Vec<i64>,
    /// Idle markers.
    pub(crate) idle: Vec<u64>,
    /// Open markers.
    pub(crate) opens: usize,
    /// Places that stood in the topic twice among records that count.
    pub(crate) repeated: usize,
}

#[derive(Default)]
struct Reading {
    read: Read,
    writer: Option<(u64, u64)>,
    newest: Option<Place>,
    commit: u64,
}

/// A record of a topic: who wrote it, the text of its schema, and its message.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) writer: (u64, u64),
    pub(crate) text: Arc<str>,
    value: Bytes,
}

impl Found {
    pub(crate) fn message(&self) -> &[u8] {
        Frame::parse(&self.value).unwrap().message
    }
}

/// Every record of `topic`, in order.
pub(crate) async fn records(client: &Client, registry: &Registry, topic: &str) -> Vec<Found> {
    records_of(client, registry, topic, 0).await
}

/// Every record of a partition of `topic`, in order.
pub(crate) async fn records_of(
    client: &Client,
    registry: &Registry,
    topic: &str,
    partition: i32,
) -> Vec<Found> {
    let partition = PartitionId::new(partition);
    let end = client.list_offsets(topic, partition, OffsetAt::Latest).await.unwrap();
    let from = client.list_offsets(topic, partition, OffsetAt::Earliest).await.unwrap();
    let mut reader = client.reader(ReaderConfig::new(TopicPartition::new(topic, partition), from));
    let mut found = Vec::new();
    while reader.position() < end {
        for batch in reader.next().await.unwrap() {
            let id = u64::try_from(batch.producer_id().get()).unwrap();
            let epoch = u64::try_from(batch.producer_epoch().get()).unwrap();
            for record in batch.records(Limits::default()).unwrap() {
                let value = record.unwrap().value.unwrap();
                let schema = Frame::parse(&value).unwrap().schema;
                let text = registry.schema(schema).await.unwrap();
                found.push(Found { writer: (id, epoch), text, value });
            }
        }
    }
    found
}

pub(crate) async fn read(client: &Client, registry: &Registry, topic: &str) -> Read {
    let mut reading = Reading::default();
    let mut joiner = ChunkJoiner::new(1 << 30);
    for record in records(client, registry, topic).await {
        if !is_control_schema(&record.text) {
            joiner.reset();
            if reading.writer == Some(record.writer) {
                reading.row(record.message());
            }
            continue;
        }
        let control = Control::decode(record.message()).unwrap();
        if let Control::Chunk { attempt, index, last, data } = control {
            if let Some(whole) = joiner.push(attempt, index, last, data).unwrap() {
                reading.row(Frame::parse(&whole).unwrap().message);
            }
            continue;
        }
        joiner.reset();
        reading.control(&control, record.writer);
    }
    reading.read
}

impl Reading {
    fn row(&mut self, message: &[u8]) {
        let envelope = Envelope::decode(message).unwrap();
        let (schema, mut values) = (schema(), Vec::new());
        RowReader::new(&schema).read(envelope.after.unwrap(), &mut values).unwrap();
        let Value::Int(id) = values[0] else { panic!("an id") };
        if self.newest.is_some_and(|newest| envelope.place <= newest) {
            self.read.repeated += 1;
            return;
        }
        self.newest = Some(envelope.place);
        if envelope.operation == Operation::Read {
            self.read.snapshot.push(id);
            return;
        }
        let commit = envelope.place.commit.position();
        if commit != self.commit {
            self.read.open.clear();
            self.commit = commit;
        }
        self.read.open.push(id);
        if envelope.last {
            self.end(commit);
        }
    }

    fn end(&mut self, commit: u64) {
        let rows = std::mem::take(&mut self.read.open);
        if !rows.is_empty() {
            self.read.transactions.insert(commit, rows);
        }
    }

    fn control(&mut self, control: &Control<'_>, writer: (u64, u64)) {
        match control {
            Control::Open { producer_id, producer_epoch, .. } => {
                assert_eq!(writer, (*producer_id, *producer_epoch));
                self.writer = Some(writer);
                self.read.opens += 1;
            }
            _ if self.writer != Some(writer) => {}
            Control::End { commit, .. } => self.end(commit.position()),
            Control::Idle { commit, .. } => self.read.idle.push(commit.position()),
            Control::SnapshotBegin { .. } => self.read.snapshot.clear(),
            _ => {}
        }
    }
}
