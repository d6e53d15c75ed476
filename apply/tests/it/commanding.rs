//! What an operator can do, and what a pipeline says when it cannot go on.

use tailwater_apply::{CommandError, ConflictPolicy, State};
use tailwater_change::{Commit, Control, Epoch, Operation, Ordinal, Place, SchemaId, TableId};
use tailwater_memory::{Cell, Definition, Fault, Op, ScriptedChange};

use crate::rig::Rig;
use crate::support::{LogWriter, row, schema};

fn rig() -> Rig {
    let schemas = vec![schema("t", &[])];
    let rig = Rig::new(&schemas);
    rig.database.create(schemas[0].table.clone(), Definition::of(&schemas[0]));
    rig
}

fn t() -> TableId {
    TableId::new("public", "t")
}

fn end_of(commit: u64) -> Place {
    Place::end_of(Epoch::FIRST, Commit::lsn(commit))
}

fn ids(rig: &Rig) -> Vec<i64> {
    let rows = rig.database.rows(&t()).unwrap();
    rows.iter()
        .map(|row| match row[0] {
            Cell::Int(id) => id,
            _ => unreachable!(),
        })
        .collect()
}

/// An update of the row `id`, which must be there.
fn update(log: &mut LogWriter, commit: u64, id: i64) {
    let change = ScriptedChange {
        table: 0,
        operation: Operation::Update,
        before: None,
        after: Some(row(id, Some(9), "b", "c")),
        unsent: vec![3],
    };
    let place = Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::ZERO);
    log.change(SchemaId::new(2), &schema("t", &[]), &change, place, true);
}

#[tokio::test(start_paused = true)]
async fn paused_it_commits_what_is_whole_and_nothing_more() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.insert(16, 0, true).insert(32, 1, false);
    rig.log.append(log.batches());
    let running = rig.start();
    running.until(|status| status.place == Some(end_of(16))).await;
    running.handle.pause().await.unwrap();
    running.state(State::Paused).await;
    log.insert(32, 2, true);
    rig.log.append(log.batches());
    assert_eq!(ids(&rig), [0]);
    running.handle.pause().await.unwrap();
    // Another process does not take what is paused here.
    let standby = rig.start();
    standby.state(State::Standby).await;
    drop(standby);
    running.handle.resume().await.unwrap();
    running.applied(end_of(32)).await;
    assert_eq!(ids(&rig), [0, 1, 2]);
    assert!(matches!(running.handle.resume().await, Err(CommandError::Refused(_))));
    assert!(matches!(running.handle.skip("1@0/10").await, Err(CommandError::Refused(_))));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_large_transaction_is_undone_by_a_pause_and_read_again() {
    let rig = rig();
    let mut log = LogWriter::new();
    for ordinal in 0..12 {
        log.insert(16, ordinal, false);
    }
    rig.log.append(log.batches());
    let running = rig.start();
    // Two parts of five rows are in the open transaction when it is told to wait.
    while rig.database.faults().calls() < 8 {
        tokio::task::yield_now().await;
    }
    running.handle.pause().await.unwrap();
    running.state(State::Paused).await;
    assert_eq!(ids(&rig), [] as [i64; 0]);
    log.insert(16, 12, true);
    rig.log.append(log.batches());
    running.handle.resume().await.unwrap();
    running.applied(end_of(16)).await;
    assert_eq!(ids(&rig).len(), 13);
    assert_eq!(running.handle.metrics().snapshot().transactions, 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_failing_transaction_is_found_named_and_skipped_on_command_only() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.insert(16, 0, true);
    // Updates of a row that is not there, with a column that was not sent: nothing to repair from.
    update(&mut log, 32, 77);
    log.insert(48, 1, true);
    update(&mut log, 64, 78);
    log.insert(80, 2, true);
    rig.log.append(log.batches());
    let running = rig.start();
    let status = running.state(State::Stopped).await;
    // What came before it is applied.
    assert_eq!(status.place, Some(end_of(16)));
    let failure = status.failure.unwrap();
    assert_eq!(failure.position.as_deref(), Some("1@0/20"));
    assert!(failure.reason.contains("conflict on public.t"), "{failure:?}");
    assert!(failure.remedy.contains("tailwater skip"), "{failure:?}");

    running.handle.resume().await.unwrap();
    running.state(State::Stopped).await;
    let wrong = running.handle.skip("1@0/30").await.unwrap_err();
    assert!(wrong.to_string().contains("1@0/20"), "{wrong}");
    assert_eq!(running.handle.status().state, State::Stopped);
    running.handle.skip("1@0/20").await.unwrap();

    let status = running.state(State::Stopped).await;
    assert_eq!(status.place, Some(end_of(48)));
    assert_eq!(status.failure.unwrap().position.as_deref(), Some("1@0/40"));
    running.handle.skip("1@0/40").await.unwrap();
    let status = running.applied(end_of(80)).await;
    assert_eq!((status.state, status.failure), (State::Streaming, None));
    assert_eq!(ids(&rig), [0, 1, 2]);
    assert_eq!(running.handle.metrics().snapshot().skipped, 2);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_there_is_repaired_or_stops_as_configured() {
    for policy in [ConflictPolicy::Repair, ConflictPolicy::Stop] {
        let mut rig = rig();
        rig.config.on_conflict = policy;
        let mut log = LogWriter::new();
        log.insert(16, 0, true);
        rig.log.append(log.batches());
        let running = rig.start();
        running.applied(end_of(16)).await;
        rig.database.put(&t(), row(1, Some(5), "not", "ours"));
        log.insert(32, 1, true);
        rig.log.append(log.batches());
        if policy == ConflictPolicy::Repair {
            running.applied(end_of(32)).await;
            assert_eq!(rig.database.rows(&t()).unwrap()[1], row(1, None, "b", "c"));
            assert_eq!(running.handle.metrics().snapshot().conflicts, 1);
        } else {
            let failure = running.state(State::Stopped).await.failure.unwrap();
            assert_eq!(failure.position.as_deref(), Some("1@0/20"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_schema_change_stops_until_it_is_skipped() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.insert(16, 0, true);
    log.control(&Control::SchemaChange {
        place: Place::new(Epoch::FIRST, Commit::lsn(32), Ordinal::new(3)),
        table: t(),
        description: "column c became text",
    });
    log.end(32).insert(48, 1, true);
    rig.log.append(log.batches());
    let running = rig.start();
    let status = running.state(State::Stopped).await;
    assert_eq!(status.place, Some(end_of(16)));
    let failure = status.failure.unwrap();
    assert!(failure.reason.contains("column c became text"), "{failure:?}");
    assert_eq!(failure.position.as_deref(), Some("1@0/20#3"));
    running.handle.skip("1@0/20#3").await.unwrap();
    running.applied(end_of(48)).await;
    assert_eq!(ids(&rig), [0, 1]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn schema_changes_between_transactions_are_skipped_one_by_one() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.insert(16, 0, true);
    for description in ["one", "two"] {
        let place = Place::new(Epoch::FIRST, Commit::ZERO, Ordinal::ZERO);
        log.control(&Control::SchemaChange { place, table: t(), description });
    }
    log.insert(48, 1, true);
    rig.log.append(log.batches());
    let running = rig.start();
    for description in ["one", "two"] {
        let failure = running
            .until(|status| {
                let failure = status.failure.as_ref();
                status.state == State::Stopped
                    && failure.is_some_and(|failure| failure.reason.ends_with(description))
            })
            .await
            .failure
            .unwrap();
        running.handle.skip(failure.position.unwrap()).await.unwrap();
    }
    running.applied(end_of(48)).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn bad_bytes_stop_after_what_is_whole_and_cannot_be_skipped() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.insert(16, 0, true).insert(32, 1, false).value(b"not ours").insert(32, 2, true);
    rig.log.append(log.batches());
    let running = rig.start();
    let status = running.state(State::Stopped).await;
    assert_eq!(status.place, Some(end_of(16)));
    let failure = status.failure.unwrap();
    assert!(failure.reason.contains("record at offset 2"), "{failure:?}");
    assert_eq!(failure.position, None);
    assert!(running.handle.skip("1@0/20").await.is_err());
    assert_eq!(ids(&rig), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_tried_again_and_the_error_is_shown() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.insert(16, 0, true);
    rig.log.append(log.batches());
    rig.database.faults().at(Op::Connect, 0, Fault::Lost);
    let running = rig.start();
    let failure = running.state(State::Retrying).await.failure.unwrap();
    assert!(failure.reason.contains("connection lost on purpose"), "{failure:?}");
    let status = running.applied(end_of(16)).await;
    assert_eq!(status.failure, None);
    assert_eq!(running.handle.metrics().snapshot().retries, 1);
    // Told to go on, it does not wait for the backoff.
    rig.database.faults().at(Op::Begin, 0, Fault::Lost);
    log.insert(32, 1, true);
    rig.log.append(log.batches());
    running.state(State::Retrying).await;
    running.handle.resume().await.unwrap();
    running.applied(end_of(32)).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_with_rows_of_others_is_not_touched_unasked() {
    let rig = rig();
    rig.database.put(&t(), row(5, None, "not", "ours"));
    let mut log = LogWriter::new();
    log.insert(16, 0, true);
    rig.log.append(log.batches());
    let running = rig.start();
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.reason.contains("public.t"), "{failure:?}");
    assert!(failure.remedy.contains("on_existing = \"merge\""), "{failure:?}");
    assert_eq!(ids(&rig), [5]);
}

#[tokio::test(start_paused = true)]
async fn latency_is_measured_and_the_process_ends_when_told() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.insert(16, 0, true).insert(32, 1, true).insert(48, 2, true);
    rig.log.append(log.batches());
    let running = rig.start();
    let status = running.applied(end_of(48)).await;
    assert_eq!(status.committed_at_us, Some(1000));
    let metrics = running.handle.metrics().snapshot();
    assert_eq!((metrics.rows, metrics.transactions), (3, 3));
    // The clock stands at 5000 µs, the source committed at 1000.
    assert_eq!(metrics.latency.counts[3], 3);
    running.stop().await;
    assert_eq!(rig.log.group("tailwater.p").map(|offset| offset.get()), Some(3));
}
