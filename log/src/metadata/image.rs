//! The metadata as of one entry: all records up to it, applied.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tailwater_kafka::{BrokerId, PartitionId, TopicId};

use super::records::{LEVEL, Record};
use super::states::{
    AclBinding, BrokerState, ClusterState, MIN_ISR_CONFIG, MetadataIndex, PartitionState,
};

/// Everything that metadata says, as of one index.
///
/// Two nodes that have applied the same entries have equal images. Its JSON is the snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredImage")]
pub(crate) struct Image {
    index: MetadataIndex,
    cluster: Option<ClusterState>,
    brokers: BTreeMap<BrokerId, BrokerState>,
    topics: BTreeMap<TopicId, TopicImage>,
    next_producer_id: i64,
    acls: BTreeSet<AclBinding>,
    /// Follows from `topics`.
    #[serde(skip)]
    by_name: BTreeMap<String, TopicId>,
}

/// What of an [`Image`] is stored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredImage {
    index: MetadataIndex,
    cluster: Option<ClusterState>,
    brokers: BTreeMap<BrokerId, BrokerState>,
    topics: BTreeMap<TopicId, TopicImage>,
    next_producer_id: i64,
    acls: BTreeSet<AclBinding>,
}

impl From<StoredImage> for Image {
    fn from(stored: StoredImage) -> Self {
        let by_name = stored.topics.iter().map(|(id, topic)| (topic.name.clone(), *id)).collect();
        Self {
            index: stored.index,
            cluster: stored.cluster,
            brokers: stored.brokers,
            topics: stored.topics,
            next_producer_id: stored.next_producer_id,
            acls: stored.acls,
            by_name,
        }
    }
}

/// A topic and its partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopicImage {
    /// Its name; no other topic has it at the same time.
    pub(crate) name: String,
    /// The settings it was given; all others have the defaults.
    pub(crate) configs: BTreeMap<String, String>,
    /// Numbered from 0, without gaps.
    pub(crate) partitions: BTreeMap<PartitionId, PartitionState>,
}

impl Image {
    /// The last entry that was applied.
    pub(crate) fn index(&self) -> MetadataIndex {
        self.index
    }

    /// Applies the entry at `index`; the caller gives each once, in order.
    pub(crate) fn apply(&mut self, index: MetadataIndex, records: &[Record]) {
        debug_assert!(index > self.index, "entry {index} after {}", self.index);
        for record in records {
            self.apply_record(record);
        }
        self.index = index;
    }

    /// Applies one record of an entry that is still being put together.
    pub(crate) fn apply_record(&mut self, record: &Record) {
        match record {
            Record::Cluster { state } => self.cluster = Some(state.clone()),
            Record::Broker { id, state } => {
                self.brokers.insert(*id, state.clone());
            }
            Record::RemoveBroker { id } => {
                self.brokers.remove(id);
            }
            Record::Topic { id, name, configs } => self.apply_topic(*id, name, configs),
            Record::RemoveTopic { id } => {
                if let Some(topic) = self.topics.remove(id) {
                    self.by_name.remove(&topic.name);
                }
            }
            Record::Partition { topic, partition, state } => {
                let known = self.topics.get_mut(topic);
                debug_assert!(known.is_some(), "a partition of topic {topic}, which is not there");
                if let Some(topic) = known {
                    topic.partitions.insert(*partition, state.clone());
                }
            }
            Record::ProducerIds { next } => self.next_producer_id = *next,
            Record::Acl { binding } => {
                self.acls.insert(binding.clone());
            }
            Record::RemoveAcl { binding } => {
                self.acls.remove(binding);
            }
        }
    }

    fn apply_topic(&mut self, id: TopicId, name: &str, configs: &BTreeMap<String, String>) {
        let topic = self.topics.entry(id).or_insert_with(|| TopicImage {
            name: name.to_owned(),
            configs: BTreeMap::new(),
            partitions: BTreeMap::new(),
        });
        topic.configs.clone_from(configs);
        self.by_name.insert(name.to_owned(), id);
    }

    /// Whether this program understands all that the cluster writes.
    ///
    /// # Errors
    /// In words, with the remedy, where the cluster is newer.
    pub(crate) fn check_level(&self) -> Result<(), String> {
        match &self.cluster {
            Some(cluster) if cluster.level > LEVEL => Err(format!(
                "the cluster's metadata has level {}, this program knows levels up to {LEVEL}: \
                 run the version that the other nodes run",
                cluster.level
            )),
            _ => Ok(()),
        }
    }

    /// What holds for the cluster; `None` before its first record.
    pub(crate) fn cluster(&self) -> Option<&ClusterState> {
        self.cluster.as_ref()
    }

    /// Every registered broker, fenced ones too, by id.
    pub(crate) fn brokers(&self) -> &BTreeMap<BrokerId, BrokerState> {
        &self.brokers
    }

    /// The broker of that id.
    pub(crate) fn broker(&self, id: BrokerId) -> Option<&BrokerState> {
        self.brokers.get(&id)
    }

    /// The brokers that clients can be sent to, by id.
    pub(crate) fn live_brokers(&self) -> impl Iterator<Item = (BrokerId, &BrokerState)> {
        self.brokers.iter().filter(|(_, state)| !state.fenced).map(|(id, state)| (*id, state))
    }

    /// Whether `id` may take on replicas, leaderships and a place in an ISR.
    pub(crate) fn is_eligible(&self, id: BrokerId) -> bool {
        self.brokers.get(&id).is_some_and(BrokerState::is_eligible)
    }

    /// Every topic, by id.
    pub(crate) fn topics(&self) -> &BTreeMap<TopicId, TopicImage> {
        &self.topics
    }

    /// The topic of that id.
    pub(crate) fn topic(&self, id: TopicId) -> Option<&TopicImage> {
        self.topics.get(&id)
    }

    /// The topic of that name.
    pub(crate) fn topic_by_name(&self, name: &str) -> Option<(TopicId, &TopicImage)> {
        let id = *self.by_name.get(name)?;
        Some((id, self.topics.get(&id)?))
    }

    /// The state of a partition.
    pub(crate) fn partition(&self, topic: TopicId, number: PartitionId) -> Option<&PartitionState> {
        self.topics.get(&topic)?.partitions.get(&number)
    }

    /// Every partition of every topic.
    pub(crate) fn partitions(
        &self,
    ) -> impl Iterator<Item = (TopicId, &TopicImage, PartitionId, &PartitionState)> {
        self.topics.iter().flat_map(|(id, topic)| {
            topic.partitions.iter().map(move |(number, state)| (*id, topic, *number, state))
        })
    }

    /// The first producer id that has not been given to a broker.
    pub(crate) fn next_producer_id(&self) -> i64 {
        self.next_producer_id
    }

    /// How many in-sync replicas a partition must have for anything to be committed: its topic's
    /// `min.insync.replicas`, else the cluster's, but never more than it has replicas.
    ///
    /// During a reassignment both the old and the new replicas count, and the smaller set decides:
    /// a topic that grows from one replica to three is writable while the new ones copy.
    /// The controller and the leader must both use this number: see [`PartitionState::elr`].
    pub(crate) fn min_isr(&self, topic: &TopicImage, state: &PartitionState) -> usize {
        let of_cluster = self.cluster.as_ref().map_or(1, |cluster| cluster.min_insync_replicas);
        let configured = topic
            .configs
            .get(MIN_ISR_CONFIG)
            .and_then(|value| value.trim().parse::<u32>().ok())
            .unwrap_or(of_cluster);
        let original = state.replicas.len() - state.adding.len();
        let target = state.replicas.len() - state.removing.len();
        let configured = usize::try_from(configured).unwrap_or(usize::MAX);
        configured.min(original).min(target).max(1)
    }
}

#[cfg(test)]
mod tests {
    use tailwater_kafka::LeaderEpoch;
    use uuid::Uuid;

    use super::*;
    use crate::metadata::{BrokerEpoch, PartitionEpoch};

    fn broker(fenced: bool) -> BrokerState {
        BrokerState {
            epoch: BrokerEpoch::new(1),
            incarnation: Uuid::from_u128(1),
            directory: Uuid::from_u128(2),
            host: "h".to_owned(),
            port: 9092,
            rack: None,
            fenced,
            stopping: false,
        }
    }

    fn partition(replicas: &[i32]) -> PartitionState {
        let replicas: Vec<_> = replicas.iter().copied().map(BrokerId::new).collect();
        PartitionState {
            isr: replicas.clone(),
            elr: Vec::new(),
            adding: Vec::new(),
            removing: Vec::new(),
            offline: Vec::new(),
            leader: replicas.first().copied(),
            last_known_leader: None,
            leader_epoch: LeaderEpoch::new(0),
            partition_epoch: PartitionEpoch::ZERO,
            replicas,
        }
    }

    const SHOP: TopicId = TopicId::new(Uuid::from_u128(1));
    const OTHER: TopicId = TopicId::new(Uuid::from_u128(2));

    fn topic(id: TopicId, name: &str, configs: &[(&str, &str)]) -> Record {
        let configs = configs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Record::Topic { id, name: name.to_owned(), configs }
    }

    fn entries() -> Vec<Vec<Record>> {
        let first = PartitionId::new(0);
        vec![
            vec![Record::Cluster {
                state: ClusterState {
                    cluster_id: "c".to_owned(),
                    level: LEVEL,
                    min_insync_replicas: 2,
                },
            }],
            vec![
                Record::Broker { id: BrokerId::new(1), state: broker(false) },
                Record::Broker { id: BrokerId::new(2), state: broker(true) },
            ],
            vec![
                topic(SHOP, "shop", &[]),
                Record::Partition { topic: SHOP, partition: first, state: partition(&[1, 2, 3]) },
                topic(OTHER, "other", &[("min.insync.replicas", "3")]),
                Record::Partition { topic: OTHER, partition: first, state: partition(&[1, 2]) },
            ],
            vec![Record::ProducerIds { next: 1000 }],
        ]
    }

    fn image_of(entries: &[Vec<Record>]) -> Image {
        let mut image = Image::default();
        for (records, index) in entries.iter().zip(1..) {
            image.apply(MetadataIndex::new(index), records);
        }
        image
    }

    #[test]
    fn a_snapshot_stands_for_the_entries_below_it() {
        let image = image_of(&entries());
        let json = serde_json::to_string(&image).unwrap();
        let mut read: Image = serde_json::from_str(&json).unwrap();
        assert_eq!(read, image);
        assert_eq!(read.topic_by_name("shop").map(|(id, _)| id), Some(SHOP));

        let mut straight = image;
        for image in [&mut read, &mut straight] {
            image.apply(MetadataIndex::new(9), &[Record::RemoveTopic { id: SHOP }]);
        }
        assert_eq!(read, straight);
        assert_eq!(read.index(), MetadataIndex::new(9));
    }

    #[test]
    fn records_are_states_and_may_be_applied_again() {
        let image = image_of(&entries());
        let mut again = image.clone();
        for record in entries().iter().flatten() {
            again.apply_record(record);
        }
        assert_eq!(again, image);
    }

    #[test]
    fn settings_of_a_topic_change_and_its_partitions_stay() {
        let mut image = image_of(&entries());
        image.apply_record(&topic(SHOP, "shop", &[("retention.ms", "5")]));
        let (_, shop) = image.topic_by_name("shop").unwrap();
        assert_eq!((shop.partitions.len(), shop.configs.len()), (1, 1));
    }

    #[test]
    fn a_name_leads_to_the_topic_that_has_it_now() {
        let mut image = image_of(&entries());
        image.apply_record(&Record::RemoveTopic { id: SHOP });
        assert!(image.topic_by_name("shop").is_none());
        let anew = TopicId::new(Uuid::from_u128(77));
        image.apply_record(&topic(anew, "shop", &[]));
        assert_eq!(image.topic_by_name("shop").map(|(id, _)| id), Some(anew));
        assert!(image.topic(SHOP).is_none());
    }

    #[test]
    fn only_unfenced_brokers_are_live() {
        let image = image_of(&entries());
        let live: Vec<_> = image.live_brokers().map(|(id, _)| id.get()).collect();
        assert_eq!(live, [1]);
        assert!(!image.is_eligible(BrokerId::new(2)) && !image.is_eligible(BrokerId::new(9)));
    }

    #[test]
    fn min_isr_is_the_topics_else_the_clusters_and_at_most_the_replicas() {
        let image = image_of(&entries());
        let min_isr = |name: &str, state: &PartitionState| {
            image.min_isr(image.topic_by_name(name).unwrap().1, state)
        };
        assert_eq!(min_isr("shop", &partition(&[1, 2, 3])), 2);
        assert_eq!(min_isr("other", &partition(&[1, 2])), 2);

        // [1] grows to [1, 2, 3].
        let mut growing = partition(&[1, 2, 3]);
        growing.adding = vec![BrokerId::new(2), BrokerId::new(3)];
        assert_eq!(min_isr("shop", &growing), 1);
        // [1, 2, 3] shrinks to [1].
        let mut shrinking = partition(&[1, 2, 3]);
        shrinking.removing = vec![BrokerId::new(2), BrokerId::new(3)];
        assert_eq!(min_isr("shop", &shrinking), 1);
    }

    #[test]
    fn a_newer_cluster_is_refused_with_both_levels() {
        let mut image = image_of(&entries());
        assert_eq!(image.check_level(), Ok(()));
        let mut state = image.cluster().unwrap().clone();
        state.level = 9;
        image.apply_record(&Record::Cluster { state });
        let problem = image.check_level().unwrap_err();
        assert!(problem.contains("level 9") && problem.contains("up to 1"), "{problem}");
    }
}
