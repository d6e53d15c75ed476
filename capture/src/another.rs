//! What the log says of a source that another process captures.

use serde::Deserialize;
use tailwater_change::Epoch;
use tailwater_kafka::{
    Client, Limits, OffsetAt, PartitionId, PartitionReader, ReaderConfig, TopicPartition,
};

use crate::config::state_topic;
use crate::error::{Error, log};
use crate::state::STATE_KEY;

/// Of the [`State`](crate::state::State), what whoever only looks needs: whatever version wrote it.
#[derive(Deserialize)]
struct Written {
    epoch: Epoch,
}

/// The epoch that the log says is being written of `source`; `None`: nothing is yet. A writer that
/// was superseded cannot append any more, so the last word counts.
///
/// # Errors
/// The log cannot be read.
pub async fn written_epoch(client: &Client, source: &str) -> Result<Option<Epoch>, Error> {
    let (topic, partition) = (state_topic(source), PartitionId::new(0));
    let failed = log("read the state");
    let start = client.list_offsets(&topic, partition, OffsetAt::Earliest).await;
    let end = client.list_offsets(&topic, partition, OffsetAt::Latest).await;
    let (start, end) = (start.map_err(&failed)?, end.map_err(&failed)?);
    let partition = TopicPartition::new(topic, partition);
    let mut reader = client.reader(ReaderConfig::new(partition.clone(), start));
    let mut epoch = None;
    while reader.position() < end {
        epoch = next_epoch(&mut reader, &partition).await?.or(epoch);
    }
    Ok(epoch)
}

/// The last epoch in what the reader has next.
async fn next_epoch(
    reader: &mut PartitionReader,
    partition: &TopicPartition,
) -> Result<Option<Epoch>, Error> {
    let (from, mut epoch) = (reader.position(), None);
    let corrupt = |source| {
        let partition = partition.clone();
        log("read the state")(tailwater_kafka::Error::CorruptBatch {
            partition,
            offset: from,
            source,
        })
    };
    for batch in reader.next().await.map_err(log("read the state"))? {
        for record in batch.records(Limits::default()).map_err(corrupt)? {
            let record = record.map_err(corrupt)?;
            if record.key.as_deref() != Some(STATE_KEY) {
                continue;
            }
            let value = record.value.as_deref().unwrap_or_default();
            let written: Written = serde_json::from_slice(value).map_err(|source| {
                Error::State { topic: format!("{}@{}", partition.topic, record.offset), source }
            })?;
            epoch = Some(written.epoch);
        }
    }
    Ok(epoch)
}
