//! What capture must survive.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tailwater_capture::{
    Capture, CaptureHandle, CaptureState, Config, PartitionBy, SnapshotMode, SourceConnector,
};
use tailwater_change::Commit;
use tailwater_kafka::{
    Client, ClientConfig, Limits, Offset, OffsetAt, PartitionId, ProducerConfig, ReaderConfig,
    TopicPartition, Transport,
};
use tailwater_log::Log;
use tailwater_registry::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::parts::{Copy, copy};
use crate::reading::{Read, read};
use crate::script::{SNAPSHOT, Script, Scripted, Transaction};

/// Long enough for any machine; no test waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    _folder: tempfile::TempDir,
    pub(crate) client: Client,
    pub(crate) registry: Registry,
    pub(crate) script: Arc<Script>,
}

pub(crate) struct Running {
    pub(crate) handle: CaptureHandle,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl World {
    pub(crate) async fn new(script: Arc<Script>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = tailwater_log::Config {
            flush: tailwater_log::FlushPolicy::Never,
            ..tailwater_log::Config::new(folder.path())
        };
        let log = Log::open(config).await.unwrap();
        let client =
            Client::connect(ClientConfig::default(), Transport::in_process(log)).await.unwrap();
        let registry = Registry::open(
            client.clone(),
            tailwater_registry::Config {
                topic: "_schemas".into(),
                replication_factor: 1,
                clock: || 1,
            },
        )
        .await
        .unwrap();
        Self { _folder: folder, client, registry, script }
    }

    fn config(snapshot: SnapshotMode) -> Config {
        Config {
            source: "shop".into(),
            snapshot,
            partitions: 1,
            partition_by: PartitionBy::Key,
            replication_factor: 1,
            max_record_bytes: 64 << 10,
            in_flight_bytes: 1 << 20,
            decode_bytes: 64 << 10,
            filter: String::new(),
            clock: || 1_700_000_000_000,
        }
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(SnapshotMode::Initial)
    }

    pub(crate) fn start_with(&self, snapshot: SnapshotMode) -> Running {
        self.start_as(snapshot, Arc::new(Scripted(Arc::clone(&self.script))))
    }

    /// Captures another source than the script's.
    pub(crate) fn start_source(&self, connector: Arc<dyn SourceConnector>) -> Running {
        self.start_as(SnapshotMode::Initial, connector)
    }

    /// With so many partitions, and another clock.
    pub(crate) fn start_partitioned(
        &self,
        partitions: usize,
        partition_by: PartitionBy,
        clock: fn() -> i64,
    ) -> Running {
        let config =
            Config { partitions, partition_by, clock, ..Self::config(SnapshotMode::Initial) };
        self.start_config(config, Arc::new(Scripted(Arc::clone(&self.script))))
    }

    fn start_as(&self, snapshot: SnapshotMode, connector: Arc<dyn SourceConnector>) -> Running {
        self.start_config(Self::config(snapshot), connector)
    }

    fn start_config(&self, config: Config, connector: Arc<dyn SourceConnector>) -> Running {
        let (capture, handle) =
            Capture::new(config, self.client.clone(), self.registry.clone(), connector);
        let stop = CancellationToken::new();
        let task = tokio::spawn(capture.run(stop.clone()));
        Running { handle, stop, task }
    }

    pub(crate) async fn read(&self) -> Read {
        read(&self.client, &self.registry, "shop").await
    }

    /// Everything that was ever written to the state topic.
    pub(crate) async fn state(&self) -> String {
        let (topic, partition) = ("shop.state", PartitionId::new(0));
        let end = self.client.list_offsets(topic, partition, OffsetAt::Latest).await.unwrap();
        let from = Offset::ZERO;
        let config = ReaderConfig::new(TopicPartition::new(topic, partition), from);
        let (mut reader, mut text) = (self.client.reader(config), String::new());
        while reader.position() < end {
            for batch in reader.next().await.unwrap() {
                for record in batch.records(Limits::default()).unwrap() {
                    let value = record.unwrap().value.unwrap_or_default();
                    text.push_str(&String::from_utf8_lossy(&value));
                }
            }
        }
        text
    }

    pub(crate) async fn copy(&self) -> Copy {
        copy(&self.client, &self.registry).await
    }
}

impl Running {
    pub(crate) async fn reaches(&self, commit: u64) {
        let mut watch = self.handle.watch();
        let reached = watch.wait_for(|status| {
            status.place.is_some_and(|place| place.commit >= Commit::lsn(commit))
        });
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "{:?}", self.handle.status());
    }

    pub(crate) async fn is(&self, state: CaptureState) {
        let mut watch = self.handle.watch();
        let reached = watch.wait_for(|status| status.state == state);
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "{:?}", self.handle.status());
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// As a SIGKILL: nothing is drained, nothing is said.
    pub(crate) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

pub(crate) fn transactions(count: u64) -> Vec<Transaction> {
    (1..=count)
        .map(|n| Transaction {
            commit: SNAPSHOT + n * 10,
            ids: (0..=(n % 4)).map(|row| i64::try_from(n * 100 + row).unwrap()).collect(),
            text_length: 3,
        })
        .collect()
}

pub(crate) fn check(read: &Read, snapshot: &[i64], transactions: &[Transaction]) {
    assert_eq!(read.snapshot, snapshot);
    let expected: Vec<_> = transactions.iter().map(|t| (t.commit, t.ids.clone())).collect();
    let found: Vec<_> = read.transactions.clone().into_iter().collect();
    assert_eq!(found, expected);
    assert_eq!(read.open, Vec::<i64>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_then_stream_and_only_what_the_log_holds_is_confirmed() {
    let transactions = transactions(9);
    let world = World::new(Script::new(vec![1, 2, 3], transactions.clone())).await;
    let running = world.start();
    running.reaches(transactions.last().unwrap().commit).await;
    running.stop().await;
    let read = world.read().await;
    check(&read, &[1, 2, 3], &transactions);
    assert_eq!((read.opens, read.repeated), (1, 0));
    let confirmed = world.script.confirmed.lock().unwrap().clone();
    assert!(confirmed.is_sorted());
    assert_eq!(confirmed.last(), Some(&transactions.last().unwrap().commit));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumes_wherever_the_stream_breaks() {
    let transactions = transactions(5);
    let events: usize = transactions.iter().map(|t| t.ids.len() + 2).sum();
    for break_after in 0..events {
        let world = World::new(Script::new(vec![1], transactions.clone())).await;
        world.script.break_after.store(break_after, Ordering::SeqCst);
        let running = world.start();
        running.reaches(transactions.last().unwrap().commit).await;
        running.stop().await;
        let read = world.read().await;
        check(&read, &[1], &transactions);
        assert_eq!(read.repeated, 0, "broken after {break_after}");
    }
}

/// The planted bug of the two tests around it: what they check is not so where a position is
/// confirmed before the log has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_confirmed_too_early_is_a_loss_that_is_seen() {
    let transactions = transactions(5);
    let world = World::new(Script::new(vec![1], transactions.clone())).await;
    world.script.confirmed_early.store(true, Ordering::SeqCst);
    world.script.break_after.store(4, Ordering::SeqCst);
    let running = world.start();
    running.reaches(transactions.last().unwrap().commit).await;
    running.stop().await;
    let read = world.read().await;
    assert!(read.transactions.len() < transactions.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_loses_and_repeats_nothing() {
    let transactions = transactions(40);
    for round in 0..20_u64 {
        let world = World::new(Script::new(vec![1, 2], transactions.clone())).await;
        // Each round kills a little later, wherever that is: nothing depends on where.
        for kill in 0..3 {
            let running = world.start();
            let seen = SNAPSHOT + (round * 3 + kill) * 6;
            running.reaches(seen.min(transactions.last().unwrap().commit)).await;
            running.kill().await;
        }
        let running = world.start();
        running.reaches(transactions.last().unwrap().commit).await;
        running.stop().await;
        check(&world.read().await, &[1, 2], &transactions);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_snapshot_is_read_again_under_another_epoch() {
    let world = World::new(Script::new(vec![1, 2, 3, 4], transactions(2))).await;
    world.script.break_snapshot_after.store(2, Ordering::SeqCst);
    let running = world.start();
    running.reaches(SNAPSHOT + 20).await;
    let place = running.handle.status().place.unwrap();
    running.stop().await;
    assert_eq!(world.script.snapshots.load(Ordering::SeqCst), 2);
    assert_eq!(place.epoch.get(), 2);
    check(&world.read().await, &[1, 2, 3, 4], &transactions(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_does_not_snapshot_again() {
    let world = World::new(Script::new(vec![1], transactions(1))).await;
    let running = world.start();
    running.reaches(SNAPSHOT + 10).await;
    running.stop().await;
    let running = world.start();
    running.is(CaptureState::Streaming).await;
    running.stop().await;
    assert_eq!(world.script.snapshots.load(Ordering::SeqCst), 1);
    let resumes = world.script.resumes.lock().unwrap();
    let last = resumes.last().unwrap().as_ref().unwrap();
    assert_eq!((last.after, last.again), (Commit::lsn(SNAPSHOT + 10), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_fenced_writer_still_holds_never_counts() {
    let world = World::new(Script::new(vec![1], transactions(1))).await;
    let first = world.start();
    first.reaches(SNAPSHOT + 10).await;
    let second = world.start();
    second.is(CaptureState::Streaming).await;
    // The first one wakes up with a transaction in hand, as after a pause of its machine.
    world.script.commit(Transaction { commit: 500, ids: vec![7, 8], text_length: 1 });
    second.reaches(500).await;
    first.kill().await;
    second.stop().await;
    let mut expected = transactions(1);
    expected.push(Transaction { commit: 500, ids: vec![7, 8], text_length: 1 });
    check(&world.read().await, &[1], &expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_source_is_confirmed_only_behind_its_marker() {
    let world = World::new(Script::new(vec![1], Vec::new())).await;
    let running = world.start();
    running.is(CaptureState::Streaming).await;
    world.script.idle(700);
    running.handle.probe();
    running.reaches(700).await;
    running.stop().await;
    assert_eq!(world.read().await.idle.last(), Some(&700));
    assert_eq!(world.script.confirmed.lock().unwrap().last(), Some(&700));
    // And the next start goes on from there, not from the last transaction.
    let running = world.start();
    running.is(CaptureState::Streaming).await;
    running.stop().await;
    let resumes = world.script.resumes.lock().unwrap();
    assert_eq!(resumes.last().unwrap().as_ref().unwrap().after, Commit::lsn(700));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_larger_than_a_record_goes_in_chunks() {
    let large = Transaction { commit: 50, ids: vec![1, 2, 3], text_length: 300 << 10 };
    let world = World::new(Script::new(Vec::new(), vec![large.clone()])).await;
    let running = world.start();
    running.reaches(50).await;
    running.stop().await;
    check(&world.read().await, &[], &[large]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn never_begins_now_and_keeps_its_position() {
    let world = World::new(Script::new(vec![1], transactions(3))).await;
    let running = world.start_with(SnapshotMode::Never);
    running.reaches(SNAPSHOT + 30).await;
    running.stop().await;
    check(&world.read().await, &[], &transactions(3));
    assert_eq!(world.script.snapshots.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_holds_and_resume_goes_on() {
    let world = World::new(Script::new(vec![1], transactions(1))).await;
    let running = world.start();
    running.reaches(SNAPSHOT + 10).await;
    running.handle.pause();
    running.is(CaptureState::Paused).await;
    world.script.commit(Transaction { commit: 900, ids: vec![9], text_length: 1 });
    running.handle.resume();
    running.reaches(900).await;
    running.stop().await;
}

/// The planted bug of `what_a_fenced_writer_still_holds_never_counts`: without the fence of the
/// transactional id a second producer does not stop the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_transactional_id_nothing_would_be_fenced() {
    let world = World::new(Script::new(Vec::new(), Vec::new())).await;
    let spec = tailwater_kafka::TopicSpec::new("t", 1, 1);
    world.client.create_topic(&spec).await.unwrap();
    let to = tailwater_kafka::TopicPartition::new("t", tailwater_kafka::PartitionId::new(0));
    for (id, fenced) in [(Some("tailwater.t".to_owned()), true), (None, false)] {
        let config = ProducerConfig { transactional_id: id, ..ProducerConfig::default() };
        let mut first = world.client.producer(config.clone()).await.unwrap();
        let mut second = world.client.producer(config).await.unwrap();
        let handle = second.register(&to);
        second.append(handle, None, &[b"open"], 1).unwrap();
        second.drain().await.unwrap();
        let handle = first.register(&to);
        first.append(handle, None, &[b"late"], 1).unwrap();
        assert_eq!(first.drain().await.is_err(), fenced);
    }
}

/// Told late it would stand behind a newer transaction, and the next start would go back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_position_is_no_news_once_a_transaction_has_begun() {
    let world = World::new(Script::new(vec![1], transactions(1))).await;
    let running = world.start();
    running.reaches(SNAPSHOT + 10).await;
    world.script.idle(35);
    let mut watch = running.handle.watch();
    let seen = watch.wait_for(|status| status.seen == Some(Commit::lsn(35)));
    tokio::time::timeout(PATIENCE, seen).await.unwrap().unwrap();
    world.script.commit(Transaction { commit: 50, ids: vec![7], text_length: 1 });
    running.reaches(50).await;
    // Now somebody waits: what is told must be newer than what the log has.
    running.handle.probe();
    world.script.idle(60);
    running.reaches(60).await;
    running.stop().await;
    assert_eq!(world.read().await.idle, vec![60]);
}

/// What the topic holds of an earlier life must not stand above what follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_begins_another_epoch() {
    let world = World::new(Script::new(vec![1, 2], transactions(2))).await;
    let running = world.start();
    running.reaches(SNAPSHOT + 20).await;
    running.stop().await;
    world.client.delete_topic("shop.state").await.unwrap();
    let running = world.start();
    running.reaches(SNAPSHOT + 20).await;
    let place = running.handle.status().place.unwrap();
    running.stop().await;
    assert_eq!((world.script.snapshots.load(Ordering::SeqCst), place.epoch.get()), (2, 2));
    assert_eq!(world.read().await.snapshot, [1, 2]);
}

/// A `resume` that nothing waited for must not answer the next stop.
///
/// On one thread: capture begins when the test first waits, and so after the word that is too early.
#[tokio::test]
async fn an_old_resume_does_not_answer_a_new_stop() {
    let world = World::new(Script::new(vec![1], transactions(1))).await;
    let mut attempts = world.script.attempts.subscribe();
    let running = world.start_with(SnapshotMode::Only);
    running.handle.resume();
    running.is(CaptureState::Stopped).await;
    assert_eq!(*attempts.borrow(), 1);
    running.handle.resume();
    let second = attempts.wait_for(|attempts| *attempts == 2);
    tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    running.is(CaptureState::Stopped).await;
    running.stop().await;
    assert_eq!(*attempts.borrow(), 2);
}
