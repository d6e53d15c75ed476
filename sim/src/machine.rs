//! A machine with a log node: it starts, is cut off, and starts again from what its disk kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailwater_kafka::{BrokerId, Node, Transport};
use tailwater_log::{Clock, Config, ControllerNetwork, Disk, FlushPolicy, Log, Workers};
use tokio::task::JoinSet;

use crate::dice::{Dice, ms};
use crate::disk::{DiskFaults, End, SimDisk, Unflushed};
use crate::mistaken::Mistaken;
use crate::plant::Plant;
use crate::trace;
use crate::wire::{ControllerEnd, Wire};
use crate::world::World;

/// The port of every broker.
const PORT: u16 = 9092;

/// The port of every controller.
const CONTROLLER_PORT: u16 = 9093;

/// What a machine is like in this run.
#[derive(Debug, Clone)]
pub(crate) struct Make {
    pub(crate) segment_bytes: u64,
    pub(crate) tail_bytes: usize,
    pub(crate) retention_check: Duration,
    pub(crate) disk: DiskFaults,
}

impl Make {
    pub(crate) fn throw(dice: &Dice) -> Self {
        // Half of the machines have a sound disk, so that not every life is a short one.
        let sound = dice.chance(0.5);
        let rate = |most: f64| {
            if sound { 0.0 } else { most * dice.fraction() }
        };
        Self {
            segment_bytes: 1 << dice.pick(11..17),
            tail_bytes: [0, 1 << 10, 1 << 20][dice.pick(0..3)],
            retention_check: dice.time(ms(1000)..ms(20_000)),
            disk: DiskFaults {
                power_cut: rate(0.01),
                no_space: rate(0.01),
                failed_flush: rate(0.004),
            },
        }
    }
}

/// A machine. It runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Of the life that is going on.
    now: Mutex<Option<(SimDisk, Option<Arc<Log>>)>>,
}

impl Machine {
    /// All the machines of a run, each of this make.
    pub(crate) fn start_all(world: &World, make: &Make) -> Vec<Arc<Self>> {
        (1..=world.nodes).map(|number| Arc::new(Self::start(world, number, make.clone()))).collect()
    }

    fn start(world: &World, number: i32, make: Make) -> Self {
        let name = format!("node-{number}");
        let shared = Arc::new(Shared::default());
        let lives = Lives {
            world: world.clone(),
            name: name.clone(),
            number,
            make,
            dice: world.dice(&format!("{name} lives")),
            shared: Arc::clone(&shared),
        };
        let mut task = JoinSet::new();
        task.spawn(lives.run());
        Self { name, shared, _task: task }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where its broker is reached.
    pub(crate) fn address(&self) -> String {
        format!("{}:{PORT}", self.name)
    }

    /// Ends the life that is going on.
    pub(crate) fn end(&self, end: End) {
        if let Some((disk, _)) = &*self.now() {
            disk.end(end);
        }
    }

    /// Has the disk take long, or no longer.
    pub(crate) fn set_slow(&self, slow: bool) {
        if let Some((disk, _)) = &*self.now() {
            disk.set_slow(slow);
        }
    }

    /// Starts anew if the disk has failed in this life: that is what the operator is told to do.
    pub(crate) fn repair(&self) {
        if let Some((disk, _)) = &*self.now()
            && disk.has_failed()
        {
            disk.end(End::Process);
        }
    }

    /// The node that runs and its folder, if one does.
    pub(crate) fn running(&self) -> Option<(Arc<Log>, PathBuf)> {
        let now = self.now();
        let (disk, log) = now.as_ref()?;
        let log = log.as_ref().filter(|_| !disk.off().is_cancelled())?;
        Some((Arc::clone(log), disk.root().to_owned()))
    }

    /// Once it is up: why a partition serves nobody, if there is one.
    pub(crate) async fn offline(&self) -> Option<String> {
        let log = loop {
            if let Some((log, _)) = self.running() {
                break log;
            }
            tokio::time::sleep(ms(10)).await;
        };
        let mut offline = log.partitions().into_iter().filter_map(|partition| {
            let why = partition.offline?;
            Some(format!("{}-{}: {why}", partition.topic, partition.partition))
        });
        offline.next()
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Option<(SimDisk, Option<Arc<Log>>)>> {
        self.shared.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One life after the other.
struct Lives {
    world: World,
    name: String,
    number: i32,
    make: Make,
    dice: Dice,
    shared: Arc<Shared>,
}

impl Lives {
    async fn run(self) {
        let mut left = Unflushed::default();
        for life in 0.. {
            let disk = SimDisk::new(&self.world, &self.name, life, self.make.disk, left);
            self.set_now(Some((disk.clone(), None)));
            tokio::select! {
                biased;
                () = self.live(&disk) => {}
                () = self.operate(&disk) => {}
            }
            self.set_now(None);
            left = disk.take_left();
            drop(std::fs::remove_dir_all(disk.root()));
            tokio::time::sleep(self.dice.time(ms(5)..ms(2000))).await;
        }
    }

    /// Starts the process again some time after its disk has failed, as the operator is told to.
    async fn operate(&self, disk: &SimDisk) {
        while !disk.has_failed() {
            tokio::time::sleep(ms(500)).await;
        }
        tokio::time::sleep(self.dice.time(ms(2000)..ms(30_000))).await;
        disk.end(End::Process);
        // The life sees it.
        std::future::pending::<()>().await;
    }

    /// Until the power is off, or the process has ended.
    async fn live(&self, disk: &SimDisk) {
        self.note("starts");
        let opened = tokio::select! {
            biased;
            () = disk.off().cancelled() => return,
            opened = Log::open(self.config(disk)) => opened,
        };
        let log = match opened {
            Ok(log) => log,
            Err(error) => {
                if !disk.has_failed() && !disk.off().is_cancelled() {
                    self.world.fail(format!("{} does not start: {error:?}", self.name));
                }
                disk.end(End::Process);
                return;
            }
        };
        self.note("is up");
        self.set_now(Some((disk.clone(), Some(Arc::clone(&log)))));
        let address = format!("{}:{PORT}", self.name);
        let node = self.node(&log);
        self.world.network.attach(&address, node, disk.off().clone());
        let controller_address = controller_address(self.number);
        let end = ControllerEnd { log, off: disk.off().clone() };
        self.world.network.attach_controller(&controller_address, end);
        disk.off().cancelled().await;
        self.world.network.detach(&address);
        self.world.network.detach(&controller_address);
    }

    /// What others talk to.
    fn node(&self, log: &Arc<Log>) -> Arc<dyn Node> {
        let node = Arc::clone(log) as Arc<dyn Node>;
        match self.world.plant {
            Some(plant) => Arc::new(Mistaken::new(node, plant, self.world.heard.clone())),
            None => node,
        }
    }

    fn config(&self, disk: &SimDisk) -> Config {
        let flush = match self.world.plant {
            Some(Plant::AcksBeforeFlush) => FlushPolicy::Never,
            _ => FlushPolicy::Always,
        };
        // A node alone is one that knows of no others.
        let controllers = if self.world.nodes > 1 {
            (1..=self.world.nodes).map(|it| (BrokerId::new(it), controller_address(it))).collect()
        } else {
            BTreeMap::new()
        };
        let (network, off) = (&self.world.network, || disk.off().clone());
        let wire = Wire::new(network, &self.name, off());
        Config {
            controllers,
            replication_factor: self.world.replication_factor(),
            min_insync_replicas: if self.world.nodes > 1 { 2 } else { 1 },
            peers: Transport::simulated(Vec::new(), network.end(&self.name, off())),
            controller_network: ControllerNetwork::Wire(Arc::new(wire)),
            node_id: BrokerId::new(self.number),
            advertised_host: self.name.clone(),
            advertised_port: PORT,
            segment_bytes: self.make.segment_bytes,
            flush,
            retention: None,
            retention_check: self.make.retention_check,
            auto_create_topics: false,
            tail_bytes: self.make.tail_bytes,
            reserve_bytes: 0,
            clock: Arc::new(SimClock),
            disk: Arc::new(disk.clone()) as Arc<dyn Disk>,
            workers: Workers::Tasks(Arc::new(disk.clone())),
            ..Config::new(disk.root())
        }
    }

    fn set_now(&self, now: Option<(SimDisk, Option<Arc<Log>>)>) {
        *self.shared.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn note(&self, what: &str) {
        self.world.trace.note(&self.name, format_args!("{what}"));
    }
}

fn controller_address(number: i32) -> String {
    format!("node-{number}:{CONTROLLER_PORT}")
}

/// The simulated time of day.
#[derive(Debug)]
struct SimClock;

impl Clock for SimClock {
    fn now_ms(&self) -> i64 {
        trace::now_ms()
    }
}
