//! Several captures of one source: who holds the lock works, the others wait and touch nothing.

use std::time::Duration;

use tailwater_capture::{CaptureState, ResyncError, written_epoch};
use tailwater_change::Epoch;
use tokio::time::timeout;

use crate::scenarios::{PATIENCE, Running, World, check, transactions};
use crate::script::{Script, ScriptedLock};

fn lock(world: &World) -> &ScriptedLock {
    world.script.lock.as_deref().expect("the script has one")
}

/// Waits until the lock has been asked for in vain some times more.
async fn asked(world: &World, times: usize) {
    let mut refused = lock(world).refused.subscribe();
    let until = *refused.borrow_and_update() + times;
    timeout(PATIENCE, refused.wait_for(|refused| *refused >= until)).await.unwrap().unwrap();
}

fn attempts(world: &World) -> usize {
    *world.script.attempts.borrow()
}

async fn is_standby(running: &Running) {
    running.is(CaptureState::Standby).await;
    let said = running.handle.status().error.unwrap_or_default();
    assert!(said.contains("another process captures this source: session"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_waits_and_touches_nothing() {
    let transactions = transactions(3);
    let world = World::new(Script::with_lock(vec![1], transactions[..1].to_vec())).await;
    let first = world.start();
    first.reaches(20).await;
    let second = world.start();
    is_standby(&second).await;
    asked(&world, 2).await;
    assert_eq!(attempts(&world), 1);
    let resync = second.handle.resync(Epoch::default(), Duration::ZERO).await;
    assert_eq!(resync, Err(ResyncError::Standby));
    // The log tells whoever does not capture.
    let epoch = written_epoch(&world.client, "shop").await.unwrap();
    assert_eq!((epoch, second.handle.status().epoch), (first.handle.status().epoch, None));

    // A pause is no end: its lock stays where it is, in the same session, so that the other one is
    // not first when it ends.
    let holder = lock(&world).holder();
    first.handle.pause();
    first.is(CaptureState::Paused).await;
    asked(&world, 2).await;
    assert_eq!(attempts(&world), 1);
    first.handle.resume();
    first.is(CaptureState::Streaming).await;
    assert_eq!(attempts(&world), 2);
    assert_eq!(lock(&world).holder(), holder);

    world.script.commit(transactions[1].clone());
    first.reaches(30).await;
    first.stop().await;
    second.reaches(30).await;
    second.is(CaptureState::Streaming).await;
    world.script.commit(transactions[2].clone());
    second.reaches(40).await;
    second.stop().await;
    let read = world.read().await;
    check(&read, &[1], &transactions);
    assert_eq!((read.opens, read.repeated), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_loses_the_lock_stops_at_once_and_comes_back_in_his_turn() {
    let transactions = transactions(3);
    let world = World::new(Script::with_lock(vec![1], transactions[..1].to_vec())).await;
    let running = world.start();
    running.reaches(20).await;
    running.is(CaptureState::Streaming).await;
    lock(&world).give_away();
    is_standby(&running).await;
    world.script.commit(transactions[1].clone());
    asked(&world, 1).await;
    assert_eq!(attempts(&world), 1);
    lock(&world).free();
    running.reaches(30).await;
    // Also one who pauses.
    running.handle.pause();
    running.is(CaptureState::Paused).await;
    lock(&world).give_away();
    asked(&world, 1).await;
    running.handle.resume();
    is_standby(&running).await;
    lock(&world).free();
    running.is(CaptureState::Streaming).await;
    running.stop().await;
    let read = world.read().await;
    check(&read, &[1], &transactions[..2]);
    assert_eq!((read.opens, read.repeated), (3, 0));
}
