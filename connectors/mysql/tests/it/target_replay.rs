//! Replay: one by one, with repairs where the policy allows them.

#![expect(clippy::panic, reason = "a test that cannot go on fails where it stands")]

use std::sync::Arc;

use tailwater_apply::{Change, ConflictPolicy, Table, TargetError};
use tailwater_change::{Operation, Value};

use crate::target::{Bench, change, delete, insert, int, moved, on_every_flavor, text, update};

const REPAIR: ConflictPolicy = ConflictPolicy::Repair;
const STOP: ConflictPolicy = ConflictPolicy::Stop;

async fn table(bench: &mut Bench) -> Arc<Table> {
    bench.sql(
        "CREATE TABLE t (id INT NOT NULL PRIMARY KEY, \
         name VARCHAR(10) COLLATE utf8mb4_bin, n INT, UNIQUE KEY by_name (name))",
    );
    let schema = bench.schema("t", vec![int("id", 1), text("name", 2, 10), int("n", 3)]);
    bench.table(schema).await
}

fn one(id: i64, name: &'static str, n: i64) -> [Value<'static>; 3] {
    [Value::Int(id), Value::Text(name), Value::Int(n)]
}

fn all(bench: &Bench) -> String {
    bench.sql("SELECT * FROM t ORDER BY id").replace('\n', " ").replace('\t', ",")
}

fn assert_conflict(result: Result<u64, TargetError>, part: &str) {
    match result {
        Err(TargetError::Conflict { table, detail }) => {
            assert_eq!(table.name, "t");
            assert!(detail.contains(part), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_in_order_have_their_effect_without_a_repair() {
    on_every_flavor(async |mut bench| {
        let table = table(&mut bench).await;
        let names: Vec<String> = (0..500).map(|id| format!("n{id}")).collect();
        let mut changes: Vec<Change> = Vec::new();
        for (id, name) in (0..500).zip(&names) {
            changes.push(insert(&table, &[Value::Int(id), Value::Text(name), Value::Int(0)]));
        }
        // The same value wanders from row to row: only this order is legal.
        for id in 1..500 {
            changes.push(update(&table, &[Value::Int(id - 1), Value::Null, Value::Int(1)]));
            changes.push(update(&table, &[Value::Int(id), Value::Text("n0"), Value::Int(1)]));
        }
        changes.push(delete(&table, &one(7, "", 0)));
        assert_eq!(bench.replay(&changes, STOP).await.unwrap(), 0);
        assert_eq!(bench.sql("SELECT COUNT(*), SUM(n), MAX(name) FROM t"), "499\t499\tn0");
        let truncate = change(&table, Operation::Truncate, None, None);
        let after = insert(&table, &one(1, "a", 1));
        assert_eq!(bench.replay(&[truncate, after], STOP).await.unwrap(), 0);
        assert_eq!(all(&bench), "1,a,1");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicts_are_repaired_and_counted_or_stop() {
    on_every_flavor(async |mut bench| {
        let table = table(&mut bench).await;
        bench.sql("INSERT INTO t VALUES (1, 'old', 1), (2, 'two', 2)");
        let cases = [
            (insert(&table, &one(1, "new", 5)), "already there"),
            (update(&table, &one(9, "nine", 9)), "not there"),
            (delete(&table, &one(8, "", 0)), "not there"),
        ];
        for (change, part) in &cases {
            assert_conflict(bench.replay(std::slice::from_ref(change), STOP).await, part);
            assert_eq!(all(&bench), "1,old,1 2,two,2");
        }
        let changes: Vec<Change> = cases.iter().map(|(change, _)| change.clone()).collect();
        assert_eq!(bench.replay(&changes, REPAIR).await.unwrap(), 3);
        assert_eq!(all(&bench), "1,new,5 2,two,2 9,nine,9");
        // A moved row whose old place is empty and whose new one is taken.
        let change = moved(&table, &one(77, "", 0), &one(9, "ninth", 10));
        assert!(bench.replay(&[change], REPAIR).await.unwrap() > 0);
        assert_eq!(all(&bench), "1,new,5 2,two,2 9,ninth,10");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_repaired_names_the_index_or_the_key() {
    on_every_flavor(async |mut bench| {
        let table = table(&mut bench).await;
        bench.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)");
        let before = all(&bench);
        let taken = insert(&table, &one(3, "a", 3));
        assert_conflict(bench.replay(&[taken], REPAIR).await, "by_name");
        let taken = update(&table, &one(2, "a", 3));
        assert_conflict(bench.replay(&[taken], REPAIR).await, "by_name");
        let unsent = update(&table, &[Value::Int(5), Value::Unsent, Value::Int(5)]);
        assert_conflict(bench.replay(&[unsent], REPAIR).await, "`id`=5");
        assert_eq!(all(&bench), before);
        // A bad value is no conflict: the table must change.
        let long = insert(&table, &one(6, "longer than ten", 1));
        let error = bench.replay(&[long], REPAIR).await.unwrap_err();
        assert!(matches!(error, TargetError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains("name"), "{error}");
        assert_eq!(all(&bench), before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn swaps_that_no_order_of_rows_allows_are_made_together() {
    on_every_flavor(async |mut bench| {
        let table = table(&mut bench).await;
        bench.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)");
        // Values of the unique key swapped, as a deferrable constraint lets them.
        let changes = [update(&table, &one(1, "b", 1)), update(&table, &one(2, "a", 2))];
        assert_eq!(bench.replay(&changes, STOP).await.unwrap(), 0);
        assert_eq!(all(&bench), "1,b,1 2,a,2 3,c,3");
        // k = k + 1 from the bottom up.
        let changes = [
            moved(&table, &one(1, "b", 1), &one(2, "b", 1)),
            moved(&table, &one(2, "a", 2), &one(3, "a", 2)),
            moved(&table, &one(3, "c", 3), &one(4, "c", 3)),
        ];
        assert_eq!(bench.replay(&changes, STOP).await.unwrap(), 0);
        assert_eq!(all(&bench), "2,b,1 3,a,2 4,c,3");
        // Identities swapped.
        let changes = [
            moved(&table, &one(2, "b", 1), &one(3, "b", 1)),
            moved(&table, &one(3, "a", 2), &one(2, "a", 2)),
        ];
        assert_eq!(bench.replay(&changes, STOP).await.unwrap(), 0);
        assert_eq!(all(&bench), "2,a,2 3,b,1 4,c,3");
    })
    .await;
}

/// Of a transaction that is too large to be taken at once, the value's other half comes later.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_over_two_parts_stops_with_a_way_on() {
    on_every_flavor(async |mut bench| {
        let first = table(&mut bench).await;
        bench.sql("INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)");
        let part = [update(&first, &one(1, "b", 1))];
        assert_conflict(bench.replay(&part, REPAIR).await, "drop the unique key on the target");
        bench.sql("ALTER TABLE t DROP KEY by_name");
        let schema = bench.schema("t", vec![int("id", 1), text("name", 2, 10), int("n", 3)]);
        let now = bench.table(schema).await;
        for (id, name) in [(1, "b"), (2, "a")] {
            let part = [update(&now, &one(id, name, id))];
            assert_eq!(bench.replay(&part, REPAIR).await.unwrap(), 0);
        }
        bench.sql("ALTER TABLE t ADD UNIQUE KEY by_name (name)");
        assert_eq!(all(&bench), "1,b,1 2,a,2");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_cascades_fire_here_in_the_sources_order() {
    on_every_flavor(async |mut bench| {
        bench.sql(
            "CREATE TABLE t (id INT NOT NULL PRIMARY KEY); \
             CREATE TABLE child (id INT NOT NULL PRIMARY KEY, t INT, \
             FOREIGN KEY (t) REFERENCES t (id) ON DELETE CASCADE)",
        );
        let mut schema = bench.schema("t", vec![int("id", 1)]);
        schema.hides_cascades = true;
        let parent = bench.table(schema).await;
        let mut schema = bench.schema("child", vec![int("id", 1), int("t", 2)]);
        schema.hides_cascades = true;
        let child = bench.table(schema).await;
        assert!(parent.target.fires && child.target.fires);
        let changes = [
            insert(&parent, &[Value::Int(1)]),
            insert(&child, &[Value::Int(10), Value::Int(1)]),
            delete(&parent, &[Value::Int(1)]),
            insert(&parent, &[Value::Int(1)]),
            insert(&child, &[Value::Int(11), Value::Int(1)]),
        ];
        assert_eq!(bench.replay(&changes, STOP).await.unwrap(), 0);
        assert_eq!(bench.sql("SELECT id FROM child"), "11");
    })
    .await;
}

/// A collation under which two keys are one must not make two rows one: neither one by one, nor
/// many at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_an_equal_key_is_another_row() {
    use tailwater_apply::StepOutcome;
    on_every_flavor(async |mut bench| {
        for (nth, (collation, there, sent)) in
            [("utf8mb4_general_ci", "A7", "a7"), ("utf8mb4_bin", "a7", "a7 ")].iter().enumerate()
        {
            let name = format!("t{nth}");
            bench.sql(&format!(
                "CREATE TABLE {name} (id VARCHAR(20) CHARACTER SET utf8mb4 COLLATE {collation} \
                 NOT NULL, n INT NOT NULL, v INT, PRIMARY KEY (id, n)); \
                 INSERT INTO {name} VALUES ('{there}', 1, 1), ('b', 1, 1)"
            ));
            let mut key = text("id", 1, 20);
            key.collation = Some((*collation).to_owned());
            let mut schema = bench.schema(&name, vec![key, int("n", 2), int("v", 3)]);
            schema.identity = tailwater_change::Identity::Key(vec![0, 1]);
            schema.columns[1].nullable = false;
            let table = bench.table(schema).await;
            let one = |id, v| [Value::Text(id), Value::Int(1), Value::Int(v)];
            let rows = format!("SELECT * FROM {name} ORDER BY id");
            let before = bench.sql(&rows);
            for change in [insert(&table, &one(sent, 2)), update(&table, &one(sent, 2))] {
                match bench.replay(&[change], REPAIR).await {
                    Err(TargetError::Conflict { detail, .. }) => {
                        let (one, other) = (format!("`id`='{there}'"), format!("`id`='{sent}'"));
                        assert!(detail.contains(&one) && detail.contains(&other), "{detail}");
                    }
                    other => panic!("{other:?}"),
                }
            }
            // Not there, and so gone.
            assert_eq!(bench.replay(&[delete(&table, &one(sent, 1))], REPAIR).await.unwrap(), 1);
            assert_eq!(bench.sql(&rows), before);
            // Those that are the very same are repaired.
            assert_eq!(bench.replay(&[insert(&table, &one("b", 2))], REPAIR).await.unwrap(), 1);
            // Many at once, by a join.
            let names: Vec<String> = (10..100).map(|id| format!("x{id}")).collect();
            let rows = names.iter().map(|name| insert(&table, &one(name, 1))).collect();
            bench.applied(crate::target::inserts(&table, rows)).await;
            let updates = |last: &'static str| {
                let names = names.iter().map(String::as_str).chain([last]);
                let rows = names.map(|name| update(&table, &one(name, 5))).collect();
                crate::target::updates(&table, rows)
            };
            let deletes = |last: &'static str| {
                let names = names.iter().map(String::as_str).chain([last]);
                let rows = names.map(|name| delete(&table, &one(name, 5))).collect();
                crate::target::deletes(&table, rows)
            };
            for step in [updates(sent), deletes(sent)] {
                let outcome = bench.step(step).await;
                assert!(matches!(outcome, StepOutcome::Refused(_)), "{outcome:?}");
            }
            bench.applied(updates(there)).await;
            bench.applied(deletes(there)).await;
            assert_eq!(bench.sql(&format!("SELECT * FROM {name}")), "b\t1\t2");
        }
    })
    .await;
}

/// Compared as doubles, the two would be one row.
#[tokio::test(flavor = "multi_thread")]
async fn decimals_of_many_digits_are_told_apart() {
    use tailwater_change::Kind;
    on_every_flavor(async |mut bench| {
        let number = |last: &str| format!("-{}{last}", "9".repeat(61));
        let (one, two) = (number("1"), number("2"));
        bench.sql(&format!(
            "CREATE TABLE t (id DECIMAL(65,0) NOT NULL PRIMARY KEY, n INT); \
             INSERT INTO t VALUES ({one}, 1), ({two}, 2)"
        ));
        let kind = Kind::Decimal { precision: Some(65), scale: Some(0) };
        let id = crate::target::column("id", 1, kind, "decimal(65,0)");
        let schema = bench.schema("t", vec![id, int("n", 2)]);
        let table = bench.table(schema).await;
        let gone = delete(&table, &[Value::Text(&one), Value::Null]);
        assert_eq!(bench.replay(&[gone], REPAIR).await.unwrap(), 0);
        assert_eq!(bench.sql("SELECT * FROM t"), format!("{two}\t2"));
    })
    .await;
}
