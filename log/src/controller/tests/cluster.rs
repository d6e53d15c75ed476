//! A controller with a quorum that commits at once, and brokers that do as they are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::{BrokerId, PartitionId, TopicId, TopicPartition};
use uuid::Uuid;

use super::super::requests::{ConfigChange, HeartbeatAnswer, TopicConfigs};
use super::super::{
    AlterPartitions, Command, Controller, ControllerAnswer, ControllerRequest, CopyReport, Event,
    Heartbeat, IsrChange, NewTopic, Refusal, Registration, Settings,
};
use crate::metadata::{BrokerEpoch, Image, MetadataIndex, PartitionState, Record};

pub(super) type Answer = Result<ControllerAnswer, Refusal>;

/// How a broker comes back.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Start {
    pub(super) unclean: bool,
    pub(super) keeps_unflushed: bool,
    pub(super) empty_disk: bool,
}

pub(super) struct Cluster {
    controller: Controller,
    pub(super) now: Duration,
    /// Made from the committed records only.
    pub(super) image: Image,
    /// What waits for a commit.
    pub(super) proposed: Option<Vec<Record>>,
    /// Whether the quorum commits what is proposed.
    pub(super) commits: bool,
    pub(super) answers: BTreeMap<u64, Answer>,
    settings: Settings,
    next_request: u64,
    next_uuid: u128,
    directories: BTreeMap<BrokerId, Uuid>,
    racks: BTreeMap<BrokerId, String>,
}

pub(super) fn settings() -> Settings {
    Settings { cluster_id: "test".to_owned(), ..Settings::default() }
}

pub(super) fn id(number: i32) -> BrokerId {
    BrokerId::new(number)
}

pub(super) fn ids(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId::new).collect()
}

impl Cluster {
    /// Without brokers.
    pub(super) fn new(settings: Settings) -> Self {
        let mut cluster = Self {
            controller: Controller::new(settings.clone()),
            now: Duration::from_secs(1000),
            image: Image::default(),
            proposed: None,
            commits: true,
            answers: BTreeMap::new(),
            settings,
            next_request: 0,
            next_uuid: 0,
            directories: BTreeMap::new(),
            racks: BTreeMap::new(),
        };
        cluster.new_controller();
        cluster
    }

    /// With these brokers, unfenced.
    pub(super) fn of(settings: Settings, brokers: &[i32]) -> Self {
        let mut cluster = Self::new(settings);
        for broker in brokers {
            cluster.start(id(*broker), Start::default());
        }
        cluster
    }

    /// The next controller has another default.
    pub(super) fn set_min_isr(&mut self, min_isr: u32) {
        self.settings.min_insync_replicas = min_isr;
    }

    pub(super) fn uuid(&mut self) -> Uuid {
        self.next_uuid += 1;
        Uuid::from_u128(self.next_uuid)
    }

    /// Another controller takes over, with the committed metadata.
    pub(super) fn new_controller(&mut self) {
        self.replace_controller(None);
    }

    /// It does so because the node that led is not heard any more.
    pub(super) fn replace_controller(&mut self, led_before: Option<BrokerId>) {
        self.proposed = None;
        self.event(Event::Deactivated);
        self.controller = Controller::new(self.settings.clone());
        self.event(Event::Activated { image: Arc::new(self.image.clone()), led_before });
    }

    pub(super) fn event(&mut self, event: Event) {
        for command in self.controller.handle(self.now, event) {
            match command {
                Command::Propose { records } => {
                    assert!(self.proposed.replace(records).is_none(), "two proposals under way");
                }
                Command::Answer { id, answer } => {
                    assert!(self.answers.insert(id, answer).is_none(), "two answers to {id}");
                }
            }
        }
        if self.commits {
            self.commit();
        }
    }

    /// The quorum commits what is proposed, and what is proposed next.
    pub(super) fn commit(&mut self) {
        while let Some(records) = self.proposed.take() {
            let index = MetadataIndex::new(self.image.index().get() + 1);
            self.image.apply(index, &records);
            self.event(Event::Committed { index, records: records.into() });
        }
        // The controller sees what it has committed as everybody does.
        if let Some(active) = &self.controller.active
            && active.proposal.is_none()
        {
            assert_eq!(*active.image, self.image);
        }
    }

    /// Asks; the answer may come later.
    pub(super) fn send(&mut self, request: ControllerRequest) -> u64 {
        self.next_request += 1;
        let id = self.next_request;
        self.event(Event::Request { id, request });
        id
    }

    /// Asks and has the answer.
    pub(super) fn ask(&mut self, request: ControllerRequest) -> Answer {
        let id = self.send(request);
        self.answers.remove(&id).expect("an answer")
    }

    pub(super) fn registration(&mut self, broker: BrokerId, start: Start) -> Registration {
        let fresh = self.uuid();
        let directory = self.directories.entry(broker).or_insert(fresh);
        if start.empty_disk {
            *directory = fresh;
        }
        let directory = *directory;
        Registration {
            id: broker,
            incarnation: self.uuid(),
            directory,
            host: format!("host-{broker}"),
            port: 9092,
            rack: self.racks.get(&broker).cloned(),
            previous_epoch: (!start.unclean).then(|| self.epoch(broker)),
            keeps_unflushed: start.keeps_unflushed,
        }
    }

    pub(super) fn set_rack(&mut self, broker: BrokerId, rack: &str) {
        self.racks.insert(broker, rack.to_owned());
    }

    pub(super) fn register(&mut self, broker: BrokerId, start: Start) -> Answer {
        let registration = self.registration(broker, start);
        self.ask(ControllerRequest::Register(registration))
    }

    /// Registers and is unfenced.
    pub(super) fn start(&mut self, broker: BrokerId, start: Start) {
        self.register(broker, start).unwrap();
        let beat = self.beat(broker);
        assert!(!beat.fenced, "broker {broker} is fenced");
    }

    pub(super) fn epoch(&self, broker: BrokerId) -> BrokerEpoch {
        self.image.broker(broker).map_or(BrokerEpoch::NONE, |state| state.epoch)
    }

    pub(super) fn heartbeat(&self, broker: BrokerId) -> Heartbeat {
        Heartbeat {
            id: broker,
            epoch: self.epoch(broker),
            applied: self.image.index(),
            stopping: false,
            copies: Vec::new(),
        }
    }

    /// What a broker says of its copy of a topic's partition.
    pub(super) fn copy_report(&self, topic: &str, offline: bool) -> CopyReport {
        let (topic, _) = self.image.topic_by_name(topic).expect("the topic");
        CopyReport { topic, partition: PartitionId::new(0), offline }
    }

    /// A heartbeat that says whether the broker's copy of a topic's partition is offline.
    pub(super) fn report(&mut self, broker: BrokerId, topic: &str, offline: bool) {
        let copies = vec![self.copy_report(topic, offline)];
        self.beat_with(Heartbeat { copies, ..self.heartbeat(broker) });
    }

    pub(super) fn beat(&mut self, broker: BrokerId) -> HeartbeatAnswer {
        self.beat_with(self.heartbeat(broker))
    }

    pub(super) fn stop(&mut self, broker: BrokerId) -> HeartbeatAnswer {
        self.beat_with(Heartbeat { stopping: true, ..self.heartbeat(broker) })
    }

    pub(super) fn beat_with(&mut self, heartbeat: Heartbeat) -> HeartbeatAnswer {
        match self.ask(ControllerRequest::Heartbeat(heartbeat)) {
            Ok(ControllerAnswer::Heartbeat(answer)) => answer,
            other => panic!("{other:?} to a heartbeat"),
        }
    }

    /// Three seconds go by, in which all live brokers are heard of but these.
    pub(super) fn silent(&mut self, silent: &[BrokerId]) {
        let live: Vec<_> = self.image.live_brokers().map(|(id, _)| id).collect();
        for _ in 0..10 {
            self.now += Duration::from_millis(300);
            for broker in live.iter().filter(|id| !silent.contains(id)) {
                self.beat(*broker);
            }
            self.event(Event::Tick);
        }
    }

    pub(super) fn new_topic(&mut self, name: &str) -> NewTopic {
        NewTopic {
            name: name.to_owned(),
            id: TopicId::new(self.uuid()),
            partitions: -1,
            replication_factor: -1,
            assignments: Vec::new(),
            configs: BTreeMap::new(),
        }
    }

    /// The first refusal, also one inside the answer.
    pub(super) fn try_create(&mut self, topic: NewTopic) -> Result<(), Refusal> {
        let request = ControllerRequest::CreateTopics { topics: vec![topic], validate_only: false };
        match self.ask(request)? {
            ControllerAnswer::Created(mut created) => created.remove(0).map(drop),
            other => panic!("{other:?}"),
        }
    }

    /// A topic of one partition on these brokers.
    pub(super) fn create(&mut self, name: &str, replicas: &[BrokerId], min_isr: u32) {
        let mut topic = self.new_topic(name);
        topic.assignments = vec![replicas.to_vec()];
        topic.configs.insert("min.insync.replicas".to_owned(), min_isr.to_string());
        self.try_create(topic).unwrap();
    }

    pub(super) fn configure(
        &mut self,
        topic: &str,
        name: &str,
        value: &str,
    ) -> Result<(), Refusal> {
        let change = TopicConfigs {
            name: topic.to_owned(),
            changes: BTreeMap::from([(name.to_owned(), ConfigChange::Set(value.to_owned()))]),
            replaces_all: false,
        };
        let request =
            ControllerRequest::SetTopicConfigs { topics: vec![change], validate_only: false };
        self.ask(request).and_then(only_done)
    }

    pub(super) fn partition(&self, topic: &str) -> &PartitionState {
        let (id, _) = self.image.topic_by_name(topic).expect("the topic");
        self.image.partition(id, PartitionId::new(0)).expect("its partition")
    }

    /// What the leader would propose.
    pub(super) fn isr_change(&self, topic: &str, isr: &[BrokerId]) -> AlterPartitions {
        let state = self.partition(topic);
        let leader = state.leader.expect("a leader");
        AlterPartitions {
            id: leader,
            epoch: self.epoch(leader),
            changes: vec![IsrChange {
                topic: self.image.topic_by_name(topic).expect("the topic").0,
                partition: PartitionId::new(0),
                leader_epoch: state.leader_epoch,
                partition_epoch: state.partition_epoch,
                isr: isr.iter().map(|id| (*id, self.epoch(*id))).collect(),
            }],
        }
    }

    pub(super) fn alter(&mut self, request: AlterPartitions) -> Result<PartitionState, Refusal> {
        match self.ask(ControllerRequest::AlterPartitions(request))? {
            ControllerAnswer::Partitions(mut states) => states.remove(0),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn reassign(
        &mut self,
        topic: &str,
        target: Option<Vec<BrokerId>>,
    ) -> Result<(), Refusal> {
        let named = TopicPartition::new(topic, PartitionId::new(0));
        let request = ControllerRequest::Reassign { partitions: vec![(named, target)] };
        self.ask(request).and_then(only_done)
    }
}

/// The outcome of the only part of a request.
pub(super) fn only_done(answer: ControllerAnswer) -> Result<(), Refusal> {
    match answer {
        ControllerAnswer::Done(mut done) => done.remove(0),
        ControllerAnswer::Elected(mut elected) => elected.remove(0).1,
        other => panic!("{other:?}"),
    }
}
