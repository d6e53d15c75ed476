//! What the loop needs of a log: little, so that tests can write one by hand.

use std::time::Duration;

use async_trait::async_trait;
use tailwater_kafka::{
    Client, Offset, OffsetAt, PartitionId, PartitionReader, ReaderConfig, RecordBatch,
    TopicPartition,
};

use super::Error;

/// Which log it is: another one under the same name has another identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster.
    pub cluster_id: String,
    /// The topic.
    pub topic_id: String,
    /// How many partitions it has.
    pub partitions: usize,
}

/// The topic that a pipeline reads.
#[async_trait]
pub trait ChangeLog: Send + Sync + std::fmt::Debug {
    /// Which log it is now.
    ///
    /// # Errors
    /// It cannot be asked, or is not there yet.
    async fn identity(&self) -> Result<LogIdentity, Error>;

    /// The first offset that each of its partitions holds.
    ///
    /// # Errors
    /// It cannot be asked.
    async fn start(&self) -> Result<Vec<Offset>, Error>;

    /// Reads a partition from `from` on, `prefetch_bytes` ahead.
    fn reader(&self, partition: usize, from: Offset, prefetch_bytes: usize) -> Box<dyn LogReader>;

    /// Notes for `group` that in these partitions everything below the offset is done with.
    ///
    /// # Errors
    /// It is not noted.
    async fn commit(&self, group: &str, offsets: &[(usize, Offset)]) -> Result<(), Error>;
}

/// Reads record batches.
#[async_trait]
pub trait LogReader: Send {
    /// At least one batch; waits while there is none. Cancel-safe.
    ///
    /// # Errors
    /// The reader has ended.
    async fn next(&mut self) -> Result<Vec<RecordBatch>, Error>;

    /// Whether everything that was readable at the last look has been given.
    fn is_at_end(&self) -> bool;
}

/// A topic, with all its partitions.
#[derive(Debug, Clone)]
pub struct KafkaLog {
    client: Client,
    topic: String,
}

impl KafkaLog {
    /// The changes of a source, in `topic`.
    pub fn new(client: Client, topic: impl Into<String>) -> Self {
        Self { client, topic: topic.into() }
    }

    fn partition(&self, number: usize) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), id(number))
    }
}

fn id(number: usize) -> PartitionId {
    PartitionId::new(i32::try_from(number).unwrap_or(i32::MAX))
}

#[async_trait]
impl ChangeLog for KafkaLog {
    async fn identity(&self) -> Result<LogIdentity, Error> {
        let operation = "ask the log who it is";
        let log = |source| Error::Log { operation, source };
        let cluster_id = self.client.cluster_id().await.map_err(log)?;
        let topic = self.client.topic(&self.topic).await.map_err(log)?;
        let topic = topic.ok_or_else(|| Error::NoTopic(self.topic.clone()))?;
        let topic_id = topic.id.map(|id| id.to_string()).unwrap_or_default();
        let partitions = usize::try_from(topic.partitions).unwrap_or_default();
        Ok(LogIdentity { cluster_id, topic_id, partitions })
    }

    async fn start(&self) -> Result<Vec<Offset>, Error> {
        let operation = "ask the log where it begins";
        let log = |source| Error::Log { operation, source };
        let topic = self.client.topic(&self.topic).await.map_err(log)?;
        let topic = topic.ok_or_else(|| Error::NoTopic(self.topic.clone()))?;
        let mut starts = Vec::new();
        for partition in 0..topic.partitions {
            let partition = PartitionId::new(partition);
            let start = self.client.list_offsets(&self.topic, partition, OffsetAt::Earliest).await;
            starts.push(start.map_err(log)?);
        }
        Ok(starts)
    }

    fn reader(&self, partition: usize, from: Offset, prefetch_bytes: usize) -> Box<dyn LogReader> {
        let mut config = ReaderConfig::new(self.partition(partition), from);
        config.max_bytes = prefetch_bytes;
        config.retry_timeout = PATIENCE;
        Box::new(KafkaReader(self.client.reader(config)))
    }

    async fn commit(&self, group: &str, offsets: &[(usize, Offset)]) -> Result<(), Error> {
        let offsets = offsets.iter();
        let offsets: Vec<_> =
            offsets.map(|&(partition, offset)| (self.partition(partition), offset)).collect();
        let committed = self.client.commit_offsets(group, &offsets).await;
        committed.map_err(|source| Error::Log { operation: "commit the group's offset", source })
    }
}

/// One partition of a log, as if it were all: with the number 0.
#[derive(Debug)]
pub(super) struct OnePartition {
    pub(super) log: std::sync::Arc<dyn ChangeLog>,
    pub(super) partition: usize,
}

#[async_trait]
impl ChangeLog for OnePartition {
    async fn identity(&self) -> Result<LogIdentity, Error> {
        self.log.identity().await
    }

    async fn start(&self) -> Result<Vec<Offset>, Error> {
        Ok(self.log.start().await?.into_iter().skip(self.partition).take(1).collect())
    }

    fn reader(&self, _zero: usize, from: Offset, prefetch_bytes: usize) -> Box<dyn LogReader> {
        self.log.reader(self.partition, from, prefetch_bytes)
    }

    async fn commit(&self, group: &str, offsets: &[(usize, Offset)]) -> Result<(), Error> {
        let offsets: Vec<_> =
            offsets.iter().map(|&(_zero, offset)| (self.partition, offset)).collect();
        self.log.commit(group, &offsets).await
    }
}

/// How long the log may not answer before the pipeline is shown as `retrying`, and another process
/// that still reaches the log may have the target's lock.
const PATIENCE: Duration = Duration::from_secs(15);

struct KafkaReader(PartitionReader);

#[async_trait]
impl LogReader for KafkaReader {
    async fn next(&mut self) -> Result<Vec<RecordBatch>, Error> {
        self.0.next().await.map_err(|source| match source {
            tailwater_kafka::Error::OffsetOutOfRange { offset, log_start, .. } => {
                Error::OffsetOutOfRange { wanted: offset, log_start }
            }
            source => Error::Log { operation: "read the log", source },
        })
    }

    fn is_at_end(&self) -> bool {
        self.0.high_watermark().is_some_and(|end| self.0.position() >= end)
    }
}
