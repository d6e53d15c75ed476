//! Replicas with logs in memory, an abstract controller, and messages that wait to be delivered.
//!
//! [`World`] is what stands around a [`Replica`] in a broker, made as small as it can be: storage,
//! fetching, registration. Scripts drive it by hand ([`losses`]), [`random`] at random, with
//! everything lost, late and twice. Each step is judged ([`oracle`]):
//!
//! - an entry below a high watermark that any leader ever had is in the log of every leader of a
//!   later epoch, at its offset;
//! - an entry below a follower's high watermark was committed before, and is the same;
//! - no high watermark falls while its node is up, no log is cut below one;
//! - at the end, when all is well again, all replicas are in sync and their logs the same.
//!
//! [`Plant`]s are mistakes in this glue, one at a time, that the oracle has to find.

mod controller;
mod losses;
mod network;
mod oracle;
mod random;

use std::time::Duration;

use tailwater_kafka::{BrokerId, LeaderEpoch, Offset};

use crate::metadata::BrokerEpoch;
use crate::replica::{Command, Event, LogView, Replica, Settings};
use crate::storage::epochs::EpochHistory;
use controller::Controller;
use network::Message;
use oracle::Committed;

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    None,
    /// Before KIP-101: a new follower cuts its log at its own high watermark.
    TruncateByHighWatermark,
    /// A fetch of a replica outside of the ISR counts for a member.
    CountNonIsrAck,
    /// The leader serves and counts a fetch of another leader epoch.
    SkipRequestEpoch,
    /// The follower takes any answer that comes, whoever leads since.
    TakeAnyAnswer,
    /// The leader does not compare the last fetched epoch.
    SkipDivergence,
    /// Leader and controller take a broker's earlier incarnation for this one (before KIP-903).
    ForgetFence,
    /// A follower says that it has what it has not flushed.
    AskUnflushed,
    /// A proposed ISR is taken for a committed one.
    BelieveProposals,
    /// A leader commits with fewer in-sync replicas than `min.insync.replicas`.
    IgnoreMinIsr,
    /// The controller's answer to a proposal is taken for its newest state, ahead of others.
    TakeAnswerAsImage,
    /// After a restart a broker acts on what it knew before it registered.
    ActOnOldImage,
}

/// What was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    epoch: LeaderEpoch,
    value: u32,
}

#[derive(Debug, Default)]
struct Log {
    start: usize,
    /// By offset; meaningless below `start`.
    entries: Vec<Entry>,
    durable: usize,
    epochs: EpochHistory,
}

#[derive(Debug)]
struct Node {
    id: BrokerId,
    up: bool,
    /// Hears nothing from the others, nor they from it.
    cut_from_peers: bool,
    cut_from_controller: bool,
    log: Log,
    replica: Replica,
    broker_epoch: BrokerEpoch,
    /// How many of the controller's images it has taken.
    applied: usize,
    /// The fetch that waits for an answer.
    asked: Option<u64>,
    /// Everything below its high watermark that the oracle has seen.
    judged: usize,
}

#[derive(Debug)]
struct World {
    now: Duration,
    nodes: Vec<Node>,
    controller: Controller,
    network: Vec<Message>,
    plant: Plant,
    committed: Vec<Committed>,
    values: u32,
    requests: u64,
    /// The first thing that is wrong.
    failure: Option<String>,
    /// What happened, if anybody wants to know.
    trace: Option<Vec<String>>,
}

const SETTINGS: Settings = Settings {
    lag_max: Duration::from_secs(3),
    silence_max: Duration::from_secs(2),
    propose_again: Duration::from_millis(200),
    answer_wait: Duration::from_secs(1),
};

fn at(index: usize) -> Offset {
    Offset::new(i64::try_from(index).unwrap())
}

fn index(offset: Offset) -> usize {
    usize::try_from(offset.get()).unwrap()
}

impl Log {
    fn end(&self) -> usize {
        self.entries.len()
    }

    fn view(&self) -> LogView {
        LogView { start: at(self.start), end: at(self.end()), durable_end: at(self.durable) }
    }

    fn truncate(&mut self, end: usize) {
        self.entries.truncate(end);
        self.durable = self.durable.min(end);
        self.epochs.truncate(at(end));
    }

    /// Begins anew at `start`.
    fn reset(&mut self, start: usize) {
        let nothing = Entry { epoch: LeaderEpoch::NONE, value: 0 };
        *self = Self { start, durable: start, entries: vec![nothing; start], ..Self::default() };
    }

    fn kept(&self) -> &[Entry] {
        &self.entries[self.start..]
    }
}

impl World {
    /// Brokers 0, 1, …, all up, unfenced and in the ISR; broker 0 leads.
    fn new(brokers: usize, min_insync: usize, plant: Plant) -> Self {
        let ids: Vec<_> = (0..).map(BrokerId::new).take(brokers).collect();
        let mut controller = Controller::new(ids.clone(), min_insync);
        let nodes = ids.into_iter().map(|id| {
            let (broker_epoch, applied) = controller.register(id, true);
            Node {
                id,
                up: true,
                cut_from_peers: false,
                cut_from_controller: false,
                log: Log::default(),
                replica: Replica::new(id, SETTINGS, Offset::ZERO),
                broker_epoch,
                applied,
                asked: None,
                judged: 0,
            }
        });
        let mut world = Self {
            now: Duration::ZERO,
            nodes: nodes.collect(),
            controller,
            network: Vec::new(),
            plant,
            committed: Vec::new(),
            values: 0,
            requests: 0,
            failure: None,
            trace: None,
        };
        for node in 0..brokers {
            world.catch_up(node);
        }
        for node in 0..brokers {
            world.catch_up(node);
            world.begin(node);
        }
        world
    }

    fn note(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = what(self);
            self.trace.get_or_insert_default().push(line);
        }
    }

    /// Tells a replica, does what it wants, and judges.
    fn tell(&mut self, n: usize, event: Event) {
        let node = &mut self.nodes[n];
        let before = node.replica.high_watermark();
        let commands = node.replica.handle(self.now, event, node.log.view());
        if node.replica.high_watermark() < before {
            self.fail(format!("broker {n}: the high watermark fell from {before}"));
        }
        for command in commands {
            self.carry_out(n, command);
        }
        self.judge(n);
    }

    fn carry_out(&mut self, n: usize, command: Command) {
        self.note(|_| format!("  broker {n}: {command:?}"));
        let node = &mut self.nodes[n];
        match command {
            // `begin` does it, some time.
            Command::BeginEpoch { .. }
            | Command::HighWatermark(_)
            | Command::StopLeading
            | Command::Stranded => {}
            Command::Follow { .. } => {
                if self.plant == Plant::TruncateByHighWatermark {
                    node.log.truncate(index(node.replica.high_watermark()));
                }
            }
            Command::StopFollowing => node.asked = None,
            Command::StartOffset(start) => {
                node.log.start = index(start);
                node.log.epochs.forget_before(start);
            }
            Command::ProposeIsr { leader_epoch, partition_epoch, isr } => {
                if self.plant == Plant::BelieveProposals {
                    let mut believed = self.controller.images[node.applied - 1].clone();
                    believed.partition_epoch = partition_epoch.next();
                    believed.isr = isr.iter().map(|(id, _)| *id).collect();
                    self.tell(n, Event::Assigned(believed));
                }
                let (from, broker_epoch) = (n, self.nodes[n].broker_epoch);
                let at = (leader_epoch, partition_epoch);
                self.network.push(Message::Propose { from, broker_epoch, at, isr });
            }
        }
    }

    /// Takes a record, if this node thinks that it leads.
    fn append(&mut self, n: usize, acks_all: bool) {
        let node = &mut self.nodes[n];
        let (Some(epoch), Ok(())) = (node.replica.leads(), node.replica.may_append(acks_all))
        else {
            return;
        };
        self.values += 1;
        node.log.entries.push(Entry { epoch, value: self.values });
        self.note(|world| format!("broker {n} appends {} in epoch {epoch}", world.values));
    }

    fn flush(&mut self, n: usize) {
        self.nodes[n].log.durable = self.nodes[n].log.end();
        self.tell(n, Event::Durable);
    }

    /// Carries out `BeginEpoch`.
    fn begin(&mut self, n: usize) {
        let Some(leader_epoch) = self.nodes[n].replica.starts() else { return };
        let log = &mut self.nodes[n].log;
        log.durable = log.end();
        if let Err(falls) = log.epochs.begin(leader_epoch, at(log.end())) {
            return self.fail(format!("broker {n}: {falls}"));
        }
        self.judge_election(n, leader_epoch);
        self.tell(n, Event::EpochBegun { leader_epoch });
    }

    /// Takes the controller's next image; whether there was one.
    fn learn(&mut self, n: usize) -> bool {
        let node = &mut self.nodes[n];
        let Some(image) = self.controller.images.get(node.applied) else { return false };
        node.applied += 1;
        let mut image = image.clone();
        if self.plant == Plant::IgnoreMinIsr {
            image.min_insync = 1;
        }
        self.note(|_| {
            let (leader, isr) = (image.leader, &image.isr);
            format!("broker {n} learns: {leader:?} leads {}, isr {isr:?}", image.leader_epoch)
        });
        self.tell(n, Event::Assigned(image));
        true
    }

    /// Takes all images, and is unfenced.
    fn catch_up(&mut self, n: usize) {
        while self.learn(n) {}
        self.controller.heartbeat(self.nodes[n].id, self.nodes[n].applied);
        while self.learn(n) {}
    }

    /// What is not flushed is gone.
    fn crash(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        (node.up, node.asked) = (false, None);
        let durable = node.log.durable;
        node.log.truncate(durable);
        self.note(|_| format!("broker {n} crashes; it has {durable}"));
    }

    /// Comes back with a high watermark that it had, or 0, and maybe still in the ISR.
    fn restart(&mut self, n: usize, remembers: bool, keeps_place: bool) {
        let id = self.nodes[n].id;
        let (broker_epoch, registered) = self.controller.register(id, keeps_place);
        self.note(|_| format!("broker {n} is back, incarnation {broker_epoch}"));
        let node = &mut self.nodes[n];
        let known = if remembers { node.replica.high_watermark() } else { at(node.log.start) };
        node.replica = Replica::new(id, SETTINGS, known.min(at(node.log.durable)));
        (node.up, node.broker_epoch, node.judged) = (true, broker_epoch, 0);
        let before = std::mem::replace(&mut node.applied, registered);
        if self.plant == Plant::ActOnOldImage {
            let image = self.controller.images[before - 1].clone();
            self.tell(n, Event::Assigned(image));
        }
    }

    /// Crashes and loses its disk. The controller hears of it first: what is lost is not waited for.
    fn lose_disk(&mut self, n: usize) {
        let id = self.nodes[n].id;
        // The only copy of what is committed is not to be had again.
        if !self.controller.forget(id) {
            return;
        }
        self.crash(n);
        self.nodes[n].log = Log::default();
        self.note(|_| format!("broker {n} loses its disk"));
    }

    /// A leader forgets some of what is committed.
    fn forget(&mut self, n: usize, start: usize) {
        let log = &mut self.nodes[n].log;
        log.start = start;
        log.epochs.forget_before(at(start));
        self.note(|_| format!("broker {n} forgets all before {start}"));
    }

    fn tick(&mut self, after: Duration) {
        self.now += after;
        for n in 0..self.nodes.len() {
            if self.nodes[n].up {
                self.tell(n, Event::Tick);
            }
        }
    }

    fn fail(&mut self, what: String) {
        self.note(|_| format!("WRONG: {what}"));
        self.failure.get_or_insert(what);
    }
}
