//! Any batch, planned, leaves the target as if it had been replayed row by row.

use std::sync::Arc;

use proptest::prelude::{ProptestConfig, any, proptest};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tailwater_apply::{
    Change, ConflictPolicy, Progress, Step, StepOutcome, Stretch, Table, Target, plan,
};
use tailwater_change::{Commit, Epoch, Ordinal, Place, RowReader, TableSchema, Value};
use tailwater_memory::{
    Cell, Definition, MemoryDatabase, MemoryTarget, Script, ScriptedChange, UniqueChecks,
};

use crate::support::{change, keyless, row, schema, table};

/// How the target's table is like, besides its keys.
#[derive(Debug, Clone, Copy)]
struct Traits {
    fold_case: bool,
    fires: bool,
    checks: UniqueChecks,
}

const PLAIN: Traits = Traits { fold_case: false, fires: false, checks: UniqueChecks::Immediate };

/// A source, a target with the same rows, and the tables between them.
struct World {
    script: Script,
    database: MemoryDatabase,
    tables: Vec<Arc<Table>>,
}

impl World {
    fn new(schemas: Vec<Arc<TableSchema>>, traits: Traits) -> Self {
        let database = MemoryDatabase::new();
        let mut tables = Vec::new();
        for schema in &schemas {
            let described = table(schema);
            let mut definition = Definition::of(schema);
            definition.unique.clone_from(&described.target.unique_keys);
            definition.fold_case = traits.fold_case;
            definition.fires = traits.fires;
            definition.checks = traits.checks;
            database.create(schema.table.clone(), definition);
            let mut target = described.target.clone();
            target.fires = traits.fires;
            target.identity_is_bytes = !traits.fold_case;
            tables.push(Arc::new(Table { schema: Arc::clone(schema), target }));
        }
        Self { script: Script::new(schemas), database, tables }
    }

    fn changes(&self, scripted: &[ScriptedChange], commit: u64) -> Vec<Change> {
        let place = |ordinal| Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::new(ordinal));
        (0..)
            .zip(scripted)
            .map(|(ordinal, scripted)| {
                change(&self.tables[scripted.table], scripted, place(ordinal))
            })
            .collect()
    }

    /// Executes stretches as the loop does; how many were refused.
    async fn execute(&self, stretches: &[Stretch]) -> usize {
        let mut session = self.database.session();
        let progress = session.take_over(&progress()).await.unwrap();
        session.begin().await.unwrap();
        let mut refused = 0;
        for stretch in stretches {
            session.savepoint().await.unwrap();
            if stretch.steps.is_empty() || !steps_taken(&mut session, stretch).await {
                refused += usize::from(!stretch.steps.is_empty());
                session.rollback_to_savepoint().await.unwrap();
                let repaired =
                    session.replay(&stretch.changes, ConflictPolicy::Stop).await.unwrap();
                assert_eq!(repaired, 0);
            }
        }
        session.commit(&progress).await.unwrap();
        refused
    }

    fn assert_same(&self) {
        for (at, schema) in self.script.schemas().iter().enumerate() {
            let (mut source, mut target) =
                (self.script.rows(at), self.database.rows(&schema.table).unwrap());
            source.sort();
            target.sort();
            assert_eq!(target, source, "{}", schema.table);
        }
    }

    async fn run(&mut self, scripted: &[ScriptedChange], commit: u64) -> usize {
        let stretches = plan(self.changes(scripted, commit));
        assert_legal(&stretches);
        let refused = self.execute(&stretches).await;
        self.assert_same();
        refused
    }
}

async fn steps_taken(session: &mut MemoryTarget, stretch: &Stretch) -> bool {
    for step in &stretch.steps {
        if session.step(step).await.unwrap() != StepOutcome::Applied {
            return false;
        }
    }
    true
}

/// What the contract of [`Step`] says of its rows.
fn assert_legal(stretches: &[Stretch]) {
    for step in stretches.iter().flat_map(|stretch| &stretch.steps) {
        match step {
            Step::Truncate(_) => {}
            Step::Delete { rows, .. } => assert!(rows.iter().all(|row| row.before.is_some())),
            Step::Update { rows, .. } => assert!(rows.iter().all(|row| row.after.is_some())),
            Step::Insert { rows, .. } => {
                assert!(rows.iter().all(|row| row.after.is_some() && row.unsent.is_empty()));
            }
        }
    }
}

fn progress() -> Progress {
    Progress {
        pipeline: "p".into(),
        cluster_id: String::new(),
        topic_id: String::new(),
        next_offset: 0,
        place: Place::default(),
        fence: 0,
        state: String::new(),
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn any_batches_equal_row_by_row(seed: u64, traits: Traits, truncates: bool) -> usize {
    let mut rng = SmallRng::seed_from_u64(seed);
    let schemas = vec![
        schema("plain", &[]),
        schema("one", &[&["a"]]),
        schema("two", &[&["a", "b"], &["c"]]),
        keyless("bag"),
    ];
    let mut world = World::new(schemas, traits);
    block_on(async {
        let mut refused = 0;
        for (commit, size) in (1..).zip([20, 60, 3, 200, 1, 60]) {
            let scripted = world.script.random_changes(&mut rng, size, truncates);
            refused += world.run(&scripted, commit).await;
        }
        refused
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_batch_planned_equals_row_by_row(seed in any::<u64>(), statement in any::<bool>()) {
        let checks =
            if statement { UniqueChecks::Statement } else { UniqueChecks::Immediate };
        any_batches_equal_row_by_row(seed, Traits { checks, ..PLAIN }, true);
    }

    #[test]
    fn any_batch_on_tables_that_fire_or_fold_equals_row_by_row(
        seed in any::<u64>(), fold_case in any::<bool>(), fires in any::<bool>(),
    ) {
        any_batches_equal_row_by_row(seed, Traits { fold_case, fires, ..PLAIN }, true);
    }
}

#[test]
fn unique_values_that_move_are_refused_and_replayed_at_times() {
    let refused: usize = (0..50).map(|seed| any_batches_equal_row_by_row(seed, PLAIN, false)).sum();
    // The property above would prove nothing of refusals if there were none.
    assert!(refused > 10, "{refused}");
}

fn one_table(unique: &[&[&str]]) -> World {
    World::new(vec![schema("t", unique)], PLAIN)
}

/// The steps of a batch on a table with the rows `before`: `delete 1`, `update 2`, `insert 1`.
fn check(
    world: &mut World,
    before: &[Vec<Cell>],
    act: impl FnOnce(&mut Script) -> Vec<Option<ScriptedChange>>,
) -> String {
    block_on(async {
        let given: Vec<_> =
            before.iter().map(|row| world.script.insert(0, row.clone()).unwrap()).collect();
        world.run(&given, 1).await;
        let scripted: Vec<_> =
            act(&mut world.script).into_iter().map(|change| change.expect("valid")).collect();
        let stretches = plan(world.changes(&scripted, 2));
        world.run(&scripted, 2).await;
        stretches.iter().map(describe).collect::<Vec<_>>().join("; ")
    })
}

fn describe(stretch: &Stretch) -> String {
    if stretch.steps.is_empty() {
        return format!("replay {}", stretch.changes.len());
    }
    let step = |step: &Step| match step {
        Step::Truncate(tables) => format!("truncate {}", tables.len()),
        Step::Delete { rows, .. } => format!("delete {}", rows.len()),
        Step::Update { rows, .. } => {
            let moves = rows.iter().filter(|row| row.before.is_some()).count();
            format!("update {} ({moves} move)", rows.len())
        }
        Step::Insert { rows, .. } => format!("insert {}", rows.len()),
    };
    stretch.steps.iter().map(step).collect::<Vec<_>>().join(", ")
}

#[test]
fn an_inserted_row_that_is_updated_is_inserted_whole() {
    let (old, new) = (row(1, None, "b", "toast"), row(1, Some(1), "b2", "toast"));
    let steps = check(&mut one_table(&[]), &[], |script| {
        vec![script.insert(0, old.clone()), script.update(0, &old, new, &[3])]
    });
    assert_eq!(steps, "insert 1");
}

#[test]
fn an_inserted_and_deleted_row_leaves_nothing() {
    let new = row(1, None, "b", "c");
    let steps = check(&mut one_table(&[]), &[], |script| {
        vec![script.insert(0, new.clone()), script.delete(0, &new)]
    });
    assert_eq!(steps, "replay 2");
}

#[test]
fn a_row_that_comes_back_is_updated() {
    let (old, new) = (row(1, None, "b", "c"), row(1, Some(2), "b", "c"));
    let steps = check(&mut one_table(&[]), std::slice::from_ref(&old), |script| {
        vec![script.delete(0, &old), script.insert(0, new)]
    });
    assert_eq!(steps, "update 1 (0 move)");
}

#[test]
fn unsent_columns_of_two_updates_are_overlaid() {
    let (first, second) = (row(1, Some(1), "b2", "c"), row(1, Some(2), "b2", "c"));
    let old = row(1, None, "b", "c");
    let steps = check(&mut one_table(&[]), std::slice::from_ref(&old), |script| {
        vec![script.update(0, &old, first.clone(), &[3]), script.update(0, &first, second, &[2, 3])]
    });
    assert_eq!(steps, "update 1 (0 move)");
}

#[test]
fn a_whole_row_that_moves_is_deleted_and_inserted() {
    let old = row(1, None, "b", "c");
    let steps = check(&mut one_table(&[]), std::slice::from_ref(&old), |script| {
        let (two, three) = (row(2, None, "b", "c"), row(3, None, "b", "c"));
        vec![script.update(0, &old, two.clone(), &[]), script.update(0, &two, three, &[])]
    });
    assert_eq!(steps, "delete 1, insert 1");
}

#[test]
fn a_partial_row_that_moves_keeps_what_was_not_sent() {
    let old = row(1, None, "b", "toast");
    let steps = check(&mut one_table(&[]), std::slice::from_ref(&old), |script| {
        let (two, one) = (row(2, None, "b", "toast"), row(1, Some(9), "new", "row"));
        vec![script.update(0, &old, two, &[3]), script.insert(0, one)]
    });
    assert_eq!(steps, "update 1 (1 move), insert 1");
}

#[test]
fn a_partial_row_takes_the_place_of_a_deleted_one() {
    let (one, two) = (row(1, None, "b", "toast"), row(2, None, "b", "c"));
    let steps = check(&mut one_table(&[]), &[one.clone(), two.clone()], |script| {
        let moved = row(2, None, "b", "toast");
        vec![script.delete(0, &two), script.update(0, &one, moved, &[3])]
    });
    assert_eq!(steps, "delete 1, update 1 (1 move)");
}

#[test]
fn partial_rows_that_swap_identities_are_replayed() {
    let (one, two) = (row(1, None, "b", "x"), row(2, None, "b", "y"));
    let steps = check(&mut one_table(&[]), &[one.clone(), two.clone()], |script| {
        let spare = row(3, None, "b", "x");
        vec![
            script.update(0, &one, spare.clone(), &[3]),
            script.update(0, &two, row(1, None, "b", "y"), &[3]),
            script.update(0, &spare, row(2, None, "b", "x"), &[3]),
        ]
    });
    assert_eq!(steps, "replay 3");
}

#[test]
fn unique_values_that_swap_are_refused_and_replayed() {
    let (one, two) = (row(1, Some(1), "b", "c"), row(2, Some(2), "b", "c"));
    let mut world = one_table(&[&["a"]]);
    let steps = check(&mut world, &[one.clone(), two.clone()], |script| {
        let none = row(1, None, "b", "c");
        vec![
            script.update(0, &one, none.clone(), &[]),
            script.update(0, &two, row(2, Some(1), "b", "c"), &[]),
            script.update(0, &none, row(1, Some(2), "b", "c"), &[]),
        ]
    });
    assert_eq!(steps, "update 2 (0 move)");
}

#[test]
fn truncate_is_a_barrier() {
    let old = row(1, None, "b", "c");
    let steps = check(&mut one_table(&[]), std::slice::from_ref(&old), |script| {
        vec![
            script.delete(0, &old),
            Some(script.truncate(0)),
            script.insert(0, row(1, None, "n", "c")),
        ]
    });
    assert_eq!(steps, "delete 1; truncate 1; insert 1");
}

/// The keys that a batch deletes, in the order of its step, after inserting them.
fn deleted(unique: &[&[&str]], keys: &[i64]) -> Vec<i64> {
    let mut world = one_table(unique);
    let rows: Vec<_> = keys.iter().map(|&id| row(id, Some(id), "b", "c")).collect();
    for row in &rows {
        world.script.insert(0, row.clone()).unwrap();
    }
    let scripted: Vec<_> = rows.iter().map(|row| world.script.delete(0, row).unwrap()).collect();
    let stretches = plan(world.changes(&scripted, 1));
    let [Step::Delete { rows, table }] = stretches[0].steps.as_slice() else { unreachable!() };
    let mut values = Vec::new();
    rows.iter()
        .map(|row| {
            RowReader::new(&table.schema).read(row.identity().unwrap(), &mut values).unwrap();
            let Value::Int(id) = values[0] else { unreachable!() };
            id
        })
        .collect()
}

#[test]
fn rows_go_in_their_keys_order_unless_another_unique_key_has_a_say() {
    let keys = [7, -3, 300, 0, 12];
    assert_eq!(deleted(&[], &keys), [-3, 0, 7, 12, 300]);
    assert_eq!(deleted(&[&["a"]], &keys), keys);
}

#[test]
fn a_hundred_thousand_rows_are_planned_in_linear_time() {
    let schema = schema("t", &[]);
    let mut world = World::new(vec![schema], PLAIN);
    let mut scripted = Vec::new();
    for id in 0..50_000 {
        let old = row(id, None, "b", "c");
        scripted.push(world.script.insert(0, old.clone()).unwrap());
        scripted.push(world.script.update(0, &old, row(id, Some(1), "b", "c"), &[3]).unwrap());
    }
    let stretches = plan(world.changes(&scripted, 1));
    assert_eq!(stretches.len(), 1);
    assert_eq!(describe(&stretches[0]), "insert 50000");
}
