//! The handle: register a text, read a text.

use std::sync::Arc;

use tailwater_change::SchemaId;
use tailwater_kafka::{
    Client, Limits, OffsetAt, PartitionId, PartitionReader, Producer, ProducerConfig, ReaderConfig,
    TopicPartition, TopicSpec,
};
use tokio::sync::Mutex;

use crate::Error;
use crate::record::{Key, SchemaValue};
use crate::state::State;

/// Where schemas are kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// The topic.
    pub topic: String,
    /// Replicas of the topic, if it must be created.
    pub replication_factor: i16,
    /// Wall-clock milliseconds since 1970, for the records' timestamps.
    pub clock: fn() -> i64,
}

/// Whoever holds this transactional id writes schemas.
const TRANSACTIONAL_ID: &str = "tailwater.schemas";

/// Schemas are few and small: what a reader may hold of them.
const READER_BYTES: usize = 1 << 20;

/// Schemas of one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    client: Client,
    reader: PartitionReader,
    state: State,
    /// Ours until somebody else takes it.
    producer: Option<Producer>,
}

impl Registry {
    /// Opens the topic, creating it where it is missing.
    ///
    /// # Errors
    /// The log cannot be reached, or may not be written.
    pub async fn open(client: Client, config: Config) -> Result<Self, Error> {
        let spec = TopicSpec {
            name: config.topic.clone(),
            partitions: 1,
            replication_factor: config.replication_factor,
            configs: vec![("cleanup.policy".into(), "compact".into())],
        };
        client.create_topic(&spec).await.map_err(log("create"))?;
        let from = client
            .list_offsets(&config.topic, PartitionId::new(0), OffsetAt::Earliest)
            .await
            .map_err(log("find the start"))?;
        let partition = TopicPartition::new(config.topic.clone(), PartitionId::new(0));
        let reader = client
            .reader(ReaderConfig { max_bytes: READER_BYTES, ..ReaderConfig::new(partition, from) });
        let inner = Inner { config, client, reader, state: State::default(), producer: None };
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// The id of `text` under `subject`: the one it has, or a new one.
    ///
    /// # Errors
    /// The log did not take the record; nothing is registered, or it will be found next time.
    pub async fn register(&self, subject: &str, text: &str) -> Result<SchemaId, Error> {
        let mut inner = self.inner.lock().await;
        inner.catch_up().await?;
        loop {
            if let Some(id) = inner.state.registered(subject, text) {
                return Ok(id);
            }
            match inner.append(subject, text).await {
                Err(Error::Log { source, .. })
                    if source.disposition() == tailwater_kafka::Disposition::Fenced =>
                {
                    inner.producer = None;
                }
                other => other?,
            }
            inner.catch_up().await?;
        }
    }

    /// The text with this id.
    ///
    /// # Errors
    /// [`Error::Unknown`] after reading the topic to its end.
    pub async fn schema(&self, id: SchemaId) -> Result<Arc<str>, Error> {
        let mut inner = self.inner.lock().await;
        if let Some(text) = inner.state.text(id) {
            return Ok(text);
        }
        inner.catch_up().await?;
        inner.state.text(id).ok_or(Error::Unknown(id))
    }
}

/// What the topic says, for those who look around in it.
impl Registry {
    /// Every subject.
    ///
    /// # Errors
    /// The topic cannot be read.
    pub async fn subjects(&self) -> Result<Vec<String>, Error> {
        let mut inner = self.inner.lock().await;
        inner.catch_up().await?;
        Ok(inner.state.subjects())
    }

    /// The versions of `subject` and their ids, oldest first; none for a subject that is not there.
    ///
    /// # Errors
    /// The topic cannot be read.
    pub async fn versions(&self, subject: &str) -> Result<Vec<(u32, SchemaId)>, Error> {
        let mut inner = self.inner.lock().await;
        inner.catch_up().await?;
        Ok(inner.state.versions(subject))
    }
}

impl Inner {
    /// Reads the topic to the end it has now.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let end = self
            .client
            .list_offsets(&self.config.topic, PartitionId::new(0), OffsetAt::Latest)
            .await
            .map_err(log("find the end"))?;
        while self.reader.position() < end {
            for batch in self.reader.next().await.map_err(log("read"))? {
                let records = batch.records(Limits::default()).map_err(self.corrupt())?;
                for read in records {
                    let read = read.map_err(self.corrupt())?;
                    if let Some(key) = &read.key {
                        self.state.apply(key, read.value.as_deref()).map_err(|source| {
                            Error::Record { offset: read.offset.get(), source }
                        })?;
                    }
                }
            }
        }
        Ok(())
    }

    fn corrupt(&self) -> impl Fn(tailwater_kafka::BatchError) -> Error + use<> {
        let partition = TopicPartition::new(self.config.topic.clone(), PartitionId::new(0));
        let offset = self.reader.position();
        move |source| Error::Log {
            operation: "read",
            source: Box::new(tailwater_kafka::Error::CorruptBatch {
                partition: partition.clone(),
                offset,
                source,
            }),
        }
    }

    /// Becomes the one that writes, if it is not, and appends the next id of `subject`.
    async fn append(&mut self, subject: &str, text: &str) -> Result<(), Error> {
        let mut producer = match self.producer.take() {
            Some(producer) => producer,
            None => self.take_over().await?,
        };
        let (version, id) = self.state.next(subject, text).ok_or(Error::Exhausted)?;
        let value = SchemaValue {
            subject: subject.into(),
            version,
            id,
            schema_type: Some("PROTOBUF".into()),
            schema: text.into(),
            deleted: false,
        };
        self.write(&mut producer, &Key::schema(subject, version), Some(&value)).await?;
        self.producer = Some(producer);
        Ok(())
    }

    /// Fences every other writer, then reads what they wrote.
    async fn take_over(&mut self) -> Result<Producer, Error> {
        let config = ProducerConfig {
            transactional_id: Some(TRANSACTIONAL_ID.into()),
            ..ProducerConfig::default()
        };
        let mut producer = self.client.producer(config).await.map_err(log("open a producer"))?;
        self.write(&mut producer, &Key::noop(), None).await?;
        self.catch_up().await?;
        Ok(producer)
    }

    async fn write(
        &self,
        producer: &mut Producer,
        key: &Key,
        value: Option<&SchemaValue>,
    ) -> Result<(), Error> {
        let json = |error| Error::Record { offset: -1, source: error };
        let to = TopicPartition::new(self.config.topic.clone(), PartitionId::new(0));
        let key = serde_json::to_vec(key).map_err(json)?;
        let value = value.map(serde_json::to_vec).transpose().map_err(json)?;
        let to = producer.register(&to);
        let now = (self.config.clock)();
        match &value {
            Some(value) => producer.append(to, Some(&key), &[value], now),
            None => producer.append_tombstone(to, &key, now),
        }
        .map_err(log("append"))?;
        producer.drain().await.map_err(log("append"))
    }
}

fn log(operation: &'static str) -> impl Fn(tailwater_kafka::Error) -> Error {
    move |source| Error::Log { operation, source: Box::new(source) }
}
