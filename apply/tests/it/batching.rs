//! When the target gets what is there, when it waits for more, and when it flushes.

use std::time::Duration;

use tailwater_apply::Clock;
use tailwater_change::{Commit, Epoch, Place};
use tailwater_memory::{Definition, Planted};

use crate::rig::Rig;
use crate::support::{LogWriter, schema};

/// How long after one transaction the next one can be read: by the paused clock, so that nobody
/// waits for it.
const APART: Duration = Duration::from_millis(5);

/// Commits on the target, by the time of day `clock`, for 40 transactions that were committed 1 ms
/// after midnight, 1970, and come [`APART`].
async fn commits(clock: Clock) -> u64 {
    let schema = schema("t", &[]);
    let mut rig = Rig::new(std::slice::from_ref(&schema));
    rig.config.clock = clock;
    rig.config.batch.rows = 1000;
    rig.database.create(schema.table.clone(), Definition::of(&schema));
    let mut log = LogWriter::new();
    rig.log.append(log.open(1).batches());
    let running = rig.start();
    let mut last = 0;
    for number in 0..40 {
        last = 16 + number;
        rig.log.append(log.insert(last, number, true).batches());
        tokio::time::sleep(APART).await;
    }
    running.applied(Place::end_of(Epoch::FIRST, Commit::lsn(last))).await;
    assert_eq!(rig.database.rows(&schema.table).map(|rows| rows.len()), Some(40));
    running.stop().await;
    rig.database.commits()
}

#[tokio::test(start_paused = true)]
async fn transactions_that_are_just_committed_wait_for_nothing() {
    let near = commits(|| 900_000).await;
    assert!(near >= 40, "{near}");
}

#[tokio::test(start_paused = true)]
async fn far_behind_small_transactions_go_together() {
    // 200 ms in all, 50 ms a batch.
    let far = commits(|| 2_000_000).await;
    assert!((4..=8).contains(&far), "{far}");
}

/// Applies long after, to a target that crashes now and then and takes back what it has not
/// flushed. Returns whether the log was ever told that something is applied which then was not.
async fn forgets_too_early(planted: Option<Planted>) -> bool {
    let schema = schema("t", &[]);
    let mut rig = Rig::new(std::slice::from_ref(&schema));
    rig.config.clock = || 2_000_000;
    rig.database.create(schema.table.clone(), Definition::of(&schema));
    if let Some(bug) = planted {
        rig.database.plant(bug);
    }
    let mut log = LogWriter::new();
    rig.log.append(log.open(1).batches());
    let rows = || rig.database.rows(&schema.table).map_or(0, |rows| rows.len());
    let running = rig.start();
    let (mut taken_back, mut too_early) = (0, false);
    for number in 0..400 {
        rig.log.append(log.insert(16 + number, number, true).batches());
        tokio::time::sleep(APART * 5).await;
        if number % 60 == 59 {
            let seen = rows();
            rig.database.crash();
            taken_back += seen - rows();
            let kept = rig.database.progress("p").map_or(0, |progress| progress.next_offset);
            too_early |= rig.log.group("tailwater.p").is_some_and(|group| group.get() > kept);
        }
    }
    running.applied(Place::end_of(Epoch::FIRST, Commit::lsn(415))).await;
    assert!(taken_back > 0, "no crash took anything back");
    assert_eq!(rows(), 400);
    // Who is told that all is applied may rely on it.
    rig.database.crash();
    assert!(too_early || rows() == 400);
    running.stop().await;
    too_early
}

#[tokio::test(start_paused = true)]
async fn what_a_target_may_still_lose_stays_in_the_log() {
    assert!(!forgets_too_early(None).await);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_forgets_what_the_target_loses_is_seen() {
    assert!(forgets_too_early(Some(Planted::ClaimsToFlush)).await);
}
