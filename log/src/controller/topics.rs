//! Topics: made, grown, set, deleted.

use std::collections::{BTreeMap, BTreeSet};

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, PartitionId, TopicId};

use super::draft::Draft;
use super::guarded;
use super::partitions::new_partition;
use super::placement::Placement;
use super::requests::{
    ConfigChange, CreatedTopic, MorePartitions, NewTopic, Refusal, TopicConfigs, TopicRef,
};
use crate::metadata::{Image, Record, TopicImage};
use crate::topic_config;
use crate::topics::{NAME_RULE, is_valid_name};

pub(super) fn create(
    draft: &mut Draft<'_>,
    asked: &NewTopic,
    validate_only: bool,
) -> Result<CreatedTopic, Refusal> {
    if !is_valid_name(&asked.name) {
        return Err(Refusal::new(ErrorCode::InvalidTopicException, NAME_RULE));
    }
    if let Some((id, known)) = draft.image().topic_by_name(&asked.name) {
        if id == asked.id {
            return Ok(CreatedTopic { id, replicas: assignment_of(known) });
        }
        let message = format!("topic {:?} exists", asked.name);
        return Err(Refusal::new(ErrorCode::TopicAlreadyExists, message));
    }
    if draft.image().topic(asked.id).is_some() {
        let message = format!("another topic has the id {}", asked.id);
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    check_configs(&asked.configs)?;
    guarded::check_new(&asked.name, &asked.configs)?;
    let replicas = place(draft, asked)?;
    if !validate_only {
        draft.write(Record::Topic {
            id: asked.id,
            name: asked.name.clone(),
            configs: asked.configs.clone(),
        });
        write_partitions(draft, asked.id, 0, &replicas);
    }
    Ok(CreatedTopic { id: asked.id, replicas })
}

fn assignment_of(topic: &TopicImage) -> Vec<Vec<BrokerId>> {
    topic.partitions.values().map(|state| state.replicas.clone()).collect()
}

fn check_configs(configs: &BTreeMap<String, String>) -> Result<(), Refusal> {
    topic_config::check(configs).map_err(|problem| Refusal::new(ErrorCode::InvalidConfig, problem))
}

fn place(draft: &Draft<'_>, asked: &NewTopic) -> Result<Vec<Vec<BrokerId>>, Refusal> {
    let settings = draft.settings();
    if !asked.assignments.is_empty() {
        if asked.partitions != -1 || asked.replication_factor != -1 {
            let message = "assignments go without partition count and replication factor";
            return Err(Refusal::new(ErrorCode::InvalidRequest, message));
        }
        check_count(asked.assignments.len(), settings.max_partitions)?;
        check_assignments(draft.image(), &asked.assignments, None)?;
        return Ok(asked.assignments.clone());
    }
    let partitions = match asked.partitions {
        -1 => settings.default_partitions,
        count => count,
    };
    let count = check_count(partitions, settings.max_partitions)?;
    let factor = match asked.replication_factor {
        -1 => settings.default_replication_factor,
        factor => factor,
    };
    let factor = usize::try_from(factor).ok().filter(|factor| *factor > 0).ok_or_else(|| {
        let message = format!("replication factor {factor}, the least is 1");
        Refusal::new(ErrorCode::InvalidReplicationFactor, message)
    })?;
    Placement::new(draft.image(), None).place(count, factor)
}

fn check_count<T>(count: T, most: i32) -> Result<usize, Refusal>
where
    T: TryInto<usize> + std::fmt::Display + Copy,
{
    let limit = usize::try_from(most).unwrap_or_default();
    count.try_into().ok().filter(|count| (1..=limit).contains(count)).ok_or_else(|| {
        let message = format!("{count} partitions, a topic has 1 to {most}");
        Refusal::new(ErrorCode::InvalidPartitions, message)
    })
}

/// Whether these can be the replicas of partitions. All have the same number, `factor` if given.
fn check_assignments(
    image: &Image,
    assignments: &[Vec<BrokerId>],
    factor: Option<usize>,
) -> Result<(), Refusal> {
    let factor = factor.or_else(|| assignments.first().map(Vec::len)).unwrap_or_default();
    for replicas in assignments {
        check_replicas(replicas)?;
        if replicas.len() != factor {
            return Err(wrong_assignment(format!(
                "a partition with {} replicas beside others with {factor}",
                replicas.len()
            )));
        }
        for id in replicas {
            check_eligible(image, *id)?;
        }
    }
    Ok(())
}

/// Whether this list can be the replicas of a partition.
pub(super) fn check_replicas(replicas: &[BrokerId]) -> Result<(), Refusal> {
    if replicas.is_empty() {
        return Err(wrong_assignment("a partition without replicas"));
    }
    let once: BTreeSet<_> = replicas.iter().collect();
    if once.len() != replicas.len() {
        return Err(wrong_assignment("a broker stands twice among the replicas of a partition"));
    }
    Ok(())
}

/// Whether a broker may get a replica.
pub(super) fn check_eligible(image: &Image, id: BrokerId) -> Result<(), Refusal> {
    match image.broker(id) {
        None => Err(wrong_assignment(format!("there is no broker {id}"))),
        Some(broker) if !broker.is_eligible() => Err(wrong_assignment(format!(
            "broker {id} is not live: start it, or choose another one"
        ))),
        Some(_) => Ok(()),
    }
}

pub(super) fn wrong_assignment(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::InvalidReplicaAssignment, message)
}

fn write_partitions(draft: &mut Draft<'_>, topic: TopicId, first: i32, replicas: &[Vec<BrokerId>]) {
    for (number, replicas) in (first..).zip(replicas) {
        draft.write(Record::Partition {
            topic,
            partition: PartitionId::new(number),
            state: new_partition(replicas.clone()),
        });
    }
}

pub(super) fn delete(
    draft: &mut Draft<'_>,
    asked: &TopicRef,
) -> Result<(TopicId, String), Refusal> {
    let (id, name) = match asked {
        TopicRef::Name(name) => {
            let (id, _) = find(draft.image(), name)?;
            (id, name.clone())
        }
        TopicRef::Id(id) => {
            let topic = draft.image().topic(*id).ok_or_else(|| {
                let message = format!("there is no topic with id {id}");
                Refusal::new(ErrorCode::UnknownTopicId, message)
            })?;
            (*id, topic.name.clone())
        }
    };
    draft.write(Record::RemoveTopic { id });
    Ok((id, name))
}

fn find<'a>(image: &'a Image, name: &str) -> Result<(TopicId, &'a TopicImage), Refusal> {
    image.topic_by_name(name).ok_or_else(|| {
        let message = format!("there is no topic {name:?}");
        Refusal::new(ErrorCode::UnknownTopicOrPartition, message)
    })
}

pub(super) fn add_partitions(
    draft: &mut Draft<'_>,
    asked: &MorePartitions,
    validate_only: bool,
) -> Result<(), Refusal> {
    let (id, topic) = find(draft.image(), &asked.name)?;
    guarded::check_growth(draft.image(), &asked.name)?;
    let present = topic.partitions.len();
    let count = check_count(asked.count, draft.settings().max_partitions)?;
    let Some(more) = count.checked_sub(present).filter(|more| *more > 0) else {
        let message = format!("topic {:?} has {present} partitions already", asked.name);
        return Err(Refusal::new(ErrorCode::InvalidPartitions, message));
    };
    let factor = topic.partitions.values().next().map_or(1, |state| state.target_replicas().len());
    let replicas = if asked.assignments.is_empty() {
        Placement::new(draft.image(), Some(topic)).place(more, factor)?
    } else if asked.assignments.len() == more {
        check_assignments(draft.image(), &asked.assignments, Some(factor))?;
        asked.assignments.clone()
    } else {
        return Err(wrong_assignment(format!(
            "{} assignments for {more} new partitions",
            asked.assignments.len()
        )));
    };
    if !validate_only {
        let first = asked.count - i32::try_from(more).unwrap_or(i32::MAX);
        write_partitions(draft, id, first, &replicas);
    }
    Ok(())
}

pub(super) fn set_configs(
    draft: &mut Draft<'_>,
    asked: &TopicConfigs,
    validate_only: bool,
) -> Result<(), Refusal> {
    let (id, topic) = find(draft.image(), &asked.name)?;
    let mut configs = if asked.replaces_all { BTreeMap::new() } else { topic.configs.clone() };
    for (name, change) in &asked.changes {
        apply(&mut configs, name, change)?;
    }
    check_configs(&configs)?;
    guarded::check_settings(draft.image(), topic, &configs)?;
    if validate_only || configs == topic.configs {
        return Ok(());
    }
    let partitions: Vec<_> = topic.partitions.keys().copied().collect();
    draft.write(Record::Topic { id, name: asked.name.clone(), configs });
    // `min.insync.replicas` decides on who is complete.
    for partition in partitions {
        draft.settle(id, partition, super::partitions::Wanted::as_it_is);
    }
    Ok(())
}

fn apply(
    configs: &mut BTreeMap<String, String>,
    name: &str,
    change: &ConfigChange,
) -> Result<(), Refusal> {
    let (value, adds) = match change {
        ConfigChange::Set(value) => {
            configs.insert(name.to_owned(), value.clone());
            return Ok(());
        }
        ConfigChange::Delete => {
            // A name that nobody knows is a mistake also where it is taken away.
            topic_config::check_name(name)
                .map_err(|problem| Refusal::new(ErrorCode::InvalidConfig, problem))?;
            configs.remove(name);
            return Ok(());
        }
        ConfigChange::Append(value) => (value, true),
        ConfigChange::Subtract(value) => (value, false),
    };
    topic_config::change_list(configs, name, value, adds)
        .map_err(|problem| Refusal::new(ErrorCode::InvalidConfig, problem))
}
