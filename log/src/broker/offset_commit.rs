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
use tailwater_kafka::{LeaderEpoch, Offset};

use super::{Refused, find_partition};
use crate::groups::{Committed, MAX_GROUP_BYTES, PartitionKey};
use crate::log::Log;
use crate::topics::Topic;

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
        let mut accepted: Vec<(PartitionKey, Committed)> = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for asked in request.topics {
            let topic = self.find_topic(&asked.name, asked.topic_id);
            let mut partitions = Vec::with_capacity(asked.partitions.len());
            for one in asked.partitions {
                let number = one.partition_index;
                let checked = whole
                    .clone()
                    .and_then(|()| check(topic.as_deref().map_err(Refused::clone)?, one, now));
                partitions.push(answer(number, checked.map(|entry| accepted.push(entry))));
            }
            topics.push(
                OffsetCommitResponseTopic::default()
                    .with_name(asked.name)
                    .with_topic_id(if version >= 10 { asked.topic_id } else { Default::default() })
                    .with_partitions(partitions),
            );
        }
        if let Err(error) = self.groups.commit(&group, accepted).await {
            tracing::warn!(group, error = %error.full_text(), "offsets not committed");
            refuse_all(&mut topics);
        }
        OffsetCommitResponseData::default().with_topics(topics)
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
) -> Result<(PartitionKey, Committed), Refused> {
    let partition = find_partition(topic, asked.partition_index)?;
    let metadata = asked.committed_metadata.map(|text| text.as_str().to_owned());
    if metadata.as_ref().is_some_and(|text| text.len() > MAX_METADATA_BYTES) {
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
    Ok(((topic.id, partition.name.partition), committed))
}

fn answer(partition: i32, outcome: Result<(), Refused>) -> OffsetCommitResponsePartition {
    OffsetCommitResponsePartition::default()
        .with_partition_index(partition)
        .with_error_code(super::code(&outcome))
}

fn refuse_all(topics: &mut [OffsetCommitResponseTopic]) {
    let accepted = topics
        .iter_mut()
        .flat_map(|topic| &mut topic.partitions)
        .filter(|partition| partition.error_code == 0);
    for partition in accepted {
        // Retriable for every client, as nothing has changed.
        partition.error_code = ErrorCode::CoordinatorNotAvailable.into();
    }
}
