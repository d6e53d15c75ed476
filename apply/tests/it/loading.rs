//! The first load: tables made, emptied or merged into, and every way a snapshot can break off.

use tailwater_apply::{Failure, OnExisting, RouteRule, State};
use tailwater_change::{
    Commit, Control, Epoch, ForeignKey, Ordinal, Place, ReferentialAction, SchemaId, TableId,
};
use tailwater_memory::{Cell, Definition, Fault};

use crate::rig::{Rig, Running};
use crate::support::{LogWriter, row, schema};

const TABLE: SchemaId = SchemaId::new(2);

fn rig() -> Rig {
    Rig::new(&[schema("t", &[&["a"]])])
}

fn t() -> TableId {
    TableId::new("public", "t")
}

fn place(commit: u64, ordinal: u64) -> Place {
    Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::new(ordinal))
}

fn end_of(commit: u64) -> Place {
    Place::end_of(Epoch::FIRST, Commit::lsn(commit))
}

fn begin(log: &mut LogWriter, commit: u64) {
    let (epoch, commit) = (Epoch::FIRST, Commit::lsn(commit));
    log.control(&Control::SnapshotBegin { epoch, commit });
}

fn end(log: &mut LogWriter, commit: u64) {
    let (epoch, commit) = (Epoch::FIRST, Commit::lsn(commit));
    log.control(&Control::SnapshotEnd { epoch, commit });
}

fn table_begin(log: &mut LogWriter, commit: u64, from: u64) {
    log.control(&Control::TableBegin { place: place(commit, from), schema: TABLE });
}

fn table(log: &mut LogWriter, commit: u64, ordinals: std::ops::Range<u64>) {
    table_begin(log, commit, ordinals.start);
    for ordinal in ordinals.clone() {
        log.read(commit, ordinal);
    }
    let (end, rows) = (ordinals.end, ordinals.end - ordinals.start);
    log.control(&Control::TableEnd { place: place(commit, end), schema: TABLE, rows });
}

/// A whole snapshot at 16 of the rows `0..rows`, and a transaction after it.
fn whole(rows: u64) -> LogWriter {
    let mut log = LogWriter::new();
    log.open(1);
    begin(&mut log, 16);
    table(&mut log, 16, 0..rows);
    end(&mut log, 16);
    log.insert(32, 100, true);
    log
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

fn expected(rows: i64) -> Vec<i64> {
    (0..rows).chain([100]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_missing_table_is_made_loaded_and_finished() {
    let rig = rig();
    rig.log.append(whole(12).batches());
    let running = rig.start();
    let status = running.applied(end_of(32)).await;
    assert_eq!(status.state, State::Streaming);
    assert_eq!(ids(&rig), expected(12));
    // The unique key came after the load.
    assert_eq!(rig.database.definition(&t()).unwrap().unique, [vec![1]]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn until_its_end_a_snapshot_is_a_snapshot() {
    let rig = rig();
    let mut log = LogWriter::new();
    begin(&mut log, 16);
    table_begin(&mut log, 16, 0);
    for ordinal in 0..7 {
        log.read(16, ordinal);
    }
    rig.log.append(log.batches());
    let running = rig.start();
    // Five rows make a part: the rest waits for the table's end.
    let status = running.until(|status| status.place == Some(place(16, 4))).await;
    assert_eq!(status.state, State::Snapshot);
    assert_eq!(ids(&rig), [0, 1, 2, 3, 4]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_call_of_the_first_load_loses_and_repeats_nothing() {
    let calls = {
        let rig = rig();
        rig.log.append(whole(12).batches());
        let running = rig.start();
        running.applied(end_of(32)).await;
        rig.database.faults().calls()
    };
    for call in 0..calls {
        for fault in [Fault::Lost, Fault::LostAfter, Fault::Hang, Fault::HangAfter] {
            let rig = rig();
            rig.log.append(whole(12).batches());
            rig.database.faults().at_call(call, fault);
            let running = rig.start();
            let hung = tokio::select! {
                () = rig.database.faults().hung() => true,
                _ = running.applied(end_of(32)) => false,
            };
            let again = hung.then(|| {
                drop(running);
                rig.start()
            });
            if let Some(again) = again {
                again.applied(end_of(32)).await;
            }
            assert_eq!(ids(&rig), expected(12), "{fault:?} at {call}");
            assert_eq!(rig.database.definition(&t()).unwrap().unique, [vec![1]]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_broke_off_is_loaded_anew() {
    let rig = rig();
    let mut log = LogWriter::new();
    log.open(1);
    begin(&mut log, 16);
    table_begin(&mut log, 16, 0);
    for ordinal in 50..58 {
        log.read(16, ordinal);
    }
    rig.log.append(log.batches());
    let running = rig.start();
    running.until(|status| status.place == Some(place(16, 54))).await;
    // Capture died; another takes a new snapshot. Rows that are gone by then are gone here.
    log.producer(8, 0).open(1);
    begin(&mut log, 24);
    table(&mut log, 24, 0..3);
    end(&mut log, 24);
    log.insert(32, 100, true);
    rig.log.append(log.batches());
    running.applied(end_of(32)).await;
    assert_eq!(ids(&rig), expected(3));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_the_next_snapshot_lacks_is_emptied() {
    let other = schema("other", &[]);
    let rig = Rig::new(&[schema("t", &[&["a"]]), std::sync::Arc::clone(&other)]);
    let mut log = LogWriter::new();
    begin(&mut log, 16);
    table(&mut log, 16, 0..6);
    begin(&mut log, 24);
    let id = SchemaId::new(3);
    log.control(&Control::TableBegin { place: place(24, 0), schema: id });
    log.control(&Control::TableEnd { place: place(24, 0), schema: id, rows: 0 });
    end(&mut log, 24);
    rig.log.append(log.batches());
    let running = rig.start();
    running.applied(end_of(24)).await;
    assert_eq!(ids(&rig), [] as [i64; 0]);
    assert_eq!(rig.database.rows(&other.table), Some(Vec::new()));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_the_end_of_its_snapshot_stops() {
    let rig = rig();
    let mut log = LogWriter::new();
    begin(&mut log, 16);
    table(&mut log, 16, 0..6);
    log.insert(32, 100, true);
    rig.log.append(log.batches());
    let running = rig.start();
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.reason.contains("never ended"), "{failure:?}");
    assert!(failure.remedy.contains("resync"), "{failure:?}");
}

/// Behind what is in `log`, another snapshot: of the first two rows.
fn resync(rig: &Rig, mut log: LogWriter) {
    begin(&mut log, 48);
    table(&mut log, 48, 0..2);
    end(&mut log, 48);
    rig.log.append(log.batches());
}

/// It stops because its rows and those of others stand in one table.
async fn cannot_tell_apart(running: &Running) -> Failure {
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.reason.contains("nothing tells them apart"), "{failure:?}");
    failure
}

#[tokio::test(start_paused = true)]
async fn a_resync_replaces_what_was_loaded_before() {
    let rig = rig();
    resync(&rig, whole(12));
    let running = rig.start();
    running.applied(end_of(48)).await;
    assert_eq!(ids(&rig), [0, 1]);
    running.stop().await;
}

fn with_foreign_row(on_existing: OnExisting) -> Rig {
    let schema = schema("t", &[]);
    let mut rig = Rig::new(std::slice::from_ref(&schema));
    rig.config.on_existing = on_existing;
    rig.database.create(t(), Definition::of(&schema));
    rig.database.put(&t(), row(2, Some(7), "foreign", "x"));
    rig.database.put(&t(), row(500, Some(7), "foreign", "x"));
    rig.log.append(whole(7).batches());
    rig
}

#[tokio::test(start_paused = true)]
async fn rows_of_others_stop_the_load() {
    let rig = with_foreign_row(OnExisting::Stop);
    let running = rig.start();
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.reason.contains("public.t"), "{failure:?}");
    assert_eq!(ids(&rig), [2, 500]);
}

#[tokio::test(start_paused = true)]
async fn rows_of_others_are_merged_with() {
    let rig = with_foreign_row(OnExisting::Merge);
    let running = rig.start();
    running.applied(end_of(32)).await;
    let mut all = expected(7);
    all.push(500);
    assert_eq!(ids(&rig), all);
    // The source's row won.
    assert_eq!(rig.database.rows(&t()).unwrap()[2], row(2, None, "b", "c"));
}

#[tokio::test(start_paused = true)]
async fn rows_of_others_are_replaced() {
    let rig = with_foreign_row(OnExisting::Replace);
    let running = rig.start();
    running.applied(end_of(32)).await;
    assert_eq!(ids(&rig), expected(7));
}

/// A snapshot of the rows 50 to 57 at 16, merged into a table with the row 500, that never ended.
async fn merged_and_broken_off(on_existing: OnExisting) -> (Rig, Running) {
    let schema = schema("t", &[]);
    let mut rig = Rig::new(&[std::sync::Arc::clone(&schema), self::schema("other", &[])]);
    rig.config.on_existing = OnExisting::Merge;
    rig.database.create(t(), Definition::of(&schema));
    rig.database.put(&t(), row(500, Some(7), "foreign", "x"));
    let mut log = LogWriter::new();
    begin(&mut log, 16);
    table(&mut log, 16, 50..58);
    rig.log.append(log.batches());
    let running = rig.start();
    running.until(|status| status.place >= Some(place(16, 54))).await;
    running.stop().await;
    rig.config.on_existing = on_existing;
    let running = rig.start();
    (rig, running)
}

fn again(rig: &Rig) {
    let mut log = LogWriter::from(rig.log.end().get());
    begin(&mut log, 24);
    table(&mut log, 24, 0..3);
    end(&mut log, 24);
    log.insert(32, 100, true);
    rig.log.append(log.batches());
}

#[tokio::test(start_paused = true)]
async fn what_was_merged_into_is_not_loaded_again_before_it_is_empty() {
    for on_existing in [OnExisting::Merge, OnExisting::Stop] {
        let (rig, running) = merged_and_broken_off(on_existing).await;
        let before = ids(&rig);
        assert_eq!(before.last(), Some(&500));
        again(&rig);
        let failure = cannot_tell_apart(&running).await;
        assert!(failure.remedy.contains("empty it"), "{failure:?}");
        // Rows that were there before us are there.
        assert_eq!(ids(&rig), before);
        running.handle.resume().await.unwrap();
        running.state(State::Stopped).await;
        rig.database.create(t(), Definition::of(&schema("t", &[])));
        running.handle.resume().await.unwrap();
        running.applied(end_of(32)).await;
        assert_eq!(ids(&rig), expected(3));
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_merged_into_is_replaced_if_told_so() {
    let (rig, running) = merged_and_broken_off(OnExisting::Replace).await;
    again(&rig);
    running.applied(end_of(32)).await;
    assert_eq!(ids(&rig), expected(3));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_merged_into_and_is_no_longer_loaded_does_not_stay_silently() {
    let (rig, running) = merged_and_broken_off(OnExisting::Merge).await;
    let mut log = LogWriter::from(rig.log.end().get());
    begin(&mut log, 24);
    let id = SchemaId::new(3);
    log.control(&Control::TableBegin { place: place(24, 0), schema: id });
    log.control(&Control::TableEnd { place: place(24, 0), schema: id, rows: 0 });
    end(&mut log, 24);
    rig.log.append(log.batches());
    cannot_tell_apart(&running).await;
    assert!(ids(&rig).contains(&500));
}

#[tokio::test(start_paused = true)]
async fn a_resync_of_what_was_merged_into_asks() {
    let rig = with_foreign_row(OnExisting::Merge);
    let running = rig.start();
    running.applied(end_of(32)).await;
    resync(&rig, LogWriter::from(rig.log.end().get()));
    cannot_tell_apart(&running).await;
    assert!(ids(&rig).contains(&500));
}

#[tokio::test(start_paused = true)]
async fn foreign_keys_come_after_the_indexes_of_all_tables() {
    // The first table references a secondary unique key of the second, and the other way round.
    let keys = |name: &str, other: &str| {
        let mut schema = (*schema(name, &[&["a"]])).clone();
        schema.foreign_keys = vec![ForeignKey {
            name: format!("{name}_{other}"),
            columns: vec!["id".into()],
            referenced: TableId::new("public", other),
            referenced_columns: vec!["a".into()],
            on_delete: ReferentialAction::NoAction,
            on_update: ReferentialAction::NoAction,
            deferrable: false,
            initially_deferred: false,
        }];
        std::sync::Arc::new(schema)
    };
    let mut log = LogWriter::new();
    begin(&mut log, 16);
    for id in [2, 3] {
        let (place, schema) = (place(16, 0), SchemaId::new(id));
        log.control(&Control::TableBegin { place, schema });
        log.control(&Control::TableEnd { place, schema, rows: 0 });
    }
    end(&mut log, 16);
    let batches = log.batches();
    // Whatever a crash in the middle has left.
    let mut call = 0;
    loop {
        let rig = Rig::new(&[keys("t", "other"), keys("other", "t")]);
        rig.log.append(batches.clone());
        rig.database.faults().at_call(call, Fault::LostAfter);
        let running = rig.start();
        running.applied(end_of(16)).await;
        for (name, key) in [("t", "t_other"), ("other", "other_t")] {
            let made = rig.database.definition(&TableId::new("public", name)).unwrap();
            assert_eq!((made.unique, made.foreign_keys), (vec![vec![1]], vec![key.to_owned()]));
        }
        call += 1;
        if call >= rig.database.faults().calls() {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tables_go_where_the_route_says_or_nowhere() {
    let mut rig = Rig::new(&[schema("t", &[]), schema("ignored", &[])]);
    let rule: RouteRule = "public.t = copy.*".parse().unwrap();
    rig.config.route = tailwater_apply::Route::new(vec![rule]);
    let mut log = whole(3);
    let id = SchemaId::new(3);
    begin(&mut log, 48);
    log.control(&Control::TableBegin { place: place(48, 0), schema: id });
    log.control(&Control::TableEnd { place: place(48, 0), schema: id, rows: 0 });
    end(&mut log, 48);
    rig.log.append(log.batches());
    let running = rig.start();
    running.applied(end_of(48)).await;
    assert_eq!(rig.database.rows(&TableId::new("copy", "t")).unwrap().len(), 4);
    assert_eq!(rig.database.rows(&t()), None);
    assert_eq!(rig.database.rows(&TableId::new("public", "ignored")), None);
}

#[tokio::test(start_paused = true)]
async fn a_table_first_met_in_the_stream_is_made() {
    for rows in [1, 12] {
        let rig = rig();
        let mut log = LogWriter::new();
        log.end(8);
        for ordinal in 0..rows {
            log.insert(16, ordinal, ordinal + 1 == rows);
        }
        rig.log.append(log.batches());
        let running = rig.start();
        running.applied(end_of(16)).await;
        assert_eq!(ids(&rig).len() as u64, rows);
        assert_eq!(rig.database.definition(&t()).unwrap().unique, [vec![1]]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_without_its_beginning_needs_a_snapshot() {
    let rig = rig();
    let mut log = LogWriter::from(10);
    log.insert(32, 0, true);
    rig.log.replace("t", log.batches());
    let running = rig.start();
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.remedy.contains("resync"), "{failure:?}");
    drop(running);

    let mut log = LogWriter::from(10);
    begin(&mut log, 16);
    table(&mut log, 16, 0..2);
    end(&mut log, 16);
    rig.log.replace("t", log.batches());
    let running = rig.start();
    running.applied(end_of(16)).await;
    assert_eq!(ids(&rig), [0, 1]);
}
