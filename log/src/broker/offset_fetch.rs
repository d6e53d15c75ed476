//! OffsetFetch: where a reader was. A group that nobody knows is just at no offset anywhere.

use std::collections::BTreeMap;

use tailwater_kafka::TopicId;
use tailwater_kafka::wire::offset_fetch_request::{
    OffsetFetchRequestData, OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use tailwater_kafka::wire::offset_fetch_response::{
    OffsetFetchResponseData, OffsetFetchResponseGroup, OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions, OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use tailwater_kafka::wire::{ErrorCode, KafkaUuid};

use super::Refused;
use crate::coordinator::offsets::{self, Committed, OfPartition};
use crate::coordinator::{OFFSETS_TOPIC, Store};
use crate::log::Log;

/// From this version on one request asks for many groups.
const MANY_GROUPS: i16 = 8;

impl Log {
    pub(super) async fn offset_fetch(
        &self,
        request: OffsetFetchRequestData,
        version: i16,
    ) -> OffsetFetchResponseData {
        if version >= MANY_GROUPS {
            let mut groups = Vec::with_capacity(request.groups.len());
            for group in request.groups {
                groups.push(self.group(group).await);
            }
            return OffsetFetchResponseData::default().with_groups(groups);
        }
        let topics = request.topics.map(|topics| {
            let wanted =
                |topic: tailwater_kafka::wire::offset_fetch_request::OffsetFetchRequestTopic| {
                    OffsetFetchRequestTopics::default()
                        .with_name(topic.name)
                        .with_partition_indexes(topic.partition_indexes)
                };
            topics.into_iter().map(wanted).collect()
        });
        let group =
            OffsetFetchRequestGroup::default().with_group_id(request.group_id).with_topics(topics);
        let group = self.group(group).await;
        let topics = group.topics.into_iter().map(older_topic).collect();
        OffsetFetchResponseData::default().with_topics(topics).with_error_code(group.error_code)
    }

    async fn group(&self, asked: OffsetFetchRequestGroup) -> OffsetFetchResponseGroup {
        let answer = OffsetFetchResponseGroup::default().with_group_id(asked.group_id.clone());
        let group = asked.group_id.as_str();
        let store = match self.coordinator_of(OFFSETS_TOPIC, group).await {
            Ok(store) => store,
            Err(refused) => return answer.with_error_code(refused.code()),
        };
        let topics = match asked.topics {
            Some(topics) => {
                topics.into_iter().map(|topic| self.topic(&store, group, topic)).collect()
            }
            None => self.every_topic(&store, group),
        };
        answer.with_topics(topics)
    }

    fn topic(
        &self,
        store: &Store,
        group: &str,
        asked: OffsetFetchRequestTopics,
    ) -> OffsetFetchResponseTopics {
        let topic = self.find_topic(&asked.name, asked.topic_id);
        let partitions = asked
            .partition_indexes
            .into_iter()
            .map(|number| {
                let partition = tailwater_kafka::PartitionId::new(number);
                match &topic {
                    Ok(topic) => {
                        let (topic, topic_id) = (topic.name().to_owned(), topic.id);
                        let of = OfPartition { topic, topic_id, partition };
                        answer(number, offsets::committed(store, group, &of))
                    }
                    Err(refused) => refused_answer(number, refused),
                }
            })
            .collect();
        OffsetFetchResponseTopics::default()
            .with_name(asked.name)
            .with_topic_id(asked.topic_id)
            .with_partitions(partitions)
    }

    fn every_topic(&self, store: &Store, group: &str) -> Vec<OffsetFetchResponseTopics> {
        let mut by_topic: BTreeMap<TopicId, Vec<OffsetFetchResponsePartitions>> = BTreeMap::new();
        for (of, committed) in offsets::all_committed(store, group) {
            let partition = answer(of.partition.get(), Some(committed));
            by_topic.entry(of.topic_id).or_default().push(partition);
        }
        let image = self.metadata_now();
        by_topic
            .into_iter()
            .filter_map(|(id, partitions)| {
                let topic = image.topic(id)?;
                Some(
                    OffsetFetchResponseTopics::default()
                        .with_name(topic.name.clone().into())
                        .with_topic_id(KafkaUuid::from_uuid(id.get()))
                        .with_partitions(partitions),
                )
            })
            .collect()
    }
}

fn answer(partition: i32, committed: Option<Committed>) -> OffsetFetchResponsePartitions {
    let answer = OffsetFetchResponsePartitions::default().with_partition_index(partition);
    match committed {
        Some(committed) => answer
            .with_committed_offset(committed.offset.get())
            .with_committed_leader_epoch(committed.leader_epoch.get())
            .with_metadata(Some(committed.metadata.into())),
        None => answer
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_metadata(Some(String::new().into())),
    }
}

/// An unknown *name* has no offsets, which is no error; an unknown id is one.
fn refused_answer(partition: i32, refused: &Refused) -> OffsetFetchResponsePartitions {
    let answer = answer(partition, None);
    match refused.code {
        ErrorCode::UnknownTopicOrPartition => answer,
        _ => answer.with_error_code(refused.code()),
    }
}

fn older_topic(topic: OffsetFetchResponseTopics) -> OffsetFetchResponseTopic {
    let partitions = topic
        .partitions
        .into_iter()
        .map(|partition| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_committed_offset(partition.committed_offset)
                .with_committed_leader_epoch(partition.committed_leader_epoch)
                .with_metadata(partition.metadata)
                .with_error_code(partition.error_code)
        })
        .collect();
    OffsetFetchResponseTopic::default().with_name(topic.name).with_partitions(partitions)
}
