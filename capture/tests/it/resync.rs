//! A new snapshot on command: from any state, under a later epoch, finished through crashes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tailwater_capture::{CaptureState, ResyncError, SnapshotMode};
use tailwater_change::{Epoch, Place};
use tailwater_kafka::{PartitionId, ProducerConfig, TopicPartition, TopicSpec};

use crate::scenarios::{PATIENCE, Running, World, check, transactions};
use crate::script::{SNAPSHOT, Script, Transaction};

const ANY: Epoch = Epoch::new(0);

async fn world() -> World {
    World::new(Script::new(vec![1, 2], transactions(2))).await
}

/// Waits until everything up to `commit` is in the log, in this epoch.
async fn holds(running: &Running, epoch: u32, commit: u64) -> Place {
    let mut watch = running.handle.watch();
    let reached = watch.wait_for(|status| {
        status.place.is_some_and(|place| {
            place.epoch == Epoch::new(epoch) && place.commit.position() >= commit
        })
    });
    let reached = tokio::time::timeout(PATIENCE, reached).await;
    assert!(reached.is_ok(), "{:?}", running.handle.status());
    reached.unwrap().unwrap().place.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_source_takes_a_new_snapshot_and_goes_on() {
    let world = world().await;
    let running = world.start();
    holds(&running, 1, SNAPSHOT + 20).await;
    running.handle.resync(ANY, PATIENCE).await.unwrap();
    holds(&running, 2, SNAPSHOT + 20).await;
    world.script.commit(Transaction { commit: 900, ids: vec![9], text_length: 1 });
    holds(&running, 2, 900).await;
    assert_eq!(running.handle.status().epoch, Some(Epoch::new(2)));
    running.stop().await;
    assert_eq!(world.script.snapshots.load(Ordering::SeqCst), 2);
    // And the next start goes on from there.
    let running = world.start();
    running.is(CaptureState::Streaming).await;
    running.stop().await;
    assert_eq!(world.script.snapshots.load(Ordering::SeqCst), 2);
    assert_eq!(world.read().await.snapshot, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_source_hears_it_also_after_a_restart() {
    let world = world().await;
    let running = world.start();
    holds(&running, 1, SNAPSHOT + 20).await;
    running.stop().await;
    world.script.lost.store(true, Ordering::SeqCst);
    let running = world.start();
    running.is(CaptureState::Stopped).await;
    let error = running.handle.status().error.unwrap();
    assert!(error.contains("`tailwater resync --source shop`"), "{error}");
    // `resume` does not help, and skips nothing.
    running.handle.resume();
    running.is(CaptureState::Starting).await;
    running.is(CaptureState::Stopped).await;
    running.handle.resync(ANY, PATIENCE).await.unwrap();
    holds(&running, 2, SNAPSHOT + 20).await;
    running.stop().await;
    check(&world.read().await, &[1, 2], &transactions(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_killed_is_repeated() {
    let world = world().await;
    let running = world.start();
    holds(&running, 1, SNAPSHOT + 20).await;
    world.script.hang_snapshot_after.store(1, Ordering::SeqCst);
    running.handle.resync(ANY, PATIENCE).await.unwrap();
    running.kill().await;
    world.script.hang_snapshot_after.store(usize::MAX, Ordering::SeqCst);
    let running = world.start();
    holds(&running, 3, SNAPSHOT + 20).await;
    running.stop().await;
    check(&world.read().await, &[1, 2], &transactions(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_begins_another_where_one_is_running_or_paused() {
    let world = world().await;
    world.script.hang_snapshot_after.store(1, Ordering::SeqCst);
    let running = world.start();
    running.is(CaptureState::Snapshot).await;
    running.handle.resync(ANY, PATIENCE).await.unwrap();
    running.handle.pause();
    running.is(CaptureState::Paused).await;
    world.script.hang_snapshot_after.store(usize::MAX, Ordering::SeqCst);
    // Above what a target has of another log.
    running.handle.resync(Epoch::new(7), PATIENCE).await.unwrap();
    holds(&running, 8, SNAPSHOT + 20).await;
    running.stop().await;
    check(&world.read().await, &[1, 2], &transactions(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_begin_is_given_up() {
    let world = world().await;
    let running = world.start();
    holds(&running, 1, SNAPSHOT + 20).await;
    running.handle.pause();
    running.is(CaptureState::Paused).await;
    world.script.away.store(true, Ordering::SeqCst);
    running.handle.resume();
    running.is(CaptureState::Retrying).await;
    let refused = running.handle.resync(ANY, Duration::from_millis(300)).await.unwrap_err();
    let ResyncError::NotBegun { state, why } = &refused else { panic!("{refused:?}") };
    assert_eq!(*state, CaptureState::Retrying);
    assert!(why.contains("connect failed"), "{why}");
    world.script.away.store(false, Ordering::SeqCst);
    running.is(CaptureState::Streaming).await;
    running.stop().await;
    assert_eq!(world.script.snapshots.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_without_a_stream_is_read_again() {
    let world = world().await;
    let running = world.start_with(SnapshotMode::Only);
    running.is(CaptureState::Stopped).await;
    running.handle.resync(ANY, PATIENCE).await.unwrap();
    holds(&running, 2, SNAPSHOT).await;
    running.is(CaptureState::Stopped).await;
    running.stop().await;
    check(&world.read().await, &[1, 2], &[]);
}

/// What the log holds need not be understood to begin anew behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_an_unknown_state_nor_a_damaged_tail_stands_in_its_way() {
    let world = world().await;
    let running = world.start();
    holds(&running, 1, SNAPSHOT + 20).await;
    running.stop().await;
    world.client.delete_topic("shop.state").await.unwrap();
    let spec = TopicSpec::new("shop.state", 1, 1);
    world.client.create_topic(&spec).await.unwrap();
    let mut producer = world.client.producer(ProducerConfig::default()).await.unwrap();
    let foreign: [(&str, Option<&[u8]>); 2] = [("shop.state", Some(b"state")), ("shop", None)];
    for (topic, key) in foreign {
        let to = producer.register(&TopicPartition::new(topic, PartitionId::new(0)));
        producer.append(to, key, &[b"not ours"], 1).unwrap();
    }
    producer.drain().await.unwrap();
    let running = world.start();
    running.is(CaptureState::Stopped).await;
    let error = running.handle.status().error.unwrap();
    assert!(error.contains("does not parse") && error.contains("--source shop"), "{error}");
    running.handle.resync(ANY, PATIENCE).await.unwrap();
    holds(&running, 2, SNAPSHOT + 20).await;
    running.stop().await;
}
