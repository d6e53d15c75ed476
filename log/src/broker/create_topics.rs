//! CreateTopics, and topics made because someone asked for them: brought to the controller.

use tailwater_kafka::wire::create_topics_request::{CreatableTopic, CreateTopicsRequestData};
use tailwater_kafka::wire::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult, CreateTopicsResponseData,
};
use tailwater_kafka::wire::{ErrorCode, KafkaUuid};
use tailwater_kafka::{BrokerId, TopicId};
use uuid::Uuid;

use super::Refused;
use super::describe_configs::{SOURCE_DEFAULT, SOURCE_TOPIC};
use super::view::Topic;
use crate::controller::{ControllerAnswer, ControllerRequest, CreatedTopic, NewTopic};
use crate::log::Log;
use crate::topic_config::{Defaults, Overrides, SETTINGS};
use crate::topics::{NAME_RULE, is_valid_name};

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

    /// Makes a topic with the cluster's defaults because a client asked for its metadata.
    pub(super) async fn create_by_asking(&self, name: &str) -> Result<Topic, Refused> {
        check_name(name)?;
        let new = NewTopic {
            name: name.to_owned(),
            id: TopicId::new(Uuid::new_v4()),
            partitions: self.shared.config.default_partitions,
            replication_factor: -1,
            assignments: Vec::new(),
            configs: Overrides::new(),
        };
        match self.make(new, false).await {
            // Somebody else just has.
            Err(refused) if refused.code != ErrorCode::TopicAlreadyExists => return Err(refused),
            _ => {}
        }
        self.find_topic(&name.to_owned().into(), KafkaUuid::ZERO)
    }

    async fn create_topic(
        &self,
        asked: &CreatableTopic,
        validate_only: bool,
    ) -> Result<CreatableTopicResult, Refused> {
        check_name(asked.name.as_str())?;
        let configs = asked.configs.iter().filter_map(|config| {
            let value = config.value.as_ref()?;
            Some((config.name.as_str().to_owned(), value.as_str().to_owned()))
        });
        let new = NewTopic {
            name: asked.name.as_str().to_owned(),
            id: TopicId::new(Uuid::new_v4()),
            partitions: asked.num_partitions,
            replication_factor: asked.replication_factor,
            assignments: assignments(asked)?,
            configs: configs.collect(),
        };
        let configs = new.configs.clone();
        let created = self.make(new, validate_only).await?;
        let id =
            if validate_only { KafkaUuid::ZERO } else { KafkaUuid::from_uuid(created.id.get()) };
        let partitions = i32::try_from(created.replicas.len()).unwrap_or(i32::MAX);
        let replicas = created.replicas.first().map_or(0, Vec::len);
        Ok(CreatableTopicResult::default()
            .with_name(asked.name.clone())
            .with_topic_id(id)
            .with_num_partitions(partitions)
            .with_replication_factor(i16::try_from(replicas).unwrap_or(i16::MAX))
            .with_configs(Some(self.settings_of(&configs))))
    }

    /// Makes a topic, and waits a while until this node leads what it is to lead of it.
    async fn make(&self, new: NewTopic, validate_only: bool) -> Result<CreatedTopic, Refused> {
        let request = ControllerRequest::CreateTopics { topics: vec![new], validate_only };
        let ControllerAnswer::Created(mut created) = self.link.ask(request).await? else {
            return Err(ErrorCode::UnknownServerError.into());
        };
        let created =
            created.pop().ok_or_else(|| Refused::from(ErrorCode::UnknownServerError))??;
        if !validate_only {
            self.wait_for_topic(created.id, true).await;
            self.wait_until_led(created.id).await;
        }
        Ok(created)
    }

    fn settings_of(&self, overrides: &Overrides) -> Vec<CreatableTopicConfigs> {
        let image = self.metadata_now();
        let defaults = Defaults::new(&self.shared.config, &image);
        SETTINGS
            .iter()
            .map(|setting| {
                let own = overrides.get(setting.name);
                let source = if own.is_some() { SOURCE_TOPIC } else { SOURCE_DEFAULT };
                let value = own.cloned().unwrap_or_else(|| setting.default_of(defaults));
                CreatableTopicConfigs::default()
                    .with_name(setting.name.to_owned().into())
                    .with_value(Some(value.into()))
                    .with_config_source(source)
            })
            .collect()
    }
}

/// The replicas of each partition, by number, where a client says which; none where it does not.
fn assignments(asked: &CreatableTopic) -> Result<Vec<Vec<BrokerId>>, Refused> {
    let mut by_number: Vec<_> = asked.assignments.iter().collect();
    by_number.sort_by_key(|assignment| assignment.partition_index);
    let numbers = by_number.iter().map(|assignment| assignment.partition_index);
    if !numbers.eq(0..i32::try_from(by_number.len()).unwrap_or(i32::MAX)) {
        return Err(Refused::new(
            ErrorCode::InvalidReplicaAssignment,
            "the partitions are not numbered from 0",
        ));
    }
    let brokers = |ids: &[i32]| ids.iter().copied().map(BrokerId::new).collect();
    Ok(by_number.iter().map(|assignment| brokers(&assignment.broker_ids)).collect())
}

fn check_name(name: &str) -> Result<(), Refused> {
    if is_valid_name(name) {
        return Ok(());
    }
    Err(Refused::new(ErrorCode::InvalidTopicException, NAME_RULE))
}
