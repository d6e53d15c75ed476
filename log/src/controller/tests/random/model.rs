//! What a committed entry means for the brokers' disks, and what must hold after it.

use std::collections::{BTreeMap, BTreeSet};

use tailwater_kafka::BrokerId;

use super::super::super::partitions::{Wanted, settle};
use super::{Key, World};
use crate::metadata::{MetadataIndex, PartitionState, Record};

/// What a start of a broker has lost, which counts from its registration on.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Unflushed,
    Everything,
}

/// Who has how much of what a partition has committed.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) committed: u64,
    pub(super) on: BTreeMap<BrokerId, u64>,
    /// The members of the ISR when it last was at least min ISR, without those that have lost
    /// what they had since.
    pub(super) complete: BTreeSet<BrokerId>,
}

impl World {
    pub(super) fn apply(&mut self, index: MetadataIndex, records: &[Record]) {
        for record in records {
            self.follow(record);
            self.image.apply_record(record);
            self.remember_complete(record);
        }
        self.image.apply(index, &[]);
        self.check();
    }

    /// Brings the model to what `record` says, which is not applied yet.
    fn follow(&mut self, record: &Record) {
        match record {
            Record::Broker { id, state } => {
                let known = self.image.broker(*id);
                if known.is_some_and(|known| known.directory != state.directory) {
                    self.lose(*id, Loss::Everything);
                } else if self.unflushed_lost.remove(&state.incarnation) {
                    self.lose(*id, Loss::Unflushed);
                }
            }
            Record::Partition { topic, partition, state } => {
                let key = (*topic, *partition);
                match self.image.partition(*topic, *partition).cloned() {
                    None => {
                        self.records.insert(key, Records::default());
                    }
                    Some(old) => self.follow_partition(key, &old, state),
                }
                let records = self.records.get_mut(&key).unwrap();
                records.on.retain(|id, _| state.replicas.contains(id));
                for (id, broker) in &mut self.brokers {
                    if !state.replicas.contains(id) {
                        broker.offline.remove(&key);
                    }
                }
            }
            Record::RemoveTopic { id } => self.records.retain(|(topic, _), _| topic != id),
            Record::Cluster { .. }
            | Record::RemoveBroker { .. }
            | Record::Topic { .. }
            | Record::ProducerIds { .. }
            | Record::Acl { .. }
            | Record::RemoveAcl { .. } => {}
        }
    }

    fn lose(&mut self, broker: BrokerId, loss: Loss) {
        for (key, records) in &mut self.records {
            let Some(state) = self.image.partition(key.0, key.1) else { continue };
            let has = records.on.entry(broker).or_default();
            *has = match loss {
                Loss::Everything => 0,
                Loss::Unflushed => has.saturating_sub(3),
            };
            let alone = state.replicas == [broker];
            if alone && matches!(loss, Loss::Unflushed) {
                // Nobody has more: this is what its flush policy allows to be lost.
                records.committed = *has;
            } else {
                records.complete.remove(&broker);
            }
        }
    }

    fn follow_partition(&mut self, key: Key, old: &PartitionState, new: &PartitionState) {
        assert!(new.leader_epoch >= old.leader_epoch);
        assert_eq!(new.partition_epoch, old.partition_epoch.next());
        let came_back = |id: &BrokerId| new.replicas.contains(id) && !new.offline.contains(id);
        let is_new_reign = new.leader != old.leader || old.offline.iter().any(came_back);
        assert_eq!(new.leader_epoch > old.leader_epoch, is_new_reign);
        self.distrust_offline(key, new);
        self.elections += u64::from(new.leader.is_some() && new.leader != old.leader);

        let joined: Vec<_> = new.isr.iter().filter(|id| !old.isr.contains(id)).copied().collect();
        for member in joined {
            let is_alone = new.isr == [member] && new.leader == Some(member);
            if is_alone && old.elr.contains(&member) {
                // Elected from the ELR: `check` looks whether it is complete.
            } else if old.isr.is_empty() {
                assert!(is_alone, "only who is elected enters an empty ISR");
                self.elect_unclean(key, member);
            } else {
                self.join(key, old, member);
            }
        }
    }

    /// Copies that are offline are not relied on, unless nobody else is complete.
    fn distrust_offline(&mut self, key: Key, state: &PartitionState) {
        let is_usable = |id: &BrokerId| !state.offline.contains(id);
        if state.isr.iter().chain(&state.elr).any(is_usable) {
            self.records.get_mut(&key).unwrap().complete.retain(is_usable);
        }
    }

    /// A leader that was not complete was elected: the others follow what it has.
    fn elect_unclean(&mut self, key: Key, leader: BrokerId) {
        assert!(self.unclean_asked, "an unclean election nobody asked for");
        let records = self.records.get_mut(&key).unwrap();
        records.committed = records.on.get(&leader).copied().unwrap_or_default();
        records.complete.clear();
    }

    /// A follower joins: its leader saw it caught up and has waited for it since.
    fn join(&mut self, key: Key, old: &PartitionState, member: BrokerId) {
        let epoch = self.image.broker(member).unwrap().epoch;
        let proposals = self.isr_proposals.get(&(key, old.partition_epoch.get()));
        assert!(
            proposals.into_iter().flatten().any(|isr| isr.contains(&(member, epoch))),
            "broker {member} joined the ISR of {key:?} though no leader proposed it"
        );
        let records = self.records.get_mut(&key).unwrap();
        records.on.insert(member, records.committed);
    }

    /// After `record`, which says something about the ISR or about min ISR of some partitions.
    fn remember_complete(&mut self, record: &Record) {
        for (topic, known, partition, state) in self.image.partitions() {
            let is_concerned = match record {
                Record::Partition { topic: of, partition: number, .. } => {
                    (*of, *number) == (topic, partition)
                }
                Record::Topic { id, .. } => *id == topic,
                Record::Cluster { .. } => true,
                _ => false,
            };
            let is_full = state.isr.len() >= self.image.min_isr(known, state);
            if is_concerned
                && is_full
                && let Some(records) = self.records.get_mut(&(topic, partition))
            {
                records.complete = state.isr.iter().copied().collect();
            }
        }
    }

    fn check(&self) {
        for (topic, known, partition, state) in self.image.partitions() {
            let name = format!("{}-{partition}: {state:?}", known.name);
            let records = &self.records[&(topic, partition)];
            self.check_members(&name, state);

            let min_isr = self.image.min_isr(known, state);
            let brokers = self.image.brokers();
            let settled = settle(state, Wanted::as_it_is(state), brokers, |_| min_isr);
            assert_eq!(settled, None, "not settled: {name}");
            assert!(state.isr.len() < min_isr || state.elr.is_empty(), "{name}");

            for member in state.isr.iter().chain(&state.elr) {
                let has = records.on.get(member).copied().unwrap_or_default();
                assert_eq!(has, records.committed, "{member} is not complete: {name}");
            }
            if state.isr.len() < min_isr {
                for member in records.complete.iter().filter(|id| state.replicas.contains(id)) {
                    assert!(state.is_complete_on(*member), "{member} is forgotten: {name}");
                }
            }
        }
    }

    fn check_members(&self, name: &str, state: &PartitionState) {
        let replicas: BTreeSet<_> = state.replicas.iter().collect();
        assert_eq!(replicas.len(), state.replicas.len(), "{name}");
        let isr: BTreeSet<_> = state.isr.iter().collect();
        let elr: BTreeSet<_> = state.elr.iter().collect();
        assert!(isr.is_subset(&replicas) && elr.is_subset(&replicas), "{name}");
        assert!(isr.is_disjoint(&elr), "{name}");
        assert_eq!(state.leader.is_some(), !state.isr.is_empty(), "{name}");
        assert!(state.leader.is_none_or(|leader| isr.contains(&leader)), "{name}");
        let is_fenced = |id: &BrokerId| self.image.broker(*id).is_none_or(|broker| broker.fenced);
        assert!(!state.isr.iter().any(is_fenced), "a fenced broker in the ISR: {name}");
        let is_eligible = |id: &&BrokerId| self.image.is_eligible(**id);
        let eligible = state.isr.iter().filter(is_eligible).count();
        assert!(eligible == 0 || eligible == isr.len(), "a stopping broker in the ISR: {name}");
        let offline: BTreeSet<_> = state.offline.iter().collect();
        assert!(offline.is_subset(&replicas) && offline.is_disjoint(&isr), "{name}");
        assert!(!state.original_replicas().is_empty() && !state.target_replicas().is_empty());
    }
}
