//! Metadata: which topics there are and who leads them. One node leads everything.

use std::sync::Arc;

use tailwater_kafka::wire::metadata_request::{MetadataRequestData, MetadataRequestTopic};
use tailwater_kafka::wire::metadata_response::{
    MetadataResponseBroker, MetadataResponseData, MetadataResponsePartition, MetadataResponseTopic,
};
use tailwater_kafka::wire::{ErrorCode, KafkaString, KafkaUuid};

use super::Refused;
use crate::log::Log;
use crate::storage::partition::Partition;
use crate::topics::Topic;

impl Log {
    pub(super) async fn metadata(
        &self,
        request: MetadataRequestData,
        version: i16,
    ) -> MetadataResponseData {
        // Version 0 says "all" with an empty list, the others with none; the switch came with 4.
        let names = request.topics.filter(|names| version > 0 || !names.is_empty());
        let may_create = version < 4 || request.allow_auto_topic_creation;
        let topics = match names {
            None => self.topics.all().iter().map(|topic| self.describe(topic)).collect(),
            Some(names) => {
                let mut topics = Vec::with_capacity(names.len());
                for name in names {
                    topics.push(self.metadata_of(name, may_create).await);
                }
                topics
            }
        };
        MetadataResponseData::default()
            .with_brokers(vec![self.broker()])
            .with_cluster_id(Some(self.cluster_id.clone().into()))
            .with_controller_id(self.shared.config.node_id.get())
            .with_topics(topics)
    }

    async fn metadata_of(
        &self,
        asked: MetadataRequestTopic,
        may_create: bool,
    ) -> MetadataResponseTopic {
        let found = match &asked.name {
            None => self.find_topic(&KafkaString::default(), asked.topic_id),
            Some(name) => match self.topics.by_name(name.as_str()) {
                Some(topic) => Ok(topic),
                None if may_create && self.shared.config.auto_create_topics => {
                    self.create_by_asking(name.as_str()).await
                }
                None => Err(unknown(name.as_str())),
            },
        };
        match found {
            Ok(topic) => self.describe(&topic),
            Err(refused) => MetadataResponseTopic::default()
                .with_error_code(refused.code())
                // Null was not allowed before version 12, and ids came with 10.
                .with_name(Some(asked.name.unwrap_or_default()))
                .with_topic_id(asked.topic_id),
        }
    }

    fn broker(&self) -> MetadataResponseBroker {
        let config = &self.shared.config;
        MetadataResponseBroker::default()
            .with_node_id(config.node_id.get())
            .with_host(config.advertised_host.clone().into())
            .with_port(i32::from(config.advertised_port))
    }

    fn describe(&self, topic: &Arc<Topic>) -> MetadataResponseTopic {
        MetadataResponseTopic::default()
            .with_name(Some(topic.name.clone().into()))
            .with_topic_id(KafkaUuid::from_uuid(topic.id.get()))
            .with_partitions(
                topic
                    .partitions
                    .iter()
                    .map(|partition| self.describe_partition(partition))
                    .collect(),
            )
    }

    fn describe_partition(&self, partition: &Partition) -> MetadataResponsePartition {
        let node = self.shared.config.node_id.get();
        let described = MetadataResponsePartition::default()
            .with_partition_index(partition.name.partition.get())
            .with_leader_id(node)
            .with_replica_nodes(vec![node]);
        match partition.epochs() {
            Ok(epochs) => {
                described.with_leader_epoch(epochs.current().get()).with_isr_nodes(vec![node])
            }
            // It is still led from here: whoever asks for its records is told what is wrong.
            Err(_) => described.with_offline_replicas(vec![node]),
        }
    }
}

fn unknown(name: &str) -> Refused {
    if crate::topics::is_valid_name(name) {
        ErrorCode::UnknownTopicOrPartition.into()
    } else {
        ErrorCode::InvalidTopicException.into()
    }
}
