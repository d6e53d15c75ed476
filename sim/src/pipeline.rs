//! From a source to a target, whose ends are in memory and all between is the real code: capture,
//! the log, apply. Whatever dies when, every commit leaves the target as the source was after one
//! of its transactions, never further back than before, and in the end it is the source.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tailwater_apply::{KafkaLog, Pipeline, PipelineConfig, PipelineHandle};
use tailwater_capture::{Capture, CaptureHandle, Config, PartitionBy, SnapshotMode};
use tailwater_change::{Commit, Place, TableSchema};
use tailwater_kafka::Client;
use tailwater_memory::{Cell, Committed, Fault, MemoryDatabase, MemorySource, Planted, Script};
use tailwater_registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::chaos;
use crate::dice::{Dice, ms};
use crate::machine::{Machine, Make};
use crate::plant::Plant;
use crate::trace;
use crate::world::World;

/// How long the target may take to be the source once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(300);

/// A table's, sorted.
type Rows = Vec<Vec<Cell>>;

/// A run of this workload.
#[derive(Debug, Clone)]
struct Run {
    world: World,
    brokers: Vec<String>,
    source: MemorySource,
    target: MemoryDatabase,
    schemas: Vec<Arc<TableSchema>>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The source's tables after each commit.
    states: BTreeMap<Commit, Vec<Rows>>,
    /// How many commits the target had seen when it crashed, and at what place that left it, if
    /// its snapshot was loaded.
    crashes: Vec<(usize, Option<Place>)>,
    capture: Option<CaptureHandle>,
    apply: Option<PipelineHandle>,
}

/// Runs the workload to its end.
pub(crate) async fn run(world: &World) -> Result<(), String> {
    let dice = world.dice("pipeline");
    let machines = Machine::start_all(world, &Make::throw(&dice));
    let run = Run::new(world, machines.iter().map(|machine| machine.address()).collect());
    match world.plant {
        Some(Plant::CommitsEachStep) => run.target.plant(Planted::CommitsEachStep),
        Some(Plant::SavesProgressAside) => run.target.plant(Planted::SavesProgressAside),
        _ => {}
    }
    run.target.record_history();
    run.commit_transactions(&dice, 10);
    let mut tasks = JoinSet::new();
    let time = dice.time(ms(3000)..ms(40_000));
    let mut processes = JoinSet::new();
    processes.spawn(run.clone().deaths("capture"));
    processes.spawn(run.clone().deaths("apply"));
    tasks.spawn(run.clone().work());
    tasks.spawn(run.clone().trouble_target());
    let clients = ["capture".to_owned(), "apply".to_owned()];
    chaos::run(world, &machines, &clients, time).await;
    while tasks.join_next().await.is_some() {}
    let settled = tokio::time::timeout(PATIENCE, run.settled()).await;
    run.check_history()?;
    if settled.is_err() {
        let shared = run.shared();
        let capture = shared.capture.as_ref().map(CaptureHandle::status);
        let apply = shared.apply.as_ref().map(PipelineHandle::status);
        return Err(format!("the target does not become the source: {capture:?} {apply:?}"));
    }
    chaos::check_machines(&machines).await
}

impl Run {
    fn new(world: &World, brokers: Vec<String>) -> Self {
        let schemas = tailwater_memory::sample_tables();
        Self {
            world: world.clone(),
            brokers,
            source: MemorySource::new(Script::new(schemas.clone())),
            target: MemoryDatabase::new(),
            schemas,
            shared: Arc::default(),
        }
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit_transactions(&self, dice: &Dice, count: usize) {
        for _ in 0..count {
            let rows = dice.pick(1..30);
            let (commit, state) = self.source.with(|script| {
                let commit = dice.with(|rng| script.random_transaction(rng, rows));
                let tables = 0..self.schemas.len();
                (commit, tables.map(|table| sorted(script.rows(table))).collect())
            });
            self.shared().states.insert(commit, state);
        }
    }

    /// Transactions on the source, for as long as things go wrong.
    async fn work(self) {
        let dice = self.world.dice("source");
        let pause = dice.time(ms(20)..ms(2000));
        while self.world.has_faults() {
            self.commit_transactions(&dice, 1);
            tokio::time::sleep(dice.time(pause / 10..pause * 3)).await;
        }
        self.commit_transactions(&dice, 3);
    }

    /// Trouble with the target database.
    async fn trouble_target(self) {
        let dice = self.world.dice("target");
        let pause = dice.time(ms(300)..ms(20_000));
        while self.world.has_faults() {
            tokio::time::sleep(dice.time(pause / 10..pause * 3)).await;
            match dice.pick(0..3) {
                0 => self.target.faults().at_call(dice.pick(0..10) as u64, Fault::Lost),
                1 => self.target.faults().at_call(dice.pick(0..10) as u64, Fault::LostAfter),
                _ => {
                    self.world.trace.note("target", format_args!("crashes"));
                    let seen = self.target.history().len();
                    self.target.crash();
                    let progress = self.target.progress("copy");
                    let streaming = progress.filter(|progress| is_streaming(&progress.state));
                    let place = streaming.map(|progress| progress.place);
                    self.shared().crashes.push((seen, place));
                }
            }
        }
    }

    /// One life after the other of the process on `host`.
    async fn deaths(self, host: &'static str) {
        let dice = self.world.dice(host);
        loop {
            let mut process = JoinSet::new();
            let run = self.clone();
            self.world.trace.note(host, format_args!("starts"));
            if host == "capture" {
                process.spawn(run.capture());
            } else {
                process.spawn(run.apply());
            }
            tokio::time::sleep(dice.time(ms(50)..ms(20_000))).await;
            if !self.world.has_faults() {
                std::future::pending::<()>().await;
            }
            self.world.trace.note(host, format_args!("dies"));
            process.shutdown().await;
            tokio::time::sleep(dice.time(ms(1)..ms(2000))).await;
        }
    }

    async fn connect(&self, host: &str) -> (Client, Registry) {
        loop {
            let client = self.world.client(host, &self.brokers).await;
            let config = tailwater_registry::Config {
                topic: "_schemas".into(),
                replication_factor: self.world.replication_factor(),
                clock: trace::now_ms,
            };
            match Registry::open(client.clone(), config).await {
                Ok(registry) => return (client, registry),
                Err(error) => self.world.trace.note(host, format_args!("{error}")),
            }
            tokio::time::sleep(ms(200)).await;
        }
    }

    async fn capture(self) {
        let (client, registry) = self.connect("capture").await;
        let config = Config {
            partitions: 1,
            partition_by: PartitionBy::Key,
            source: "shop".into(),
            snapshot: SnapshotMode::Initial,
            replication_factor: self.world.replication_factor(),
            max_record_bytes: 5000,
            in_flight_bytes: 1 << 16,
            decode_bytes: 1 << 12,
            filter: String::new(),
            clock: trace::now_ms,
        };
        let connector = Arc::new(self.source.clone());
        let (capture, handle) = Capture::new(config, client, registry, connector);
        self.shared().capture = Some(handle);
        capture.run(CancellationToken::new()).await;
    }

    async fn apply(self) {
        let (client, registry) = self.connect("apply").await;
        let mut config = PipelineConfig::new("copy", trace::now_us);
        config.batch.rows = 20;
        let log = Arc::new(KafkaLog::new(client, "shop"));
        let connector = Arc::new(self.target.clone());
        let made = Pipeline::new(config, log, Arc::new(registry), connector);
        let Ok((pipeline, handle)) = made else {
            self.world.fail("the pipeline's settings are wrong");
            return;
        };
        self.shared().apply = Some(handle);
        pipeline.run(CancellationToken::new()).await;
    }

    /// Waits until everything that committed on the source is in the target.
    async fn settled(&self) {
        loop {
            let last = self.source.with(|script| {
                let mut effective = script.log().iter().rev();
                effective.find(|it| !it.changes.is_empty()).map(|it| it.commit)
            });
            let place = self.target.progress("copy").map(|progress| progress.place);
            let reached = last.is_none_or(|last| place.is_some_and(|place| place.commit >= last));
            if reached && self.is_copied() {
                return;
            }
            tokio::time::sleep(ms(200)).await;
        }
    }

    fn is_copied(&self) -> bool {
        self.schemas.iter().enumerate().all(|(table, schema)| {
            let source = sorted(self.source.with(|script| script.rows(table)));
            sorted(self.target.rows(&schema.table).unwrap_or_default()) == source
        })
    }

    /// That every commit left the source as it was after the committed place.
    fn check_history(&self) -> Result<(), String> {
        let shared = self.shared();
        let mut crashes = shared.crashes.iter().peekable();
        let mut before: Option<Place> = None;
        let history = self.target.history();
        for (at, committed) in history.iter().enumerate() {
            while let Some((_, left_at)) = crashes.next_if(|(seen, _)| *seen <= at) {
                // What was not flushed is taken back, and nothing else.
                before = *left_at;
            }
            if !is_streaming(&committed.progress.state) {
                continue;
            }
            let place = committed.progress.place;
            if before.is_some_and(|before| place < before) {
                return Err(format!("the target went back from {before:?} to {place}"));
            }
            before = Some(place);
            self.check_whole(&shared, committed)?;
        }
        let what = format_args!("{} commits, {} crashes", history.len(), shared.crashes.len());
        self.world.trace.note("oracle", what);
        Ok(())
    }

    fn check_whole(&self, shared: &Shared, committed: &Committed) -> Result<(), String> {
        let place = committed.progress.place;
        // An idle marker takes the place on without a change.
        let Some((commit, state)) = shared.states.range(..=place.commit).next_back() else {
            return Ok(());
        };
        for (schema, rows) in self.schemas.iter().zip(state) {
            let target = sorted(committed.rows(&schema.table).unwrap_or_default());
            if &target != rows {
                let table = &schema.table;
                return Err(format!(
                    "at {place} table {table} is not what it was after {commit}: {target:?}, not {rows:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Whether a progress row says that its snapshot is loaded: only then is the target whole.
fn is_streaming(state: &str) -> bool {
    let Ok(state) = serde_json::from_str::<serde_json::Value>(state) else { return false };
    let is_loading = ["snapshot", "cut", "given_up"].iter().any(|key| !state[*key].is_null());
    state["streaming"] == true && !is_loading
}

fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}
