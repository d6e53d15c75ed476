//! Which brokers get the replicas of new partitions, and of those that move (`crate::moves`).
//!
//! One rule after the other, the next where the former leaves a choice: replicas of a partition
//! stand in as many racks as can be; each broker has as many of the topic's leaders, then replicas,
//! as any other; followers of one leader are spread, so that when it dies its load goes to many;
//! each broker has as much of the whole cluster as any other. Where all are equal the ids decide,
//! counted from the leader's on: the same metadata gives the same placement.

use std::collections::BTreeMap;

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;

use super::requests::Refusal;
use crate::metadata::{Image, TopicImage};

/// What brokers carry, of one topic or of all.
#[derive(Debug, Default)]
struct Load {
    leaders: BTreeMap<BrokerId, usize>,
    replicas: BTreeMap<BrokerId, usize>,
    /// How often a broker is a replica of a partition that another leads.
    pairs: BTreeMap<(BrokerId, BrokerId), usize>,
}

impl Load {
    fn add(&mut self, replicas: &[BrokerId]) {
        self.count(replicas, |count| *count += 1);
    }

    /// Takes back [`Load::add`].
    fn remove(&mut self, replicas: &[BrokerId]) {
        self.count(replicas, |count| *count = count.saturating_sub(1));
    }

    fn count(&mut self, replicas: &[BrokerId], change: impl Fn(&mut usize)) {
        let Some(leader) = replicas.first() else { return };
        change(self.leaders.entry(*leader).or_default());
        for replica in replicas {
            change(self.replicas.entry(*replica).or_default());
            change(self.pairs.entry((*leader, *replica)).or_default());
        }
    }

    fn leaders(&self, id: BrokerId) -> usize {
        self.leaders.get(&id).copied().unwrap_or_default()
    }

    fn replicas(&self, id: BrokerId) -> usize {
        self.replicas.get(&id).copied().unwrap_or_default()
    }

    fn pairs(&self, leader: BrokerId, id: BrokerId) -> usize {
        self.pairs.get(&(leader, id)).copied().unwrap_or_default()
    }
}

/// Places the partitions of one topic.
#[derive(Debug)]
pub(crate) struct Placement {
    /// Who may get replicas, with the rack of each.
    brokers: BTreeMap<BrokerId, Option<String>>,
    of_topic: Load,
    of_cluster: Load,
}

impl Placement {
    /// Over the eligible brokers of `image`, beside what `topic` already has.
    pub(super) fn new(image: &Image, topic: Option<&TopicImage>) -> Self {
        let brokers = image
            .brokers()
            .iter()
            .filter(|(_, broker)| broker.is_eligible())
            .map(|(id, broker)| (*id, broker.rack.clone()))
            .collect();
        let mut placement = Self::over(brokers);
        for (.., state) in image.partitions() {
            placement.of_cluster.add(&state.target_replicas());
        }
        for state in topic.iter().flat_map(|topic| topic.partitions.values()) {
            placement.of_topic.add(&state.target_replicas());
        }
        placement
    }

    /// Over these brokers, which have nothing yet.
    pub(crate) fn over(brokers: BTreeMap<BrokerId, Option<String>>) -> Self {
        Self { brokers, of_topic: Load::default(), of_cluster: Load::default() }
    }

    /// Notes the replicas of a partition, of the topic to be placed or of another.
    pub(crate) fn note(&mut self, replicas: &[BrokerId], of_topic: bool) {
        self.of_cluster.add(replicas);
        if of_topic {
            self.of_topic.add(replicas);
        }
    }

    /// Gives a partition of the topic `replication_factor` replicas in the place of its `former`
    /// ones, `kept` before all others; fewer if there are not enough brokers.
    pub(crate) fn replace(
        &mut self,
        former: &[BrokerId],
        kept: &[BrokerId],
        replication_factor: usize,
    ) -> Vec<BrokerId> {
        self.of_topic.remove(former);
        self.of_cluster.remove(former);
        self.complete(kept.to_vec(), replication_factor)
    }

    /// Of these brokers, the one that leads least.
    pub(crate) fn leads_least(&self, ids: &[BrokerId]) -> Option<BrokerId> {
        let able = ids.iter().copied().filter(|id| self.brokers.contains_key(id));
        able.min_by_key(|id| (self.of_topic.leaders(*id), self.of_cluster.leaders(*id), *id))
    }

    /// The replicas of `count` more partitions.
    ///
    /// # Errors
    /// There are fewer brokers than replicas.
    pub(super) fn place(
        mut self,
        count: usize,
        replication_factor: usize,
    ) -> Result<Vec<Vec<BrokerId>>, Refusal> {
        if replication_factor > self.brokers.len() {
            let message = format!(
                "replication factor {replication_factor}, but {}: start more brokers or ask for \
                 fewer replicas",
                describe(self.brokers.keys().copied())
            );
            return Err(Refusal::new(ErrorCode::InvalidReplicationFactor, message));
        }
        Ok((0..count).map(|_| self.place_one(replication_factor)).collect())
    }

    fn place_one(&mut self, replication_factor: usize) -> Vec<BrokerId> {
        self.complete(Vec::with_capacity(replication_factor), replication_factor)
    }

    fn complete(
        &mut self,
        mut replicas: Vec<BrokerId>,
        replication_factor: usize,
    ) -> Vec<BrokerId> {
        while replicas.len() < replication_factor {
            let next = match replicas.first() {
                None => self.next_leader(),
                Some(leader) => self.next_follower(*leader, &replicas),
            };
            let Some(next) = next else { break };
            replicas.push(next);
        }
        self.of_topic.add(&replicas);
        self.of_cluster.add(&replicas);
        replicas
    }

    fn next_leader(&self) -> Option<BrokerId> {
        self.brokers.keys().copied().min_by_key(|id| {
            (
                self.of_topic.leaders(*id),
                self.of_topic.replicas(*id),
                self.of_cluster.leaders(*id),
                self.of_cluster.replicas(*id),
                *id,
            )
        })
    }

    fn next_follower(&self, leader: BrokerId, chosen: &[BrokerId]) -> Option<BrokerId> {
        let in_rack_of = |id: BrokerId| {
            let rack = self.brokers.get(&id);
            chosen.iter().filter(|other| self.brokers.get(other) == rack).count()
        };
        self.brokers.keys().copied().filter(|id| !chosen.contains(id)).min_by_key(|id| {
            (
                in_rack_of(*id),
                self.of_topic.replicas(*id),
                self.of_topic.pairs(leader, *id),
                self.of_cluster.replicas(*id),
                self.of_cluster.pairs(leader, *id),
                // The ring begins behind the leader.
                (*id < leader, *id),
            )
        })
    }
}

/// "2 brokers are live (1, 2)".
fn describe(live: impl Iterator<Item = BrokerId>) -> String {
    let ids: Vec<String> = live.map(|id| id.to_string()).collect();
    match ids.as_slice() {
        [] => "no broker is live".to_owned(),
        [one] => format!("only one broker is live ({one})"),
        many => format!("only {} brokers are live ({})", many.len(), many.join(", ")),
    }
}
