//! From a source to a target through capture, a broker and apply, each of which dies now and then.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_apply::{KafkaLog, Pipeline, PipelineConfig, PipelineHandle, State};
use tailwater_capture::{Capture, CaptureHandle, Config, SnapshotMode};
use tailwater_change::{Column, Dialect, Identity, Index, Kind, TableId, TableSchema};
use tailwater_kafka::test_util::MemoryNode;
use tailwater_kafka::{Client, ClientConfig, Transport};
use tailwater_memory::{Cell, MemoryDatabase, MemorySource, Script};
use tailwater_registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

fn column(name: &str, field: u32, kind: Kind) -> Column {
    Column {
        name: name.into(),
        field,
        kind,
        native: "text".into(),
        nullable: true,
        default: None,
        charset: None,
        collation: None,
        generated: None,
        expression: None,
    }
}

fn schema(name: &str, identity: Identity, unique: &[&str]) -> Arc<TableSchema> {
    let index = |column: &&str| Index {
        name: format!("{name}_{column}"),
        columns: vec![(*column).to_owned()],
        unique: true,
        primary: false,
        definition: String::new(),
    };
    Arc::new(TableSchema {
        table: TableId::new("public", name),
        dialect: Dialect::Postgres,
        columns: vec![
            column("id", 1, Kind::Int { bits: 64, signed: true }),
            column("a", 2, Kind::Int { bits: 64, signed: true }),
            column("b", 3, Kind::Text { length: None, fixed: false }),
        ],
        identity,
        indexes: unique.iter().map(index).collect(),
        foreign_keys: Vec::new(),
        hides_cascades: false,
        options: None,
    })
}

struct System {
    node: Arc<MemoryNode>,
    source: MemorySource,
    target: MemoryDatabase,
    schemas: Vec<Arc<TableSchema>>,
}

/// A table's.
type Rows = Vec<Vec<Cell>>;

/// A task that is aborted when dropped: the process is gone.
struct Process<H> {
    handle: H,
    task: JoinHandle<()>,
}

impl<H> Drop for Process<H> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl System {
    fn new() -> Self {
        let key = || Identity::Key(vec![0]);
        let schemas = vec![
            schema("one", key(), &[]),
            schema("two", key(), &["a"]),
            schema("bag", Identity::Full, &[]),
        ];
        Self {
            node: Arc::new(MemoryNode::new()),
            source: MemorySource::new(Script::new(schemas.clone())),
            target: MemoryDatabase::new(),
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

    async fn capture(&self, snapshot: SnapshotMode) -> Process<CaptureHandle> {
        let (client, registry) = self.client().await;
        let config = Config {
            source: "shop".into(),
            snapshot,
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
        let (client, registry) = self.client().await;
        let mut config = PipelineConfig::new("copy", || 0);
        config.batch.rows = 20;
        let log = Arc::new(KafkaLog::new(client, "shop"));
        let connector = Arc::new(self.target.clone());
        let (pipeline, handle) = Pipeline::new(config, log, Arc::new(registry), connector).unwrap();
        let task = tokio::spawn(pipeline.run(CancellationToken::new()));
        Process { handle, task }
    }

    fn rows(&self) -> (Vec<Rows>, Vec<Rows>) {
        let sorted = |mut rows: Vec<Vec<Cell>>| {
            rows.sort();
            rows
        };
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

    fn work(&self, rng: &mut SmallRng, transactions: usize) {
        self.source.with(|script| {
            for _ in 0..transactions {
                script.random_transaction(rng, 30);
            }
        });
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
        let system = System::new();
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
    }
}
