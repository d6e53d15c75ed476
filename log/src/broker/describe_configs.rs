//! DescribeConfigs: every setting of a topic with where its value comes from, and the few of the
//! node that tools ask for.

use tailwater_kafka::wire::describe_configs_request::{
    DescribeConfigsRequestData, DescribeConfigsResource,
};
use tailwater_kafka::wire::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResponseData, DescribeConfigsResult,
};
use tailwater_kafka::wire::{ErrorCode, KafkaString};

use super::Refused;
use crate::log::Log;
use crate::topic_config::{Defaults, SETTINGS, SettingType};

/// The topic was given this value.
pub(super) const SOURCE_TOPIC: i8 = 1;
/// The node's own configuration.
const SOURCE_NODE: i8 = 4;
/// Nobody said otherwise.
pub(super) const SOURCE_DEFAULT: i8 = 5;

/// A topic, as requests number what has settings.
pub(super) const TOPIC: i8 = 2;
/// A broker.
pub(super) const BROKER: i8 = 4;

impl Log {
    pub(super) fn describe_configs(
        &self,
        request: DescribeConfigsRequestData,
    ) -> DescribeConfigsResponseData {
        let results = request.resources.into_iter().map(|asked| {
            let described = match asked.resource_type {
                TOPIC => self.describe_topic(asked.resource_name.as_str()),
                BROKER => self.describe_node(asked.resource_name.as_str()),
                _ => Err(Refused::new(
                    ErrorCode::InvalidRequest,
                    "only topics and brokers have settings here",
                )),
            };
            answer(asked, described)
        });
        DescribeConfigsResponseData::default().with_results(results.collect())
    }

    fn describe_topic(&self, name: &str) -> Result<Vec<DescribeConfigsResourceResult>, Refused> {
        let image = self.metadata_now();
        let (_, topic) = image
            .topic_by_name(name)
            .ok_or_else(|| Refused::from(ErrorCode::UnknownTopicOrPartition))?;
        let defaults = Defaults::new(&self.shared.config, &image);
        let settings = SETTINGS.iter().map(|setting| {
            let own = topic.configs.get(setting.name);
            let source = if own.is_some() { SOURCE_TOPIC } else { SOURCE_DEFAULT };
            let value = own.cloned().unwrap_or_else(|| setting.default_of(defaults));
            described(setting.name, value, source, setting.kind)
        });
        Ok(settings.collect())
    }

    fn describe_node(&self, id: &str) -> Result<Vec<DescribeConfigsResourceResult>, Refused> {
        let config = &self.shared.config;
        if !id.is_empty() && id != config.node_id.to_string() {
            return Err(Refused::new(
                ErrorCode::InvalidRequest,
                format!("this is node {}, not {id}", config.node_id),
            ));
        }
        let node = |name, value: String, kind| {
            described(name, value, SOURCE_NODE, kind).with_read_only(true)
        };
        Ok(vec![
            node("broker.id", config.node_id.to_string(), SettingType::Int),
            node("num.partitions", config.default_partitions.to_string(), SettingType::Int),
            node(
                "auto.create.topics.enable",
                config.auto_create_topics.to_string(),
                SettingType::Boolean,
            ),
            node("message.max.bytes", config.max_message_bytes.to_string(), SettingType::Int),
            node("log.segment.bytes", config.segment_bytes.to_string(), SettingType::Int),
            node(
                "default.replication.factor",
                config.replication_factor.to_string(),
                SettingType::Int,
            ),
            node("min.insync.replicas", config.min_insync_replicas.to_string(), SettingType::Int),
        ])
    }
}

fn described(
    name: &'static str,
    value: String,
    source: i8,
    kind: SettingType,
) -> DescribeConfigsResourceResult {
    DescribeConfigsResourceResult::default()
        .with_name(KafkaString::from_static(name))
        .with_value(Some(value.into()))
        .with_config_source(source)
        .with_config_type(kind as i8)
}

fn answer(
    asked: DescribeConfigsResource,
    described: Result<Vec<DescribeConfigsResourceResult>, Refused>,
) -> DescribeConfigsResult {
    let result = DescribeConfigsResult::default()
        .with_resource_type(asked.resource_type)
        .with_resource_name(asked.resource_name);
    match described {
        Ok(mut configs) => {
            if let Some(keys) = asked.configuration_keys {
                configs.retain(|config| keys.contains(&config.name));
            }
            result.with_configs(configs)
        }
        Err(refused) => result.with_error_code(refused.code()).with_error_message(refused.text()),
    }
}
