//! What brokers do: they start, crash and stop, tell of their copies, replicate and propose ISRs.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tailwater_kafka::BrokerId;
use uuid::Uuid;

use super::super::super::{
    AlterPartitions, ControllerRequest, CopyReport, Heartbeat, IsrChange, Registration,
};
use super::super::cluster::id;
use super::{BROKERS, Key, World};
use crate::metadata::{BrokerEpoch, MetadataIndex, PartitionEpoch};

/// A broker's process and disk.
#[derive(Debug)]
pub(super) struct Broker {
    pub(super) running: bool,
    pub(super) incarnation: Uuid,
    pub(super) directory: Uuid,
    pub(super) keeps_unflushed: bool,
    /// As the answer to its registration said.
    pub(super) epoch: Option<BrokerEpoch>,
    /// What it kept from a clean stop.
    pub(super) previous_epoch: Option<BrokerEpoch>,
    pub(super) stopping: bool,
    /// The registration that waits for its answer.
    pub(super) registering: Option<u64>,
    /// The copies that it cannot use, and whether they are damaged.
    pub(super) offline: BTreeMap<Key, bool>,
}

impl Broker {
    pub(super) fn new(rng: &mut SmallRng) -> Self {
        Self {
            running: false,
            incarnation: Uuid::nil(),
            directory: Uuid::from_u128(rng.random()),
            keeps_unflushed: rng.random_bool(0.4),
            epoch: None,
            previous_epoch: None,
            stopping: false,
            registering: None,
            offline: BTreeMap::new(),
        }
    }
}

impl World {
    pub(super) fn some_broker(&mut self) -> BrokerId {
        id(self.rng.random_range(1..=BROKERS))
    }

    pub(super) fn heartbeats(&mut self) {
        for number in 1..=BROKERS {
            let broker = &self.brokers[&id(number)];
            let Some(epoch) = broker.epoch.filter(|_| broker.running) else { continue };
            if self.rng.random_bool(0.15) {
                continue;
            }
            let behind = self.rng.random_range(0..3);
            let stopping = broker.stopping;
            let heartbeat = Heartbeat {
                id: id(number),
                epoch,
                applied: MetadataIndex::new(self.image.index().get().saturating_sub(behind)),
                stopping,
                copies: self.copies_to_report(id(number)),
            };
            self.send(ControllerRequest::Heartbeat(heartbeat));
        }
    }

    /// What the metadata has wrong about its copies; now and then an old heartbeat comes late and
    /// tells what was.
    fn copies_to_report(&mut self, broker: BrokerId) -> Vec<CopyReport> {
        let offline = &self.brokers[&broker].offline;
        let mut reports = Vec::new();
        for (topic, _, partition, state) in self.image.partitions() {
            if !state.replicas.contains(&broker) {
                continue;
            }
            let is_offline = offline.contains_key(&(topic, partition));
            let is_late = self.rng.random_bool(0.01);
            if is_offline != state.offline.contains(&broker) || is_late {
                reports.push(CopyReport { topic, partition, offline: is_offline != is_late });
            }
        }
        reports
    }

    /// A copy goes offline; or one that is comes back, as it was or made anew.
    pub(super) fn change_copy(&mut self) {
        let broken = self
            .brokers
            .iter()
            .flat_map(|(id, broker)| broker.offline.keys().map(|key| (*id, *key)));
        let mut copies: Vec<(BrokerId, Key)> = broken.collect();
        if copies.is_empty() || self.rng.random_bool(0.4) {
            let all = self.image.partitions().flat_map(|(topic, _, partition, state)| {
                state.replicas.iter().map(move |id| (*id, (topic, partition)))
            });
            copies = all.collect();
        }
        let Some((broker, key)) = copies.choose(&mut self.rng).copied() else { return };
        let Some(state) = self.image.partition(key.0, key.1) else { return };
        if !self.serves(broker) {
            return;
        }
        let is_damaged = self.rng.random_bool(0.5);
        let offline = &mut self.brokers.get_mut(&broker).unwrap().offline;
        match offline.get(&key).copied() {
            None => {
                offline.insert(key, is_damaged);
            }
            Some(false) => {
                offline.remove(&key);
            }
            // The node's rule for copying anew.
            Some(true)
                if state.offline.contains(&broker)
                    && !state.is_complete_on(broker)
                    && state.leader.is_some_and(|leader| leader != broker) =>
            {
                offline.remove(&key);
                self.copied_anew += 1;
                let records = self.records.get_mut(&key).unwrap();
                records.on.insert(broker, 0);
                records.complete.remove(&broker);
            }
            // It starts again, and nobody notices before it is read.
            Some(true) => {
                offline.remove(&key);
            }
        }
    }

    pub(super) fn crash(&mut self) {
        let broker = self.some_broker();
        let broker = self.brokers.get_mut(&broker).unwrap();
        if broker.running {
            // Stopped in order, it has kept its epoch; else it has not.
            broker.previous_epoch = broker.epoch.filter(|_| broker.stopping);
            (broker.running, broker.epoch, broker.registering) = (false, None, None);
        }
    }

    pub(super) fn begin_stop(&mut self) {
        let broker = self.some_broker();
        self.brokers.get_mut(&broker).unwrap().stopping = true;
    }

    pub(super) fn start(&mut self) {
        let number = self.some_broker();
        let fresh = Uuid::from_u128(self.rng.random());
        let (empty, known) = (self.rng.random_bool(0.15), self.image.broker(number).is_some());
        let broker = self.brokers.get_mut(&number).unwrap();
        if broker.registering.is_some() || broker.epoch.is_some() {
            return;
        }
        if !broker.running {
            broker.running = true;
            broker.stopping = false;
            broker.incarnation = fresh;
            // A flush that failed is forgotten, damage is not.
            broker.offline.retain(|_, is_damaged| *is_damaged && !empty);
            if broker.keeps_unflushed && broker.previous_epoch.is_none() {
                self.unflushed_lost.insert(fresh);
            }
            if empty {
                broker.directory = fresh;
                broker.previous_epoch = None;
            }
        }
        let registration = Registration {
            id: number,
            incarnation: broker.incarnation,
            directory: broker.directory,
            host: "host".to_owned(),
            port: 9092,
            rack: None,
            previous_epoch: broker.previous_epoch.filter(|_| known),
            keeps_unflushed: broker.keeps_unflushed,
        };
        // The answer may come at once.
        broker.registering = Some(self.requests + 1);
        self.send(ControllerRequest::Register(registration));
    }

    /// Whether `broker` takes part in replication: it runs under its present registration.
    fn serves(&self, broker: BrokerId) -> bool {
        let Some(state) = self.image.broker(broker) else { return false };
        let process = &self.brokers[&broker];
        process.running && process.epoch == Some(state.epoch) && !state.fenced
    }

    fn serves_copy(&self, broker: BrokerId, key: Key) -> bool {
        self.serves(broker) && !self.brokers[&broker].offline.contains_key(&key)
    }

    /// Leaders commit what their ISR has.
    pub(super) fn replicate(&mut self) {
        let keys: Vec<_> = self.image.partitions().map(|(t, _, p, _)| (t, p)).collect();
        for key in keys {
            let state = self.image.partition(key.0, key.1).unwrap();
            let min_isr = self.image.min_isr(self.image.topic(key.0).unwrap(), state);
            if state.leader.is_none()
                || state.isr.len() < min_isr
                || !state.isr.iter().all(|member| self.serves_copy(*member, key))
            {
                continue;
            }
            let isr = state.isr.clone();
            let records = self.records.get_mut(&key).unwrap();
            records.committed += 1;
            self.commits += 1;
            for member in isr {
                records.on.insert(member, records.committed);
            }
        }
    }

    pub(super) fn propose_isr(&mut self) {
        let keys: Vec<_> = self.image.partitions().map(|(t, _, p, _)| (t, p)).collect();
        let Some(key) = keys.choose(&mut self.rng).copied() else { return };
        let state = self.image.partition(key.0, key.1).unwrap().clone();
        let Some(leader) = state.leader.filter(|leader| self.serves(*leader)) else { return };
        let grows = self.rng.random_bool(0.7);
        let mut isr = Vec::new();
        for replica in &state.replicas {
            let wanted = if grows { 0.9 } else { 0.4 };
            if *replica == leader || self.serves(*replica) && self.rng.random_bool(wanted) {
                let epoch = self.image.broker(*replica).unwrap().epoch;
                // Now and then a follower has registered anew since the leader last looked.
                let stale = self.rng.random_bool(0.05);
                let epoch = if stale { BrokerEpoch::new(epoch.get() - 1) } else { epoch };
                isr.push((*replica, epoch));
            }
        }
        isr.shuffle(&mut self.rng);
        let lag = i32::from(self.rng.random_bool(0.05));
        let builds_on = state.partition_epoch.get() - lag;
        self.isr_proposals.entry((key, builds_on)).or_default().push(isr.clone());
        let change = IsrChange {
            topic: key.0,
            partition: key.1,
            leader_epoch: state.leader_epoch,
            partition_epoch: PartitionEpoch::new(builds_on),
            isr,
        };
        let epoch = self.brokers[&leader].epoch.unwrap();
        let request = AlterPartitions { id: leader, epoch, changes: vec![change] };
        self.send(ControllerRequest::AlterPartitions(request));
    }
}
