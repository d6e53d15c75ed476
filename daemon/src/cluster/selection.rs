//! What a command's arguments name: topics, or partitions as TOPIC-NUMBER.

use std::collections::BTreeSet;

use anyhow::bail;
use tailwater_kafka::{PartitionId, TopicPartition};

use super::view::View;

/// The partitions that are named; a topic stands for all of its partitions.
///
/// # Errors
/// There is no such topic or partition.
pub(super) fn partitions(
    view: &View,
    named: &[String],
) -> anyhow::Result<BTreeSet<TopicPartition>> {
    let mut partitions = BTreeSet::new();
    for name in named {
        let of_topic = view.partitions.keys().filter(|one| one.topic == *name);
        let before = partitions.len();
        partitions.extend(of_topic.cloned());
        if partitions.len() > before || is_topic(view, name) {
            continue;
        }
        match partition(name).filter(|one| view.partitions.contains_key(one)) {
            Some(one) => drop(partitions.insert(one)),
            None => bail!("there is no topic {name:?}, and no partition of that name"),
        }
    }
    Ok(partitions)
}

/// The topics that are named.
///
/// # Errors
/// There is no such topic, or a partition is named.
pub(super) fn topics(view: &View, named: &[String]) -> anyhow::Result<BTreeSet<String>> {
    if let Some(name) = named.iter().find(|name| !is_topic(view, name)) {
        let is_partition = partition(name).is_some_and(|one| view.partitions.contains_key(&one));
        if is_partition {
            bail!("{name} is a partition: all partitions of a topic have as many replicas");
        }
        bail!("there is no topic {name:?}");
    }
    Ok(named.iter().cloned().collect())
}

fn is_topic(view: &View, name: &str) -> bool {
    view.partitions.keys().any(|one| one.topic == name)
}

fn partition(name: &str) -> Option<TopicPartition> {
    let (topic, number) = name.rsplit_once('-')?;
    Some(TopicPartition::new(topic, PartitionId::new(number.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::super::view::Partition;
    use super::*;

    #[test]
    fn topics_and_partitions_are_told_apart() {
        let one = |topic: &str, number| TopicPartition::new(topic, PartitionId::new(number));
        let partitions_ = [one("shop", 0), one("shop", 1), one("shop-1", 0)];
        let view = View {
            cluster_id: String::new(),
            nodes: [].into(),
            quorum: Err(String::new()),
            partitions: partitions_.map(|one| (one, Partition::default())).into(),
        };
        let named = |name: &str| partitions(&view, &[name.to_owned()]);
        assert_eq!(named("shop").unwrap().len(), 2);
        assert_eq!(named("shop-0").unwrap(), [one("shop", 0)].into());
        assert_eq!(named("shop-1").unwrap(), [one("shop-1", 0)].into(), "a topic comes first");
        assert!(named("shop-7").is_err() && named("none").is_err());
        assert!(
            topics(&view, &["shop-0".to_owned()]).unwrap_err().to_string().contains("partition")
        );
        assert_eq!(topics(&view, &["shop-1".to_owned()]).unwrap().len(), 1);
    }
}
