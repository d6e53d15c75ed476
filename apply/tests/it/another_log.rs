//! The log was lost, replaced or copied: only the transaction that was applied last shows that
//! another log goes on from there.

use tailwater_apply::State;
use tailwater_change::{Commit, Control, Epoch, Ordinal, Place, SchemaId, TableId};
use tailwater_memory::{Cell, Definition};

use crate::rig::Rig;
use crate::support::{LogWriter, schema};

const SECOND: Epoch = Epoch::new(2);

fn t() -> TableId {
    TableId::new("public", "t")
}

fn end_of(epoch: Epoch, commit: u64) -> Place {
    Place::end_of(epoch, Commit::lsn(commit))
}

fn ids(rig: &Rig) -> Vec<i64> {
    let rows = rig.database.rows(&t()).unwrap();
    let id = |row: &Vec<Cell>| match row[0] {
        Cell::Int(id) => id,
        _ => unreachable!(),
    };
    rows.iter().map(id).collect()
}

/// A snapshot of one row, whose id is `ordinal`.
fn snapshot(log: &mut LogWriter, epoch: Epoch, commit: u64, ordinal: u64) {
    let commit_at = Commit::lsn(commit);
    log.control(&Control::SnapshotBegin { epoch, commit: commit_at });
    let place = |ordinal| Place::new(epoch, commit_at, Ordinal::new(ordinal));
    let schema = SchemaId::new(2);
    log.control(&Control::TableBegin { place: place(ordinal), schema });
    log.read_in(epoch, commit, ordinal);
    log.control(&Control::TableEnd { place: place(ordinal + 1), schema, rows: 1 });
    log.control(&Control::SnapshotEnd { epoch, commit: commit_at });
}

fn history() -> LogWriter {
    let mut log = LogWriter::new();
    log.open(1);
    snapshot(&mut log, Epoch::FIRST, 16, 1);
    log.insert_in(SECOND, 32, 2, true).insert_in(SECOND, 100, 3, true);
    log
}

/// A pipeline that has applied [`history`], and is down.
async fn applied() -> Rig {
    let schema = schema("t", &[]);
    let rig = Rig::new(std::slice::from_ref(&schema));
    rig.database.create(t(), Definition::of(&schema));
    rig.log.append(history().batches());
    let running = rig.start();
    running.applied(end_of(SECOND, 100)).await;
    running.stop().await;
    assert_eq!(ids(&rig), [1, 2, 3]);
    rig
}

/// What the pipeline stops with in this log, and whether it was ever said to stream.
async fn refused(rig: &Rig, mut log: LogWriter) -> String {
    rig.log.replace("another", log.batches());
    let running = rig.start();
    let status = running
        .until(|status| {
            matches!(status.state, State::Stopped | State::Streaming) || status.caught_up
        })
        .await;
    assert_eq!(status.state, State::Stopped);
    assert_eq!(ids(rig), [1, 2, 3]);
    let failure = status.failure.unwrap();
    assert_eq!(failure.position, None);
    format!("{}; {}", failure.reason, failure.remedy)
}

#[tokio::test(start_paused = true)]
async fn a_log_that_began_anew_below_what_is_applied_stops() {
    let rig = applied().await;
    // The log and its epochs were lost: the source goes on, at the first epoch.
    let mut fresh = LogWriter::new();
    fresh.open(1);
    snapshot(&mut fresh, Epoch::FIRST, 200, 7);
    fresh.insert(216, 8, true);
    let failure = refused(&rig, fresh).await;
    assert!(failure.contains("not the log that was read before"), "{failure}");
    assert!(failure.contains("detach"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_source_whose_positions_went_back_and_pass_what_is_applied_stops() {
    let rig = applied().await;
    let mut fresh = LogWriter::new();
    fresh.open(1);
    snapshot(&mut fresh, SECOND, 20, 7);
    fresh.insert_in(SECOND, 90, 8, true).insert_in(SECOND, 110, 9, true);
    let failure = refused(&rig, fresh).await;
    assert!(failure.contains("nothing in it shows"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn until_a_log_names_a_place_the_pipeline_is_starting() {
    let rig = applied().await;
    let mut fresh = LogWriter::new();
    fresh.open(1);
    rig.log.replace("another", fresh.batches());
    let running = rig.start();
    running.until(|status| status.place == Some(end_of(SECOND, 100))).await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    let status = running.handle.status();
    assert_eq!((status.state, status.caught_up), (State::Starting, false));
    // Its capture reads the source anew, beyond what is applied.
    snapshot(&mut fresh, SECOND, 120, 7);
    rig.log.append(fresh.batches());
    running.applied(end_of(SECOND, 120)).await;
    running.state(State::Streaming).await;
    assert_eq!(ids(&rig), [7]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_the_log_goes_on_where_the_log_ended() {
    let rig = applied().await;
    let mut copy = history();
    rig.log.replace("another", copy.batches());
    let running = rig.start();
    running.state(State::Streaming).await;
    copy.insert_in(SECOND, 116, 4, true);
    rig.log.append(copy.batches());
    running.applied(end_of(SECOND, 116)).await;
    running.stop().await;
    assert_eq!(ids(&rig), [1, 2, 3, 4]);
    assert_eq!(rig.database.progress("p").unwrap().topic_id, "another");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_was_being_loaded_is_found_in_a_copy() {
    let schema = schema("t", &[]);
    let rig = Rig::new(std::slice::from_ref(&schema));
    let mut log = LogWriter::new();
    let commit = Commit::lsn(16);
    log.control(&Control::SnapshotBegin { epoch: SECOND, commit });
    let first = Place::new(SECOND, commit, Ordinal::ZERO);
    log.control(&Control::TableBegin { place: first, schema: SchemaId::new(2) });
    for ordinal in 0..7 {
        log.read_in(SECOND, 16, ordinal);
    }
    let batches = log.batches();
    rig.log.append(batches.clone());
    let half = Place::new(SECOND, commit, Ordinal::new(4));
    let running = rig.start();
    running.until(|status| status.place == Some(half)).await;
    running.stop().await;

    rig.log.replace("another", batches);
    log.control(&Control::SnapshotEnd { epoch: SECOND, commit });
    rig.log.append(log.batches());
    let running = rig.start();
    running.applied(end_of(SECOND, 16)).await;
    assert_eq!(ids(&rig), [0, 1, 2, 3, 4, 5, 6]);
    running.stop().await;
}

/// A server that was built anew may be at the very same position: what it says is not what came
/// after that.
#[tokio::test(start_paused = true)]
async fn the_same_place_of_another_server_stops() {
    let rig = applied().await;
    let mut fresh = LogWriter::new();
    fresh.open_of("rebuilt", 2);
    snapshot(&mut fresh, SECOND, 100, 7);
    fresh.insert_in(SECOND, 110, 8, true);
    let failure = refused(&rig, fresh).await;
    assert!(failure.contains("rebuilt") && failure.contains("came from server"), "{failure}");
    assert!(failure.contains("resync"), "{failure}");
    // As said: a new snapshot, under a later epoch.
    let running = rig.start();
    running.state(State::Stopped).await;
    let mut later = LogWriter::from(rig.log.end().get());
    later.open_of("rebuilt", 3);
    snapshot(&mut later, Epoch::new(3), 120, 9);
    rig.log.append(later.batches());
    running.applied(end_of(Epoch::new(3), 120)).await;
    assert_eq!(ids(&rig), [9]);
    running.stop().await;
}

/// Nothing shows whose positions they are where no marker names a server.
#[tokio::test(start_paused = true)]
async fn a_log_that_names_no_server_is_not_taken_for_the_same() {
    let rig = applied().await;
    let mut fresh = LogWriter::new();
    snapshot(&mut fresh, SECOND, 100, 7);
    let failure = refused(&rig, fresh).await;
    assert!(failure.contains("does not name"), "{failure}");
}

/// A fail-over within a log is capture's to judge; the pipeline remembers who was last.
#[tokio::test(start_paused = true)]
async fn a_fail_over_within_the_log_is_followed() {
    let rig = applied().await;
    let mut more = LogWriter::from(rig.log.end().get());
    more.producer(7, 1).open_of("promoted", 2).insert_in(SECOND, 110, 4, true);
    rig.log.append(more.batches());
    let running = rig.start();
    running.applied(end_of(SECOND, 110)).await;
    running.stop().await;
    // In a copy of all of it, both are found.
    let mut copy = history();
    copy.producer(7, 1).open_of("promoted", 2).insert_in(SECOND, 110, 4, true);
    copy.insert_in(SECOND, 120, 5, true);
    rig.log.replace("copy", copy.batches());
    let running = rig.start();
    running.applied(end_of(SECOND, 120)).await;
    assert_eq!(ids(&rig), [1, 2, 3, 4, 5]);
    running.stop().await;
}
