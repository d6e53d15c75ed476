//! ListOffsets: where a partition begins and ends, and where it was at a time.

use std::sync::Arc;

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsRequestData};
use tailwater_kafka::wire::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponseData, ListOffsetsTopicResponse,
};
use tailwater_kafka::{LeaderEpoch, Offset};

use super::Refused;
use crate::log::Log;
use crate::storage::lookup::FoundRecord;
use crate::storage::partition::Partition;
use crate::storage::read::NotRead;

/// What stands where a time could.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const GREATEST_TIMESTAMP: i64 = -3;
/// Of what is on this node's own disk: the same as the earliest, nothing is elsewhere.
const EARLIEST_LOCAL: i64 = -4;
/// Of what is elsewhere: nothing.
const LATEST_TIERED: i64 = -5;

/// From this version on the answer has a leader epoch.
const EPOCHS: i16 = 4;

/// An offset that was asked for; no timestamp where a position is meant and no record.
struct Found {
    offset: i64,
    timestamp_ms: i64,
    leader_epoch: LeaderEpoch,
}

impl Log {
    pub(super) async fn list_offsets(
        &self,
        request: ListOffsetsRequestData,
        version: i16,
    ) -> ListOffsetsResponseData {
        let mut topics = Vec::with_capacity(request.topics.len());
        for asked in request.topics {
            let topic = self.find_topic(&asked.name, Default::default());
            let mut partitions = Vec::with_capacity(asked.partitions.len());
            for one in asked.partitions {
                let partition = topic
                    .as_ref()
                    .map_err(Refused::clone)
                    .and_then(|topic| self.find_partition(topic, one.partition_index));
                let found = match partition {
                    Ok(partition) => find(&partition, &one).await,
                    Err(refused) => Err(refused),
                };
                partitions.push(answer(one.partition_index, found, version));
            }
            topics.push(
                ListOffsetsTopicResponse::default()
                    .with_name(asked.name)
                    .with_partitions(partitions),
            );
        }
        ListOffsetsResponseData::default().with_topics(topics)
    }
}

async fn find(partition: &Arc<Partition>, asked: &ListOffsetsPartition) -> Result<Found, Refused> {
    // A copy that is offline has more to say than that it does not lead.
    partition.offsets()?;
    partition.check_leader(LeaderEpoch::new(asked.current_leader_epoch))?;
    // Until then it may seem to end before what an earlier leader has shown.
    if asked.timestamp != EARLIEST && !partition.readable_from_leader_start() {
        return Err(ErrorCode::OffsetNotAvailable.into());
    }
    let (offsets, epochs) = (partition.offsets()?, partition.epochs()?);
    let position = |offset: Offset, leader_epoch| {
        Ok(Found { offset: offset.get(), timestamp_ms: -1, leader_epoch })
    };
    match asked.timestamp {
        LATEST => position(offsets.high_watermark, epochs.current()),
        EARLIEST | EARLIEST_LOCAL => {
            position(offsets.start, epochs.epoch_of(offsets.start).unwrap_or(LeaderEpoch::NONE))
        }
        LATEST_TIERED => Ok(nothing()),
        GREATEST_TIMESTAMP => search(partition, Partition::greatest_timestamp).await,
        time if time >= 0 => {
            search(partition, move |partition| partition.first_at_or_after(time)).await
        }
        _ => Err(ErrorCode::UnsupportedVersion.into()),
    }
}

async fn search(
    partition: &Arc<Partition>,
    look: impl FnOnce(&Partition) -> Result<Option<FoundRecord>, NotRead> + Send + 'static,
) -> Result<Found, Refused> {
    let searched = Arc::clone(partition);
    let workers = &partition.shared.config.workers;
    let found = workers.run(move || look(&searched)).await??;
    let epochs = partition.epochs()?;
    Ok(found.map_or_else(nothing, |record| Found {
        offset: record.offset.get(),
        timestamp_ms: record.timestamp_ms,
        leader_epoch: epochs.epoch_of(record.offset).unwrap_or(LeaderEpoch::NONE),
    }))
}

fn nothing() -> Found {
    Found { offset: -1, timestamp_ms: -1, leader_epoch: LeaderEpoch::NONE }
}

fn answer(
    partition: i32,
    found: Result<Found, Refused>,
    version: i16,
) -> ListOffsetsPartitionResponse {
    let answer = ListOffsetsPartitionResponse::default().with_partition_index(partition);
    match found {
        Ok(found) => {
            let known = if version >= EPOCHS { found.leader_epoch } else { LeaderEpoch::NONE };
            answer
                .with_offset(found.offset)
                .with_timestamp(found.timestamp_ms)
                .with_leader_epoch(known.get())
        }
        Err(refused) => answer.with_error_code(refused.code()).with_offset(-1).with_timestamp(-1),
    }
}
