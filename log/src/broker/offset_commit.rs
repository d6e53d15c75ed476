//! OffsetCommit: a reader says where it is.
//!
//! Readers assign partitions themselves, so there are no members and generations; who claims to be
//! a member is told that there is no such one. A commit is all or nothing per request, except that
//! unknown partitions are refused by themselves.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::offset_commit_request::{
    OffsetCommitRequestData, OffsetCommitRequestPartition,
};
use tailwater_kafka::wire::offset_commit_response::{
    OffsetCommitResponseData, OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use tailwater_kafka::{LeaderEpoch, Offset, PartitionId};

use super::Refused;
use super::view::Topic;
use crate::coordinator::OFFSETS_TOPIC;
use crate::coordinator::offsets::{self, Committed, MAX_GROUP_BYTES, OfPartition};
use crate::log::Log;

/// Kafka's `offset.metadata.max.bytes`.
const MAX_METADATA_BYTES: usize = 4096;

impl Log {
    pub(super) async fn offset_commit(
        &self,
        request: OffsetCommitRequestData,
        version: i16,
    ) -> OffsetCommitResponseData {
        let group = request.group_id.as_str().to_owned();
        let whole = check_member(&request);
        let now = self.shared.config.clock.now_ms();
        let mut accepted: Vec<(OfPartition, Committed)> = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for asked in request.topics {
            let topic = self.find_topic(&asked.name, asked.topic_id);
            let mut partitions = Vec::with_capacity(asked.partitions.len());
            for one in asked.partitions {
                let number = one.partition_index;
                let checked = whole
                    .clone()
                    .and_then(|()| check(topic.as_ref().map_err(Refused::clone)?, one, now));
                partitions.push(answer(number, checked.map(|entry| accepted.push(entry))));
            }
            topics.push(
                OffsetCommitResponseTopic::default()
                    .with_name(asked.name)
                    .with_topic_id(if version >= 10 { asked.topic_id } else { Default::default() })
                    .with_partitions(partitions),
            );
        }
        if let Err(refused) = self.keep(&group, accepted).await {
            refuse_all(&mut topics, &refused);
        }
        OffsetCommitResponseData::default().with_topics(topics)
    }

    async fn keep(
        &self,
        group: &str,
        accepted: Vec<(OfPartition, Committed)>,
    ) -> Result<(), Refused> {
        if accepted.is_empty() {
            return Ok(());
        }
        let store = self.coordinator_of(OFFSETS_TOPIC, group).await?;
        Ok(offsets::commit(&store, group, accepted).await?)
    }
}

fn check_member(request: &OffsetCommitRequestData) -> Result<(), Refused> {
    if request.group_id.as_str().len() > MAX_GROUP_BYTES {
        return Err(ErrorCode::InvalidGroupId.into());
    }
    if request.generation_id_or_member_epoch >= 0 || !request.member_id.as_str().is_empty() {
        return Err(ErrorCode::UnknownMemberId.into());
    }
    Ok(())
}

fn check(
    topic: &Topic,
    asked: OffsetCommitRequestPartition,
    now_ms: i64,
) -> Result<(OfPartition, Committed), Refused> {
    topic.partition(asked.partition_index)?;
    let metadata = asked.committed_metadata.map_or_else(String::new, |it| it.as_str().to_owned());
    if metadata.len() > MAX_METADATA_BYTES {
        return Err(ErrorCode::OffsetMetadataTooLarge.into());
    }
    if asked.committed_offset < 0 {
        return Err(ErrorCode::InvalidCommitOffsetSize.into());
    }
    let committed = Committed {
        offset: Offset::new(asked.committed_offset),
        leader_epoch: LeaderEpoch::new(asked.committed_leader_epoch),
        at_ms: now_ms,
        metadata,
    };
    let of = OfPartition {
        topic: topic.name().to_owned(),
        topic_id: topic.id,
        partition: PartitionId::new(asked.partition_index),
    };
    Ok((of, committed))
}

fn answer(partition: i32, outcome: Result<(), Refused>) -> OffsetCommitResponsePartition {
    OffsetCommitResponsePartition::default()
        .with_partition_index(partition)
        .with_error_code(super::code(&outcome))
}

fn refuse_all(topics: &mut [OffsetCommitResponseTopic], refused: &Refused) {
    let accepted = topics
        .iter_mut()
        .flat_map(|topic| &mut topic.partitions)
        .filter(|partition| partition.error_code == 0);
    for partition in accepted {
        partition.error_code = refused.code();
    }
}
