//! A pipeline that has stopped goes on with a snapshot of a later epoch, and with nothing else.

use std::sync::Arc;

use tailwater_apply::{ConflictPolicy, OnExisting, State, Status};
use tailwater_change::{Commit, Control, Epoch, Ordinal, Place, SchemaId, TableId};
use tailwater_memory::{Cell, Definition, Fault};

use crate::rig::{Rig, Running};
use crate::support::{LogWriter, row, schema};

const SECOND: Epoch = Epoch::new(2);

fn t() -> TableId {
    TableId::new("public", "t")
}

/// A pipeline to a table that is there.
fn rig() -> Rig {
    let schema = schema("t", &[]);
    let rig = Rig::new(std::slice::from_ref(&schema));
    rig.database.create(t(), Definition::of(&schema));
    rig
}

fn ids(rig: &Rig) -> Vec<i64> {
    let rows = rig.database.rows(&t()).unwrap();
    let id = |row: &Vec<Cell>| match row[0] {
        Cell::Int(id) => id,
        _ => unreachable!(),
    };
    rows.iter().map(id).collect()
}

fn snapshot_begins(log: &mut LogWriter, epoch: Epoch, commit: u64) {
    log.control(&Control::SnapshotBegin { epoch, commit: Commit::lsn(commit) });
}

/// A whole snapshot of the rows `ids`.
fn snapshot(log: &mut LogWriter, epoch: Epoch, commit: u64, ids: std::ops::Range<u64>) {
    snapshot_begins(log, epoch, commit);
    let place = |ordinal| Place::new(epoch, Commit::lsn(commit), Ordinal::new(ordinal));
    let (schema, rows) = (SchemaId::new(2), ids.end - ids.start);
    log.control(&Control::TableBegin { place: place(ids.start), schema });
    for id in ids.clone() {
        log.read_in(epoch, commit, id);
    }
    log.control(&Control::TableEnd { place: place(ids.end), schema, rows });
    log.control(&Control::SnapshotEnd { epoch, commit: Commit::lsn(commit) });
}

/// What capture writes on `resync`: another writer, the snapshot of the rows 1 and 2 at an earlier
/// position of a later epoch, and the transaction behind it, which inserts 3.
fn resync(log: &mut LogWriter) {
    log.producer(7, 9).open(1);
    snapshot(log, SECOND, 4, 1..3);
    log.insert_in(SECOND, 8, 3, true);
}

async fn goes_on(rig: &Rig, running: &Running) {
    running.applied(Place::end_of(SECOND, Commit::lsn(8))).await;
    assert_eq!(running.handle.status().state, State::Streaming);
    assert_eq!(ids(rig), [1, 2, 3]);
}

fn stopped(status: &Status) -> bool {
    status.state == State::Stopped
}

fn schema_change(log: &mut LogWriter) {
    let place = Place::new(Epoch::FIRST, Commit::lsn(32), Ordinal::new(60));
    log.control(&Control::SchemaChange { place, table: t(), description: "column d added" });
}

/// Everything a pipeline can stop at, each as the log of epoch 1 that brings it about.
fn stops() -> Vec<(&'static str, Rig, LogWriter)> {
    let begun = || {
        let mut log = LogWriter::new();
        log.open(1);
        snapshot(&mut log, Epoch::FIRST, 16, 40..43);
        log
    };
    let mut change = begun();
    change.insert(32, 50, false);
    schema_change(&mut change);
    // As after a `resume` or a restart of the source.
    change.producer(7, 1).open(1);
    schema_change(&mut change);

    let mut bad = begun();
    bad.value(b"not ours").insert(32, 50, true);

    let mut given_up = LogWriter::new();
    snapshot_begins(&mut given_up, Epoch::FIRST, 16);
    given_up.insert(32, 50, true);

    let mut conflict = begun();
    conflict.insert(32, 41, true).insert(48, 50, true);
    let mut strict = rig();
    strict.config.on_conflict = ConflictPolicy::Stop;

    let mut foreign = rig();
    foreign.config.on_existing = OnExisting::Stop;
    vec![
        ("schema change", rig(), change),
        ("bad bytes", rig(), bad),
        ("a snapshot that was given up", rig(), given_up),
        ("a conflict", strict, conflict),
        ("nothing", foreign, begun()),
    ]
}

#[tokio::test(start_paused = true)]
async fn whatever_it_stopped_at_is_replaced() {
    for (what, rig, mut log) in stops() {
        println!("{what}");
        rig.log.append(log.batches());
        let running = rig.start();
        if what == "nothing" {
            running.state(State::Streaming).await;
        } else {
            running.until(stopped).await;
        }
        resync(&mut log);
        rig.log.append(log.batches());
        goes_on(&rig, &running).await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_too_late_to_hear_of_it_goes_on_too() {
    for (what, rig, mut log) in stops() {
        println!("{what}");
        resync(&mut log);
        rig.log.append(log.batches());
        let running = rig.start();
        goes_on(&rig, &running).await;
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_call_on_the_way_loses_and_repeats_nothing() {
    for stop in 0..stops().len() {
        let calls = {
            let (_, rig, mut log) = stops().swap_remove(stop);
            resync(&mut log);
            rig.log.append(log.batches());
            let running = rig.start();
            goes_on(&rig, &running).await;
            rig.database.faults().calls()
        };
        for call in 0..calls {
            for fault in [Fault::Lost, Fault::LostAfter, Fault::HangAfter] {
                let (_, rig, mut log) = stops().swap_remove(stop);
                resync(&mut log);
                rig.log.append(log.batches());
                rig.database.faults().at_call(call, fault);
                let running = rig.start();
                let hung = tokio::select! {
                    () = rig.database.faults().hung() => true,
                    () = goes_on(&rig, &running) => false,
                };
                if hung {
                    drop(running);
                    goes_on(&rig, &rig.start()).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_forgot_what_comes_next_goes_on_at_the_snapshot() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.open(1);
    snapshot(&mut log, Epoch::FIRST, 16, 40..43);
    rig.log.append(log.batches());
    let running = rig.start();
    running.applied(Place::end_of(Epoch::FIRST, Commit::lsn(16))).await;
    running.stop().await;
    log.insert(32, 50, true).insert(48, 51, true);
    rig.log.append(log.batches());
    rig.log.truncate_before(rig.log.end());
    let running = rig.start();
    running.until(stopped).await;
    resync(&mut log);
    rig.log.append(log.batches());
    goes_on(&rig, &running).await;
    running.stop().await;
}

/// A stop that has another cause than the log stays one: on the new snapshot as on the old.
#[tokio::test(start_paused = true)]
async fn what_a_snapshot_does_not_heal_stops_again() {
    let rig = rig();
    rig.database.put(&t(), row(500, None, "foreign", "x"));
    let mut log = LogWriter::new();
    log.open(1);
    snapshot(&mut log, Epoch::FIRST, 16, 40..43);
    rig.log.append(log.batches());
    let running = rig.start();
    let first = running.until(stopped).await.failure.unwrap();
    assert_eq!(first.epoch, Some(Epoch::FIRST));
    resync(&mut log);
    rig.log.append(log.batches());
    let again = |status: &Status| {
        let failure = status.failure.as_ref();
        stopped(status) && failure.is_some_and(|failure| failure.epoch == Some(SECOND))
    };
    let second = running.until(again).await.failure.unwrap();
    assert_eq!(second.reason, first.reason);
    assert_eq!(ids(&rig), [500]);
    rig.database.create(t(), Definition::of(&schema("t", &[])));
    running.handle.resume().await.unwrap();
    goes_on(&rig, &running).await;
    running.stop().await;
}

/// Nothing is skipped unasked: what only goes on in the same epoch does not end a stop.
#[tokio::test(start_paused = true)]
async fn a_snapshot_of_the_same_epoch_or_of_a_superseded_writer_ends_nothing() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.producer(8, 0).open(1).producer(7, 0).open(1);
    snapshot(&mut log, Epoch::FIRST, 16, 40..43);
    schema_change(&mut log);
    rig.log.append(log.batches());
    let running = rig.start();
    running.until(stopped).await;
    snapshot(&mut log, Epoch::FIRST, 64, 1..3);
    log.producer(8, 0);
    snapshot(&mut log, SECOND, 4, 1..3);
    rig.log.append(log.batches());
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert!(stopped(&running.handle.status()));
    assert_eq!(ids(&rig), [40, 41, 42]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_remedy_names_the_source() {
    let schema = schema("t", &[]);
    let mut rig = Rig::new(&[Arc::clone(&schema)]);
    rig.config.source = "shop".into();
    let mut log = LogWriter::new();
    schema_change(&mut log);
    rig.log.append(log.batches());
    let running = rig.start();
    let failure = running.until(stopped).await.failure.unwrap();
    assert!(failure.remedy.contains("`tailwater resync --source shop`"), "{failure:?}");
    running.stop().await;
}
