//! IncrementalAlterConfigs and AlterConfigs, of topics: brought to the controller, which decides on
//! each topic by itself. A node's own settings stand in its configuration file.

use std::collections::BTreeMap;

use tailwater_kafka::wire::alter_configs_request::AlterConfigsRequestData;
use tailwater_kafka::wire::alter_configs_response::{self, AlterConfigsResponseData};
use tailwater_kafka::wire::incremental_alter_configs_request::{
    AlterableConfig, IncrementalAlterConfigsRequestData,
};
use tailwater_kafka::wire::incremental_alter_configs_response::{
    self, IncrementalAlterConfigsResponseData,
};
use tailwater_kafka::wire::{ErrorCode, KafkaString};

use super::describe_configs::{BROKER, TOPIC};
use super::view::decided;
use super::{Refused, code};
use crate::controller::{ConfigChange, ControllerRequest, TopicConfigs};
use crate::log::Log;

/// What a client calls a thing with settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Resource {
    kind: i8,
    name: String,
}

/// What it wants of it.
type Changes = Result<BTreeMap<String, ConfigChange>, Refused>;

impl Log {
    pub(super) async fn incremental_alter_configs(
        &self,
        request: IncrementalAlterConfigsRequestData,
    ) -> IncrementalAlterConfigsResponseData {
        let asked = request.resources.into_iter().map(|resource| {
            let changes = resource.configs.into_iter().map(|config| {
                let name = config.name.as_str().to_owned();
                Ok((name, incremental(config)?))
            });
            (named(resource.resource_type, &resource.resource_name), by_name(changes))
        });
        let asked = asked.collect();
        let outcomes = self.alter_configs_of(asked, false, request.validate_only).await;
        let responses = outcomes.into_iter().map(|(resource, outcome)| {
            incremental_alter_configs_response::AlterConfigsResourceResponse::default()
                .with_resource_type(resource.kind)
                .with_resource_name(resource.name.into())
                .with_error_code(code(&outcome))
                .with_error_message(outcome.err().and_then(|refused| refused.text()))
        });
        IncrementalAlterConfigsResponseData::default().with_responses(responses.collect())
    }

    pub(super) async fn alter_configs(
        &self,
        request: AlterConfigsRequestData,
    ) -> AlterConfigsResponseData {
        let asked = request.resources.into_iter().map(|resource| {
            let changes = resource.configs.into_iter().map(|config| {
                let name = config.name.as_str().to_owned();
                let value = config.value.ok_or_else(|| no_value(&name))?;
                Ok((name, ConfigChange::Set(value.as_str().to_owned())))
            });
            (named(resource.resource_type, &resource.resource_name), by_name(changes))
        });
        let asked = asked.collect();
        let outcomes = self.alter_configs_of(asked, true, request.validate_only).await;
        let responses = outcomes.into_iter().map(|(resource, outcome)| {
            alter_configs_response::AlterConfigsResourceResponse::default()
                .with_resource_type(resource.kind)
                .with_resource_name(resource.name.into())
                .with_error_code(code(&outcome))
                .with_error_message(outcome.err().and_then(|refused| refused.text()))
        });
        AlterConfigsResponseData::default().with_responses(responses.collect())
    }

    async fn alter_configs_of(
        &self,
        asked: Vec<(Resource, Changes)>,
        replaces_all: bool,
        validate_only: bool,
    ) -> Vec<(Resource, Result<(), Refused>)> {
        let mut times: BTreeMap<Resource, usize> = BTreeMap::new();
        for (resource, _) in &asked {
            *times.entry(resource.clone()).or_default() += 1;
        }
        let mut topics = Vec::new();
        let mut outcomes = Vec::with_capacity(asked.len());
        for (resource, changes) in asked {
            let checked = check(&resource, times.get(&resource) == Some(&1)).and(changes);
            let outcome = checked.map(|changes| {
                topics.push(TopicConfigs { name: resource.name.clone(), changes, replaces_all });
            });
            outcomes.push((resource, outcome));
        }
        if topics.is_empty() {
            return outcomes;
        }
        let request = ControllerRequest::SetTopicConfigs { topics: topics.clone(), validate_only };
        let decisions = decided(self.link.ask(request).await, topics.len());
        let accepted = outcomes.iter_mut().filter(|(_, outcome)| outcome.is_ok());
        for (((_, outcome), decision), topic) in accepted.zip(decisions).zip(&topics) {
            *outcome = decision;
            if outcome.is_ok() && !validate_only {
                self.wait_for_settings(topic).await;
            }
        }
        outcomes
    }

    /// Waits until this node goes by what was set or taken back.
    async fn wait_for_settings(&self, changed: &TopicConfigs) {
        self.wait_until_known(|image| {
            let Some((_, topic)) = image.topic_by_name(&changed.name) else { return true };
            changed.changes.iter().all(|(name, change)| match change {
                ConfigChange::Set(value) => topic.configs.get(name) == Some(value),
                ConfigChange::Delete => !topic.configs.contains_key(name),
                ConfigChange::Append(_) | ConfigChange::Subtract(_) => true,
            })
        })
        .await;
    }
}

fn named(kind: i8, name: &KafkaString) -> Resource {
    Resource { kind, name: name.as_str().to_owned() }
}

fn check(resource: &Resource, once: bool) -> Result<(), Refused> {
    if !once {
        return Err(Refused::new(ErrorCode::InvalidRequest, "named twice in one request"));
    }
    match resource.kind {
        TOPIC => Ok(()),
        BROKER => Err(Refused::new(
            ErrorCode::InvalidRequest,
            "a node's settings stand in its configuration file: change [log] there and restart it",
        )),
        _ => Err(Refused::new(
            ErrorCode::InvalidRequest,
            "only topics have settings that can be changed here",
        )),
    }
}

fn by_name(changes: impl Iterator<Item = Result<(String, ConfigChange), Refused>>) -> Changes {
    let mut by_name = BTreeMap::new();
    for change in changes {
        let (name, change) = change?;
        if let Some(_twice) = by_name.insert(name.clone(), change) {
            let message = format!("{name} is named twice");
            return Err(Refused::new(ErrorCode::InvalidRequest, message));
        }
    }
    Ok(by_name)
}

fn incremental(config: AlterableConfig) -> Result<ConfigChange, Refused> {
    let value = config.value.as_ref().map(|value| value.as_str().to_owned());
    let value = value.ok_or_else(|| no_value(config.name.as_str()));
    match config.config_operation {
        0 => value.map(ConfigChange::Set),
        1 => Ok(ConfigChange::Delete),
        2 => value.map(ConfigChange::Append),
        3 => value.map(ConfigChange::Subtract),
        other => {
            let message = format!("{}: operation {other} is unknown", config.name.as_str());
            Err(Refused::new(ErrorCode::InvalidRequest, message))
        }
    }
}

fn no_value(name: &str) -> Refused {
    Refused::new(ErrorCode::InvalidRequest, format!("{name} has no value"))
}
