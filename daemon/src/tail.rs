//! A source's changes as JSON lines.

use std::future::poll_fn;
use std::task::Poll;

use anyhow::{Context, bail};
use serde_json::{Map, Value as Json, json};
use tailwater_change::{
    ChunkJoiner, Control, Envelope, Frame, Operation, RowReader, TableSchema, Value,
};
use tailwater_kafka::{
    Limits, OffsetAt, PartitionId, PartitionReader, ReaderConfig, RecordBatch, TopicPartition,
};

use crate::app::App;
use crate::schemas::Schemas;

/// Reads one source's topic and prints what it says.
#[derive(Debug)]
pub(crate) struct Tail {
    /// One for each partition.
    readers: Vec<(PartitionReader, ChunkJoiner)>,
    schemas: Schemas,
}

/// The largest row that `tail` prints.
const LARGEST_ROW: usize = 256 << 20;

impl Tail {
    /// From `from` on: an offset, `start` or `end`. Of several partitions each is read by itself.
    ///
    /// # Errors
    /// There is no such topic, or `from` is none of these.
    pub(crate) async fn open(app: &App, source: &str, from: &str) -> anyhow::Result<Self> {
        let Some(topic) = app.client.topic(source).await? else {
            bail!("there is no source {source:?} in the log");
        };
        let mut readers = Vec::new();
        for partition in (0..topic.partitions).map(PartitionId::new) {
            let at = |at| app.client.list_offsets(source, partition, at);
            let from = match from {
                "start" => at(OffsetAt::Earliest).await?,
                "end" => at(OffsetAt::Latest).await?,
                number => tailwater_kafka::Offset::new(
                    number.parse().with_context(|| format!("{number:?} is no offset"))?,
                ),
            };
            let partition = TopicPartition::new(source.to_owned(), partition);
            let reader = app.client.reader(ReaderConfig::new(partition, from));
            readers.push((reader, ChunkJoiner::new(LARGEST_ROW)));
        }
        Ok(Self { readers, schemas: Schemas::new(&app.registry) })
    }

    /// The next records, a line each; waits while there is none.
    ///
    /// # Errors
    /// The log cannot be read, or a record is not ours.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        let (partition, batches) = self.read().await?;
        for batch in batches {
            for record in batch.records(Limits::default())? {
                let record = record?;
                let value = record.value.as_deref().unwrap_or_default();
                let offset = record.offset.get();
                let line = self
                    .line(partition, offset, value)
                    .await
                    .with_context(|| format!("record at offset {offset}"))?;
                if let Some(mut line) = line {
                    if self.readers.len() > 1 {
                        line["partition"] = json!(partition);
                    }
                    lines.push(line.to_string());
                }
            }
        }
        Ok(lines)
    }

    /// Of whichever partition has some first.
    async fn read(&mut self) -> anyhow::Result<(usize, Vec<RecordBatch>)> {
        let readers = self.readers.iter_mut().enumerate();
        let mut reads: Vec<_> =
            readers.map(|(at, (reader, _))| (at, Box::pin(reader.next()))).collect();
        poll_fn(|context| {
            for (partition, read) in &mut reads {
                if let Poll::Ready(batches) = read.as_mut().poll(context) {
                    return Poll::Ready(Ok((*partition, batches?)));
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn line(
        &mut self,
        partition: usize,
        offset: i64,
        value: &[u8],
    ) -> anyhow::Result<Option<Json>> {
        let frame = Frame::parse(value)?;
        match self.schemas.table(frame.schema).await? {
            Some(schema) => Ok(Some(change(offset, &schema, frame.message)?)),
            None => match Control::decode(frame.message)? {
                Control::Chunk { attempt, index, last, data } => {
                    let (_, joiner) = &mut self.readers[partition];
                    let Some(whole) = joiner.push(attempt, index, last, data)? else {
                        return Ok(None);
                    };
                    let frame = Frame::parse(&whole)?;
                    let schema =
                        self.schemas.table(frame.schema).await?.context("a chunked marker")?;
                    Ok(Some(change(offset, &schema, frame.message)?))
                }
                marker => Ok(Some(control(offset, &marker))),
            },
        }
    }
}

fn change(offset: i64, schema: &TableSchema, message: &[u8]) -> anyhow::Result<Json> {
    let envelope = Envelope::decode(message)?;
    let mut line = json!({
        "offset": offset,
        "op": operation(envelope.operation),
        "table": schema.table.to_string(),
        "place": envelope.place.to_string(),
        "committed_at_us": envelope.committed_at_us,
    });
    let mut values = Vec::new();
    if let Some(before) = envelope.before {
        RowReader::new(schema).read(before, &mut values)?;
        line["before"] = row(schema, &values, !envelope.before_full);
    }
    if let Some(after) = envelope.after {
        RowReader::new(schema).read_with_unsent(after, &envelope.unsent, &mut values)?;
        line["after"] = row(schema, &values, false);
    }
    if envelope.last {
        line["last"] = Json::Bool(true);
        line["transaction"] = json!(envelope.transaction);
    }
    Ok(line)
}

fn row(schema: &TableSchema, values: &[Value<'_>], key_only: bool) -> Json {
    let mut row = Map::new();
    for (index, (column, value)) in schema.columns.iter().zip(values).enumerate() {
        if !column.flows() || (key_only && !schema.key().contains(&index)) {
            continue;
        }
        let value = match value {
            Value::Unsent => continue,
            Value::Null => Json::Null,
            Value::Bool(value) => json!(value),
            Value::Int(value) => json!(value),
            Value::Uint(value) => json!(value),
            Value::Float32(value) if value.is_finite() => json!(value),
            Value::Float64(value) if value.is_finite() => json!(value),
            Value::Float32(value) => json!(value.to_string()),
            Value::Float64(value) => json!(value.to_string()),
            Value::Text(value) => json!(value),
            Value::Bytes(value) => json!(hex(value)),
        };
        row.insert(column.name.clone(), value);
    }
    Json::Object(row)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("\\x"), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Insert => "insert",
        Operation::Update => "update",
        Operation::Delete => "delete",
        Operation::Truncate => "truncate",
        Operation::Read => "read",
    }
}

fn control(offset: i64, control: &Control<'_>) -> Json {
    let (marker, place) = match control {
        Control::Open { producer_id, producer_epoch, .. } => {
            ("open", format!("producer {producer_id} epoch {producer_epoch}"))
        }
        Control::End { epoch, commit, .. } => ("end", format!("{epoch}@{commit}")),
        Control::Idle { epoch, commit } => ("idle", format!("{epoch}@{commit}")),
        Control::SnapshotBegin { epoch, commit } => ("snapshot_begin", format!("{epoch}@{commit}")),
        Control::SnapshotEnd { epoch, commit } => ("snapshot_end", format!("{epoch}@{commit}")),
        Control::SnapshotCut { epoch, commit } => ("snapshot_cut", format!("{epoch}@{commit}")),
        Control::SnapshotRest { epoch, commit } => ("snapshot_rest", format!("{epoch}@{commit}")),
        Control::TableBegin { place, .. } => ("table_begin", place.to_string()),
        Control::TableEnd { place, .. } => ("table_end", place.to_string()),
        Control::SchemaChange { place, table, description } => {
            ("schema_change", format!("{place} {table}: {description}"))
        }
        Control::Reached { place, .. } => ("reached", place.to_string()),
        Control::Chunk { attempt, index, .. } => ("chunk", format!("{attempt}.{index}")),
    };
    json!({ "offset": offset, "marker": marker, "place": place })
}
