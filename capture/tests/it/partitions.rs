//! A source over several partitions: what goes where, what each of them is told, and what a writer
//! finds who comes after another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_capture::{CaptureState, PartitionBy};
use tailwater_change::{
    Commit, Control, Envelope, Epoch, Operation, Place, RowReader, Value, is_control_schema,
};

use crate::reading::records_of;
use crate::scenarios::{PATIENCE, World, transactions};
use crate::script::{SNAPSHOT, Script, Transaction, schema};

const PARTITIONS: i32 = 3;
const COUNT: usize = 3;

const fn still() -> i64 {
    1_700_000_000_000
}

/// What a partition says to who reads it alone.
#[derive(Debug, Default)]
struct Partition {
    /// Rows that count, and where they stand.
    rows: Vec<(Place, i64)>,
    /// Up to where it is known that nothing more is to come.
    through: Place,
    reached: usize,
    snapshots: usize,
}

async fn partition(world: &World, number: i32) -> Partition {
    let mut read = Partition::default();
    let mut writer = None;
    for record in records_of(&world.client, &world.registry, "shop", number).await {
        if is_control_schema(&record.text) {
            let control = Control::decode(record.message()).unwrap();
            if let Control::Open { .. } = control {
                writer = Some(record.writer);
            }
            if writer == Some(record.writer) {
                read.control(&control);
            }
        } else if writer == Some(record.writer) {
            read.row(record.message());
        }
    }
    read
}

impl Partition {
    fn control(&mut self, control: &Control<'_>) {
        match control {
            Control::End { epoch, commit, .. } | Control::Idle { epoch, commit } => {
                self.passes(Place::end_of(*epoch, *commit));
            }
            Control::Reached { place, .. } => {
                self.reached += 1;
                self.passes(*place);
            }
            Control::SnapshotBegin { .. } => {
                self.rows.clear();
                self.snapshots += 1;
            }
            _ => {}
        }
    }

    fn passes(&mut self, place: Place) {
        self.through = self.through.max(place);
    }

    fn row(&mut self, message: &[u8]) {
        let envelope = Envelope::decode(message).unwrap();
        let (schema, mut values) = (schema(), Vec::new());
        RowReader::new(&schema).read(envelope.after.unwrap(), &mut values).unwrap();
        let Value::Int(id) = values[0] else { panic!("an id") };
        let place = envelope.place;
        let last = self.rows.last().map(|(place, _)| *place);
        assert!(last.is_none_or(|last| last < place), "{place} behind {last:?}");
        assert!(place > self.through || envelope.operation == Operation::Read, "{place}");
        self.rows.push((place, id));
        let end = Place::end_of(place.epoch, place.commit);
        self.passes(if envelope.last { end } else { place });
    }
}

/// All partitions together have exactly these rows, each where its identity belongs, and each
/// partition knows of the last end.
async fn check(world: &World, snapshot: &[i64], transactions: &[Transaction]) {
    let mut expected: Vec<(u64, i64)> = snapshot.iter().map(|id| (SNAPSHOT, *id)).collect();
    for transaction in transactions {
        expected.extend(transaction.ids.iter().map(|id| (transaction.commit, *id)));
    }
    let mut found = Vec::new();
    let mut at = BTreeMap::new();
    let last = transactions.last().unwrap().commit;
    for number in 0..PARTITIONS {
        let read = partition(world, number).await;
        assert!(read.through >= Place::end_of(read.through.epoch, Commit::lsn(last)), "{read:?}");
        for (place, id) in read.rows {
            found.push((place.commit.position(), id));
            assert_eq!(*at.entry(id).or_insert(number), number, "{id} in two partitions");
        }
    }
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}

/// Where rows are is written in logs: it never changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_identity_has_its_partition_and_every_partition_every_end() {
    let snapshot: Vec<i64> = (1..=12).collect();
    let world = World::new(Script::new(snapshot.clone(), transactions(30))).await;
    let running = world.start_partitioned(COUNT, PartitionBy::Key, still);
    running.reaches(SNAPSHOT + 300).await;
    running.stop().await;
    check(&world, &snapshot, &transactions(30)).await;
    let mut at = BTreeMap::new();
    for number in 0..PARTITIONS {
        at.extend(partition(&world, number).await.rows.iter().map(|(_, id)| (*id, number)));
    }
    let pinned: Vec<i32> = (1..=12).map(|id| at[&id]).collect();
    assert_eq!(pinned, [1, 2, 0, 1, 1, 2, 0, 1, 1, 0, 2, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_no_partition_loses_or_repeats() {
    for seed in 0..6 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let world = World::new(Script::new(vec![1, 2, 3], transactions(60))).await;
        for _ in 0..4 {
            let running = world.start_partitioned(COUNT, PartitionBy::Key, still);
            running.reaches(SNAPSHOT + 10 * rng.random_range(1..60)).await;
            running.kill().await;
        }
        let running = world.start_partitioned(COUNT, PartitionBy::Key, still);
        running.reaches(SNAPSHOT + 600).await;
        running.stop().await;
        check(&world, &[1, 2, 3], &transactions(60)).await;
    }
}

static CLOCK: AtomicI64 = AtomicI64::new(0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_rows_hears_how_far_a_long_transaction_is() {
    let long = Transaction { commit: 900, ids: (0..40).collect(), text_length: 1 };
    let world = World::new(Script::new(vec![1], vec![long.clone()])).await;
    let running = world
        .start_partitioned(COUNT, PartitionBy::Table, || CLOCK.fetch_add(400, Ordering::SeqCst));
    running.reaches(900).await;
    running.stop().await;
    let mut with_rows = 0;
    for number in 0..PARTITIONS {
        let read = partition(&world, number).await;
        if read.rows.is_empty() {
            assert!(read.reached > 3, "{read:?}");
        } else {
            with_rows += 1;
            assert_eq!(read.rows.len(), 41);
        }
    }
    assert_eq!(with_rows, 1, "rows of one table");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_count_of_partitions_is_refused() {
    let world = World::new(Script::new(vec![1], transactions(2))).await;
    let running = world.start_partitioned(COUNT, PartitionBy::Key, still);
    running.reaches(SNAPSHOT + 20).await;
    running.stop().await;
    let running = world.start_partitioned(2, PartitionBy::Key, still);
    running.is(CaptureState::Stopped).await;
    let error = running.handle.status().error.unwrap();
    assert!(error.contains("3 partitions, 2 were asked for"), "{error}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_elsewhere_only_with_a_new_snapshot() {
    let world = World::new(Script::new(vec![1, 2, 3, 4], transactions(2))).await;
    let running = world.start_partitioned(COUNT, PartitionBy::Key, still);
    running.reaches(SNAPSHOT + 20).await;
    running.stop().await;
    let running = world.start_partitioned(COUNT, PartitionBy::Table, still);
    running.is(CaptureState::Stopped).await;
    let error = running.handle.status().error.unwrap();
    assert!(error.contains("partition_by"), "{error}");
    running.handle.resync(Epoch::new(0), PATIENCE).await.unwrap();
    world.script.commit(Transaction { commit: 900, ids: vec![5, 6, 7, 8], text_length: 1 });
    running.reaches(900).await;
    running.stop().await;
    let mut with_rows = 0;
    for number in 0..PARTITIONS {
        let read = partition(&world, number).await;
        assert_eq!(read.snapshots, 2);
        with_rows += usize::from(!read.rows.is_empty());
    }
    assert_eq!(with_rows, 1);
}
