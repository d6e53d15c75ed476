//! Steps, small and large, and what refuses them.

use std::sync::Arc;

use tailwater_apply::{Change, ConflictPolicy, Step, Table};
use tailwater_change::{Generated, Identity, Kind, Value};

use crate::target::{
    Fixture, SIMPLE, column, delete, flavors, insert, int, schema, simple, text, truncate, update,
    update_from,
};

/// Rows for pipelined statements, and rows for COPY.
const SIZES: [i64; 2] = [5, 1000];

fn values(id: i64) -> [Value<'static>; 3] {
    [Value::Int(id), Value::Int(id * 10), Value::Text("v")]
}

fn inserts(table: &Arc<Table>, count: i64) -> Vec<Change> {
    (0..count).map(|id| insert(table, &values(id))).collect()
}

#[tokio::test]
async fn rows_are_inserted_updated_and_deleted() {
    for flavor in flavors() {
        for count in SIZES {
            let mut fixture = Fixture::new(flavor, SIMPLE).await;
            let table = fixture.describe(simple("t")).await;
            assert!(!table.target.fires && table.target.identity_is_bytes);
            assert_eq!(table.target.unique_keys, [vec![1]]);
            assert!(fixture.target.is_empty(&table.target.name).await.unwrap());
            let rows = inserts(&table, count);
            fixture.apply(&[Step::Insert { table: Arc::clone(&table), rows }]).await;
            assert!(!fixture.target.is_empty(&table.target.name).await.unwrap());

            // Three sets of columns, one of them with a new key.
            let rows = (0..count)
                .map(|id| match id % 3 {
                    0 => update(&table, &[Value::Int(id), Value::Unsent, Value::Text("new")]),
                    1 => update(&table, &[Value::Int(id), Value::Null, Value::Unsent]),
                    _ => update_from(
                        &table,
                        &[Value::Int(id), Value::Null, Value::Null],
                        &[Value::Int(-id), Value::Int(-id), Value::Null],
                    ),
                })
                .collect();
            fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;
            assert_eq!(
                fixture.sql(
                    "SELECT count(*) FILTER (WHERE id % 3 = 0 AND k = id * 10 AND v = 'new')
                          + count(*) FILTER (WHERE id % 3 = 1 AND k IS NULL AND v = 'v')
                          + count(*) FILTER (WHERE id < 0 AND k = id AND v IS NULL) FROM t"
                ),
                count.to_string()
            );
            // Only the identity was sent.
            let rows = vec![update(&table, &[Value::Int(0), Value::Unsent, Value::Unsent])];
            fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;

            let rows = (0..count)
                .map(|id| if id % 3 == 2 { -id } else { id })
                .map(|id| delete(&table, &[Value::Int(id), Value::Null, Value::Null]))
                .collect();
            fixture.apply(&[Step::Delete { table: Arc::clone(&table), rows }]).await;
            assert_eq!(fixture.sql("SELECT count(*) FROM t"), "0");
        }
    }
}

#[tokio::test]
async fn a_step_that_does_not_meet_its_rows_is_refused_and_replayed() {
    for flavor in flavors() {
        for count in SIZES {
            let mut fixture = Fixture::new(flavor, SIMPLE).await;
            let table = fixture.describe(simple("t")).await;
            fixture.sql("INSERT INTO t VALUES (2, 20, 'old')");
            let insert_step =
                Step::Insert { table: Arc::clone(&table), rows: inserts(&table, count) };
            let why = fixture.refused(&insert_step).await;
            assert!(why.contains("t_pkey"), "{why}");
            assert_eq!(fixture.sql("SELECT count(*) FROM t"), "1");

            // In one transaction: step, back, replay, and on.
            fixture.target.begin().await.unwrap();
            fixture.target.savepoint().await.unwrap();
            fixture.target.step(&insert_step).await.unwrap();
            fixture.target.rollback_to_savepoint().await.unwrap();
            let changes = inserts(&table, count);
            let repaired = fixture.target.replay(&changes, ConflictPolicy::Repair).await.unwrap();
            assert_eq!(repaired, 1);
            let progress = fixture.target.take_over(&crate::target::initial("p")).await.unwrap();
            fixture.target.commit(&progress).await.unwrap();
            assert_eq!(fixture.sql("SELECT count(*) FROM t WHERE v = 'v'"), count.to_string());

            // Updates and deletes of a row that is not there.
            fixture.sql("DELETE FROM t WHERE id = 3");
            let updates: Vec<Change> = (0..count)
                .map(|id| update(&table, &[Value::Int(id), Value::Int(id), Value::Text("w")]))
                .collect();
            let why = fixture
                .refused(&Step::Update { table: Arc::clone(&table), rows: updates.clone() })
                .await;
            assert!(why.contains("instead of"), "{why}");
            let error = fixture.replay(&updates, ConflictPolicy::Stop).await.unwrap_err();
            assert!(error.to_string().contains("key (id) = (3)"), "{error}");
            let keyed = update(&table, &[Value::Int(3), Value::Unsent, Value::Text("w")]);
            let error = fixture.replay(&[keyed], ConflictPolicy::Repair).await.unwrap_err();
            assert!(error.to_string().contains("did not send all"), "{error}");
            assert_eq!(fixture.replay(&updates, ConflictPolicy::Repair).await.unwrap(), 1);
            assert_eq!(fixture.sql("SELECT count(*) FROM t WHERE k = id"), count.to_string());

            fixture.sql("DELETE FROM t WHERE id = 4");
            let deletes: Vec<Change> = (0..count)
                .map(|id| delete(&table, &[Value::Int(id), Value::Null, Value::Null]))
                .collect();
            let step = Step::Delete { table: Arc::clone(&table), rows: deletes.clone() };
            fixture.refused(&step).await;
            assert!(fixture.replay(&deletes, ConflictPolicy::Stop).await.is_err());
            assert_eq!(fixture.replay(&deletes, ConflictPolicy::Repair).await.unwrap(), 1);
            assert_eq!(fixture.sql("SELECT count(*) FROM t"), "0");
        }
    }
}

#[tokio::test]
async fn constraints_refuse_a_step_and_name_themselves_in_a_replay() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(
            flavor,
            "CREATE TABLE t (id int PRIMARY KEY, k int CONSTRAINT positive CHECK (k >= 0),
                             v varchar(3) NOT NULL)",
        )
        .await;
        let mut source = simple("t");
        source.columns[2].kind = Kind::Text { length: Some(3), fixed: false };
        let table = fixture.describe(source).await;
        for (values, name) in [
            ([Value::Int(1), Value::Int(-1), Value::Text("v")], "positive"),
            ([Value::Int(1), Value::Int(1), Value::Null], "\"v\""),
            ([Value::Int(1), Value::Int(1), Value::Text("long")], "22001"),
        ] {
            let rows = vec![insert(&table, &values)];
            let why = fixture.refused(&Step::Insert { table: Arc::clone(&table), rows }).await;
            assert!(why.contains(name), "{why}");
            let changes = [insert(&table, &values)];
            let error = fixture.replay(&changes, ConflictPolicy::Repair).await.unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(error.to_string().contains("key (id) = (1)"), "{error}");
            assert!(!error.to_string().contains("long)"), "{error}");
        }
    }
}

#[tokio::test]
async fn tables_without_a_key_change_one_of_equal_rows() {
    for flavor in flavors() {
        let columns = vec![
            column("a", int(), "integer"),
            column("f", Kind::Float64, "double precision"),
            column("j", Kind::Json, "json"),
            column("n", Kind::Decimal { precision: None, scale: None }, "numeric"),
            column("v", text(), "text"),
        ];
        for partitioned in [false, true] {
            let parts = if partitioned {
                "PARTITION BY LIST (a);
                 CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);
                 CREATE TABLE t2 PARTITION OF t DEFAULT"
            } else {
                ""
            };
            let create =
                format!("CREATE TABLE t (a int, f float8, j json, n numeric, v text) {parts}");
            let mut fixture = Fixture::new(flavor, &create).await;
            let table = fixture.describe(schema("t", columns.clone(), Identity::Full)).await;
            assert!(!table.target.identity_is_bytes);
            let row = |a: i64, f, n| {
                let a = if a == 0 { Value::Null } else { Value::Int(a) };
                [a, Value::Float64(f), Value::Text("{\"a\": 1}"), Value::Text(n), Value::Null]
            };
            // Equal under `=`, not the same value.
            let different = [
                row(1, 0.0, "1.0"),
                row(1, -0.0, "1.0"),
                row(1, 0.0, "1.00"),
                row(0, f64::NAN, "1"),
            ];
            for count in [1, 20] {
                let rows: Vec<Change> = (0..2 * count)
                    .flat_map(|_| different.iter().map(|values| insert(&table, values)))
                    .collect();
                fixture.apply(&[Step::Insert { table: Arc::clone(&table), rows }]).await;
                let old = different.map(|values| delete(&table, &values));
                // Large steps have many different rows.
                let filler: Vec<Change> = (2..2 + i64::from(count - 1))
                    .map(|a| insert(&table, &row(a, 1.0, "7")))
                    .collect();
                fixture
                    .apply(&[Step::Insert { table: Arc::clone(&table), rows: filler.clone() }])
                    .await;
                let rows: Vec<Change> = old
                    .iter()
                    .cloned()
                    .chain((2..2 + i64::from(count - 1)).map(|a| delete(&table, &row(a, 1.0, "7"))))
                    .collect();
                fixture.apply(&[Step::Delete { table: Arc::clone(&table), rows }]).await;
                let left = "SELECT count(*), count(*) FILTER (WHERE f::text = '-0'),
                                   count(*) FILTER (WHERE n::text = '1.00'),
                                   count(*) FILTER (WHERE a IS NULL) FROM t";
                let each = 2 * count - 1;
                assert_eq!(fixture.sql(left), format!("{}\t{each}\t{each}\t{each}", each * 4));
                let to = [
                    Value::Int(9),
                    Value::Float64(9.0),
                    Value::Null,
                    Value::Unsent,
                    Value::Text("new"),
                ];
                let rows: Vec<Change> =
                    different.iter().map(|values| update_from(&table, values, &to)).collect();
                fixture
                    .apply(&[Step::Update { table: Arc::clone(&table), rows: rows.clone() }])
                    .await;
                assert_eq!(fixture.replay(&rows, ConflictPolicy::Stop).await.is_ok(), count > 1);
                let moved =
                    "SELECT string_agg(n::text, ' ' ORDER BY n::text) FROM t WHERE v = 'new'";
                let expected =
                    if count > 1 { "1 1 1.0 1.0 1.0 1.0 1.00 1.00" } else { "1 1.0 1.0 1.00" };
                assert_eq!(fixture.sql(moved), expected);
                fixture.sql("TRUNCATE t");
            }
        }
    }
}

#[tokio::test]
async fn a_large_update_of_a_table_without_a_key_meets_each_row_once() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(flavor, "CREATE TABLE t (id int, k int, v text)").await;
        let mut source = simple("t");
        source.identity = Identity::Full;
        let table = fixture.describe(source).await;
        let rows = inserts(&table, 500);
        fixture.apply(&[Step::Insert { table: Arc::clone(&table), rows }]).await;
        fixture.sql("INSERT INTO t SELECT * FROM t");
        let rows = (0..500)
            .map(|id| {
                let after = [Value::Int(id), Value::Unsent, Value::Text("w")];
                update_from(&table, &values(id), &after)
            })
            .collect();
        fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;
        assert_eq!(
            fixture
                .sql("SELECT v, count(*), count(DISTINCT id), sum(k) FROM t GROUP BY v ORDER BY v"),
            "v\t500\t500\t1247500\nw\t500\t500\t1247500"
        );
    }
}

#[tokio::test]
async fn tables_are_emptied_whatever_points_to_them() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(
            flavor,
            "CREATE TABLE parent (id int PRIMARY KEY, k int, v text);
             CREATE TABLE child (id int PRIMARY KEY, k int REFERENCES parent, v text);
             CREATE TABLE alone (id int PRIMARY KEY, k int, v text);
             INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1);
             INSERT INTO alone VALUES (1)",
        )
        .await;
        let parent = fixture.describe(simple("parent")).await;
        let child = fixture.describe(simple("child")).await;
        let alone = fixture.describe(simple("alone")).await;
        fixture.apply(&[Step::Truncate(vec![Arc::clone(&parent), Arc::clone(&alone)])]).await;
        assert_eq!(fixture.sql("SELECT count(*) FROM parent"), "0");
        assert_eq!(fixture.sql("SELECT count(*) FROM child"), "1");
        fixture.sql("INSERT INTO alone VALUES (1); SET session_replication_role = replica; INSERT INTO parent VALUES (1)");
        fixture.apply(&[Step::Truncate(vec![Arc::clone(&child), Arc::clone(&parent)])]).await;
        assert_eq!(
            fixture.sql("SELECT (SELECT count(*) FROM parent) + (SELECT count(*) FROM child)"),
            "0"
        );
        let changes = [
            insert(&child, &[Value::Int(1), Value::Null, Value::Null]),
            truncate(&alone),
            insert(&alone, &[Value::Int(5), Value::Null, Value::Null]),
        ];
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
        assert_eq!(fixture.sql("SELECT id FROM alone"), "5");
        fixture.target.begin().await.unwrap();
        fixture.target.clear(&[alone, parent]).await.unwrap();
        fixture.target.rollback().await.unwrap();
        assert_eq!(fixture.sql("SELECT id FROM alone"), "5");
    }
}

#[tokio::test]
async fn identity_columns_take_the_sources_numbers() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(
            flavor,
            "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                             k int GENERATED ALWAYS AS (1 + 1) STORED, v text);
             CREATE TABLE u (id int PRIMARY KEY, k int GENERATED ALWAYS AS IDENTITY, v text)",
        )
        .await;
        let mut source = simple("t");
        source.columns[0].generated = Some(Generated::IdentityAlways);
        source.columns[1].generated = Some(Generated::Stored);
        let table = fixture.describe(source).await;
        let other = fixture.describe(simple("u")).await;
        let row = |id| [Value::Int(id), Value::Null, Value::Text("v")];
        let wide = |id, k| [Value::Int(id), Value::Int(k), Value::Text("w")];
        for count in SIZES {
            let rows = (0..count).map(|id| insert(&table, &row(id))).collect();
            fixture.apply(&[Step::Insert { table: Arc::clone(&table), rows }]).await;
            let rows = (0..count).map(|id| insert(&other, &wide(id, id * 7))).collect();
            fixture.apply(&[Step::Insert { table: Arc::clone(&other), rows }]).await;
            let rows = (0..count).map(|id| update(&table, &row(id))).collect();
            fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;
            // The number stays: a step. The number changes: a replay.
            let rows = (0..count).map(|id| update(&other, &wide(id, id * 7))).collect();
            fixture.apply(&[Step::Update { table: Arc::clone(&other), rows }]).await;
            let rows: Vec<Change> = (0..count).map(|id| update(&other, &wide(id, id))).collect();
            let step = Step::Update { table: Arc::clone(&other), rows: rows.clone() };
            fixture.refused(&step).await;
            assert_eq!(fixture.replay(&rows, ConflictPolicy::Stop).await.unwrap(), 0);
            assert_eq!(fixture.sql("SELECT count(*) FROM u WHERE k = id"), count.to_string());
            let moved: Vec<Change> = (0..count)
                .map(|id| {
                    update_from(&table, &[Value::Int(id), Value::Null, Value::Null], &row(-id - 1))
                })
                .collect();
            let step = Step::Update { table: Arc::clone(&table), rows: moved.clone() };
            fixture.refused(&step).await;
            assert_eq!(fixture.replay(&moved, ConflictPolicy::Stop).await.unwrap(), 0);
            assert_eq!(
                fixture.sql("SELECT count(*) FROM t WHERE id < 0 AND k = 2"),
                count.to_string()
            );
            fixture.sql("TRUNCATE t, u");
        }
    }
}

#[tokio::test]
async fn an_altered_table_is_described_anew() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(flavor, SIMPLE).await;
        let table = fixture.describe(simple("t")).await;
        let rows = inserts(&table, 100);
        fixture.apply(&[Step::Insert { table: Arc::clone(&table), rows }]).await;
        let rows = (0..100).map(|id| update(&table, &values(id))).collect();
        fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;
        fixture.sql("ALTER TABLE t ALTER k TYPE bigint, ADD w text");
        let mut source = simple("t");
        source.columns[1].kind = Kind::Int { bits: 64, signed: true };
        let mut added = column("w", text(), "text");
        added.field = 4;
        source.columns.push(added);
        let table = fixture.describe(source).await;
        let values =
            |id: i64| [Value::Int(id), Value::Int(id << 40), Value::Null, Value::Text("w")];
        let rows = (0..100).map(|id| update(&table, &values(id))).collect();
        fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;
        assert_eq!(
            fixture.sql("SELECT count(*) FROM t WHERE k = id::bigint << 40 AND w = 'w'"),
            "100"
        );
    }
}

#[tokio::test]
async fn many_inserts_over_existing_rows_are_merged() {
    for flavor in flavors() {
        let mut fixture =
            Fixture::new(flavor, "CREATE TABLE t (id int PRIMARY KEY, k int, v text)").await;
        let table = fixture.describe(simple("t")).await;
        fixture.sql("INSERT INTO t SELECT i, -1, 'old' FROM generate_series(0, 2999, 3) i");
        let changes = inserts(&table, 2000);
        assert!(fixture.replay(&changes, ConflictPolicy::Stop).await.is_err());
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Repair).await.unwrap(), 667);
        // Of one key twice, the later counts.
        let twice: Vec<Change> = (0..40)
            .map(|n| insert(&table, &[Value::Int(n % 20), Value::Int(n), Value::Text("twice")]))
            .collect();
        assert_eq!(fixture.replay(&twice, ConflictPolicy::Repair).await.unwrap(), 40);
        assert_eq!(
            fixture.sql("SELECT v, count(*), sum(k) FROM t GROUP BY v ORDER BY v"),
            "old\t333\t-333\ntwice\t20\t590\nv\t1980\t19988100"
        );
    }
}
