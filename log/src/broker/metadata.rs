//! Metadata: which brokers and topics there are and who leads them.

use tailwater_kafka::wire::metadata_request::{MetadataRequestData, MetadataRequestTopic};
use tailwater_kafka::wire::metadata_response::{
    MetadataResponseBroker, MetadataResponseData, MetadataResponsePartition, MetadataResponseTopic,
};
use tailwater_kafka::wire::{ErrorCode, KafkaString, KafkaUuid};
use tailwater_kafka::{BrokerId, PartitionId, TopicId};

use super::Refused;
use crate::coordinator;
use crate::log::Log;
use crate::metadata::{Image, PartitionState};
use crate::partitions::PartitionKey;

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
            None => {
                let image = self.metadata_now();
                let ids = image.topics().keys();
                ids.map(|id| self.describe(&image, *id)).collect()
            }
            Some(names) => {
                let mut topics = Vec::with_capacity(names.len());
                for name in names {
                    topics.push(self.metadata_of(name, may_create).await);
                }
                topics
            }
        };
        let image = self.metadata_now();
        MetadataResponseData::default()
            .with_brokers(image.live_brokers().map(broker).collect())
            .with_cluster_id(Some(self.cluster_id().into()))
            // Any broker brings what is asked of the controller there.
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
            Some(name) => match self.find_topic(name, KafkaUuid::ZERO) {
                Err(_) if may_create && self.shared.config.auto_create_topics => {
                    self.create_by_asking(name.as_str()).await
                }
                Err(_) => Err(unknown(name.as_str())),
                found => found,
            },
        };
        match found {
            Ok(topic) => self.describe(&self.metadata_now(), topic.id),
            Err(refused) => MetadataResponseTopic::default()
                .with_error_code(refused.code())
                // Null was not allowed before version 12, and ids came with 10.
                .with_name(Some(asked.name.unwrap_or_default()))
                .with_topic_id(asked.topic_id),
        }
    }

    fn describe(&self, image: &Image, id: TopicId) -> MetadataResponseTopic {
        let described =
            MetadataResponseTopic::default().with_topic_id(KafkaUuid::from_uuid(id.get()));
        let Some(topic) = image.topic(id) else {
            // Gone since it was found.
            return described.with_error_code(ErrorCode::UnknownTopicId.into());
        };
        let partitions = topic.partitions.iter().map(|(number, state)| {
            let leader = state.leader.filter(|leader| !self.is_stranded(*leader, (id, *number)));
            describe_partition(image, *number, state, leader)
        });
        described
            .with_name(Some(topic.name.clone().into()))
            .with_is_internal(coordinator::is_internal(&topic.name))
            .with_partitions(partitions.collect())
    }

    /// Whether `leader` is this node and cut off from the others: who leads by now, it cannot say.
    fn is_stranded(&self, leader: BrokerId, key: PartitionKey) -> bool {
        leader == self.shared.config.node_id
            && self.partitions.get(key).is_some_and(|partition| partition.is_stranded())
    }
}

fn broker((id, state): (BrokerId, &crate::metadata::BrokerState)) -> MetadataResponseBroker {
    MetadataResponseBroker::default()
        .with_node_id(id.get())
        .with_host(state.host.clone().into())
        .with_port(i32::from(state.port))
        .with_rack(state.rack.clone().map(Into::into))
}

fn describe_partition(
    image: &Image,
    number: PartitionId,
    state: &PartitionState,
    leader: Option<BrokerId>,
) -> MetadataResponsePartition {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.get()).collect::<Vec<_>>();
    let is_live = |id: &BrokerId| image.broker(*id).is_some_and(|broker| !broker.fenced);
    let is_offline = |id: &&BrokerId| !is_live(id) || state.offline.contains(id);
    let offline = state.replicas.iter().filter(is_offline).map(|id| id.get());
    let described = MetadataResponsePartition::default()
        .with_partition_index(number.get())
        .with_leader_epoch(state.leader_epoch.get())
        .with_replica_nodes(ids(&state.replicas))
        .with_isr_nodes(ids(&state.isr))
        .with_offline_replicas(offline.collect());
    match leader {
        Some(leader) => described.with_leader_id(leader.get()),
        None => described.with_error_code(ErrorCode::LeaderNotAvailable.into()).with_leader_id(-1),
    }
}

fn unknown(name: &str) -> Refused {
    if crate::topics::is_valid_name(name) {
        ErrorCode::UnknownTopicOrPartition.into()
    } else {
        ErrorCode::InvalidTopicException.into()
    }
}
