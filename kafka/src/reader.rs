//! Reading one partition: batches in order, fetched ahead within a bound of bytes.
//!
//! A task fetches while the consumer works: one fetch is under way or its result waits, never
//! more, so that at most [`ReaderConfig::max_bytes`] (or one batch, if it is larger) are held
//! ahead. The task follows the leader through elections and lost connections; what does not pass
//! within [`ReaderConfig::retry_timeout`] goes to the consumer, who makes a new reader at
//! [`PartitionReader::position`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    batch::{BatchError, RecordBatch},
    client::{Backoff, Cluster, Connections, Pinned},
    error::Error,
    ids::{Offset, PartitionId, TopicPartition},
    transport::Connection,
    wire::{
        ApiKey, ErrorCode, KafkaString,
        fetch_request::{FetchPartition, FetchRequestData, FetchTopic},
        fetch_response::{FetchResponseData, PartitionData},
    },
};

/// What a reader reads and how.
#[derive(Debug, Clone)]
pub struct ReaderConfig {
    /// The topic.
    pub topic: String,
    /// The partition within it.
    pub partition: PartitionId,
    /// The first record wanted.
    pub from: Offset,
    /// Bound of bytes that are fetched ahead. One batch is fetched whatever its size.
    pub max_bytes: usize,
    /// How long a broker keeps a fetch waiting while there is nothing new.
    pub max_wait: Duration,
    /// How long failing fetches are retried before [`PartitionReader::next`] fails.
    pub retry_timeout: Duration,
}

impl ReaderConfig {
    /// Reads `partition` from `from` on, with a bound of 4 MiB.
    #[must_use]
    pub fn new(partition: TopicPartition, from: Offset) -> Self {
        Self {
            topic: partition.topic,
            partition: partition.partition,
            from,
            max_bytes: 4 << 20,
            max_wait: Duration::from_millis(500),
            retry_timeout: Duration::from_secs(60),
        }
    }
}

/// Reads one partition, uncommitted transactions of other producers included.
#[derive(Debug)]
pub struct PartitionReader {
    position: Offset,
    fetched: mpsc::Receiver<Result<Fetched, Error>>,
    high_watermark: Arc<AtomicI64>,
    /// Aborted when the reader is dropped.
    _task: JoinSet<()>,
}

/// What one fetch gave: at least one batch.
#[derive(Debug)]
struct Fetched {
    batches: Vec<RecordBatch>,
    next: Offset,
}

/// "Nothing fetched yet" in the shared high watermark.
const UNKNOWN: i64 = -1;

impl PartitionReader {
    pub(crate) fn start(cluster: Arc<Cluster>, config: ReaderConfig) -> Self {
        let position = config.from;
        let high_watermark = Arc::new(AtomicI64::new(UNKNOWN));
        let (send, fetched) = mpsc::channel(1);
        let fetcher = Fetcher {
            of: TopicPartition::new(config.topic.clone(), config.partition),
            connections: Connections::new(cluster),
            leader: None,
            topic: Pinned::default(),
            position,
            high_watermark: Arc::clone(&high_watermark),
            config,
        };
        let mut task = JoinSet::new();
        task.spawn(fetcher.run(send));
        Self { position, fetched, high_watermark, _task: task }
    }

    /// The next batches, at least one, checksums verified. Waits while there are none.
    /// Cancel-safe.
    ///
    /// Records below the position are hidden in the first batch
    /// ([`RecordBatch::visible_from`]); control batches are left out.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if the log does not hold the position, [`Error::CorruptBatch`]
    /// if it holds something else; other errors once they have lasted. The reader then ends: make
    /// a new one at [`PartitionReader::position`].
    pub async fn next(&mut self) -> Result<Vec<RecordBatch>, Error> {
        loop {
            let Fetched { batches, next } = self.fetched.recv().await.ok_or(Error::Closed)??;
            self.position = next;
            if !batches.is_empty() {
                return Ok(batches);
            }
        }
    }

    /// The first offset after all that [`PartitionReader::next`] has given.
    #[must_use]
    pub fn position(&self) -> Offset {
        self.position
    }

    /// The first offset that was not yet readable at the last fetch; `None` before the first.
    #[must_use]
    pub fn high_watermark(&self) -> Option<Offset> {
        let offset = self.high_watermark.load(Ordering::Relaxed);
        (offset != UNKNOWN).then(|| Offset::new(offset))
    }
}

struct Fetcher {
    of: TopicPartition,
    config: ReaderConfig,
    connections: Connections,
    leader: Option<Connection>,
    topic: Pinned,
    position: Offset,
    high_watermark: Arc<AtomicI64>,
}

impl Fetcher {
    async fn run(mut self, fetched: mpsc::Sender<Result<Fetched, Error>>) {
        let mut backoff = None;
        // The permit comes before the fetch: what it brings has its place.
        while let Ok(permit) = fetched.reserve().await {
            let result = self.fetch().await;
            if result.is_err() {
                self.leader = None;
            }
            match result {
                Ok(Some(result)) => {
                    backoff = None;
                    self.position = result.next;
                    permit.send(Ok(result));
                }
                Ok(None) => backoff = None,
                Err(error) => {
                    let retry = self.config.retry_timeout;
                    let backoff = backoff.get_or_insert_with(|| Backoff::until(retry));
                    if let Some(Err(error)) = backoff.settle(Err::<(), _>(error)).await {
                        permit.send(Err(error));
                        return;
                    }
                }
            }
        }
    }

    /// One fetch; `None` if there was nothing new.
    async fn fetch(&mut self) -> Result<Option<Fetched>, Error> {
        let leader = match self.leader.take().filter(|leader| !leader.is_closed()) {
            Some(leader) => leader,
            None => {
                let route = self.connections.leader(&self.of).await?;
                self.topic.check(&self.of, route)?.connection
            }
        };
        let leader = self.leader.insert(leader);
        let response: FetchResponseData = leader.call(self.config.request(self.position)).await?;
        let operation = || format!("fetch from {}", self.of);
        if response.error_code != 0 {
            return Err(Error::broker(operation(), response.error_code));
        }
        let partition = response
            .responses
            .into_iter()
            .flat_map(|topic| topic.partitions)
            .find(|partition| partition.partition_index == self.of.partition.get())
            .ok_or_else(|| leader.unexpected(ApiKey::Fetch, "without the partition"))?;
        match ErrorCode::from(partition.error_code) {
            ErrorCode::None => self.take(partition),
            ErrorCode::OffsetOutOfRange => Err(Error::OffsetOutOfRange {
                partition: self.of.clone(),
                offset: self.position,
                log_start: Offset::new(partition.log_start_offset),
            }),
            _ => Err(Error::broker(operation(), partition.error_code)),
        }
    }

    fn take(&self, partition: PartitionData) -> Result<Option<Fetched>, Error> {
        self.high_watermark.store(partition.high_watermark, Ordering::Relaxed);
        let records = partition.records.unwrap_or_default();
        let corrupt = |source| Error::CorruptBatch {
            partition: self.of.clone(),
            offset: self.position,
            source,
        };
        let (batches, next) = batches_from(records, self.position).map_err(corrupt)?;
        Ok((next > self.position).then_some(Fetched { batches, next }))
    }
}

impl ReaderConfig {
    fn request(&self, from: Offset) -> FetchRequestData {
        let max_bytes = i32::try_from(self.max_bytes).unwrap_or(i32::MAX);
        let partition = FetchPartition::default()
            .with_partition(self.partition.get())
            .with_fetch_offset(from.get())
            .with_partition_max_bytes(max_bytes);
        let topic = FetchTopic::default()
            .with_topic(KafkaString::from(self.topic.clone()))
            .with_partitions(vec![partition]);
        FetchRequestData::default()
            .with_max_wait_ms(i32::try_from(self.max_wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes(max_bytes)
            .with_topics(vec![topic])
    }
}

/// The batches of a fetch that hold something at or after `from`, and the offset after them.
fn batches_from(records: Bytes, from: Offset) -> Result<(Vec<RecordBatch>, Offset), BatchError> {
    let mut batches = Vec::new();
    let mut next = from;
    let anything = !records.is_empty();
    let mut rest = records;
    while let Some((batch, tail)) = RecordBatch::parse(rest)? {
        rest = tail;
        // A broker may start a bit before what was asked for.
        if batch.next_offset() <= next {
            continue;
        }
        if batch.base_offset() < next && !batches.is_empty() {
            return Err(BatchError::Header("batches overlap"));
        }
        batch.verify_crc()?;
        next = batch.next_offset();
        if !batch.is_control() {
            batches.push(batch.visible_from(from));
        }
    }
    // Brokers send the first batch whole whatever its size. Asking again would go on for ever.
    if anything && next == from {
        return Err(BatchError::Header("no whole batch at the position"));
    }
    Ok((batches, next))
}
