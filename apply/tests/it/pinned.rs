//! A row keeps the buffer it was read into: whatever else lies there counts.

use tailwater_apply::{Assembler, BatchBounds, Item, PartBounds, Resume, RouteRule, SchemaUse};
use tailwater_change::{Commit, Epoch, Operation, Ordinal, Place, SchemaId};
use tailwater_kafka::Offset;
use tailwater_memory::{Definition, ScriptedChange};

use crate::rig::Rig;
use crate::support::{CONTROL, LogWriter, row, schema, table};

const APPLIED: SchemaId = SchemaId::new(2);
const LEFT_OUT: SchemaId = SchemaId::new(3);

/// A row of `size` bytes and a bit.
fn insert(log: &mut LogWriter, id: SchemaId, commit: u64, ordinal: u64, size: usize, last: bool) {
    let key = i64::try_from(commit * 1000 + ordinal).unwrap();
    let change = ScriptedChange {
        table: 0,
        operation: Operation::Insert,
        before: None,
        after: Some(row(key, None, &"x".repeat(size), "c")),
        unsent: Vec::new(),
    };
    let place = Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::new(ordinal));
    log.change(id, &schema("t", &[]), &change, place, last);
}

/// How many rows each part has, and how many bytes it says it holds.
fn parts(log: &mut LogWriter) -> Vec<(usize, usize)> {
    let bounds = PartBounds { rows: 1000, bytes: 8_000, row_bytes: 1 << 20 };
    let mut assembler = Assembler::new(Resume::default(), Offset::ZERO, bounds);
    for batch in log.batches() {
        assembler.push(batch);
    }
    let mut parts = Vec::new();
    while let Some(item) = assembler.next_item().unwrap() {
        match item {
            Item::Schema(CONTROL) => assembler.learn(CONTROL, SchemaUse::Control),
            Item::Schema(APPLIED) => {
                assembler.learn(APPLIED, SchemaUse::Table(table(&schema("t", &[]))));
            }
            Item::Schema(id) => assembler.learn(id, SchemaUse::Ignored),
            Item::Part(part) => parts.push((part.changes.len(), part.bytes)),
            Item::Opened { .. } => {}
            item => unreachable!("{item:?}"),
        }
    }
    parts
}

#[test]
fn a_transaction_of_mostly_other_tables_comes_in_bounded_parts() {
    let mut log = LogWriter::new();
    // What stands before the first row that is held is kept by none.
    for ordinal in 0..40 {
        let id = if ordinal < 20 || ordinal % 10 != 0 { LEFT_OUT } else { APPLIED };
        insert(&mut log, id, 16, ordinal, 1000, ordinal == 39);
    }
    let rows: Vec<usize> = parts(&mut log).iter().map(|part| part.0).collect();
    assert_eq!(rows, [1, 1, 0]);
}

#[test]
fn what_does_not_count_in_the_log_counts_in_memory() {
    let mut log = LogWriter::new();
    log.open(1);
    for ordinal in 0..4 {
        insert(&mut log, APPLIED, 16, ordinal, 10, ordinal == 3);
        // The writer says something twice, and another, superseded, goes on.
        insert(&mut log, APPLIED, 16, ordinal, 5_000, false);
        log.producer(9, 0);
        insert(&mut log, APPLIED, 16, ordinal, 5_000, false);
        log.producer(7, 0);
    }
    let parts = parts(&mut log);
    let rows: Vec<usize> = parts.iter().map(|part| part.0).collect();
    assert_eq!(rows, [2, 2], "{parts:?}");
    assert!(parts.iter().all(|part| part.1 > 10_000), "{parts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_between_transactions_of_other_tables_is_bounded() {
    let schemas = [schema("t", &[]), schema("other", &[])];
    let mut rig = Rig::new(&schemas);
    let rule: RouteRule = "public.t = public.t".parse().unwrap();
    rig.config.route = tailwater_apply::Route::new(vec![rule]);
    rig.config.batch = BatchBounds { rows: 1000, ..BatchBounds::default() };
    // Held: 64 KiB.
    rig.config.memory_bytes = 0;
    rig.database.create(schemas[0].table.clone(), Definition::of(&schemas[0]));
    let mut log = LogWriter::new();
    for commit in (0..80).step_by(2) {
        insert(&mut log, APPLIED, 16 + commit, 0, 10, true);
        insert(&mut log, LEFT_OUT, 17 + commit, 0, 10_000, true);
    }
    rig.log.append(log.batches());
    let running = rig.start();
    running.applied(Place::end_of(Epoch::FIRST, Commit::lsn(95))).await;
    // 400 KB in all.
    let commits = rig.database.commits();
    assert!((6..=8).contains(&commits), "{commits}");
    running.stop().await;
}
