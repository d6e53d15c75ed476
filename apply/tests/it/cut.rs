//! A first snapshot that broke off and goes on: `t` is complete, `u` comes again.

use std::time::Duration;

use tailwater_apply::State;
use tailwater_change::{
    Commit, Control, Epoch, ForeignKey, Operation, Ordinal, Place, ReferentialAction, SchemaId,
    TableId, TableSchema,
};
use tailwater_kafka::RecordBatch;
use tailwater_memory::{Cell, Fault, ScriptedChange};

use crate::rig::{Rig, Running};
use crate::support::{LogWriter, row, schema};

const T: SchemaId = SchemaId::new(2);
const U: SchemaId = SchemaId::new(3);

/// `u`, which references `t`: a key that is made when all is there.
fn u_schema() -> TableSchema {
    let mut schema = (*schema("u", &[&["a"]])).clone();
    schema.foreign_keys = vec![ForeignKey {
        name: "u_t".into(),
        columns: vec!["a".into()],
        referenced: TableId::new("public", "t"),
        referenced_columns: vec!["id".into()],
        on_delete: ReferentialAction::NoAction,
        on_update: ReferentialAction::NoAction,
        deferrable: false,
        initially_deferred: false,
    }];
    schema
}

fn rig() -> Rig {
    Rig::new(&[schema("t", &[&["a"]]), std::sync::Arc::new(u_schema())])
}

fn place(commit: u64, ordinal: u64) -> Place {
    Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::new(ordinal))
}

fn end_of(commit: u64) -> Place {
    Place::end_of(Epoch::FIRST, Commit::lsn(commit))
}

/// A log with every record in a batch of its own.
struct History {
    log: LogWriter,
}

impl History {
    fn new() -> Self {
        let mut history = Self { log: LogWriter::new() };
        history.log.open(1).seal();
        history
    }

    fn control(&mut self, control: &Control<'_>) {
        self.log.control(control).seal();
    }

    fn begin(&mut self, commit: u64) {
        let (epoch, commit) = (Epoch::FIRST, Commit::lsn(commit));
        self.control(&Control::SnapshotBegin { epoch, commit });
    }

    fn cut(&mut self, commit: u64) {
        self.log.producer(i64::try_from(commit).unwrap(), 0).open(1).seal();
        let (epoch, commit) = (Epoch::FIRST, Commit::lsn(commit));
        self.control(&Control::SnapshotCut { epoch, commit });
    }

    fn rest(&mut self, commit: u64) {
        let (epoch, commit) = (Epoch::FIRST, Commit::lsn(commit));
        self.control(&Control::SnapshotRest { epoch, commit });
    }

    fn end(&mut self, commit: u64) {
        let (epoch, commit) = (Epoch::FIRST, Commit::lsn(commit));
        self.control(&Control::SnapshotEnd { epoch, commit });
    }

    fn row(&mut self, table: SchemaId, operation: Operation, at: Place, id: i64, last: bool) {
        let name = if table == T { "t" } else { "u" };
        let image = Some(row(id, None, "b", "c"));
        let delete = operation == Operation::Delete;
        let change = ScriptedChange {
            table: 0,
            operation,
            before: image.clone().filter(|_| delete),
            after: image.filter(|_| !delete),
            unsent: Vec::new(),
        };
        self.log.change(table, &schema(name, &[]), &change, at, last).seal();
    }

    fn insert(&mut self, table: SchemaId, commit: u64, id: i64) {
        self.row(table, Operation::Insert, place(commit, 0), id, true);
    }

    fn table_begin(&mut self, table: SchemaId, commit: u64, from: u64) {
        self.control(&Control::TableBegin { place: place(commit, from), schema: table });
    }

    /// Rows of a table, whose ids are their ordinals.
    fn rows(&mut self, table: SchemaId, commit: u64, ordinals: std::ops::Range<u64>) {
        for ordinal in ordinals {
            let id = i64::try_from(ordinal).unwrap();
            self.row(table, Operation::Read, place(commit, ordinal), id, false);
        }
    }

    fn table(&mut self, table: SchemaId, commit: u64, ordinals: std::ops::Range<u64>) {
        self.table_begin(table, commit, ordinals.start);
        self.rows(table, commit, ordinals.clone());
        let rows = ordinals.end - ordinals.start;
        self.control(&Control::TableEnd {
            place: place(commit, ordinals.end),
            schema: table,
            rows,
        });
    }

    /// `t` with the rows 0 to 6, and the first rows of `u`: 7 to 12.
    fn broken_off() -> Self {
        let mut history = Self::new();
        history.begin(16);
        history.table(T, 16, 0..7);
        history.table_begin(U, 16, 7);
        history.rows(U, 16, 7..13);
        history
    }

    /// And cut, with changes of `t` behind it.
    fn cut_off() -> Self {
        let mut history = Self::broken_off();
        history.cut(16);
        history.insert(T, 32, 100);
        history.row(T, Operation::Delete, place(36, 0), 3, true);
        history
    }

    /// And completed: `u` with the rows 0 to 3.
    fn whole() -> Self {
        let mut history = Self::cut_off();
        history.rest(48);
        history.table(U, 48, 0..4);
        history.end(48);
        history.insert(T, 64, 200);
        history.insert(U, 72, 300);
        history
    }

    fn batches(&mut self) -> Vec<RecordBatch> {
        self.log.batches()
    }
}

fn ids(rig: &Rig, name: &str) -> Vec<i64> {
    let rows = rig.database.rows(&TableId::new("public", name)).unwrap_or_default();
    let id = |row: &Vec<Cell>| match row[0] {
        Cell::Int(id) => id,
        _ => unreachable!(),
    };
    let mut ids: Vec<_> = rows.iter().map(id).collect();
    ids.sort_unstable();
    ids
}

fn unique(rig: &Rig, name: &str) -> usize {
    rig.database.definition(&TableId::new("public", name)).unwrap().unique.len()
}

fn is_whole(rig: &Rig, what: &str) {
    assert_eq!(ids(rig, "t"), [0, 1, 2, 4, 5, 6, 100, 200], "{what}");
    assert_eq!(ids(rig, "u"), [0, 1, 2, 3, 300], "{what}");
    assert_eq!((unique(rig, "t"), unique(rig, "u")), (1, 1), "{what}");
    let u = rig.database.definition(&TableId::new("public", "u")).unwrap();
    assert_eq!(u.foreign_keys, ["u_t"], "{what}");
}

#[tokio::test(start_paused = true)]
async fn a_cut_keeps_what_is_complete_and_empties_the_rest() {
    let rig = rig();
    rig.log.append(History::cut_off().batches());
    let running = rig.start();
    let status = running.applied(end_of(36)).await;
    // Readers see tables of different moments: it is not a stream yet, and nothing is finished.
    assert_eq!(status.state, State::Snapshot);
    assert_eq!(ids(&rig, "t"), [0, 1, 2, 4, 5, 6, 100]);
    assert_eq!(ids(&rig, "u"), [] as [i64; 0]);
    assert_eq!((unique(&rig, "t"), unique(&rig, "u")), (0, 0));
    running.stop().await;
    // Also not by a restart.
    let running = rig.start();
    running.until(|status| status.caught_up).await;
    assert_eq!(running.handle.status().state, State::Snapshot);
    assert_eq!((unique(&rig, "t"), unique(&rig, "u")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn its_rest_completes_it() {
    let rig = rig();
    rig.log.append(History::whole().batches());
    let running = rig.start();
    let status = running.applied(end_of(72)).await;
    assert_eq!(status.state, State::Streaming);
    is_whole(&rig, "at once");
}

#[tokio::test(start_paused = true)]
async fn apply_may_be_restarted_behind_any_record() {
    let batches = History::whole().batches();
    for (at, killed) in (0..=batches.len()).flat_map(|at| [(at, false), (at, true)]) {
        let rig = rig();
        rig.log.append(batches[..at].to_vec());
        let drained = rig.log.drained();
        let running = rig.start();
        drained.await;
        if killed {
            drop(running);
        } else {
            running.stop().await;
        }
        rig.log.append(batches[at..].to_vec());
        let running = rig.start();
        running.applied(end_of(72)).await;
        is_whole(&rig, &format!("restarted at {at}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_call_loses_and_repeats_nothing() {
    let calls = {
        let rig = rig();
        rig.log.append(History::whole().batches());
        let running = rig.start();
        running.applied(end_of(72)).await;
        rig.database.faults().calls()
    };
    for call in 0..calls {
        for fault in [Fault::Lost, Fault::LostAfter, Fault::Hang, Fault::HangAfter] {
            let rig = rig();
            rig.log.append(History::whole().batches());
            rig.database.faults().at_call(call, fault);
            let running = rig.start();
            let hung = tokio::select! {
                () = rig.database.faults().hung() => true,
                _ = running.applied(end_of(72)) => false,
            };
            if hung {
                drop(running);
                rig.start().applied(end_of(72)).await;
            }
            is_whole(&rig, &format!("{fault:?} at {call}"));
        }
    }
}

/// What the stream brings behind the snapshot completes it.
async fn completed(mut history: History, what: &str) {
    history.insert(T, 64, 200);
    history.insert(U, 72, 300);
    let rig = rig();
    rig.log.append(history.batches());
    let running = rig.start();
    running.applied(end_of(72)).await;
    is_whole(&rig, what);
}

#[tokio::test(start_paused = true)]
async fn a_rest_may_be_cut_as_well() {
    let mut history = History::cut_off();
    history.rest(40);
    history.table_begin(U, 40, 0);
    history.rows(U, 40, 0..2);
    history.cut(40);
    history.rest(48);
    history.table(U, 48, 0..4);
    history.end(48);
    completed(history, "cut twice").await;
}

/// Where nothing has happened on the source, the same snapshot goes on: its rows are numbered on.
#[tokio::test(start_paused = true)]
async fn a_table_may_begin_again_in_the_same_snapshot() {
    let mut history = History::broken_off();
    history.log.producer(9, 0).open(1).seal();
    history.table_begin(U, 16, 13);
    for (id, ordinal) in (0..4).zip(13..) {
        history.row(U, Operation::Read, place(16, ordinal), id, false);
    }
    history.control(&Control::TableEnd { place: place(16, 17), schema: U, rows: 4 });
    history.end(16);
    history.insert(T, 32, 100);
    history.row(T, Operation::Delete, place(36, 0), 3, true);
    completed(history, "numbered on").await;
}

#[tokio::test(start_paused = true)]
async fn a_later_snapshot_replaces_a_cut_one_as_well() {
    let mut history = History::cut_off();
    history.begin(48);
    history.table(U, 48, 0..4);
    history.end(48);
    let rig = rig();
    rig.log.append(history.batches());
    let running = rig.start();
    let status = running.applied(end_of(48)).await;
    assert_eq!(status.state, State::Streaming);
    // It has no `t`: what was kept of that belongs to the other.
    assert_eq!((ids(&rig, "t"), ids(&rig, "u")), (vec![], vec![0, 1, 2, 3]));
}

#[tokio::test(start_paused = true)]
async fn a_rest_without_its_beginning_is_no_snapshot() {
    let rig = rig();
    let mut log = History { log: LogWriter::from(10) };
    log.rest(48);
    log.table(U, 48, 0..4);
    log.end(48);
    rig.log.replace("t", log.batches());
    let running = rig.start();
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.remedy.contains("resync"), "{failure:?}");
    assert_eq!(ids(&rig, "u"), [] as [i64; 0]);
}

async fn settles(running: &Running, at: Place) -> bool {
    let mut status = running.handle.watch();
    let there = status.wait_for(|status| {
        status.state == State::Streaming && status.caught_up && status.place >= Some(at)
    });
    tokio::time::timeout(Duration::from_secs(600), there).await.is_ok()
}

/// Planted: what a capture would write that streams one transaction too far, that ends the stream
/// one too early, and that does not leave out the rows of the tables that come again.
#[tokio::test(start_paused = true)]
async fn wrong_captures_are_seen() {
    for (wrong, equal) in [("none", true), ("too far", false), ("too early", false)] {
        let mut history = History::cut_off();
        // On the source: `t` got 101 at 40, `u` has it at 48 as well.
        if wrong != "too early" {
            history.insert(T, 40, 101);
        }
        if wrong == "too far" {
            history.insert(T, 52, 102);
        }
        history.rest(48);
        history.table(U, 48, 0..4);
        history.end(48);
        if wrong != "too far" {
            history.insert(T, 52, 102);
        }
        let rig = rig();
        rig.log.append(history.batches());
        let running = rig.start();
        let same = settles(&running, end_of(52)).await
            && ids(&rig, "t") == [0, 1, 2, 4, 5, 6, 100, 101, 102]
            && ids(&rig, "u") == [0, 1, 2, 3];
        assert_eq!(same, equal, "{wrong}");
    }
    let mut history = History::cut_off();
    history.row(U, Operation::Delete, place(40, 0), 9, true);
    let mut rig = rig();
    rig.config.on_conflict = tailwater_apply::ConflictPolicy::Stop;
    rig.log.append(history.batches());
    rig.start().state(State::Stopped).await;
}
