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
}

/// The partition that a pipeline reads.
#[async_trait]
pub trait ChangeLog: Send + Sync + std::fmt::Debug {
    /// Which log it is now.
    ///
    /// # Errors
    /// It cannot be asked, or is not there yet.
    async fn identity(&self) -> Result<LogIdentity, Error>;

    /// The first offset that it holds.
    ///
    /// # Errors
    /// It cannot be asked.
    async fn start(&self) -> Result<Offset, Error>;

    /// Reads from `from` on, `prefetch_bytes` ahead.
    fn reader(&self, from: Offset, prefetch_bytes: usize) -> Box<dyn LogReader>;

    /// Notes for `group` that everything below `offset` is done with.
    ///
    /// # Errors
    /// It is not noted.
    async fn commit(&self, group: &str, offset: Offset) -> Result<(), Error>;
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

/// Partition 0 of a topic.
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

    fn partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), PartitionId::new(0))
    }
}

#[async_trait]
impl ChangeLog for KafkaLog {
    async fn identity(&self) -> Result<LogIdentity, Error> {
        let operation = "ask the log who it is";
        let log = |source| Error::Log { operation, source };
        let cluster_id = self.client.cluster_id().await.map_err(log)?;
        let topic = self.client.topic(&self.topic).await.map_err(log)?;
        let topic = topic.ok_or_else(|| Error::NoTopic(self.topic.clone()))?;
        if topic.partitions != 1 {
            let partitions = topic.partitions;
            return Err(Error::Partitions { topic: topic.name, partitions });
        }
        let topic_id = topic.id.map(|id| id.to_string()).unwrap_or_default();
        Ok(LogIdentity { cluster_id, topic_id })
    }

    async fn start(&self) -> Result<Offset, Error> {
        let partition = PartitionId::new(0);
        let start = self.client.list_offsets(&self.topic, partition, OffsetAt::Earliest).await;
        start.map_err(|source| Error::Log { operation: "ask the log where it begins", source })
    }

    fn reader(&self, from: Offset, prefetch_bytes: usize) -> Box<dyn LogReader> {
        let mut config = ReaderConfig::new(self.partition(), from);
        config.max_bytes = prefetch_bytes;
        config.retry_timeout = PATIENCE;
        Box::new(KafkaReader(self.client.reader(config)))
    }

    async fn commit(&self, group: &str, offset: Offset) -> Result<(), Error> {
        let offsets = [(self.partition(), offset)];
        let committed = self.client.commit_offsets(group, &offsets).await;
        committed.map_err(|source| Error::Log { operation: "commit the group's offset", source })
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
