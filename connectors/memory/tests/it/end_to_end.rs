//! From a source to a target through capture, a broker and apply, each of which dies now and then.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_apply::{
    ChangeLog, Error, KafkaLog, LogIdentity, LogReader, Pipeline, PipelineConfig, PipelineHandle,
    State, Status,
};
use tailwater_capture::{Capture, CaptureHandle, Config, PartitionBy, SnapshotMode};
use tailwater_change::{Commit, Place, TableSchema};
use tailwater_kafka::test_util::{MemoryNode, ProduceFault};
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{Client, ClientConfig, Offset, Transport};
use tailwater_memory::{Cell, MemoryDatabase, MemorySource, Script};
use tailwater_registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) struct System {
    node: Arc<MemoryNode>,
    partitions: usize,
    partition_by: PartitionBy,
    pub(crate) source: MemorySource,
    pub(crate) target: MemoryDatabase,
    /// What the source was after each of its commits.
    states: Mutex<BTreeMap<Commit, Vec<Rows>>>,
    schemas: Vec<Arc<TableSchema>>,
}

/// A table's.
type Rows = Vec<Vec<Cell>>;

fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

/// A task that is aborted when dropped: the process is gone.
pub(crate) struct Process<H> {
    pub(crate) handle: H,
    task: JoinHandle<()>,
}

impl<H> Drop for Process<H> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl System {
    fn new() -> Self {
        Self::partitioned(1, PartitionBy::Key)
    }

    fn partitioned(partitions: usize, partition_by: PartitionBy) -> Self {
        Self::of(tailwater_memory::sample_tables(), partitions, partition_by)
    }

    pub(crate) fn of(
        schemas: Vec<Arc<TableSchema>>,
        partitions: usize,
        partition_by: PartitionBy,
    ) -> Self {
        Self {
            node: Arc::new(MemoryNode::new()),
            partitions,
            partition_by,
            source: MemorySource::new(Script::new(schemas.clone())),
            target: MemoryDatabase::new(),
            states: Mutex::default(),
            schemas,
        }
    }

    async fn client(&self) -> (Client, Registry) {
        let node = Arc::clone(&self.node) as Arc<dyn tailwater_kafka::Node>;
        let transport = Transport::in_process(node);
        let client = Client::connect(ClientConfig::default(), transport).await.unwrap();
        let config = tailwater_registry::Config {
            topic: "_schemas".into(),
            replication_factor: 1,
            clock: || 0,
        };
        let registry = Registry::open(client.clone(), config).await.unwrap();
        (client, registry)
    }

    pub(crate) async fn capture(&self, snapshot: SnapshotMode) -> Process<CaptureHandle> {
        let (client, registry) = self.client().await;
        let config = Config {
            source: "shop".into(),
            snapshot,
            partitions: self.partitions,
            partition_by: self.partition_by,
            replication_factor: 1,
            max_record_bytes: 5000,
            in_flight_bytes: 1 << 20,
            decode_bytes: 1 << 12,
            filter: String::new(),
            clock: || 0,
        };
        let connector = Arc::new(self.source.clone());
        let (capture, handle) = Capture::new(config, client, registry, connector);
        let task = tokio::spawn(capture.run(CancellationToken::new()));
        Process { handle, task }
    }

    async fn apply(&self) -> Process<PipelineHandle> {
        self.apply_from(|log| Arc::new(log)).await
    }

    async fn apply_from(
        &self,
        shown: impl FnOnce(KafkaLog) -> Arc<dyn ChangeLog>,
    ) -> Process<PipelineHandle> {
        self.apply_with(PipelineConfig::new("copy", || 0), shown).await
    }

    pub(crate) async fn apply_with(
        &self,
        mut config: PipelineConfig,
        shown: impl FnOnce(KafkaLog) -> Arc<dyn ChangeLog>,
    ) -> Process<PipelineHandle> {
        let (client, registry) = self.client().await;
        config.batch.rows = 20;
        let log = shown(KafkaLog::new(client, "shop"));
        let connector = Arc::new(self.target.clone());
        let (pipeline, handle) = Pipeline::new(config, log, Arc::new(registry), connector).unwrap();
        let task = tokio::spawn(pipeline.run(CancellationToken::new()));
        Process { handle, task }
    }

    pub(crate) fn rows(&self) -> (Vec<Rows>, Vec<Rows>) {
        let source = (0..self.schemas.len())
            .map(|table| sorted(self.source.with(|script| script.rows(table))))
            .collect();
        let target = self
            .schemas
            .iter()
            .map(|schema| sorted(self.target.rows(&schema.table).unwrap_or_default()))
            .collect();
        (source, target)
    }

    /// Waits until everything that has committed on the source is applied.
    async fn settle(
        &self,
        capture: &Process<CaptureHandle>,
        apply: &Process<PipelineHandle>,
        seed: u64,
    ) {
        let current = self.source.with(|script| script.current());
        capture.handle.probe();
        let mut status = apply.handle.watch();
        let reached = status.wait_for(|status| {
            status.state == State::Streaming
                && status.place.is_some_and(|place| place.commit >= current)
        });
        let waited = tokio::time::timeout(Duration::from_secs(20), reached).await;
        assert!(
            waited.is_ok(),
            "seed {seed}: {:?} {:?}",
            capture.handle.status(),
            apply.handle.status()
        );
        let (source, target) = self.rows();
        assert_eq!(target, source, "seed {seed}");
    }

    pub(crate) fn work(&self, rng: &mut SmallRng, transactions: usize) {
        self.source.with(|script| {
            for _ in 0..transactions {
                script.random_transaction(rng, 30);
                let rows = |table| sorted(script.rows(table));
                let rows = (0..self.schemas.len()).map(rows).collect();
                let commit = script.log().last().unwrap().commit;
                self.states.lock().unwrap().insert(commit, rows);
            }
        });
    }

    /// That every commit but those of a load left the target as the source was at its place.
    fn assert_whole(&self, seed: u64) {
        let states = self.states.lock().unwrap();
        let mut streamed = 0;
        for committed in self.target.history() {
            let (place, state) = (committed.progress.place, &committed.progress.state);
            let is_loading = state.contains("\"snapshot\":") || state.contains("\"cut\":");
            if is_loading || place == Place::default() {
                continue;
            }
            let (_, expected) = states.range(..=place.commit).next_back().unwrap();
            for (schema, rows) in self.schemas.iter().zip(expected) {
                let found = sorted(committed.rows(&schema.table).unwrap_or_default());
                assert_eq!(&found, rows, "seed {seed} at {place}: {}", schema.table);
            }
            streamed += 1;
        }
        assert!(streamed > 0, "seed {seed}: nothing but a load");
    }
}

#[tokio::test]
async fn a_source_is_copied_and_followed() {
    let system = System::new();
    let mut rng = SmallRng::seed_from_u64(1);
    system.work(&mut rng, 50);
    let (capture, apply) = (system.capture(SnapshotMode::Initial).await, system.apply().await);
    system.settle(&capture, &apply, 1).await;
    for _ in 0..5 {
        system.work(&mut rng, 20);
        system.settle(&capture, &apply, 1).await;
    }
    // Made by the pipeline, unique keys and all.
    assert_eq!(system.target.definition(&system.schemas[1].table).unwrap().unique, [vec![1]]);
}

#[tokio::test]
async fn without_a_snapshot_it_is_followed_from_now() {
    let system = System::new();
    let mut rng = SmallRng::seed_from_u64(2);
    let (capture, apply) = (system.capture(SnapshotMode::Never).await, system.apply().await);
    let mut status = capture.handle.watch();
    status.wait_for(|status| status.place.is_some()).await.unwrap();
    system.work(&mut rng, 20);
    system.settle(&capture, &apply, 2).await;
}

#[tokio::test]
async fn deaths_of_capture_and_apply_lose_and_repeat_nothing() {
    let base = std::hash::RandomState::new().build_hasher().finish();
    for seed in (0..6).chain(base..base.saturating_add(6)) {
        deaths(System::new(), seed).await;
    }
}

#[tokio::test]
async fn deaths_lose_and_repeat_nothing_of_several_partitions() {
    let base = std::hash::RandomState::new().build_hasher().finish();
    for seed in (0..12).chain(base..base.saturating_add(12)) {
        let by = if seed % 3 == 0 { PartitionBy::Table } else { PartitionBy::Key };
        deaths(System::partitioned(2 + usize::try_from(seed % 4).unwrap(), by), seed).await;
    }
}

async fn deaths(system: System, seed: u64) {
    system.target.record_history();
    let mut rng = SmallRng::seed_from_u64(seed);
    system.work(&mut rng, 30);
    let (mut capture, mut apply) =
        (system.capture(SnapshotMode::Initial).await, system.apply().await);
    for _ in 0..20 {
        system.work(&mut rng, 5);
        // Let them get somewhere, but nobody knows where.
        for _ in 0..rng.random_range(0..200) {
            tokio::task::yield_now().await;
        }
        if rng.random_bool(0.5) {
            drop(capture);
            capture = system.capture(SnapshotMode::Initial).await;
        }
        if rng.random_bool(0.5) {
            drop(apply);
            apply = system.apply().await;
        }
    }
    system.settle(&capture, &apply, seed).await;
    system.work(&mut rng, 3);
    system.settle(&capture, &apply, seed).await;
    system.assert_whole(seed);
}

/// Planted: one of the partitions shown as if it were all there are.
#[derive(Debug)]
struct OneOfThem(KafkaLog);

#[async_trait]
impl ChangeLog for OneOfThem {
    async fn identity(&self) -> Result<LogIdentity, Error> {
        Ok(LogIdentity { partitions: 1, ..self.0.identity().await? })
    }

    async fn start(&self) -> Result<Vec<Offset>, Error> {
        Ok(self.0.start().await?.into_iter().take(1).collect())
    }

    fn reader(&self, partition: usize, from: Offset, prefetch: usize) -> Box<dyn LogReader> {
        self.0.reader(partition, from, prefetch)
    }

    async fn commit(&self, group: &str, offsets: &[(usize, Offset)]) -> Result<(), Error> {
        self.0.commit(group, offsets).await
    }
}

#[tokio::test]
async fn who_reads_one_of_several_partitions_is_seen() {
    let system = System::partitioned(3, PartitionBy::Key);
    let mut rng = SmallRng::seed_from_u64(7);
    system.work(&mut rng, 30);
    let capture = system.capture(SnapshotMode::Initial).await;
    let apply = system.apply_from(|log| Arc::new(OneOfThem(log))).await;
    system.work(&mut rng, 30);
    let current = system.source.with(|script| script.current());
    capture.handle.probe();
    let mut status = apply.handle.watch();
    // It goes to the end, or falls over what it has not.
    let ended = |status: &Status| {
        status.state == State::Stopped
            || (status.caught_up && status.place.is_some_and(|place| place.commit >= current))
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), status.wait_for(ended)).await;
    assert!(waited.is_ok(), "{:?}", apply.handle.status());
    let (source, target) = system.rows();
    assert_ne!(target, source);
}

/// The log takes this many batches of each partition; of what follows nothing is ever known.
fn cut(node: &MemoryNode, batches: Vec<usize>) {
    let mut left = batches;
    node.fail_produce(Box::new(move |to| {
        let partition = usize::try_from(to.partition.get()).unwrap();
        if to.topic != "shop" {
            return ProduceFault::None;
        }
        match left[partition].checked_sub(1) {
            Some(less) => {
                left[partition] = less;
                ProduceFault::None
            }
            None => ProduceFault::Refuse(ErrorCode::NotLeaderOrFollower),
        }
    }));
}

/// Wherever in each of its partitions the log ends when capture dies: the one that comes after it
/// finds what each lacks, and apply, which has read all of it, the whole of every transaction.
#[tokio::test]
async fn a_writer_may_die_at_any_point_of_each_partition() {
    const PARTITIONS: usize = 3;
    let base = std::hash::RandomState::new().build_hasher().finish();
    // Every point of one partition while the others go on, and at random in all of them.
    let one = (0..PARTITIONS).flat_map(|at| (0..24).map(move |batches| (at, batches)));
    let mut cuts: Vec<Vec<usize>> = one
        .map(|(at, batches)| {
            let mut cut = vec![usize::MAX; PARTITIONS];
            cut[at] = batches;
            cut
        })
        .collect();
    let mut rng = SmallRng::seed_from_u64(base);
    let random = |rng: &mut SmallRng| (0..PARTITIONS).map(|_| rng.random_range(0..40)).collect();
    cuts.extend((0..24).map(|_| random(&mut rng)));
    for (seed, batches) in (base..).zip(cuts) {
        let system = System::partitioned(PARTITIONS, PartitionBy::Key);
        system.target.record_history();
        let mut rng = SmallRng::seed_from_u64(seed);
        system.work(&mut rng, 10);
        let apply = system.apply().await;
        let mut capture = system.capture(SnapshotMode::Initial).await;
        for round in 0..2 {
            cut(&system.node, batches.clone());
            system.work(&mut rng, 10);
            for _ in 0..rng.random_range(0..400) {
                tokio::task::yield_now().await;
            }
            drop(capture);
            system.node.fail_produce(Box::new(|_| ProduceFault::None));
            capture = system.capture(SnapshotMode::Initial).await;
            if round == 0 {
                // The next may find that this one, too, has got no further.
                for _ in 0..rng.random_range(0..100) {
                    tokio::task::yield_now().await;
                }
            }
        }
        system.work(&mut rng, 3);
        println!("seed {seed}, cut at {batches:?}");
        system.settle(&capture, &apply, seed).await;
        system.work(&mut rng, 3);
        system.settle(&capture, &apply, seed).await;
        system.assert_whole(seed);
    }
}
