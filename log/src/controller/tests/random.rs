//! Random lives of a cluster, and what must hold after each entry.
//!
//! Beside the controller runs a model of what the brokers' disks hold: for each replica, how many
//! of the records that the partition has committed. Leaders commit as the rules of replication
//! allow them to (every member of the ISR has it, and the ISR is at least min ISR), brokers crash,
//! lose what they had not flushed or their whole disk, restart, stop; copies go offline, come back, or
//! are made anew in the place of damaged ones; operators move partitions and change settings; controllers replace each other, with proposals lost or committed meanwhile.
//! Whatever happens, whom the controller counts as complete *is* complete in the model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use tailwater_kafka::{BrokerId, PartitionId, TopicId, TopicPartition};
use uuid::Uuid;

use super::super::partitions::{Wanted, settle};
use super::super::requests::{ConfigChange, ElectionKind, MorePartitions, TopicConfigs};
use super::super::{
    AlterPartitions, Command, Controller, ControllerAnswer, ControllerRequest, CopyReport, Event,
    Heartbeat, IsrChange, NewTopic, Refusal, Registration, Settings, TopicRef,
};
use super::cluster::id;
use crate::metadata::{BrokerEpoch, Image, MetadataIndex, PartitionState, Record};

const SEEDS: u64 = 300;
const STEPS: usize = 1500;
const BROKERS: i32 = 5;

type Key = (TopicId, PartitionId);

/// An ISR as a leader proposes it.
type Members = Vec<(BrokerId, BrokerEpoch)>;

/// A broker's process and disk.
#[derive(Debug)]
struct Broker {
    running: bool,
    incarnation: Uuid,
    directory: Uuid,
    keeps_unflushed: bool,
    /// As the answer to its registration said.
    epoch: Option<BrokerEpoch>,
    /// What it kept from a clean stop.
    previous_epoch: Option<BrokerEpoch>,
    stopping: bool,
    /// The registration that waits for its answer.
    registering: Option<u64>,
    /// The copies that it cannot use, and whether they are damaged.
    offline: BTreeMap<Key, bool>,
}

/// What a start of a broker has lost, which counts from its registration on.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Unflushed,
    Everything,
}

/// Who has how much of what a partition has committed.
#[derive(Debug, Default)]
struct Records {
    committed: u64,
    on: BTreeMap<BrokerId, u64>,
    /// The members of the ISR when it last was at least min ISR, without those that have lost
    /// what they had since.
    complete: BTreeSet<BrokerId>,
}

struct World {
    rng: SmallRng,
    settings: Settings,
    controller: Controller,
    now: Duration,
    image: Image,
    proposed: Option<Vec<Record>>,
    brokers: BTreeMap<BrokerId, Broker>,
    /// The starts after which a broker lacks what it had not flushed.
    unflushed_lost: BTreeSet<Uuid>,
    records: BTreeMap<Key, Records>,
    /// ISR proposals that were sent, as (state they build on, members).
    isr_proposals: BTreeMap<(Key, i32), Vec<Members>>,
    /// Whether an unclean election has been asked for: only then may records be lost.
    unclean_asked: bool,
    requests: u64,
    answered: BTreeSet<u64>,
    /// What the run has seen, so that it cannot pass by doing nothing.
    elections: u64,
    commits: u64,
    copied_anew: u64,
}

#[test]
fn whatever_happens_who_counts_as_complete_is() {
    let (mut elections, mut commits, mut copied_anew) = (0, 0, 0);
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.finish();
        elections += world.elections;
        commits += world.commits;
        copied_anew += world.copied_anew;
    }
    println!("{elections} elections, {commits} commits, {copied_anew} copied anew");
    assert!(elections > 10 * SEEDS && commits > 50 * SEEDS, "the runs did too little");
    assert!(copied_anew > SEEDS / 3, "too few were copied anew");
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let settings = Settings {
            cluster_id: "random".to_owned(),
            rebalance_interval: Some(Duration::from_secs(10)),
            min_insync_replicas: rng.random_range(1..=2),
            ..Settings::default()
        };
        let brokers = (1..=BROKERS).map(|number| (id(number), Broker::new(&mut rng))).collect();
        let mut world = Self {
            controller: Controller::new(settings.clone()),
            rng,
            settings,
            now: Duration::ZERO,
            image: Image::default(),
            proposed: None,
            brokers,
            unflushed_lost: BTreeSet::new(),
            records: BTreeMap::new(),
            isr_proposals: BTreeMap::new(),
            unclean_asked: false,
            requests: 0,
            answered: BTreeSet::new(),
            elections: 0,
            commits: 0,
            copied_anew: 0,
        };
        world.activate();
        world
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => self.commit_proposal(),
            25..50 => self.heartbeats(),
            50..58 => self.tick(),
            58..72 => self.propose_isr(),
            72..78 => self.replicate(),
            78..84 => self.start(),
            84..88 => self.crash(),
            88..90 => self.begin_stop(),
            90..93 => self.change_copy(),
            93..95 => self.operate_topics(),
            95..98 => self.operate_partitions(),
            _ => self.activate(),
        }
    }

    /// Lets everything come to rest: every request has had one answer.
    fn finish(&mut self) {
        while self.proposed.is_some() {
            self.commit_proposal();
        }
        assert_eq!(self.answered.len() as u64, self.requests, "requests without an answer");
    }

    // --- the controller and the quorum

    fn event(&mut self, event: Event) {
        for command in self.controller.handle(self.now, event) {
            match command {
                Command::Propose { records } => {
                    assert!(self.proposed.replace(records).is_none(), "two proposals");
                }
                Command::Answer { id, answer } => {
                    assert!(self.answered.insert(id), "two answers to {id}");
                    self.receive(id, answer);
                }
            }
        }
    }

    fn send(&mut self, request: ControllerRequest) -> u64 {
        self.requests += 1;
        let id = self.requests;
        self.event(Event::Request { id, request });
        id
    }

    fn receive(&mut self, request: u64, answer: Result<ControllerAnswer, Refusal>) {
        let asked = self.brokers.values_mut().find(|one| one.registering == Some(request));
        if let Some(broker) = asked {
            broker.registering = None;
            if let Ok(ControllerAnswer::Registered { epoch }) = answer {
                broker.epoch = Some(epoch);
            }
        }
    }

    fn activate(&mut self) {
        // The former controller's last proposal may have got through all the same.
        if self.rng.random_bool(0.5) {
            self.commit_without_controller();
        }
        self.event(Event::Deactivated);
        self.proposed = None;
        self.controller = Controller::new(self.settings.clone());
        self.event(Event::Activated { image: Arc::new(self.image.clone()) });
    }

    fn commit_without_controller(&mut self) {
        if let Some(records) = self.proposed.take() {
            let index = MetadataIndex::new(self.image.index().get() + 1);
            self.apply(index, &records);
        }
    }

    fn commit_proposal(&mut self) {
        let Some(records) = self.proposed.take() else { return };
        // The quorum has entries of its own between.
        let gap = self.rng.random_range(1..=2);
        let index = MetadataIndex::new(self.image.index().get() + gap);
        self.apply(index, &records);
        self.event(Event::Committed { index, records: records.into() });
        if let Some(active) = &self.controller.active
            && active.proposal.is_none()
        {
            assert_eq!(*active.image, self.image, "the controller sees another cluster");
        }
    }

    fn tick(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(10..900));
        self.event(Event::Tick);
    }

    // --- brokers

    fn some_broker(&mut self) -> BrokerId {
        id(self.rng.random_range(1..=BROKERS))
    }

    fn heartbeats(&mut self) {
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
    fn change_copy(&mut self) {
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

    fn crash(&mut self) {
        let broker = self.some_broker();
        let broker = self.brokers.get_mut(&broker).unwrap();
        if broker.running {
            // Stopped in order, it has kept its epoch; else it has not.
            broker.previous_epoch = broker.epoch.filter(|_| broker.stopping);
            (broker.running, broker.epoch, broker.registering) = (false, None, None);
        }
    }

    fn begin_stop(&mut self) {
        let broker = self.some_broker();
        self.brokers.get_mut(&broker).unwrap().stopping = true;
    }

    fn start(&mut self) {
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
    fn replicate(&mut self) {
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

    fn propose_isr(&mut self) {
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
            partition_epoch: crate::metadata::PartitionEpoch::new(builds_on),
            isr,
        };
        let epoch = self.brokers[&leader].epoch.unwrap();
        let request = AlterPartitions { id: leader, epoch, changes: vec![change] };
        self.send(ControllerRequest::AlterPartitions(request));
    }

    // --- operators

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

    fn operate_topics(&mut self) {
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

    fn operate_partitions(&mut self) {
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

    // --- what a committed entry means, and what must hold

    fn apply(&mut self, index: MetadataIndex, records: &[Record]) {
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

impl Broker {
    fn new(rng: &mut SmallRng) -> Self {
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
