//! When the target gets what is there, and when it waits for more.

use std::time::Duration;

use tailwater_apply::Clock;
use tailwater_change::{Commit, Epoch, Place};
use tailwater_memory::Definition;

use crate::rig::Rig;
use crate::support::{LogWriter, schema};

/// How long after one transaction the next one can be read.
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
