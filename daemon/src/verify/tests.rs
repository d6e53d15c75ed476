//! Between tables in memory that change while they are read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tailwater_capture::{ReadRow, SourceError, TableReader, Wanted};
use tailwater_change::{
    Column, Dialect, Identity, Kind, RowReader, RowWriter, TableId, TableSchema, Value,
};
use tailwater_kafka::Offset;

use super::keyed::CHUNK_ROWS;
use super::{Changed, Flow, Seen, Verdict, Verifier};

fn schema(identity: Identity) -> TableSchema {
    let column = |name: &str, field| Column {
        nullable: false,
        ..Column::nullable(name, field, Kind::Int { bits: 64, signed: true }, "bigint")
    };
    TableSchema {
        table: TableId::new("public", "t"),
        dialect: Dialect::Postgres,
        columns: vec![column("v", 1), column("id", 2)],
        identity,
        indexes: Vec::new(),
        foreign_keys: Vec::new(),
        hides_cascades: false,
        options: None,
    }
}

fn keyed() -> TableSchema {
    schema(Identity::Key(vec![1]))
}

/// A row `(id, v)` as a message of `schema`, and its key.
fn read_row(schema: &TableSchema, id: i64, v: i64) -> ReadRow {
    let written = |columns: &mut dyn Iterator<Item = &Column>| {
        let mut bytes = Vec::new();
        let mut writer = RowWriter::new(&mut bytes);
        for column in columns {
            writer.column(column.field, Value::Int(if column.name == "id" { id } else { v }));
        }
        bytes
    };
    let row = written(&mut schema.columns.iter());
    let key = written(&mut schema.key().iter().map(|&index| &schema.columns[index]));
    ReadRow { key: if key.is_empty() { row.clone() } else { key }, row }
}

fn id_of(schema: &TableSchema, key: &[u8]) -> i64 {
    let mut values = Vec::new();
    RowReader::new(schema).read(key, &mut values).unwrap();
    match values[schema.column("id").unwrap()] {
        Value::Int(id) => id,
        _ => unreachable!(),
    }
}

/// `id`, which was `old` or not there, becomes `v`, or goes.
#[derive(Debug, Clone, Copy)]
struct Change {
    id: i64,
    old: Option<i64>,
    v: Option<i64>,
}

/// A source, its log and a target behind it.
#[derive(Debug)]
struct World {
    source: BTreeMap<i64, i64>,
    /// Rows may stand there more than once.
    target: Vec<(i64, i64)>,
    log: Vec<Change>,
    pending: VecDeque<Change>,
    random: SmallRng,
    /// Rows that change all the time: those below.
    hot: i64,
    passes: usize,
}

impl World {
    fn new(rows: i64) -> Self {
        Self {
            source: (0..rows).map(|id| (id, 0)).collect(),
            target: (0..rows).map(|id| (id, 0)).collect(),
            log: Vec::new(),
            pending: VecDeque::new(),
            random: SmallRng::seed_from_u64(0),
            hot: 0,
            passes: 0,
        }
    }

    /// Time goes by.
    fn tick(&mut self) {
        for _ in 0..self.random.random_range(0..=3 * self.hot) {
            let id = self.random.random_range(0..self.hot);
            let v = (self.random.random_range(0..5) > 0).then(|| self.random.random_range(0..3));
            let old = match v {
                Some(v) => self.source.insert(id, v),
                None => self.source.remove(&id),
            };
            self.log.push(Change { id, old, v });
            self.pending.push_back(Change { id, old, v });
        }
        for _ in 0..self.random.random_range(0..=3 * self.hot) {
            self.apply();
        }
    }

    fn apply(&mut self) {
        let Some(change) = self.pending.pop_front() else { return };
        self.target.retain(|(id, _)| *id != change.id);
        self.target.extend(change.v.map(|v| (change.id, v)));
    }
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap()
}

struct Side {
    world: Shared,
    is_source: bool,
}

#[async_trait]
impl TableReader for Side {
    async fn read(
        &mut self,
        schema: &TableSchema,
        _name: &TableId,
        wanted: Wanted<'_>,
        each: &mut (dyn FnMut(ReadRow) + Send),
    ) -> Result<(), SourceError> {
        let mut world = lock(&self.world);
        world.tick();
        let mut rows: Vec<(i64, i64)> = if self.is_source {
            world.source.iter().map(|(id, v)| (*id, *v)).collect()
        } else {
            world.target.clone()
        };
        match wanted {
            Wanted::All => {}
            Wanted::Keys(keys) => {
                let ids: BTreeSet<i64> = keys.iter().map(|key| id_of(schema, key)).collect();
                rows.retain(|(id, _)| ids.contains(id));
            }
            Wanted::Above { after, limit } => {
                rows.sort_unstable();
                let after = after.map(|after| id_of(schema, after));
                rows.retain(|(id, _)| after.is_none_or(|after| *id > after));
                rows.truncate(limit);
            }
        }
        rows.into_iter().for_each(|(id, v)| each(read_row(schema, id, v)));
        Ok(())
    }
}

struct Pipe {
    world: Shared,
    schema: TableSchema,
    /// Planted: says that nothing has changed.
    blind: bool,
}

#[async_trait]
impl Flow for Pipe {
    async fn pass(&self) -> anyhow::Result<()> {
        let mut world = lock(&self.world);
        world.passes += 1;
        while !world.pending.is_empty() {
            world.apply();
        }
        world.tick();
        Ok(())
    }

    async fn end(&self) -> anyhow::Result<Vec<Offset>> {
        let mut world = lock(&self.world);
        world.tick();
        Ok(vec![Offset::new(world.log.len().try_into()?)])
    }

    async fn changed(
        &self,
        _table: &TableId,
        keys: &BTreeSet<Vec<u8>>,
        span: Range<Vec<Offset>>,
    ) -> anyhow::Result<Changed> {
        let world = lock(&self.world);
        let span = usize::try_from(span.start[0].get())?..usize::try_from(span.end[0].get())?;
        let (mut changed, mut sum) = (Changed::default(), Seen::default());
        for change in &world.log[span] {
            let row = read_row(&self.schema, change.id, change.v.unwrap_or_default());
            if self.blind {
                continue;
            }
            if keys.contains(&row.key) {
                let state = change.v.map_or(Seen::default(), |_| Seen::one(&row.row));
                changed.states.entry(row.key).or_default().push(state);
            }
            if self.schema.key().is_empty() {
                let one = |v| Seen::one(&read_row(&self.schema, change.id, v).row);
                sum = sum.plus(change.v.map_or(Seen::default(), one));
                sum = sum.minus(change.old.map_or(Seen::default(), one));
                changed.sums.push(sum);
            }
        }
        Ok(changed)
    }
}

async fn verify(schema: &TableSchema, world: World) -> (anyhow::Result<Verdict>, usize) {
    verify_by(schema, world, false).await
}

async fn verify_by(
    schema: &TableSchema,
    world: World,
    blind: bool,
) -> (anyhow::Result<Verdict>, usize) {
    let world = Arc::new(Mutex::new(world));
    let pipe = Pipe { world: Arc::clone(&world), schema: schema.clone(), blind };
    let side = |is_source| Box::new(Side { world: Arc::clone(&world), is_source });
    let mut verifier =
        Verifier { from: side(true), to: side(false), flow: &pipe, verdict: Verdict::default() };
    let done = verifier.table(schema, &schema.table).await;
    let passes = lock(&world).passes;
    (done.map(|()| verifier.verdict), passes)
}

fn listed(verdict: &Verdict) -> Vec<(&str, &str)> {
    let mut listed: Vec<_> =
        verdict.differences.iter().map(|it| (it.key.as_str(), it.target)).collect();
    listed.sort_unstable();
    listed
}

#[tokio::test]
async fn equal_tables_are_read_and_nothing_is_waited_for() {
    let rows = i64::try_from(3 * CHUNK_ROWS + 7).unwrap();
    for schema in [keyed(), schema(Identity::Full)] {
        let (verdict, passes) = verify(&schema, World::new(rows)).await;
        let verdict = verdict.unwrap();
        assert_eq!((verdict.different, verdict.rows), (0, rows.unsigned_abs()));
        assert_eq!(passes, 0);
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let mut world = World::new(9_000);
    world.target.retain(|(id, _)| *id != 4_000);
    world.target[7].1 = 1;
    world.target.extend([(9_500, 0), (8, 0)]);
    let (verdict, passes) = verify(&keyed(), world).await;
    let verdict = verdict.unwrap();
    assert_eq!(verdict.different, 4);
    let expected =
        [("id=4000", "missing"), ("id=7", "unequal"), ("id=8", "repeated"), ("id=9500", "extra")];
    assert_eq!(listed(&verdict), expected);
    // All of it is waited for together.
    assert!(passes <= 6, "{passes}");
}

#[tokio::test]
async fn more_differences_than_fit_are_counted() {
    let mut world = World::new(10_000);
    world.target.truncate(10);
    let verdict = verify(&keyed(), world).await.0.unwrap();
    assert_eq!((verdict.different, verdict.differences.len()), (9_990, super::LISTED));
}

#[tokio::test]
async fn rows_without_a_key_are_compared_as_often_as_they_are_there() {
    let mut world = World::new(5_000);
    world.target.retain(|(id, _)| *id != 17);
    world.target.extend([(20, 0), (20, 0), (6_000, 3)]);
    let verdict = verify(&schema(Identity::Full), world).await.0.unwrap();
    assert_eq!(verdict.different, 4);
    let expected = [("v=0, id=17", "missing"), ("v=0, id=20", "extra"), ("v=3, id=6000", "extra")];
    assert_eq!(listed(&verdict), expected);
}

fn busy(seed: u64) -> World {
    let mut world = World::new(200);
    world.random = SmallRng::seed_from_u64(seed);
    world.hot = world.random.random_range(1..20);
    world
}

#[tokio::test]
async fn under_load_the_verdict_is_never_wrong() {
    for seed in 0..300 {
        println!("seed {seed}");
        for schema in [keyed(), schema(Identity::Full)] {
            let verdict = verify(&schema, busy(seed)).await.0.unwrap();
            assert_eq!(verdict.different, 0, "{verdict:?}");
        }
        let mut world = busy(seed);
        world.target.retain(|(id, _)| *id != 100);
        world.target.push((150, 1));
        let verdict = verify(&keyed(), world).await.0.unwrap();
        assert_eq!(listed(&verdict), [("id=100", "missing"), ("id=150", "repeated")]);
    }
}

#[tokio::test]
async fn under_load_a_table_without_a_key_that_differs_is_never_equal() {
    for seed in 0..100 {
        println!("seed {seed}");
        let mut world = busy(seed);
        world.target.retain(|(id, _)| *id != 100);
        let verdict = verify(&schema(Identity::Full), world).await.0;
        assert!(verdict.is_err_and(|error| error.to_string().contains("at every look")));
    }
}

#[tokio::test]
async fn without_the_log_the_verdict_would_be_wrong() {
    let mut wrong = 0;
    for seed in 0..300 {
        let verdict = verify_by(&keyed(), busy(seed), true).await.0;
        wrong += usize::from(verdict.is_ok_and(|verdict| verdict.different > 0));
    }
    assert!(wrong > 0, "the load does not try anything");
}
