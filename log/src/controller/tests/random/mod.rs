//! Random lives of a cluster, and what must hold after each entry.
//!
//! Beside the controller runs a model of what the brokers' disks hold: for each replica, how many
//! of the records that the partition has committed. Leaders commit as the rules of replication
//! allow them to (every member of the ISR has it, and the ISR is at least min ISR), brokers crash,
//! lose what they had not flushed or their whole disk, restart, stop; copies go offline, come back,
//! or are made anew in the place of damaged ones; operators move partitions and change settings;
//! controllers replace each other, with proposals lost or committed meanwhile.
//! Whatever happens, whom the controller counts as complete *is* complete in the model.

mod brokers;
mod model;
mod operators;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_kafka::{BrokerId, PartitionId, TopicId};
use uuid::Uuid;

use self::brokers::Broker;
use self::model::Records;
use super::super::{
    Command, Controller, ControllerAnswer, ControllerRequest, Event, Refusal, Settings,
};
use super::cluster::id;
use crate::metadata::{BrokerEpoch, Image, MetadataIndex, Record};

const SEEDS: u64 = 300;
const STEPS: usize = 1500;
const BROKERS: i32 = 5;

type Key = (TopicId, PartitionId);

/// An ISR as a leader proposes it.
type Members = Vec<(BrokerId, BrokerEpoch)>;

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
        let led_before = self.rng.random_bool(0.5).then(|| self.some_broker());
        self.event(Event::Activated { image: Arc::new(self.image.clone()), led_before });
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
        if self.rng.random_bool(0.2) {
            // Connections end, mostly those of heartbeats that were not the last of their broker.
            let id = self.requests.saturating_sub(self.rng.random_range(0..10));
            self.event(Event::Abandoned { id });
        }
        self.now += Duration::from_millis(self.rng.random_range(10..900));
        self.event(Event::Tick);
    }
}
