//! Whatever dies when, and whatever the log holds besides: after every commit the target is the
//! source as it was after one of its transactions, and in the end it is the source.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_apply::State;
use tailwater_change::{
    Chunks, Commit, Control, Epoch, Operation, Ordinal, Place, SchemaId, TableSchema,
};
use tailwater_memory::{
    Cell, Definition, Fault, Op, Planted, Script, ScriptedChange, ScriptedTransaction,
};

use crate::rig::{Rig, Running};
use crate::support::{LogWriter, change_value, keyless, row, schema};

type Rows = Vec<Vec<Cell>>;

/// A source's history, the log it became, and what the target may look like after each place.
struct History {
    rig: Rig,
    schemas: Vec<Arc<TableSchema>>,
    /// By place of the transaction's end.
    states: BTreeMap<Place, Vec<Rows>>,
    last: Place,
}

fn schemas() -> Vec<Arc<TableSchema>> {
    vec![schema("one", &[&["a"]]), schema("two", &[&["b", "c"]]), keyless("bag")]
}

fn sorted(mut rows: Rows) -> Rows {
    rows.sort();
    rows
}

impl History {
    /// A history of `transactions`, in a log in which all sorts of accidents happened.
    fn new(seed: u64, transactions: usize) -> Self {
        Self::with(seed, transactions, None)
    }

    fn with(seed: u64, transactions: usize, planted: Option<Wrong>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let schemas = schemas();
        let rig = Rig::new(&schemas);
        for schema in &schemas {
            let mut definition = Definition::of(schema);
            let columns = |index: &tailwater_change::Index| {
                index.columns.iter().filter_map(|name| schema.column(name)).collect()
            };
            definition.unique = schema.indexes.iter().map(columns).collect();
            rig.database.create(schema.table.clone(), definition);
        }
        rig.database.record_history();
        let mut script = Script::new(schemas.clone());
        let mut writer = Writer::new(schemas.clone());
        writer.planted = planted;
        let mut held_back = None;
        let mut states = BTreeMap::new();
        states.insert(Place::default(), vec![Vec::new(); schemas.len()]);
        let mut last = Place::default();
        for _ in 0..transactions {
            script.random_transaction(&mut rng, 12);
            let transaction = script.log().last().unwrap().clone();
            if planted == Some(Wrong::Order) && held_back.is_none() {
                held_back = Some(transaction);
                continue;
            }
            last = writer.transaction(&mut rng, &transaction);
            if let Some(earlier) = held_back.take() {
                writer.transaction(&mut rng, &earlier);
            }
            let rows = (0..schemas.len()).map(|table| sorted(script.rows(table))).collect();
            states.insert(last, rows);
        }
        rig.log.append(writer.log.batches());
        Self { rig, schemas, states, last }
    }

    /// That every commit left the source as it was after the committed place.
    fn assert_whole(&self, seed: u64) {
        let mut before = Place::default();
        for committed in self.rig.database.history() {
            let place = committed.progress.place;
            assert!(place >= before, "seed {seed}: {place} after {before}");
            before = place;
            // An idle marker takes the place on without a change.
            let (_, state) = self.states.range(..=place).next_back().unwrap();
            for (schema, rows) in self.schemas.iter().zip(state) {
                let target = sorted(committed.rows(&schema.table).unwrap());
                assert_eq!(&target, rows, "seed {seed} at {place}: {}", schema.table);
            }
        }
        assert_eq!(before.epoch, self.last.epoch, "seed {seed}");
        assert!(before >= self.last, "seed {seed}");
    }
}

/// What a capture may do wrong, planted to show that [`History::assert_whole`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    /// It writes a transaction after a later one.
    Order,
    /// It takes over without an open marker: who was superseded still counts.
    SilentTakeOver,
}

/// Writes transactions as capture does on its bad days.
struct Writer {
    planted: Option<Wrong>,
    log: LogWriter,
    schemas: Vec<Arc<TableSchema>>,
    epoch: Epoch,
    producer: (i64, i16),
    attempt: u64,
}

impl Writer {
    fn new(schemas: Vec<Arc<TableSchema>>) -> Self {
        let mut log = LogWriter::new();
        log.open(1);
        Self { planted: None, log, schemas, epoch: Epoch::FIRST, producer: (7, 0), attempt: 0 }
    }

    fn transaction(&mut self, rng: &mut SmallRng, transaction: &ScriptedTransaction) -> Place {
        if rng.random_bool(0.1) {
            self.fail_over(rng, transaction.commit);
        }
        let rows = transaction.changes.len();
        if rng.random_bool(0.25) {
            // Written in part; the writer dies; its successor begins somewhere before.
            let until = rng.random_range(0..=rows);
            self.rows(rng, transaction, 0, until, false);
            let zombie = self.producer;
            self.take_over(rng);
            if rng.random_bool(0.5) {
                self.zombie(zombie, transaction.commit);
            }
            let from = rng.random_range(0..=until);
            self.rows(rng, transaction, from, rows, true);
        } else {
            self.rows(rng, transaction, 0, rows, true);
        }
        if rng.random_bool(0.1) {
            self.rows(rng, transaction, 0, rows, true);
        }
        if rng.random_bool(0.2) {
            let (epoch, commit) = (self.epoch, transaction.commit);
            self.log.control(&Control::Idle { epoch, commit });
        }
        Place::end_of(self.epoch, transaction.commit)
    }

    fn rows(
        &mut self,
        rng: &mut SmallRng,
        transaction: &ScriptedTransaction,
        from: usize,
        until: usize,
        end: bool,
    ) {
        let flag = end && rng.random_bool(0.5) && until > from;
        for at in from..until {
            let value = self.value(
                &transaction.changes[at],
                transaction.commit,
                at,
                flag && at + 1 == until,
            );
            self.write(rng, &value);
        }
        if end && !flag {
            self.log.control(&Control::End {
                epoch: self.epoch,
                commit: transaction.commit,
                committed_at_us: Some(transaction.committed_at_us),
                transaction: Some("x"),
                rows: until as u64,
            });
        }
    }

    fn value(&self, change: &ScriptedChange, commit: Commit, at: usize, last: bool) -> Vec<u8> {
        let id = SchemaId::new(2 + u32::try_from(change.table).unwrap());
        let place = Place::new(self.epoch, commit, Ordinal::new(at as u64));
        change_value(id, &self.schemas[change.table], change, place, last)
    }

    fn write(&mut self, rng: &mut SmallRng, value: &[u8]) {
        if rng.random_bool(0.3) {
            self.log.seal();
        }
        if rng.random_bool(0.8) {
            self.log.value(value);
            return;
        }
        self.attempt += 1;
        let chunks: Vec<_> = Chunks::new(value, 16, self.attempt).collect();
        if rng.random_bool(0.3) {
            for chunk in &chunks[..chunks.len() - 1] {
                self.log.control(chunk);
            }
            self.attempt += 1;
        }
        for chunk in Chunks::new(value, 20, self.attempt) {
            self.log.control(&chunk);
        }
    }

    fn take_over(&mut self, rng: &mut SmallRng) {
        self.producer = if rng.random_bool(0.5) {
            (self.producer.0, self.producer.1 + 1)
        } else {
            (self.producer.0 + 1, 0)
        };
        self.log.producer(self.producer.0, self.producer.1);
        if self.planted != Some(Wrong::SilentTakeOver) {
            self.log.open(self.epoch.get());
        }
    }

    /// Half a transaction that the new primary has never heard of.
    fn fail_over(&mut self, rng: &mut SmallRng, commit: Commit) {
        for at in 0..rng.random_range(1..9) {
            let value = self.value(&garbage(), commit, at, false);
            self.write(rng, &value);
        }
        self.epoch = self.epoch.next();
        self.take_over(rng);
    }

    /// A superseded writer wakes up.
    fn zombie(&mut self, zombie: (i64, i16), commit: Commit) {
        let value = self.value(&garbage(), commit, 99, true);
        self.log.producer(zombie.0, zombie.1).value(&value);
        self.log.producer(self.producer.0, self.producer.1);
    }
}

fn garbage() -> ScriptedChange {
    ScriptedChange {
        table: 0,
        operation: Operation::Insert,
        before: None,
        after: Some(row(777, Some(777), "garbage", "garbage")),
        unsent: Vec::new(),
    }
}

async fn finish(history: &History, running: Running) {
    running.applied(history.last).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn any_log_is_applied_transaction_by_transaction() {
    // Always some seeds that nobody has tried; a failure names its own.
    let base = std::hash::RandomState::new().build_hasher().finish();
    for seed in (0..40).chain(base..base.saturating_add(20)) {
        let history = History::new(seed, 40);
        finish(&history, history.rig.start()).await;
        history.assert_whole(seed);
        let progress = history.rig.database.progress("p").unwrap();
        let group = history.rig.log.group("tailwater.p").unwrap();
        assert_eq!(group.get(), progress.next_offset, "seed {seed}");
    }
}

/// Runs a history with one failure, restarting the process where a call never returned.
async fn run_with_fault(seed: u64, arm: impl Fn(&Rig)) -> u64 {
    let history = History::new(seed, 12);
    arm(&history.rig);
    let faults = history.rig.database.faults();
    let running = history.rig.start();
    let hung = tokio::select! {
        () = faults.hung() => true,
        _ = running.applied(history.last) => false,
    };
    if hung {
        // The process is gone, in the middle of the call.
        drop(running);
        finish(&history, history.rig.start()).await;
    } else {
        running.stop().await;
    }
    history.assert_whole(seed);
    faults.happened()
}

#[tokio::test(start_paused = true)]
async fn a_failure_at_any_call_loses_and_repeats_nothing() {
    for seed in 0..3 {
        let calls = {
            let history = History::new(seed, 12);
            finish(&history, history.rig.start()).await;
            history.rig.database.faults().calls()
        };
        assert!(calls > 50, "{calls}");
        let mut happened = 0;
        for call in 0..calls {
            for fault in [Fault::Lost, Fault::LostAfter, Fault::Hang, Fault::HangAfter] {
                happened +=
                    run_with_fault(seed, |rig| rig.database.faults().at_call(call, fault)).await;
            }
        }
        assert!(happened > calls * 3, "{happened} of {calls}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_commit_outcome_is_settled_by_the_progress() {
    for fault in [Fault::Lost, Fault::LostAfter] {
        for nth in 0..8 {
            run_with_fault(7, |rig| rig.database.faults().at(Op::Commit, nth, fault)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_fenced_stands_by_and_changes_nothing() {
    let history = History::new(3, 12);
    let rig = &history.rig;
    // The first hangs in a commit, as a process does whose machine is suspended.
    rig.database.faults().at(Op::Begin, 2, Fault::HangAfter);
    let first = rig.start();
    rig.database.faults().hung().await;
    rig.database.break_lock("p");
    let second = rig.start();
    second.applied(history.last).await;
    history.assert_whole(3);
    drop(first);

    // One that wakes up and goes on has its commit refused.
    let zombie = rig.start();
    zombie.state(State::Standby).await;
    let fence = rig.database.progress("p").unwrap().fence;
    rig.database.break_lock("p");
    zombie.until(|status| status.state == State::Streaming).await;
    assert_eq!(rig.database.progress("p").unwrap().fence, fence + 1);
    let mut log = LogWriter::from(rig.log.end().get());
    log.producer(99, 0).open(9).insert_in(history.last.epoch.next(), 5, 900, true);
    rig.log.append(log.batches());
    // Both read it; only the one in force writes it. The other is fenced, and waits.
    second.state(State::Standby).await;
    zombie.until(|status| status.caught_up).await;
    assert_eq!(rig.database.progress("p").unwrap().fence, fence + 1);
    zombie.stop().await;
    second.state(State::Streaming).await;
    assert_eq!(rig.database.progress("p").unwrap().fence, fence + 2);
}

#[tokio::test(start_paused = true)]
async fn two_processes_one_applies() {
    let history = History::new(5, 12);
    let (one, two) = (history.rig.start(), history.rig.start());
    one.applied(history.last).await;
    two.state(State::Standby).await;
    drop(one);
    two.applied(history.last).await;
    history.assert_whole(5);
}

#[tokio::test(start_paused = true)]
async fn another_log_is_searched_for_the_place() {
    let history = History::new(11, 12);
    finish(&history, history.rig.start()).await;
    let commits = history.rig.database.commits();
    // A mirror: other offsets, no open markers that name its producer.
    let mut mirror = LogWriter::from(0);
    let (epoch, commit) = (history.last.epoch, history.last.commit);
    let copied =
        Control::Open { producer_id: 99, producer_epoch: 0, epoch: Epoch::FIRST, server: "server" };
    mirror.control(&copied);
    mirror.control(&Control::Idle { epoch, commit });
    mirror.control(&Control::End {
        epoch: history.last.epoch,
        commit: Commit::lsn(9_999_999),
        committed_at_us: None,
        transaction: None,
        rows: 0,
    });
    history.rig.log.replace("another", mirror.batches());
    let running = history.rig.start();
    let end = Place::end_of(history.last.epoch, Commit::lsn(9_999_999));
    running.applied(end).await;
    running.stop().await;
    history.assert_whole(11);
    assert_eq!(history.rig.database.commits(), commits + 1);
    assert_eq!(history.rig.database.progress("p").unwrap().topic_id, "another");
}

#[tokio::test(start_paused = true)]
async fn another_log_that_begins_later_is_not_trusted() {
    let history = History::new(11, 12);
    finish(&history, history.rig.start()).await;
    let mut rebuilt = LogWriter::new();
    rebuilt.insert_in(history.last.epoch.next(), 5, 0, true);
    history.rig.log.replace("another", rebuilt.batches());
    let running = history.rig.start();
    let status = running.state(State::Stopped).await;
    let failure = status.failure.unwrap();
    assert!(failure.reason.contains("nothing in it shows"), "{failure:?}");
    assert!(failure.remedy.contains("resync"));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_forgot_what_comes_next_stops_the_pipeline() {
    let history = History::new(2, 12);
    finish(&history, history.rig.start()).await;
    let end = history.rig.log.end();
    let mut log = LogWriter::from(end.get() + 10);
    log.insert_in(history.last.epoch.next(), 5, 0, true);
    history.rig.log.append(log.batches());
    history.rig.log.truncate_before(tailwater_kafka::Offset::new(end.get() + 10));
    let running = history.rig.start();
    let failure = running.state(State::Stopped).await.failure.unwrap();
    assert!(failure.reason.contains("the log begins at offset"), "{failure:?}");
    assert!(failure.remedy.contains("resync"));
}

/// Whether a run with something planted in it fails: an assertion, or an end that never comes.
async fn fails(seed: u64, planted: Option<Wrong>, prepare: impl Fn(&Rig)) -> bool {
    let history = History::with(seed, 12, planted);
    prepare(&history.rig);
    let run = tokio::spawn(async move {
        finish(&history, history.rig.start()).await;
        history.assert_whole(seed);
    });
    run.await.is_err()
}

#[tokio::test(start_paused = true)]
async fn wrong_captures_and_targets_are_seen() {
    let lost = |rig: &Rig| rig.database.faults().at(Op::Commit, 1, Fault::LostAfter);
    let plant = |bug| move |rig: &Rig| rig.database.plant(bug);
    let mut seen = [0; 4];
    for seed in 0..10 {
        assert!(!fails(seed, None, lost).await, "seed {seed}");
        let aside = |rig: &Rig| {
            plant(Planted::SavesProgressAside)(rig);
            // After the first commit nothing of it is in the progress.
            rig.database.faults().at(Op::Commit, 0, Fault::LostAfter);
        };
        let found = [
            fails(seed, Some(Wrong::Order), |_| {}).await,
            fails(seed, Some(Wrong::SilentTakeOver), |_| {}).await,
            fails(seed, None, plant(Planted::CommitsEachStep)).await,
            fails(seed, None, aside).await,
        ];
        for (count, found) in seen.iter_mut().zip(found) {
            *count += usize::from(found);
        }
    }
    // A seed may have no zombie in it; ten have.
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    assert_eq!((seen[0], seen[2]), (10, 10), "{seen:?}");
}
