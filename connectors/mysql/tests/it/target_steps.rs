//! Steps do exactly what they say, or are refused and leave nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use std::sync::Arc;

use tailwater_apply::{Change, Step, StepOutcome, Table};
use tailwater_change::{Identity, Kind, Value};
use tailwater_scratch::Flavor;

use crate::target::{
    Bench, column, delete, deletes, flavors, insert, inserts, int, moved, on_every_flavor, text,
    update, updates,
};

const TABLE: &str = "CREATE TABLE t (id INT NOT NULL PRIMARY KEY, \
                     name VARCHAR(10) COLLATE utf8mb4_bin UNIQUE, n INT)";

async fn table(bench: &mut Bench) -> Arc<Table> {
    bench.sql(TABLE);
    let schema = bench.schema("t", vec![int("id", 1), text("name", 2, 10), int("n", 3)]);
    bench.table(schema).await
}

/// Rows `from..to`, `name` distinct.
fn rows(from: i64, to: i64, n: i64) -> Vec<(i64, String, i64)> {
    (from..to).map(|id| (id, format!("n{id}"), n)).collect()
}

fn changes(
    table: &Arc<Table>,
    rows: &[(i64, String, i64)],
    make: impl Fn(&Arc<Table>, &[Value<'_>]) -> Change,
) -> Vec<Change> {
    rows.iter()
        .map(|(id, name, n)| make(table, &[Value::Int(*id), Value::Text(name), Value::Int(*n)]))
        .collect()
}

fn sum(bench: &Bench) -> String {
    bench.sql("SELECT COUNT(*), SUM(id), SUM(n) FROM t")
}

async fn traps(bench: &mut Bench) {
    let table = table(bench).await;
    assert_eq!(table.target.unique_keys, [vec![1]]);
    assert!(table.target.identity_is_bytes && !table.target.fires);
    for count in [3, 500] {
        bench.sql("DELETE FROM t");
        let all = rows(0, count, 1);
        bench.applied(inserts(&table, changes(&table, &all, insert))).await;
        let before = sum(bench);

        // One row in the middle is not what it should be.
        let mut bad = rows(count, 2 * count, 1);
        let middle = usize::try_from(count / 2).unwrap();
        for (id, name) in [(1, "fresh"), (5000, "n1"), (5000, "longer than ten")] {
            bad[middle] = (id, name.into(), 1);
            bench.refused(inserts(&table, changes(&table, &bad, insert))).await;
            assert_eq!(sum(bench), before, "{count} {id} {name}");
        }
        bad[middle] = (3_000_000_000, "big".into(), 1);
        bench.refused(inserts(&table, changes(&table, &bad, insert))).await;
        assert_eq!(sum(bench), before);

        // Updates and deletes of rows of which one is missing, or whose value is taken.
        let mut some = rows(0, count, 2);
        some[middle].0 = 9999;
        bench.refused(updates(&table, changes(&table, &some, update))).await;
        bench.refused(deletes(&table, changes(&table, &some, delete))).await;
        let mut some = rows(0, count, 2);
        some[middle].1 = "n0".into();
        bench.refused(updates(&table, changes(&table, &some, update))).await;
        let mut some = rows(0, count, 2);
        some[middle].1 = "longer than ten".into();
        bench.refused(updates(&table, changes(&table, &some, update))).await;
        assert_eq!(sum(bench), before);

        bench.applied(updates(&table, changes(&table, &rows(0, count, 7), update))).await;
        assert_eq!(sum(bench), format!("{count}\t{}\t{}", count * (count - 1) / 2, 7 * count));
        // Updating rows to what they are is done, not missing.
        bench.applied(updates(&table, changes(&table, &rows(0, count, 7), update))).await;
        bench.applied(deletes(&table, changes(&table, &rows(0, count, 7), delete))).await;
        assert_eq!(bench.sql("SELECT COUNT(*) FROM t"), "0");
    }
}

/// One of the server's counters.
fn counted(bench: &Bench, name: &str) -> u32 {
    let status = bench.sql(&format!("SHOW GLOBAL STATUS LIKE '{name}'"));
    status.split('\t').nth(1).unwrap().parse().unwrap()
}

/// Updates of whole rows of tables on which nothing else hangs, and of those next to them.
async fn whole_rows(bench: &mut Bench) {
    let columns = "id INT NOT NULL PRIMARY KEY, name VARCHAR(10) COLLATE utf8mb4_bin, n INT";
    for (nth, (more, shown)) in [
        ("", "SUM(n)"),
        (", twice INT GENERATED ALWAYS AS (n * 2) VIRTUAL", "SUM(twice / 2)"),
        // What only the target has stays; so does what points here.
        (", own INT DEFAULT 5", "IF(MIN(own) = 9, SUM(n), NULL)"),
        (", KEY (n)", "IF((SELECT COUNT(*) FROM child) = 1, SUM(n), NULL)"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("whole{nth}");
        bench.sql(&format!("CREATE TABLE {name} ({columns}{more})"));
        let schema = bench.schema(&name, vec![int("id", 1), text("name", 2, 10), int("n", 3)]);
        for count in [60, 500] {
            let table = bench.table(schema.clone()).await;
            let middle = usize::try_from(count / 2).unwrap();
            bench.applied(inserts(&table, changes(&table, &rows(0, count, 1), insert))).await;
            if more.contains("own") {
                bench.sql(&format!("UPDATE {name} SET own = 9"));
            } else if more.contains("KEY") {
                bench.sql(&format!(
                    "CREATE TABLE child (id INT NOT NULL PRIMARY KEY, parent INT, \
                     FOREIGN KEY (parent) REFERENCES {name} (id) ON DELETE CASCADE); \
                     INSERT INTO child VALUES (1, 3)"
                ));
            }
            let sum = |bench: &Bench| bench.sql(&format!("SELECT COUNT(*), {shown} FROM {name}"));
            let mut some = rows(0, count, 7);
            // What would be refused: a row that is not there, a value that does not fit.
            for (id, value) in [(9999, "fresh"), (some[middle].0, "longer than ten")] {
                let table = bench.table(schema.clone()).await;
                let mut bad = some.clone();
                (bad[middle].0, bad[middle].1) = (id, value.into());
                let before = sum(bench);
                bench.refused(updates(&table, changes(&table, &bad, update))).await;
                assert_eq!(sum(bench), before, "{name} {count} {id}");
            }
            // All of them, none of them, and some of them change.
            for n in [7, 7, 8] {
                let table = bench.table(schema.clone()).await;
                some.iter_mut().skip(if n == 8 { middle } else { 0 }).for_each(|row| row.2 = n);
                let total: i64 = some.iter().map(|row| row.2).sum();
                bench.applied(updates(&table, changes(&table, &some, update))).await;
                let (there, found) = (sum(bench), format!("{count}\t{total}"));
                assert!(there.starts_with(&found), "{name} {count} {n}: {there}, not {found}");
            }
            // Somebody adds a column behind our back, and fills it.
            let table = bench.table(schema.clone()).await;
            some.iter_mut().for_each(|row| row.2 = 9);
            bench.applied(updates(&table, changes(&table, &some, update))).await;
            bench.sql(&format!(
                "ALTER TABLE {name} ADD COLUMN late INT DEFAULT 5; UPDATE {name} SET late = 9"
            ));
            some.iter_mut().for_each(|row| row.2 = 10);
            bench.applied(updates(&table, changes(&table, &some, update))).await;
            assert_eq!(bench.sql(&format!("SELECT MIN(n), MIN(late) FROM {name}")), "10\t9");
            bench.sql(&format!("ALTER TABLE {name} DROP COLUMN late; DROP TABLE IF EXISTS child"));
            let table = bench.table(schema.clone()).await;
            bench.applied(deletes(&table, changes(&table, &some, delete))).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_applied_wholly_or_refused_and_undone() {
    on_every_flavor(async |mut bench| {
        traps(&mut bench).await;
        whole_rows(&mut bench).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_without_local_infile_and_with_small_packets() {
    for flavor in flavors() {
        let settings = [("local_infile", "0"), ("max_allowed_packet", "20000")];
        let mut bench = Bench::on_own(flavor, &settings).await;
        let problems = bench.connector.check().await;
        assert!(problems.iter().any(|problem| problem.remedy.contains("local_infile")));
        traps(&mut bench).await;
        assert_eq!(counted(&bench, "Com_replace"), 0, "a table with another unique key");
        whole_rows(&mut bench).await;
        // On a table of nothing but a key, rows are replaced, and that is all.
        bench.sql("CREATE TABLE plain (id INT NOT NULL PRIMARY KEY, name VARCHAR(10), n INT)");
        let schema = bench.schema("plain", vec![int("id", 1), text("name", 2, 10), int("n", 3)]);
        let table = bench.table(schema).await;
        bench.applied(inserts(&table, changes(&table, &rows(0, 100, 1), insert))).await;
        let both = ["Com_replace", "Com_rollback_to_savepoint"];
        let before = both.map(|name| counted(&bench, name));
        bench.applied(updates(&table, changes(&table, &rows(0, 100, 2), update))).await;
        let after = both.map(|name| counted(&bench, name));
        assert!(after[0] > before[0] && after[1] == before[1], "{before:?} {after:?}");
        let large = "x".repeat(30_000);
        bench.sql(
            "CREATE TABLE large (id INT NOT NULL PRIMARY KEY, v LONGTEXT COLLATE utf8mb4_bin)",
        );
        let schema = bench.schema(
            "large",
            vec![
                int("id", 1),
                column("v", 2, Kind::Text { length: None, fixed: false }, "longtext"),
            ],
        );
        let table = bench.table(schema).await;
        bench.target.begin().await.unwrap();
        let row = [Value::Int(1), Value::Text(&large)];
        let step = inserts(&table, vec![insert(&table, &row)]);
        let error = bench.target.step(&step).await.unwrap_err().to_string();
        assert!(error.contains("max_allowed_packet"), "{error}");
        drop(bench);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_larger_than_a_packet_go_in_pieces() {
    for flavor in flavors() {
        let redo = if flavor == Flavor::MySql {
            "innodb_redo_log_capacity"
        } else {
            "innodb_log_file_size"
        };
        let settings = [("max_allowed_packet", "1M"), (redo, "256M")];
        let mut bench = Bench::on_own(flavor, &settings).await;
        bench.sql("CREATE TABLE large (id INT NOT NULL PRIMARY KEY, v LONGBLOB, n INT)");
        let bytes = column("v", 2, Kind::Bytes { length: None, fixed: false }, "longblob");
        let schema = bench.schema("large", vec![int("id", 1), bytes, int("n", 3)]);
        let table = bench.table(schema).await;
        let value = |seed: u8| -> Vec<u8> {
            (0..20_000_000_u32).map(|at| at.to_le_bytes()[usize::from(seed)] ^ seed).collect()
        };
        let (one, two) = (value(0), value(1));
        let row = |value| [Value::Int(1), value, Value::Int(1)];
        let first = row(Value::Bytes(&one));
        bench.applied(inserts(&table, vec![insert(&table, &first)])).await;
        let check = |bench: &Bench, value: &[u8]| {
            let read = bench.sql("SELECT LENGTH(v), CRC32(v) FROM large");
            let mut crc = flate2::Crc::new();
            crc.update(value);
            assert_eq!(read, format!("{}\t{}", value.len(), crc.sum()));
        };
        check(&bench, &one);
        let second = row(Value::Bytes(&two));
        bench.applied(updates(&table, vec![update(&table, &second)])).await;
        check(&bench, &two);
        let changes = [delete(&table, &second), insert(&table, &first), update(&table, &second)];
        let policy = tailwater_apply::ConflictPolicy::Stop;
        assert_eq!(bench.replay(&changes, policy).await.unwrap(), 0);
        check(&bench, &two);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_sent_stays_and_clocks_do_not_run() {
    on_every_flavor(async |mut bench| {
        bench.sql(
            "CREATE TABLE t (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, a INT, b INT, \
             at DATETIME NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP)",
        );
        let at = column("at", 4, Kind::Timestamp, "datetime");
        let schema = bench.schema("t", vec![int("id", 1), int("a", 2), int("b", 3), at]);
        let table = bench.table(schema).await;
        let old = Value::Text("2001-02-03 04:05:06");
        for count in [2, 300] {
            bench.sql("DELETE FROM t");
            let row = |id| [Value::Int(id), Value::Int(1), Value::Int(2), old];
            // 0 in an AUTO_INCREMENT column is 0.
            let all: Vec<Change> = (0..count).map(|id| insert(&table, &row(id))).collect();
            bench.applied(inserts(&table, all)).await;
            assert_eq!(bench.sql("SELECT MIN(id), COUNT(DISTINCT at) FROM t"), "0\t1");
            let half = |id: i64| {
                if id % 2 == 0 {
                    [Value::Int(id), Value::Unsent, Value::Int(9), Value::Unsent]
                } else {
                    [Value::Int(id), Value::Int(8), Value::Unsent, old]
                }
            };
            let all: Vec<Change> = (0..count).map(|id| update(&table, &half(id))).collect();
            bench.applied(updates(&table, all)).await;
            assert_eq!(
                bench.sql("SELECT DISTINCT a, b, at FROM t ORDER BY a"),
                "1\t9\t2001-02-03 04:05:06\n8\t2\t2001-02-03 04:05:06"
            );
        }
        // The counter is beyond what was written.
        assert_eq!(bench.sql("INSERT INTO t (a) VALUES (1); SELECT MAX(id) FROM t"), "300");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_move_in_steps_where_order_allows_it() {
    on_every_flavor(async |mut bench| {
        let table = table(&mut bench).await;
        for count in [3, 300] {
            bench.sql("DELETE FROM t");
            bench.applied(inserts(&table, changes(&table, &rows(0, count, 1), insert))).await;
            let shift = |id: i64, by: i64| {
                let (from, name) = (format!("n{id}"), format!("m{id}"));
                moved(
                    &table,
                    &[Value::Int(id), Value::Text(&from), Value::Int(1)],
                    &[Value::Int(id + by), Value::Text(&name), Value::Int(2)],
                )
            };
            let step = updates(&table, (0..count).map(|id| shift(id, 1000)).collect());
            bench.applied(step).await;
            assert_eq!(
                bench.sql("SELECT MIN(id), COUNT(*), SUM(n) FROM t WHERE name LIKE 'm%'"),
                format!("1000\t{count}\t{}", 2 * count)
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_step_leaves_the_rest_of_the_transaction() {
    on_every_flavor(async |mut bench| {
        let table = table(&mut bench).await;
        bench.target.begin().await.unwrap();
        let first = inserts(&table, changes(&table, &rows(0, 200, 1), insert));
        assert_eq!(bench.target.step(&first).await.unwrap(), StepOutcome::Applied);
        bench.target.savepoint().await.unwrap();
        let some = updates(&table, changes(&table, &rows(0, 100, 5), update));
        assert_eq!(bench.target.step(&some).await.unwrap(), StepOutcome::Applied);
        let missing = updates(&table, changes(&table, &rows(150, 250, 5), update));
        assert!(matches!(bench.target.step(&missing).await.unwrap(), StepOutcome::Refused(_)));
        bench.target.rollback_to_savepoint().await.unwrap();
        let last = deletes(&table, changes(&table, &rows(100, 200, 1), delete));
        assert_eq!(bench.target.step(&last).await.unwrap(), StepOutcome::Applied);
        bench.target.commit(&bench.progress).await.unwrap();
        assert_eq!(sum(&bench), "100\t4950\t100");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncate_is_part_of_the_transaction_whatever_points_to_the_table() {
    on_every_flavor(async |mut bench| {
        let parent = table(&mut bench).await;
        bench.sql(
            "CREATE TABLE child (id INT NOT NULL PRIMARY KEY, t INT, \
             FOREIGN KEY (t) REFERENCES t (id) ON DELETE CASCADE)",
        );
        let schema = bench.schema("child", vec![int("id", 1), int("t", 2)]);
        let child = bench.table(schema).await;
        assert!(!parent.target.fires && !child.target.fires, "the source logs its cascades");
        bench.applied(inserts(&parent, changes(&parent, &rows(0, 3, 1), insert))).await;
        bench.applied(inserts(&child, vec![insert(&child, &[Value::Int(1), Value::Int(1)])])).await;
        bench.target.begin().await.unwrap();
        let step = Step::Truncate(vec![Arc::clone(&parent)]);
        assert_eq!(bench.target.step(&step).await.unwrap(), StepOutcome::Applied);
        bench.target.rollback().await.unwrap();
        assert_eq!(sum(&bench), "3\t3\t3");
        bench.applied(step).await;
        assert_eq!(
            bench.sql("SELECT (SELECT COUNT(*) FROM t), (SELECT COUNT(*) FROM child)"),
            "0\t1"
        );
        bench.target.begin().await.unwrap();
        bench.target.clear(&[child]).await.unwrap();
        bench.target.commit(&bench.progress).await.unwrap();
        assert_eq!(bench.sql("SELECT COUNT(*) FROM child"), "0");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_rows_of_a_table_without_a_key_go_one_at_a_time() {
    on_every_flavor(async |mut bench| {
        bench.sql(
            "CREATE TABLE bag (a VARCHAR(10) COLLATE utf8mb4_general_ci, f FLOAT, d DECIMAL(5,2), \
             j JSON, b VARBINARY(9), at DATETIME(3))",
        );
        let mut name = text("a", 2, 10);
        name.collation = Some("utf8mb4_general_ci".into());
        let mut schema = bench.schema(
            "bag",
            vec![
                name,
                column("f", 3, Kind::Float32, "float"),
                column(
                    "d",
                    4,
                    Kind::Decimal { precision: Some(5), scale: Some(2) },
                    "decimal(5,2)",
                ),
                column("j", 5, Kind::Json, "json"),
                column("b", 6, Kind::Bytes { length: Some(9), fixed: false }, "varbinary(9)"),
                column("at", 7, Kind::Timestamp, "datetime(3)"),
            ],
        );
        schema.identity = Identity::Full;
        let table = bench.table(schema).await;
        assert!(!table.target.identity_is_bytes);
        let row = |name| {
            [
                Value::Text(name),
                Value::Float32(0.1),
                Value::Text("1.50"),
                Value::Text("{\"a\": 1}"),
                Value::Bytes(b"\0'\\"),
                Value::Text("2024-01-01 00:00:00.25"),
            ]
        };
        let nulls = [Value::Null; 6];
        let all = [row("a"), row("a"), row("A"), row("a "), nulls, nulls];
        bench.applied(inserts(&table, all.iter().map(|row| insert(&table, row)).collect())).await;
        // One of two equal rows, and never the one that only the collation holds for equal.
        bench
            .applied(deletes(&table, vec![delete(&table, &row("a")), delete(&table, &nulls)]))
            .await;
        assert_eq!(bench.sql("SELECT HEX(a) FROM bag ORDER BY 1"), "NULL\n41\n61\n6120");
        bench.applied(updates(&table, vec![moved(&table, &row("a "), &row("b"))])).await;
        bench.applied(deletes(&table, vec![delete(&table, &row("A"))])).await;
        assert_eq!(bench.sql("SELECT HEX(a) FROM bag ORDER BY 1"), "NULL\n61\n62");
        bench.refused(deletes(&table, vec![delete(&table, &row("A"))])).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_line_is_a_row_too() {
    on_every_flavor(async |mut bench| {
        bench.sql("CREATE TABLE one (v VARCHAR(10) COLLATE utf8mb4_bin)");
        let mut schema = bench.schema("one", vec![text("v", 2, 10)]);
        schema.identity = Identity::Full;
        let table = bench.table(schema).await;
        let rows = (0..200).map(|_| insert(&table, &[Value::Text("")])).collect();
        bench.applied(inserts(&table, rows)).await;
        assert_eq!(bench.sql("SELECT COUNT(*) FROM one WHERE v = ''"), "200");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_infile_that_is_switched_off_meanwhile_is_done_without() {
    for flavor in flavors() {
        let mut bench = Bench::on_own(flavor, &[]).await;
        let table = table(&mut bench).await;
        bench.sql("SET GLOBAL local_infile = 0");
        bench.applied(inserts(&table, changes(&table, &rows(0, 500, 1), insert))).await;
        assert_eq!(sum(&bench), "500\t124750\t500");
    }
}
