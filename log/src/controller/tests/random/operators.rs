//! What operators ask for.

use std::collections::BTreeMap;

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use tailwater_kafka::{BrokerId, PartitionId, TopicId, TopicPartition};
use uuid::Uuid;

use super::super::super::requests::{ConfigChange, ElectionKind, MorePartitions, TopicConfigs};
use super::super::super::{ControllerRequest, NewTopic, TopicRef};
use super::super::cluster::id;
use super::{BROKERS, World};

impl World {
    fn some_topic(&mut self) -> Option<String> {
        let names: Vec<_> = self.image.topics().values().map(|topic| topic.name.clone()).collect();
        names.choose(&mut self.rng).cloned()
    }

    fn some_brokers(&mut self) -> Vec<BrokerId> {
        let mut all: Vec<_> = (1..=BROKERS).map(id).collect();
        all.shuffle(&mut self.rng);
        all.truncate(self.rng.random_range(1..=3));
        all
    }

    pub(super) fn operate_topics(&mut self) {
        let topic = self.some_topic();
        let request = match (self.rng.random_range(0..10), topic) {
            (0..5, _) | (_, None) if self.image.topics().len() < 6 => {
                let topic = NewTopic {
                    name: format!("t{}", self.rng.random_range(0..8)),
                    id: TopicId::new(Uuid::from_u128(self.rng.random())),
                    partitions: self.rng.random_range(1..=3),
                    replication_factor: self.rng.random_range(1..=4),
                    assignments: Vec::new(),
                    configs: BTreeMap::new(),
                };
                ControllerRequest::CreateTopics { topics: vec![topic], validate_only: false }
            }
            (5, Some(name)) => {
                ControllerRequest::DeleteTopics { topics: vec![TopicRef::Name(name)] }
            }
            (6, Some(name)) => {
                let count = self.rng.random_range(1..=4);
                let topics = vec![MorePartitions { name, count, assignments: Vec::new() }];
                ControllerRequest::CreatePartitions { topics, validate_only: false }
            }
            (_, Some(name)) => {
                let value = match self.rng.random_range(0..4) {
                    0 => ConfigChange::Delete,
                    number => ConfigChange::Set(number.to_string()),
                };
                let changes = BTreeMap::from([("min.insync.replicas".to_owned(), value)]);
                let topics = vec![TopicConfigs { name, changes, replaces_all: false }];
                ControllerRequest::SetTopicConfigs { topics, validate_only: false }
            }
            (_, None) => return,
        };
        self.send(request);
    }

    pub(super) fn operate_partitions(&mut self) {
        let Some(name) = self.some_topic() else { return };
        let named = TopicPartition::new(name, PartitionId::new(self.rng.random_range(0..2)));
        let request = match self.rng.random_range(0..10) {
            0..5 => {
                let target = self.some_brokers();
                ControllerRequest::Reassign { partitions: vec![(named, Some(target))] }
            }
            5..7 => ControllerRequest::Reassign { partitions: vec![(named, None)] },
            7 => {
                ControllerRequest::ElectLeaders { kind: ElectionKind::Preferred, partitions: None }
            }
            8 => ControllerRequest::UnregisterBroker { id: self.some_broker() },
            _ => {
                self.unclean_asked = true;
                let partitions = Some(vec![named]);
                ControllerRequest::ElectLeaders { kind: ElectionKind::Unclean, partitions }
            }
        };
        self.send(request);
    }
}
