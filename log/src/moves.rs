//! Where replicas should go: more of them, fewer, away from a node, evenly.
//!
//! A plan is made from what any client of the cluster can see, by the rules of the controller's own
//! placement: racks first, then even numbers. It moves nothing that need not move, and is carried
//! out by reassignments, which copy before they give up anything.

use std::collections::{BTreeMap, BTreeSet};

use tailwater_kafka::{BrokerId, TopicPartition};

use crate::controller::Placement;

/// Who has what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// The nodes that are in service, which may get replicas, with the rack of each.
    pub nodes: BTreeMap<BrokerId, Option<String>>,
    /// The replicas of every partition, the preferred leader first; where they are being moved,
    /// those that it is to have.
    pub partitions: BTreeMap<TopicPartition, Vec<BrokerId>>,
}

/// Other replicas for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Which partition.
    pub partition: TopicPartition,
    /// Its present replicas.
    pub from: Vec<BrokerId>,
    /// Those that it is to have, the preferred leader first.
    pub to: Vec<BrokerId>,
}

/// There are not enough nodes for what is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{partition} is to have {wanted} replicas, and {in_service}")]
pub struct TooFewNodes {
    /// The first partition that cannot have what it is to have.
    pub partition: TopicPartition,
    /// How many replicas it is to have.
    pub wanted: usize,
    /// Which nodes could have them, in words.
    in_service: String,
}

impl Layout {
    /// Gives every partition of these topics so many replicas.
    ///
    /// More go to where there are fewest, in racks that have none yet. Fewer: those that are not in
    /// service go first, then those whose rack has another, then those of the fullest node; never
    /// the preferred leader, if it is in service.
    ///
    /// # Errors
    /// [`TooFewNodes`].
    pub fn with_replicas(
        &self,
        topics: &BTreeSet<String>,
        count: usize,
    ) -> Result<Vec<Move>, TooFewNodes> {
        let mut after = self.clone();
        for topic in topics {
            let mut placement = after.placement(topic);
            for (partition, replicas) in self.of_topic(topic) {
                if count > self.nodes.len() && count > replicas.len() {
                    return Err(self.too_few(partition, count));
                }
                let mut kept = replicas.clone();
                while kept.len() > count.max(1) {
                    kept.remove(after.least_needed(&kept));
                }
                let to = placement.replace(replicas, &kept, count);
                if to.len() < count {
                    return Err(self.too_few(partition, count));
                }
                placement.note(&to, true);
                after.partitions.insert(partition.clone(), to);
            }
        }
        Ok(self.moves_to(&after))
    }

    /// Takes every replica away from a node; what it led first, another of the replicas does.
    ///
    /// # Errors
    /// [`TooFewNodes`].
    pub fn without(&self, node: BrokerId) -> Result<Vec<Move>, TooFewNodes> {
        let mut after = self.clone();
        after.nodes.remove(&node);
        let topics: BTreeSet<&String> = self
            .partitions
            .iter()
            .filter(|(_, replicas)| replicas.contains(&node))
            .map(|(partition, _)| &partition.topic)
            .collect();
        for topic in topics {
            let mut placement = after.placement(topic);
            for (partition, replicas) in self.of_topic(topic) {
                if !replicas.contains(&node) {
                    continue;
                }
                let mut kept = replicas.clone();
                kept.retain(|id| *id != node);
                if replicas.first() == Some(&node)
                    && let Some(leader) = placement.leads_least(&kept)
                {
                    kept.retain(|id| *id != leader);
                    kept.insert(0, leader);
                }
                let to = placement.replace(replicas, &kept, replicas.len());
                if to.len() < replicas.len() {
                    return Err(after.too_few(partition, replicas.len()));
                }
                placement.note(&to, true);
                after.partitions.insert(partition.clone(), to);
            }
        }
        Ok(self.moves_to(&after))
    }

    /// Spreads replicas over the racks, and replicas and preferred leaders evenly over the nodes.
    #[must_use]
    pub fn balanced(&self) -> Vec<Move> {
        let mut after = self.clone();
        after.spread_over_racks();
        while after.even_out_replicas() {}
        while after.even_out_leaders() {}
        self.moves_to(&after)
    }

    fn of_topic(&self, topic: &str) -> impl Iterator<Item = (&TopicPartition, &Vec<BrokerId>)> {
        self.partitions.iter().filter(move |(partition, _)| partition.topic == topic)
    }

    fn placement(&self, topic: &str) -> Placement {
        let mut placement = Placement::over(self.nodes.clone());
        for (partition, replicas) in &self.partitions {
            placement.note(replicas, partition.topic == topic);
        }
        placement
    }

    fn moves_to(&self, after: &Self) -> Vec<Move> {
        let pairs = self.partitions.iter().zip(after.partitions.values());
        let changed = pairs.filter(|((_, from), to)| from != to);
        changed
            .map(|((partition, from), to)| Move {
                partition: partition.clone(),
                from: from.clone(),
                to: to.clone(),
            })
            .collect()
    }

    fn too_few(&self, partition: &TopicPartition, wanted: usize) -> TooFewNodes {
        let ids: Vec<String> = self.nodes.keys().map(ToString::to_string).collect();
        let in_service = match ids.as_slice() {
            [] => "no other node is in service".to_owned(),
            [one] => format!("only one node is in service for them ({one})"),
            many => {
                format!("only {} nodes are in service for them ({})", many.len(), many.join(", "))
            }
        };
        TooFewNodes { partition: partition.clone(), wanted, in_service }
    }

    /// Where in a list of two or more replicas the one is that can go before the others.
    fn least_needed(&self, replicas: &[BrokerId]) -> usize {
        let held = self.held();
        let first = usize::from(replicas.first().is_some_and(|id| self.nodes.contains_key(id)));
        (first..replicas.len())
            .max_by_key(|at| {
                let id = replicas[*at];
                (
                    !self.nodes.contains_key(&id),
                    self.others_in_rack(id, replicas),
                    held.get(&id).copied().unwrap_or_default(),
                    id,
                )
            })
            .unwrap_or(replicas.len() - 1)
    }

    fn others_in_rack(&self, id: BrokerId, replicas: &[BrokerId]) -> usize {
        let rack = self.nodes.get(&id);
        replicas.iter().filter(|other| **other != id && self.nodes.get(other) == rack).count()
    }

    /// How many racks these stand in. Nodes without a rack stand together; one that is not in
    /// service, of which the rack is not known, stands alone.
    fn racks(&self, replicas: &[BrokerId]) -> usize {
        let rack = |id: &BrokerId| match self.nodes.get(id) {
            Some(Some(rack)) => Err(rack.clone()),
            Some(None) => Err(String::new()),
            None => Ok(*id),
        };
        replicas.iter().map(rack).collect::<BTreeSet<_>>().len()
    }

    /// How many replicas each node has.
    fn held(&self) -> BTreeMap<BrokerId, usize> {
        let mut held: BTreeMap<_, usize> = self.nodes.keys().map(|id| (*id, 0)).collect();
        for id in self.partitions.values().flatten() {
            *held.entry(*id).or_default() += 1;
        }
        held
    }

    fn spread_over_racks(&mut self) {
        let mut held = self.held();
        let partitions: Vec<_> = self.partitions.keys().cloned().collect();
        for partition in partitions {
            let mut replicas = self.partitions[&partition].clone();
            while let Some((at, to)) = self.one_rack_more(&replicas, &held) {
                *held.entry(replicas[at]).or_default() -= 1;
                *held.entry(to).or_default() += 1;
                replicas[at] = to;
            }
            self.partitions.insert(partition, replicas);
        }
    }

    /// The replica that goes, and the node that gets it, where that makes one rack more.
    fn one_rack_more(
        &self,
        replicas: &[BrokerId],
        held: &BTreeMap<BrokerId, usize>,
    ) -> Option<(usize, BrokerId)> {
        let racks = self.racks(replicas);
        let candidates = self.nodes.keys().copied().filter(|id| !replicas.contains(id));
        // Followers before the leader.
        let changes = candidates.flat_map(|to| (0..replicas.len()).rev().map(move |at| (at, to)));
        changes
            .filter(|(at, to)| self.racks(&exchanged(replicas, *at, *to)) > racks)
            .min_by_key(|(at, to)| (*at == 0, held.get(to).copied(), *to))
    }

    /// Moves one replica from a node with more to one with at least two less; whether there was one.
    fn even_out_replicas(&mut self) -> bool {
        let held = self.held();
        let mut nodes: Vec<_> = self.nodes.keys().map(|id| (held[id], *id)).collect();
        nodes.sort_unstable();
        for (more, from) in nodes.iter().rev() {
            for (less, to) in &nodes {
                if less + 1 >= *more {
                    break;
                }
                if let Some((partition, replicas)) = self.movable(*from, *to) {
                    self.partitions.insert(partition, replicas);
                    return true;
                }
            }
        }
        false
    }

    /// A partition of which `from` may give its replica to `to`, a follower's before a leader's.
    fn movable(&self, from: BrokerId, to: BrokerId) -> Option<(TopicPartition, Vec<BrokerId>)> {
        let possible = self.partitions.iter().filter_map(|(partition, replicas)| {
            let at = replicas.iter().position(|id| *id == from)?;
            let after = exchanged(replicas, at, to);
            let allowed = !replicas.contains(&to) && self.racks(&after) >= self.racks(replicas);
            allowed.then(|| (at == 0, partition.clone(), after))
        });
        possible.min_by_key(|(leads, ..)| *leads).map(|(_, partition, after)| (partition, after))
    }

    /// Has a partition prefer a leader that leads at least two fewer; whether there was one.
    fn even_out_leaders(&mut self) -> bool {
        let mut led: BTreeMap<BrokerId, usize> = self.nodes.keys().map(|id| (*id, 0)).collect();
        for leader in self.partitions.values().filter_map(|replicas| replicas.first()) {
            *led.entry(*leader).or_default() += 1;
        }
        let better = self.partitions.iter().find_map(|(partition, replicas)| {
            let leads = replicas.first().and_then(|id| led.get(id))?;
            let able = replicas.iter().enumerate().filter(|(_, id)| self.nodes.contains_key(id));
            let (at, id) = able.min_by_key(|(_, id)| (led[*id], **id))?;
            (led[id] + 1 < *leads).then(|| (partition.clone(), at))
        });
        let Some((partition, at)) = better else { return false };
        if let Some(replicas) = self.partitions.get_mut(&partition) {
            replicas.swap(0, at);
        }
        true
    }
}

fn exchanged(replicas: &[BrokerId], at: usize, to: BrokerId) -> Vec<BrokerId> {
    let mut after = replicas.to_vec();
    after[at] = to;
    after
}

#[cfg(test)]
mod tests {
    use tailwater_kafka::PartitionId;

    use super::*;

    /// `"1 2 3a"` are the nodes, 3 in rack a; each `"shop 1 2"` a partition of shop on 1 and 2.
    fn layout(nodes: &str, partitions: &[&str]) -> Layout {
        let mut layout = Layout::default();
        for node in nodes.split_whitespace() {
            let digits = node.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let rack = &node[digits.len()..];
            let rack = (!rack.is_empty()).then(|| rack.to_owned());
            layout.nodes.insert(BrokerId::new(digits.parse().unwrap()), rack);
        }
        for partition in partitions {
            let (topic, ids) = partition.split_once(' ').unwrap();
            let number = i32::try_from(layout.of_topic(topic).count()).unwrap();
            let partition = TopicPartition::new(topic, PartitionId::new(number));
            layout.partitions.insert(partition, ids_of(ids));
        }
        layout
    }

    fn ids_of(ids: &str) -> Vec<BrokerId> {
        ids.split_whitespace().map(|id| BrokerId::new(id.parse().unwrap())).collect()
    }

    fn show(moves: &[Move]) -> Vec<String> {
        let list =
            |ids: &[BrokerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        moves.iter().map(|one| format!("{}: {}", one.partition, list(&one.to))).collect()
    }

    fn after(layout: &Layout, moves: &[Move]) -> Layout {
        let mut after = layout.clone();
        for one in moves {
            after.partitions.insert(one.partition.clone(), one.to.clone());
        }
        after
    }

    fn topics(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn one_replica_becomes_three() {
        let alone = layout("1 2 3", &["shop 1", "shop 1", "state 1"]);
        let moves = alone.with_replicas(&topics(&["shop", "state"]), 3).unwrap();
        assert_eq!(show(&moves), ["shop-0: 1 2 3", "shop-1: 1 2 3", "state-0: 1 2 3"]);
        let again = after(&alone, &moves).with_replicas(&topics(&["shop", "state"]), 3).unwrap();
        assert!(again.is_empty());
    }

    #[test]
    fn two_replicas_are_spread_over_nodes_and_racks() {
        let alone = layout("1a 2a 3b", &["shop 1", "shop 1"]);
        let moves = alone.with_replicas(&topics(&["shop"]), 2).unwrap();
        assert_eq!(show(&moves), ["shop-0: 1 3", "shop-1: 1 3"]);
        let alone = layout("1 2 3", &["shop 1", "shop 1"]);
        let moves = alone.with_replicas(&topics(&["shop"]), 2).unwrap();
        assert_eq!(show(&moves), ["shop-0: 1 2", "shop-1: 1 3"]);
    }

    #[test]
    fn fewer_replicas_leave_the_leader_and_the_racks() {
        let all = layout("1a 2a 3b", &["shop 1 2 3"]);
        assert_eq!(show(&all.with_replicas(&topics(&["shop"]), 2).unwrap()), ["shop-0: 1 3"]);
        // Node 3 is away.
        let all = layout("1 2", &["shop 3 2 1"]);
        assert_eq!(show(&all.with_replicas(&topics(&["shop"]), 2).unwrap()), ["shop-0: 2 1"]);
    }

    #[test]
    fn a_node_is_emptied_and_another_leads() {
        let full = layout("1 2 3 4", &["shop 3 1 2", "shop 1 2 3", "other 1 2"]);
        let moves = full.without(BrokerId::new(3)).unwrap();
        assert_eq!(show(&moves), ["shop-0: 2 1 4", "shop-1: 1 2 4"]);
        assert!(after(&full, &moves).without(BrokerId::new(3)).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_with_numbers() {
        let three = layout("1 2 3", &["shop 1 2 3"]);
        let refusal = three.without(BrokerId::new(3)).unwrap_err().to_string();
        assert_eq!(
            refusal,
            "shop-0 is to have 3 replicas, and only 2 nodes are in service for them (1, 2)"
        );
        let refusal = three.with_replicas(&topics(&["shop"]), 4).unwrap_err();
        assert_eq!(refusal.wanted, 4);
        assert!(layout("1", &["shop 1"]).without(BrokerId::new(1)).is_err());
    }

    #[test]
    fn a_new_node_gets_its_share_and_nothing_else_moves() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let old: Vec<String> = names.iter().map(|name| format!("{name} 1 2")).collect();
        let old: Vec<&str> = old.iter().map(String::as_str).collect();
        let cluster = layout("1 2 3", &old);
        let moves = cluster.balanced();
        let balanced = after(&cluster, &moves);
        assert_eq!(balanced.held().into_values().collect::<Vec<_>>(), [4, 4, 4]);
        let mut led = BTreeMap::<BrokerId, usize>::new();
        for replicas in balanced.partitions.values() {
            *led.entry(replicas[0]).or_default() += 1;
        }
        assert_eq!(led.into_values().collect::<Vec<_>>(), [2, 2, 2]);
        assert!(balanced.balanced().is_empty(), "{:?}", show(&balanced.balanced()));
    }

    #[test]
    fn balancing_brings_replicas_into_racks() {
        let cluster = layout("1a 2a 3b 4b", &["shop 1 2", "shop 3 4"]);
        let balanced = after(&cluster, &cluster.balanced());
        for replicas in balanced.partitions.values() {
            assert_eq!(balanced.racks(replicas), 2, "{replicas:?}");
        }
        assert!(balanced.held().into_values().all(|held| held == 1));
    }
}
