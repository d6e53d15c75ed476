//! One attempt at each of the client's calls.

use super::{
    Client, OffsetAt, TopicInfo, TopicSpec,
    cluster::{Backoff, CoordinatorOf, find_topic, is_unknown_topic, left_out, topic_id},
};
use crate::{
    error::{Error, is_fenced},
    ids::{Offset, ProducerEpoch, ProducerId, TopicPartition},
    producer::Identity,
    transport::Connection,
    wire::{
        ApiKey, ErrorCode, KafkaString,
        create_topics_request::{CreatableTopic, CreatableTopicConfig, CreateTopicsRequestData},
        create_topics_response::CreateTopicsResponseData,
        delete_topics_request::DeleteTopicsRequestData,
        delete_topics_response::DeleteTopicsResponseData,
        init_producer_id_request::InitProducerIdRequestData,
        init_producer_id_response::InitProducerIdResponseData,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsRequestData, ListOffsetsTopic},
        list_offsets_response::ListOffsetsResponseData,
        offset_commit_request::{
            OffsetCommitRequestData, OffsetCommitRequestPartition, OffsetCommitRequestTopic,
        },
        offset_commit_response::OffsetCommitResponseData,
        offset_fetch_request::{OffsetFetchRequestData, OffsetFetchRequestTopic},
        offset_fetch_response::OffsetFetchResponseData,
    },
};

/// Without open transactions it never runs out, but brokers want it positive.
const TRANSACTION_TIMEOUT_MS: i32 = 60_000;

/// How long a controller may take for a topic.
const TOPIC_TIMEOUT_MS: i32 = 30_000;

impl Client {
    pub(super) async fn try_cluster_id(&self) -> Result<String, Error> {
        let metadata = self.connections.lock().await.metadata(&[]).await?;
        metadata.cluster_id.map(|id| id.as_str().to_owned()).ok_or_else(|| {
            Error::broker("ask for the cluster id", ErrorCode::BrokerNotAvailable.into())
        })
    }

    pub(super) async fn try_topic(&self, name: &str) -> Result<Option<TopicInfo>, Error> {
        let metadata = self.connections.lock().await.metadata(&[name]).await?;
        let topic = match find_topic(&metadata, name) {
            Ok(topic) => topic,
            Err(error) if is_unknown_topic(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(TopicInfo {
            id: topic_id(topic),
            name: name.to_owned(),
            partitions: i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX),
        }))
    }

    pub(super) async fn try_create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        let operation = || format!("create topic {:?}", spec.name);
        let configs = spec.configs.iter().map(|(name, value)| {
            CreatableTopicConfig::default()
                .with_name(KafkaString::from(name.clone()))
                .with_value(Some(KafkaString::from(value.clone())))
        });
        let topic = CreatableTopic::default()
            .with_name(KafkaString::from(spec.name.clone()))
            .with_num_partitions(spec.partitions)
            .with_replication_factor(spec.replication_factor)
            .with_configs(configs.collect());
        let request = CreateTopicsRequestData::default()
            .with_topics(vec![topic])
            .with_timeout_ms(TOPIC_TIMEOUT_MS);
        let connection = self.connections.lock().await.controller().await?;
        let created: CreateTopicsResponseData = connection.call(request).await?;
        let result = created
            .topics
            .iter()
            .find(|topic| topic.name.as_str() == spec.name)
            .ok_or_else(|| left_out(&connection, ApiKey::CreateTopics))?;
        match ErrorCode::from(result.error_code) {
            ErrorCode::None | ErrorCode::TopicAlreadyExists => {}
            _ => {
                let message = result.error_message.as_ref();
                return Err(Error::broker_says(operation(), result.error_code, message));
            }
        }
        self.wait_for_topic(spec).await
    }

    /// A topic is created before every broker knows of it and has a leader for it.
    async fn wait_for_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        let Some(topic) = self.try_topic(&spec.name).await? else {
            let operation = format!("wait for topic {:?}", spec.name);
            return Err(Error::broker(operation, ErrorCode::UnknownTopicOrPartition.into()));
        };
        if topic.partitions != spec.partitions {
            return Err(Error::PartitionCount {
                topic: topic.name,
                wanted: spec.partitions,
                actual: topic.partitions,
            });
        }
        let partitions: Vec<TopicPartition> = (0..topic.partitions)
            .map(|n| TopicPartition::new(topic.name.clone(), crate::ids::PartitionId::new(n)))
            .collect();
        for leader in self.connections.lock().await.leaders(&partitions).await? {
            leader?;
        }
        Ok(topic)
    }

    pub(super) async fn try_delete_topic(&self, name: &str) -> Result<(), Error> {
        let request = DeleteTopicsRequestData::default()
            .with_topic_names(vec![KafkaString::from(name.to_owned())])
            .with_timeout_ms(TOPIC_TIMEOUT_MS);
        let connection = self.connections.lock().await.controller().await?;
        let deleted: DeleteTopicsResponseData = connection.call(request).await?;
        let result =
            deleted.responses.first().ok_or_else(|| left_out(&connection, ApiKey::DeleteTopics))?;
        match ErrorCode::from(result.error_code) {
            ErrorCode::None | ErrorCode::UnknownTopicOrPartition => Ok(()),
            _ => {
                let message = result.error_message.as_ref();
                let operation = format!("delete topic {name:?}");
                Err(Error::broker_says(operation, result.error_code, message))
            }
        }
    }

    pub(super) async fn try_list_offsets(
        &self,
        of: &TopicPartition,
        at: OffsetAt,
    ) -> Result<Offset, Error> {
        let connection = self.connections.lock().await.leader(of).await?.connection;
        let timestamp = match at {
            OffsetAt::Latest => -1,
            OffsetAt::Earliest => -2,
            OffsetAt::Timestamp(at) => at.max(0),
        };
        let offset = offset_at(&connection, of, timestamp).await?;
        // No record that young: what comes next will be.
        if offset < 0 {
            return offset_at(&connection, of, -1).await.map(Offset::new);
        }
        Ok(Offset::new(offset))
    }

    pub(super) async fn try_commit_offsets(
        &self,
        group: &str,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<(), Error> {
        let mut topics: Vec<OffsetCommitRequestTopic> = Vec::new();
        for (of, offset) in offsets {
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(of.partition.get())
                .with_committed_offset(offset.get())
                .with_committed_metadata(Some(KafkaString::default()));
            match topics.iter_mut().find(|topic| topic.name.as_str() == of.topic) {
                Some(topic) => topic.partitions.push(partition),
                None => topics.push(
                    OffsetCommitRequestTopic::default()
                        .with_name(KafkaString::from(of.topic.clone()))
                        .with_partitions(vec![partition]),
                ),
            }
        }
        let request = OffsetCommitRequestData::default()
            .with_group_id(KafkaString::from(group.to_owned()))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(topics);
        let connection =
            self.connections.lock().await.coordinator(CoordinatorOf::Group(group)).await?;
        let committed: OffsetCommitResponseData = connection.call(request).await?;
        let mut answered = 0;
        for topic in &committed.topics {
            for partition in &topic.partitions {
                if partition.error_code != 0 {
                    let operation = format!(
                        "commit offset of {}-{} for group {group:?}",
                        topic.name, partition.partition_index
                    );
                    return Err(Error::broker(operation, partition.error_code));
                }
                answered += 1;
            }
        }
        if answered < offsets.len() {
            return Err(left_out(&connection, ApiKey::OffsetCommit));
        }
        Ok(())
    }

    pub(super) async fn try_fetch_offsets(
        &self,
        group: &str,
        of: &[TopicPartition],
    ) -> Result<Vec<Option<Offset>>, Error> {
        let mut topics: Vec<OffsetFetchRequestTopic> = Vec::new();
        for of in of {
            let index = of.partition.get();
            match topics.iter_mut().find(|topic| topic.name.as_str() == of.topic) {
                Some(topic) => topic.partition_indexes.push(index),
                None => topics.push(
                    OffsetFetchRequestTopic::default()
                        .with_name(KafkaString::from(of.topic.clone()))
                        .with_partition_indexes(vec![index]),
                ),
            }
        }
        let request = OffsetFetchRequestData::default()
            .with_group_id(KafkaString::from(group.to_owned()))
            .with_topics(Some(topics));
        let connection =
            self.connections.lock().await.coordinator(CoordinatorOf::Group(group)).await?;
        let fetched: OffsetFetchResponseData = connection.call(request).await?;
        let operation = || format!("fetch offsets of group {group:?}");
        if fetched.error_code != 0 {
            return Err(Error::broker(operation(), fetched.error_code));
        }
        let mut offsets = Vec::with_capacity(of.len());
        for of in of {
            let partition = fetched
                .topics
                .iter()
                .filter(|topic| topic.name.as_str() == of.topic)
                .flat_map(|topic| &topic.partitions)
                .find(|partition| partition.partition_index == of.partition.get())
                .ok_or_else(|| left_out(&connection, ApiKey::OffsetFetch))?;
            if partition.error_code != 0 {
                return Err(Error::broker(operation(), partition.error_code));
            }
            let offset = partition.committed_offset;
            offsets.push((offset >= 0).then(|| Offset::new(offset)));
        }
        Ok(offsets)
    }

    /// An identity for a producer, retried within the call timeout.
    pub(super) async fn init_producer_id(
        &self,
        transactional_id: Option<&str>,
    ) -> Result<Identity, Error> {
        let mut backoff = Backoff::until(self.cluster.call_timeout);
        loop {
            let result = self.try_init_producer_id(transactional_id).await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    async fn try_init_producer_id(
        &self,
        transactional_id: Option<&str>,
    ) -> Result<Identity, Error> {
        let connection = {
            let mut connections = self.connections.lock().await;
            match transactional_id {
                Some(id) => connections.coordinator(CoordinatorOf::TransactionalId(id)).await?,
                None => connections.any().await?,
            }
        };
        let request = InitProducerIdRequestData::default()
            .with_transactional_id(transactional_id.map(|id| KafkaString::from(id.to_owned())))
            .with_transaction_timeout_ms(TRANSACTION_TIMEOUT_MS)
            .with_producer_id(ProducerId::NONE.get())
            .with_producer_epoch(ProducerEpoch::NONE.get());
        let given: InitProducerIdResponseData = connection.call(request).await?;
        let code = ErrorCode::from(given.error_code);
        let of = || transactional_id.unwrap_or("no transactional id").to_owned();
        if is_fenced(code) {
            return Err(Error::Fenced { partition: of(), code });
        }
        if given.error_code != 0 {
            let operation = format!("get a producer id for {}", of());
            return Err(Error::broker(operation, given.error_code));
        }
        Ok(Identity {
            id: ProducerId::new(given.producer_id),
            epoch: ProducerEpoch::new(given.producer_epoch),
        })
    }
}

async fn offset_at(
    connection: &Connection,
    of: &TopicPartition,
    timestamp: i64,
) -> Result<i64, Error> {
    let partition = ListOffsetsPartition::default()
        .with_partition_index(of.partition.get())
        .with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default()
        .with_name(KafkaString::from(of.topic.clone()))
        .with_partitions(vec![partition]);
    let request = ListOffsetsRequestData::default().with_replica_id(-1).with_topics(vec![topic]);
    let listed: ListOffsetsResponseData = connection.call(request).await?;
    let partition = listed
        .topics
        .iter()
        .flat_map(|topic| &topic.partitions)
        .find(|partition| partition.partition_index == of.partition.get())
        .ok_or_else(|| left_out(connection, ApiKey::ListOffsets))?;
    if partition.error_code != 0 {
        return Err(Error::broker(format!("list offsets of {of}"), partition.error_code));
    }
    Ok(partition.offset)
}
