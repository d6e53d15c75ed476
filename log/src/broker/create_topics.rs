//! CreateTopics, and topics made because someone asked for them.

use std::sync::Arc;

use tailwater_kafka::wire::create_topics_request::{CreatableTopic, CreateTopicsRequestData};
use tailwater_kafka::wire::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult, CreateTopicsResponseData,
};
use tailwater_kafka::wire::{ErrorCode, KafkaUuid};

use super::Refused;
use super::describe_configs::{SOURCE_DEFAULT, SOURCE_TOPIC};
use crate::config::MAX_PARTITIONS;
use crate::log::Log;
use crate::topic_config::{Overrides, SETTINGS, TopicConfig};
use crate::topics::{NewTopic, Topic, is_valid_name};

impl Log {
    pub(super) async fn create_topics(
        &self,
        request: CreateTopicsRequestData,
    ) -> CreateTopicsResponseData {
        let mut results = Vec::with_capacity(request.topics.len());
        let names: Vec<_> = request.topics.iter().map(|topic| topic.name.clone()).collect();
        for asked in request.topics {
            let outcome = if names.iter().filter(|name| **name == asked.name).count() > 1 {
                Err(Refused::new(ErrorCode::InvalidRequest, "the topic is named twice"))
            } else {
                self.create_topic(&asked, request.validate_only).await
            };
            results.push(match outcome {
                Ok(created) => created,
                Err(refused) => CreatableTopicResult::default()
                    .with_name(asked.name)
                    .with_error_code(refused.code())
                    .with_error_message(refused.text())
                    .with_num_partitions(-1)
                    .with_replication_factor(-1)
                    .with_configs(Some(Vec::new())),
            });
        }
        CreateTopicsResponseData::default().with_topics(results)
    }

    /// Makes a topic with the node's defaults because a client asked for its metadata.
    pub(super) async fn create_by_asking(&self, name: &str) -> Result<Arc<Topic>, Refused> {
        check_name(name)?;
        let partitions = self.shared.config.default_partitions;
        let overrides = Overrides::new();
        self.make(NewTopic { name: name.to_owned(), partitions, overrides }, true).await
    }

    async fn create_topic(
        &self,
        asked: &CreatableTopic,
        validate_only: bool,
    ) -> Result<CreatableTopicResult, Refused> {
        let new = self.check_new_topic(asked)?;
        let id = if validate_only {
            KafkaUuid::ZERO
        } else {
            KafkaUuid::from_uuid(self.make(new.clone(), false).await?.id.get())
        };
        Ok(CreatableTopicResult::default()
            .with_name(asked.name.clone())
            .with_topic_id(id)
            .with_num_partitions(new.partitions)
            .with_replication_factor(1)
            .with_configs(Some(self.settings_of(&new.overrides))))
    }

    fn check_new_topic(&self, asked: &CreatableTopic) -> Result<NewTopic, Refused> {
        let name = asked.name.as_str();
        check_name(name)?;
        if self.topics.by_name(name).is_some() {
            return Err(exists(name));
        }
        let partitions = self.check_partitions(asked)?;
        let overrides: Overrides = asked
            .configs
            .iter()
            .filter_map(|config| {
                let value = config.value.as_ref()?;
                Some((config.name.as_str().to_owned(), value.as_str().to_owned()))
            })
            .collect();
        TopicConfig::resolve(&self.shared.config, &overrides)
            .map_err(|problem| Refused::new(ErrorCode::InvalidConfig, problem))?;
        Ok(NewTopic { name: name.to_owned(), partitions, overrides })
    }

    fn check_partitions(&self, asked: &CreatableTopic) -> Result<i32, Refused> {
        if !asked.assignments.is_empty() {
            return self.check_assignments(asked);
        }
        if !matches!(asked.replication_factor, -1 | 1) {
            return Err(Refused::new(
                ErrorCode::InvalidReplicationFactor,
                format!("replication factor {}, but there is one node", asked.replication_factor),
            ));
        }
        match asked.num_partitions {
            -1 => Ok(self.shared.config.default_partitions),
            count @ 1..=MAX_PARTITIONS => Ok(count),
            count => Err(Refused::new(
                ErrorCode::InvalidPartitions,
                format!("{count} partitions, a topic has 1 to {MAX_PARTITIONS}"),
            )),
        }
    }

    fn check_assignments(&self, asked: &CreatableTopic) -> Result<i32, Refused> {
        let node = self.shared.config.node_id.get();
        let wrong = |message: &str| Refused::new(ErrorCode::InvalidReplicaAssignment, message);
        if asked.num_partitions != -1 || asked.replication_factor != -1 {
            return Err(Refused::new(
                ErrorCode::InvalidRequest,
                "assignments go without partition count and replication factor",
            ));
        }
        let count = i32::try_from(asked.assignments.len()).unwrap_or(i32::MAX);
        let mut numbers: Vec<i32> =
            asked.assignments.iter().map(|assignment| assignment.partition_index).collect();
        numbers.sort_unstable();
        if count > MAX_PARTITIONS || !numbers.into_iter().eq(0..count) {
            return Err(wrong("the partitions are not numbered from 0"));
        }
        if asked.assignments.iter().any(|assignment| assignment.broker_ids != [node]) {
            return Err(wrong("there is one node, and it has every partition once"));
        }
        Ok(count)
    }

    /// Makes a topic, one at a time. `or_find` takes one that somebody else has just made.
    async fn make(&self, new: NewTopic, or_find: bool) -> Result<Arc<Topic>, Refused> {
        let topics = Arc::clone(&self.topics);
        let workers = self.shared.config.workers.clone();
        self.to_its_end(async move {
            let _changing = topics.changing.lock().await;
            if let Some(topic) = topics.by_name(&new.name) {
                return if or_find { Ok(topic) } else { Err(exists(&new.name)) };
            }
            let list = Arc::clone(&topics);
            let topic = workers.run(move || list.create(&new)).await??;
            let partitions = topic.partitions.len();
            tracing::info!(topic = %topic.name, partitions, "made a topic");
            Ok(topic)
        })
        .await
    }

    fn settings_of(&self, overrides: &Overrides) -> Vec<CreatableTopicConfigs> {
        SETTINGS
            .iter()
            .map(|setting| {
                let own = overrides.get(setting.name);
                let source = if own.is_some() { SOURCE_TOPIC } else { SOURCE_DEFAULT };
                let value = own.cloned().unwrap_or_else(|| setting.default_of(&self.shared.config));
                CreatableTopicConfigs::default()
                    .with_name(setting.name.to_owned().into())
                    .with_value(Some(value.into()))
                    .with_config_source(source)
            })
            .collect()
    }
}

fn check_name(name: &str) -> Result<(), Refused> {
    if is_valid_name(name) {
        return Ok(());
    }
    Err(Refused::new(
        ErrorCode::InvalidTopicException,
        "a topic name has 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-', and is \
         neither '.' nor '..'",
    ))
}

fn exists(name: &str) -> Refused {
    Refused::new(ErrorCode::TopicAlreadyExists, format!("topic {name:?} exists"))
}
