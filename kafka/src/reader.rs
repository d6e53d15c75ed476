//! Reading one partition: batches in order, fetched ahead within a bound of bytes.
//!
//! A task fetches while the consumer works: one fetch is under way or its result waits, never
//! more, so that at most [`ReaderConfig::max_bytes`] (or one batch, if it is larger) are held
//! ahead. The task follows the leader through elections and lost connections; what does not pass
//! within [`ReaderConfig::retry_timeout`] goes to the consumer, who makes a new reader at
//! [`PartitionReader::position`].
//!
//! A client that says where it is ([`ClientConfig::rack`](crate::ClientConfig)) may be sent to a
//! follower that is nearer (KIP-392). It reads there for a while, then asks the leader again, for a
//! follower that is cut off does not know what it misses; and whatever the follower does not give, it
//! asks the leader for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    batch::{BatchError, RecordBatch},
    client::{Backoff, Cluster, Connections, Pinned},
    error::Error,
    ids::{BrokerId, Offset, PartitionId, TopicPartition},
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
            rack: cluster.rack.clone(),
            connections: Connections::new(cluster),
            leader: None,
            follower: None,
            stays_until: None,
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

/// What a broker answered.
#[derive(Debug)]
enum Answer {
    Fetched(Option<Fetched>),
    /// This replica is to be asked.
    Elsewhere(BrokerId),
}

/// How long a follower is read from before the leader is asked again.
const STAY_WITH_FOLLOWER: Duration = Duration::from_secs(10);

/// How long the leader is read from after a follower did not give what there is.
const AVOID_FOLLOWERS: Duration = Duration::from_secs(2);

struct Fetcher {
    of: TopicPartition,
    config: ReaderConfig,
    connections: Connections,
    rack: KafkaString,
    leader: Option<Connection>,
    /// Read from in the leader's place.
    follower: Option<Connection>,
    /// How long it stays with the follower; or, without one, with the leader whatever that says.
    stays_until: Option<Instant>,
    topic: Pinned,
    position: Offset,
    high_watermark: Arc<AtomicI64>,
}

impl Fetcher {
    async fn run(mut self, fetched: mpsc::Sender<Result<Fetched, Error>>) {
        let mut backoff = None;
        // The permit comes before the fetch: what it brings has its place.
        while let Ok(permit) = fetched.reserve().await {
            let result = match self.follower.take_if(|_| self.stays_until > Some(Instant::now())) {
                Some(follower) => Ok(self.fetch_from_follower(follower).await),
                None => self.fetch().await,
            };
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

    /// One fetch from a follower; `None` if there was nothing new. After anything else the leader is
    /// asked, and for a while no follower.
    async fn fetch_from_follower(&mut self, follower: Connection) -> Option<Fetched> {
        match self.fetch_from(&follower, KafkaString::default()).await {
            Ok(Answer::Fetched(fetched)) => {
                self.follower = Some(follower);
                fetched
            }
            Ok(Answer::Elsewhere(_)) => {
                self.stays_until = None;
                None
            }
            Err(error) => {
                tracing::debug!(partition = %self.of, %error, "back to the leader");
                self.stays_until = Some(Instant::now() + AVOID_FOLLOWERS);
                None
            }
        }
    }

    /// One fetch from the leader; `None` if there was nothing new, or another replica is to be asked.
    async fn fetch(&mut self) -> Result<Option<Fetched>, Error> {
        self.follower = None;
        let leader = match self.leader.take().filter(|leader| !leader.is_closed()) {
            Some(leader) => leader,
            None => {
                let route = self.connections.leader(&self.of).await?;
                self.topic.check(&self.of, route)?.connection
            }
        };
        self.leader = Some(leader.clone());
        let follows_hints = self.stays_until.is_none_or(|until| until <= Instant::now());
        let rack = if follows_hints { self.rack.clone() } else { KafkaString::default() };
        match self.fetch_from(&leader, rack).await? {
            Answer::Fetched(fetched) => Ok(fetched),
            Answer::Elsewhere(replica) => {
                let (stay, follower) = match self.connections.named(replica).await {
                    Ok(follower) => (STAY_WITH_FOLLOWER, Some(follower)),
                    Err(error) => {
                        tracing::debug!(partition = %self.of, %replica, %error, "not reached");
                        (AVOID_FOLLOWERS, None)
                    }
                };
                (self.follower, self.stays_until) = (follower, Some(Instant::now() + stay));
                Ok(None)
            }
        }
    }

    async fn fetch_from(&self, broker: &Connection, rack: KafkaString) -> Result<Answer, Error> {
        let request = self.config.request(self.position).with_rack_id(rack);
        let response: FetchResponseData = broker.call(request).await?;
        let operation = || format!("fetch from {}", self.of);
        if response.error_code != 0 {
            return Err(Error::broker(operation(), response.error_code));
        }
        let partition = response
            .responses
            .into_iter()
            .flat_map(|topic| topic.partitions)
            .find(|partition| partition.partition_index == self.of.partition.get())
            .ok_or_else(|| broker.unexpected(ApiKey::Fetch, "without the partition"))?;
        match ErrorCode::from(partition.error_code) {
            ErrorCode::None if partition.preferred_read_replica >= 0 => {
                Ok(Answer::Elsewhere(BrokerId::new(partition.preferred_read_replica)))
            }
            ErrorCode::None => self.take(partition).map(Answer::Fetched),
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
