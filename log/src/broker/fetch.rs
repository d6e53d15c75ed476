//! Fetch: batches go out, or the request waits until there are some.
//!
//! A request waits for `min_bytes` up to `max_wait_ms`, and is answered at once when a partition
//! has something else to say (an error, a deletion, a close). Waiting is registered *before* the
//! look, so no batch slips in between. Sessions (KIP-227) are not kept: session id 0 says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::fetch_request::{FetchPartition, FetchRequestData};
use tailwater_kafka::wire::fetch_response::{
    EpochEndOffset, FetchResponseData, FetchableTopicResponse, PartitionData,
};
use tailwater_kafka::{BrokerId, LeaderEpoch, Offset};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Refused;
use super::read_replica::ClientReader;
use super::view::Topic;
use crate::log::Log;
use crate::metadata::BrokerEpoch;
use crate::replica::{EpochEnd, Fetched, divergence};
use crate::storage::partition::{Offsets, Partition};
use crate::storage::read::{Read, ReadBatches, ReadBelow, ReadRequest};
use crate::storage::replicate::NotServed;

/// Bytes of one answer at most, whatever was asked for: Kafka's `fetch.max.bytes`.
const MAX_ANSWER_BYTES: usize = 55 << 20;

/// A request waits at most so long: a client that asks for more asks again.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Who asks.
#[derive(Debug, Clone, Copy)]
enum Reader {
    Client,
    Follower { replica: BrokerId, broker_epoch: BrokerEpoch },
}

impl Reader {
    fn of(request: &FetchRequestData) -> Self {
        // Where it stands came to be another place with version 15.
        let state = &request.replica_state;
        match state.replica_id.max(request.replica_id) {
            id if id >= 0 => Self::Follower {
                replica: BrokerId::new(id),
                broker_epoch: BrokerEpoch::new(state.replica_epoch),
            },
            _ => Self::Client,
        }
    }

    fn below(self) -> ReadBelow {
        match self {
            Self::Client => ReadBelow::HighWatermark,
            Self::Follower { .. } => ReadBelow::Written,
        }
    }
}

/// One look at everything that was asked for.
struct Answer {
    topics: Vec<FetchableTopicResponse>,
    bytes: usize,
    /// Whether something else than batches is to be said.
    urgent: bool,
}

impl Log {
    pub(super) async fn fetch(&self, request: FetchRequestData, version: i16) -> FetchResponseData {
        if request.session_epoch > 0 || request.session_id != 0 {
            return FetchResponseData::default()
                .with_error_code(ErrorCode::FetchSessionIdNotFound.into());
        }
        let deadline = deadline(request.max_wait_ms);
        let min_bytes = usize::try_from(request.min_bytes).unwrap_or(0);
        let reader = Reader::of(&request);
        let waiting = Waiting::new(self.partitions_of(&request), reader.below());
        loop {
            waiting.register();
            let answer = self.look(&request, reader, version).await;
            let enough = answer.urgent || answer.bytes >= min_bytes;
            if enough || !waiting.wait_until(deadline).await {
                return FetchResponseData::default().with_responses(answer.topics);
            }
        }
    }

    fn partitions_of(&self, request: &FetchRequestData) -> Vec<Arc<Partition>> {
        let mut partitions = Vec::new();
        for asked in &request.topics {
            let Ok(topic) = self.find_topic(&asked.topic, asked.topic_id) else { continue };
            let asked = asked.partitions.iter();
            partitions.extend(
                asked.filter_map(|asked| self.find_partition(&topic, asked.partition).ok()),
            );
        }
        partitions
    }

    async fn look(&self, request: &FetchRequestData, reader: Reader, version: i16) -> Answer {
        let most = usize::try_from(request.max_bytes).unwrap_or(0).min(MAX_ANSWER_BYTES);
        let mut answer = Answer { topics: Vec::new(), bytes: 0, urgent: false };
        let client = ClientReader { rack: request.rack_id.as_str(), version };
        for asked in &request.topics {
            let topic = self.find_topic(&asked.topic, asked.topic_id);
            let mut answered = FetchableTopicResponse::default()
                .with_topic(asked.topic.clone())
                .with_topic_id(asked.topic_id);
            for partition in &asked.partitions {
                let left = most.saturating_sub(answer.bytes);
                let at_least_one = answer.bytes == 0;
                let found = topic.as_ref().map_err(Refused::clone);
                let part = match found {
                    Ok(topic) => {
                        let room = Room { bytes: left, at_least_one };
                        self.fetch_one(topic, partition, (reader, client), room).await
                    }
                    Err(refused) => Err(refused),
                };
                let data = match part {
                    Ok(data) => data,
                    Err(refused) => refused_data(partition.partition, &refused),
                };
                answer.bytes += data.records.as_ref().map_or(0, Bytes::len);
                answer.urgent |= data.error_code != 0
                    || data.preferred_read_replica >= 0
                    || (version >= 12 && data.diverging_epoch != EpochEndOffset::default());
                answered.partitions.push(data);
            }
            answer.topics.push(answered);
        }
        answer
    }

    async fn fetch_one(
        &self,
        topic: &Topic,
        asked: &FetchPartition,
        (reader, client): (Reader, ClientReader<'_>),
        room: Room,
    ) -> Result<PartitionData, Refused> {
        let found = self.find_partition(topic, asked.partition)?;
        if let Reader::Client = reader {
            found.check_epoch(LeaderEpoch::new(asked.current_leader_epoch))?;
            if let Some(other) = self.better_replica(topic, &found, asked, client)? {
                let data = data(asked.partition, found.offsets()?);
                let elsewhere = data.with_preferred_read_replica(other.get());
                return Ok(elsewhere.with_records(Some(Bytes::new())));
            }
        }
        let data = fetch_partition(&found, reader, asked, room).await?;
        if let Reader::Client = reader
            && found.leads().is_none()
        {
            let bytes = data.records.as_ref().map_or(0, Bytes::len);
            self.follower_read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        Ok(data)
    }
}

/// What an answer has room for.
#[derive(Debug, Clone, Copy)]
struct Room {
    bytes: usize,
    /// There is nothing in it yet: a batch that is too large goes whole.
    at_least_one: bool,
}

async fn fetch_partition(
    partition: &Arc<Partition>,
    reader: Reader,
    asked: &FetchPartition,
    room: Room,
) -> Result<PartitionData, Refused> {
    let diverging = match reader {
        Reader::Client => diverging_epoch(partition, asked)?,
        Reader::Follower { replica, broker_epoch } => {
            let fetched = Fetched { replica, broker_epoch, from: Offset::new(asked.fetch_offset) };
            let asked_in = LeaderEpoch::new(asked.current_leader_epoch);
            let last_epoch = LeaderEpoch::new(asked.last_fetched_epoch);
            match partition.follower_asks(fetched, asked_in, last_epoch) {
                Ok(diverging) => diverging,
                Err(NotServed::OutOfRange(offsets)) => {
                    return Ok(out_of_range(asked.partition, offsets));
                }
                Err(NotServed::Stopped(stopped)) => return Err(stopped.into()),
                Err(NotServed::WrongEpoch(wrong)) => return Err(wrong.into()),
            }
        }
    };
    let offsets = partition.offsets()?;
    if let Some(EpochEnd { epoch, end }) = diverging {
        let parts = EpochEndOffset::default().with_epoch(epoch.get()).with_end_offset(end.get());
        let data = data(asked.partition, offsets).with_records(Some(Bytes::new()));
        return Ok(data.with_diverging_epoch(parts));
    }
    let own = usize::try_from(asked.partition_max_bytes).unwrap_or(0);
    let request = ReadRequest {
        from: Offset::new(asked.fetch_offset),
        below: reader.below(),
        max_bytes: own.min(room.bytes),
        at_least_one: room.at_least_one,
    };
    let found = match read(partition, request).await {
        // A follower may be behind, or have lost its disk: only a leader knows what is not there.
        Err(refused)
            if refused.code == ErrorCode::OffsetOutOfRange && partition.leads().is_none() =>
        {
            let is_ahead = request.from > offsets.end;
            let code = if is_ahead {
                ErrorCode::OffsetNotAvailable
            } else {
                ErrorCode::NotLeaderOrFollower
            };
            return Err(code.into());
        }
        found => found?,
    };
    Ok(data(asked.partition, found.offsets).with_records(Some(found.batches)))
}

fn data(partition: i32, offsets: Offsets) -> PartitionData {
    PartitionData::default()
        .with_partition_index(partition)
        .with_high_watermark(offsets.high_watermark.get())
        .with_last_stable_offset(offsets.high_watermark.get())
        .with_log_start_offset(offsets.start.get())
}

/// A follower needs to know where to begin anew.
fn out_of_range(partition: i32, offsets: Offsets) -> PartitionData {
    data(partition, offsets)
        .with_error_code(ErrorCode::OffsetOutOfRange.into())
        .with_records(Some(Bytes::new()))
}

async fn read(partition: &Arc<Partition>, request: ReadRequest) -> Result<ReadBatches, Refused> {
    match partition.read(request)? {
        Read::Done(found) => Ok(found),
        Read::Cold(cold) => {
            let reader = Arc::clone(partition);
            let read = partition.shared.config.workers.run(move || reader.read_cold(cold));
            Ok(read.await??)
        }
    }
}

/// Where a reader's history parts from ours, if it does (KIP-595). Also from followers: what is below
/// their high watermark is committed.
fn diverging_epoch(
    partition: &Partition,
    asked: &FetchPartition,
) -> Result<Option<EpochEnd>, Refused> {
    partition.check_epoch(LeaderEpoch::new(asked.current_leader_epoch))?;
    if asked.last_fetched_epoch < 0 {
        return Ok(None);
    }
    let last_fetched = LeaderEpoch::new(asked.last_fetched_epoch);
    let from = Offset::new(asked.fetch_offset);
    let end = partition.offsets()?.end;
    Ok(divergence(&partition.epochs()?, end, last_fetched, from))
}

fn refused_data(partition: i32, refused: &Refused) -> PartitionData {
    PartitionData::default()
        .with_partition_index(partition)
        .with_error_code(refused.code())
        .with_high_watermark(-1)
        .with_records(Some(Bytes::new()))
}

/// A request's place among those that wait; given up when it is dropped.
struct Waiting {
    woken: Arc<Notify>,
    partitions: Vec<Arc<Partition>>,
    below: ReadBelow,
}

impl Waiting {
    fn new(partitions: Vec<Arc<Partition>>, below: ReadBelow) -> Self {
        Self { woken: Arc::default(), partitions, below }
    }

    fn register(&self) {
        for partition in &self.partitions {
            partition.stop_waking(&self.woken);
            partition.wake_on_change(&self.woken, self.below);
        }
    }

    /// Whether something changed before the time was up.
    async fn wait_until(&self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.woken.notified()).await.is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for partition in &self.partitions {
            partition.stop_waking(&self.woken);
        }
    }
}

fn deadline(max_wait_ms: i32) -> Instant {
    let wait = Duration::from_millis(u64::try_from(max_wait_ms).unwrap_or(0));
    Instant::now() + wait.min(MAX_WAIT)
}
