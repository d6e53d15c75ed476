//! A pipeline over several partitions: where it goes on, and what it does not go on with.

use tailwater_apply::State;
use tailwater_change::{Commit, Control, Epoch, Ordinal, Place, SchemaId, TableId};
use tailwater_kafka::{Offset, RecordBatch};
use tailwater_memory::{Cell, Definition};

use crate::rig::{Rig, TestLog};
use crate::support::{LogWriter, schema};

fn t() -> TableId {
    TableId::new("public", "t")
}

fn end_of(epoch: u32, commit: u64) -> Place {
    Place::end_of(Epoch::new(epoch), Commit::lsn(commit))
}

fn ids(rig: &Rig) -> Vec<i64> {
    let rows = rig.database.rows(&t()).unwrap();
    let mut ids: Vec<_> = rows
        .iter()
        .map(|row| match row[0] {
            Cell::Int(id) => id,
            _ => unreachable!(),
        })
        .collect();
    ids.sort_unstable();
    ids
}

fn all(logs: &mut [LogWriter], control: &Control<'_>) {
    for log in logs {
        log.control(control);
    }
}

/// A snapshot whose rows are 10 times the epoch, one in each partition.
fn snapshot(logs: &mut [LogWriter], epoch: u32, commit: u64) {
    let (number, commit_at) = (epoch, Commit::lsn(commit));
    let epoch = Epoch::new(epoch);
    let first = u64::from(number) * 10;
    let place = |ordinal| Place::new(epoch, commit_at, Ordinal::new(ordinal));
    let (schema, rows) = (SchemaId::new(2), logs.len() as u64);
    for log in &mut *logs {
        log.producer(7, i16::try_from(number).unwrap()).open(number);
    }
    all(logs, &Control::SnapshotBegin { epoch, commit: commit_at });
    all(logs, &Control::TableBegin { place: place(first), schema });
    for (ordinal, log) in (first..).zip(&mut *logs) {
        log.read_in(epoch, commit, ordinal);
    }
    all(logs, &Control::TableEnd { place: place(first + rows), schema, rows });
    all(logs, &Control::SnapshotEnd { epoch, commit: commit_at });
}

/// A transaction that inserts a row in each partition, from the id `first` on.
fn insert(logs: &mut [LogWriter], epoch: u32, commit: u64, first: u64) {
    for (ordinal, log) in (first..).zip(logs) {
        log.insert_in(Epoch::new(epoch), commit, ordinal, true);
    }
}

fn batches(logs: &mut [LogWriter]) -> Vec<Vec<RecordBatch>> {
    logs.iter_mut().map(LogWriter::batches).collect()
}

fn append(rig: &Rig, logs: &mut [LogWriter]) {
    for (partition, batches) in batches(logs).into_iter().enumerate() {
        rig.log.append_to(partition, batches);
    }
}

fn rig(partitions: usize) -> (Rig, Vec<LogWriter>) {
    let schema = schema("t", &[]);
    let mut rig = Rig::new(std::slice::from_ref(&schema));
    rig.log = TestLog::partitioned("t", partitions);
    rig.database.create(t(), Definition::of(&schema));
    ((rig), (0..partitions).map(|_| LogWriter::new()).collect())
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_in_each_partition_where_it_was() {
    let (rig, mut logs) = rig(3);
    snapshot(&mut logs, 1, 16);
    insert(&mut logs, 1, 24, 1);
    append(&rig, &mut logs);
    let running = rig.start();
    running.applied(end_of(1, 24)).await;
    running.stop().await;
    let ends: Vec<_> = (0..3).map(|partition| rig.log.end_of(partition)).collect();
    assert_eq!(rig.log.groups("tailwater.p"), Some(ends));
    // One partition has more than the others, and what they lack comes later.
    logs[1].insert_in(Epoch::FIRST, 32, 5, true);
    append(&rig, &mut logs);
    let running = rig.start();
    running.until(|status| status.state == State::Streaming).await;
    assert_eq!(ids(&rig), [1, 2, 3, 10, 11, 12]);
    logs[0].insert_in(Epoch::FIRST, 32, 4, true);
    logs[2].end(32);
    append(&rig, &mut logs);
    running.applied(end_of(1, 32)).await;
    assert_eq!(ids(&rig), [1, 2, 3, 4, 5, 10, 11, 12]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_with_a_later_snapshot() {
    let (rig, mut logs) = rig(2);
    snapshot(&mut logs, 1, 16);
    insert(&mut logs, 1, 24, 1);
    let place = Place::new(Epoch::FIRST, Commit::ZERO, Ordinal::ZERO);
    let description = "column d added";
    all(&mut logs, &Control::SchemaChange { place, table: t(), description });
    append(&rig, &mut logs);
    let running = rig.start();
    let status = running.state(State::Stopped).await;
    assert!(status.failure.unwrap().reason.contains("column d added"));
    assert_eq!(ids(&rig), [1, 2, 10, 11]);
    // What stands between has no end in one of them.
    logs[0].insert_in(Epoch::FIRST, 32, 7, true);
    snapshot(&mut logs, 2, 8);
    insert(&mut logs, 2, 9, 3);
    append(&rig, &mut logs);
    running.applied(end_of(2, 9)).await;
    assert_eq!(ids(&rig), [3, 4, 20, 21]);
    running.stop().await;
    // And once more from there.
    insert(&mut logs, 2, 10, 5);
    append(&rig, &mut logs);
    let running = rig.start();
    running.applied(end_of(2, 10)).await;
    assert_eq!(ids(&rig), [3, 4, 5, 6, 20, 21]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_skipped_change_of_a_definition_stays_skipped() {
    let (rig, mut logs) = rig(2);
    snapshot(&mut logs, 1, 16);
    let place = Place::new(Epoch::FIRST, Commit::lsn(24), Ordinal::new(1));
    logs[0].insert(24, 0, false);
    let description = "column d added";
    all(&mut logs, &Control::SchemaChange { place, table: t(), description });
    append(&rig, &mut logs);
    let running = rig.start();
    let position = running.state(State::Stopped).await.failure.unwrap().position.unwrap();
    running.handle.skip(position).await.unwrap();
    logs[0].insert(24, 1, true);
    logs[1].insert(24, 2, true);
    append(&rig, &mut logs);
    running.applied(end_of(1, 24)).await;
    assert_eq!(ids(&rig), [0, 1, 2, 10, 11]);
    running.stop().await;
}

/// Applied through 1@24; then the log is another one.
async fn moved(other: impl FnOnce(&mut [LogWriter])) -> (Rig, crate::rig::Running) {
    let (rig, mut logs) = rig(2);
    snapshot(&mut logs, 1, 16);
    insert(&mut logs, 1, 24, 1);
    append(&rig, &mut logs);
    let running = rig.start();
    running.applied(end_of(1, 24)).await;
    running.stop().await;
    let mut logs = [LogWriter::new(), LogWriter::from(5)];
    other(&mut logs);
    rig.log.replace_all("another", batches(&mut logs));
    let running = rig.start();
    (rig, running)
}

#[tokio::test(start_paused = true)]
async fn in_another_log_every_partition_has_to_show_what_is_applied() {
    let (rig, running) = moved(|logs| {
        for log in &mut *logs {
            log.producer(7, 1).open(1);
        }
        insert(logs, 1, 24, 1);
        insert(logs, 1, 32, 3);
    })
    .await;
    running.applied(end_of(1, 32)).await;
    assert_eq!(ids(&rig), [1, 2, 3, 4, 10, 11]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_whose_beginning_is_gone_is_a_gap() {
    let (rig, running) = moved(|logs| {
        for log in &mut *logs {
            log.producer(7, 1).open(1);
        }
        logs[0].insert(24, 1, true);
        insert(logs, 1, 32, 3);
    })
    .await;
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.reason.contains("nothing in it shows"), "{failure:?}");
    assert_eq!(ids(&rig), [1, 2, 10, 11]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_with_other_partitions_than_those_that_were_read_stops() {
    let (rig, mut logs) = rig(2);
    snapshot(&mut logs, 1, 16);
    let copy = batches(&mut logs);
    for (partition, batches) in copy.clone().into_iter().enumerate() {
        rig.log.append_to(partition, batches);
    }
    let running = rig.start();
    running.applied(end_of(1, 16)).await;
    running.stop().await;
    rig.log.replace_all("t", copy.into_iter().chain([Vec::new()]).collect());
    let running = rig.start();
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.reason.contains("has 3 partitions"), "{failure:?}");
    running.stop().await;
    assert_eq!(rig.log.end_of(2), Offset::ZERO);
}
