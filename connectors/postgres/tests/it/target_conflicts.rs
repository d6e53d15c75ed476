//! Rows in each other's way: those that move later, and those that do not.

use std::sync::Arc;
use std::time::Duration;

use tailwater_apply::{Change, ConflictPolicy, Step, Target, TargetConnector as _, TargetError};
use tailwater_change::Value;
use tailwater_postgres::target::{TargetConfig, connector};
use tailwater_scratch::{Flavor, Server};

use crate::target::{
    Fixture, SIMPLE, delete, flavors, initial, insert, simple, update, update_from,
};

fn row(id: i64, k: i64) -> [Value<'static>; 3] {
    [Value::Int(id), Value::Int(k), Value::Unsent]
}

/// A table with rows 1 … `count`, `k` = `id`.
async fn numbered(flavor: Flavor, create: &str, count: i64) -> Fixture {
    let sql =
        format!("{create}; INSERT INTO t SELECT i, i, 'v' || i FROM generate_series(1, {count}) i");
    Fixture::new(flavor, &sql).await
}

const EQUAL: &str = "SELECT count(*) FROM t WHERE v = 'v' || id";

#[tokio::test]
async fn a_swap_of_unique_values_ends_right() {
    for flavor in flavors() {
        let mut fixture = numbered(flavor, SIMPLE, 3).await;
        let table = fixture.describe(simple("t")).await;
        // UPDATE t SET k = 3 - k WHERE k < 3, under a constraint that the source defers.
        let changes = vec![update(&table, &row(1, 2)), update(&table, &row(2, 1))];
        let step = Step::Update { table: Arc::clone(&table), rows: changes.clone() };
        fixture.refused(&step).await;
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
        assert_eq!(fixture.sql("SELECT id, k FROM t ORDER BY id"), "1\t2\n2\t1\n3\t3");
        // What was not sent is kept.
        assert_eq!(fixture.sql(EQUAL), "3");
    }
}

#[tokio::test]
async fn a_chain_of_unique_values_ends_right() {
    for flavor in flavors() {
        let mut fixture = numbered(flavor, SIMPLE, 100).await;
        let table = fixture.describe(simple("t")).await;
        // A ring: each takes the next one's, the last the first's.
        let changes: Vec<Change> =
            (1..=100).map(|id| update(&table, &row(id, id % 100 + 1))).collect();
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
        assert_eq!(fixture.sql("SELECT count(*) FROM t WHERE k = id % 100 + 1"), "100");
        assert_eq!(fixture.sql(EQUAL), "100");
    }
}

#[tokio::test]
async fn a_chain_goes_on_over_stretches_of_a_transaction() {
    for flavor in flavors() {
        let mut fixture = numbered(flavor, SIMPLE, 4).await;
        let table = fixture.describe(simple("t")).await;
        let progress = fixture.target.take_over(&initial("p")).await.unwrap();
        fixture.target.begin().await.unwrap();
        for id in 1..=4 {
            fixture.target.savepoint().await.unwrap();
            let changes = [update(&table, &row(id, id % 4 + 1))];
            if id == 2 {
                // A stretch that is undone leaves the rows that were set aside before it.
                fixture.target.replay(&changes, ConflictPolicy::Stop).await.unwrap();
                fixture.target.rollback_to_savepoint().await.unwrap();
            }
            fixture.target.replay(&changes, ConflictPolicy::Stop).await.unwrap();
        }
        fixture.target.commit(&progress).await.unwrap();
        assert_eq!(fixture.sql("SELECT id, k FROM t ORDER BY id"), "1\t2\n2\t3\n3\t4\n4\t1");
    }
}

#[tokio::test]
async fn keys_are_swapped_too() {
    for flavor in flavors() {
        let mut fixture = numbered(flavor, SIMPLE, 2).await;
        let table = fixture.describe(simple("t")).await;
        let changes = vec![
            update_from(&table, &row(1, 0), &row(2, 1)),
            update_from(&table, &row(2, 0), &row(1, 2)),
        ];
        // Row 2 is two rows for a while: the second change means the one that was there first.
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
        assert_eq!(fixture.sql("SELECT id, k, v FROM t ORDER BY id"), "1\t2\tv2\n2\t1\tv1");
    }
}

#[tokio::test]
async fn expression_and_partial_indexes_are_cleared_too() {
    for flavor in flavors() {
        let create = "CREATE TABLE t (id int PRIMARY KEY, k int, v text);
                      CREATE UNIQUE INDEX even ON t ((k / 2)) WHERE k % 2 = 0;
                      CREATE UNIQUE INDEX lowered ON t (lower(v), k)";
        let mut fixture = numbered(flavor, create, 4).await;
        let table = fixture.describe(simple("t")).await;
        assert_eq!(table.target.unique_keys, [vec![1], vec![1, 2]]);
        let changes = vec![
            update(&table, &row(2, 4)),
            update(&table, &row(4, 2)),
            update(&table, &[Value::Int(1), Value::Int(3), Value::Text("V3")]),
            update(&table, &[Value::Int(3), Value::Int(1), Value::Text("V1")]),
        ];
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
        assert_eq!(
            fixture.sql("SELECT * FROM t ORDER BY id"),
            "1\t3\tV3\n2\t4\tv2\n3\t1\tV1\n4\t2\tv4"
        );
    }
}

#[tokio::test]
async fn an_insert_may_meet_a_row_that_leaves_later() {
    for flavor in flavors() {
        let mut fixture = numbered(flavor, SIMPLE, 3).await;
        let table = fixture.describe(simple("t")).await;
        let new = |id, k| insert(&table, &[Value::Int(id), Value::Int(k), Value::Text("new")]);
        let changes =
            vec![new(10, 1), new(11, 2), delete(&table, &row(1, 0)), update(&table, &row(2, 20))];
        assert_eq!(fixture.replay(&changes, ConflictPolicy::Stop).await.unwrap(), 0);
        assert_eq!(
            fixture.sql("SELECT * FROM t ORDER BY id"),
            "2\t20\tv2\n3\t3\tv3\n10\t1\tnew\n11\t2\tnew"
        );
    }
}

#[tokio::test]
async fn a_row_that_stays_in_the_way_is_a_conflict() {
    for flavor in flavors() {
        for policy in [ConflictPolicy::Repair, ConflictPolicy::Stop] {
            let mut fixture = numbered(flavor, SIMPLE, 2).await;
            let table = fixture.describe(simple("t")).await;
            for changes in [
                vec![insert(&table, &[Value::Int(9), Value::Int(2), Value::Null])],
                vec![update(&table, &row(1, 2))],
            ] {
                let error = fixture.replay(&changes, policy).await.unwrap_err();
                assert!(matches!(error, TargetError::Conflict { .. }), "{error:?}");
                assert!(error.to_string().contains("t_k_key"), "{error}");
                assert_eq!(fixture.sql("SELECT id, k FROM t ORDER BY id"), "1\t1\n2\t2");
            }
            // A row under the new key: the source does not have it.
            let onto = [update_from(&table, &row(1, 0), &row(2, 1))];
            let done = fixture.replay(&onto, policy).await;
            if policy == ConflictPolicy::Repair {
                assert_eq!(done.unwrap(), 1);
                assert_eq!(fixture.sql("SELECT * FROM t"), "2\t1\tv1");
            } else {
                assert!(done.unwrap_err().to_string().contains("t_pkey"));
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_moved_where_triggers_would_see_it() {
    for flavor in flavors() {
        let create = "CREATE TABLE t (id int PRIMARY KEY, k int UNIQUE, v text);
                      CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
                      CREATE TRIGGER g BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f();
                      ALTER TABLE t ENABLE ALWAYS TRIGGER g";
        let mut fixture = numbered(flavor, create, 2).await;
        let table = fixture.describe(simple("t")).await;
        assert!(table.target.fires);
        let changes = [update(&table, &row(1, 2)), update(&table, &row(2, 1))];
        let error = fixture.replay(&changes, ConflictPolicy::Repair).await.unwrap_err();
        assert!(error.to_string().contains("t_k_key"), "{error}");
    }
}

/// A replica session does not check a deferrable key: nothing but looking first keeps a second
/// row of a key out.
#[tokio::test]
async fn a_deferrable_key_lets_no_second_row_in() {
    for flavor in flavors() {
        let create = "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, k int, v text)";
        let mut fixture = numbered(flavor, create, 2).await;
        let table = fixture.describe(simple("t")).await;
        let again = vec![insert(&table, &[Value::Int(1), Value::Int(7), Value::Text("new")])];
        let step = Step::Insert { table: Arc::clone(&table), rows: again.clone() };
        fixture.refused(&step).await;
        assert!(fixture.replay(&again, ConflictPolicy::Stop).await.is_err());
        assert_eq!(fixture.replay(&again, ConflictPolicy::Repair).await.unwrap(), 1);
        assert_eq!(fixture.sql("SELECT * FROM t ORDER BY id"), "1\t7\tnew\n2\t2\tv2");
    }
}

/// One by one and as a merge: a row whose key is only equal there is another row.
#[tokio::test]
async fn a_row_of_an_equal_key_is_not_overwritten() {
    use tailwater_change::Identity;
    for flavor in flavors() {
        let sql = "CREATE EXTENSION citext; CREATE TABLE t (v citext PRIMARY KEY, k int);
                   INSERT INTO t VALUES ('A7', 1), ('b', 1)";
        let mut fixture = Fixture::new(flavor, sql).await;
        let columns = vec![
            crate::target::column("v", crate::target::text(), "text"),
            crate::target::column("k", crate::target::int(), "integer"),
        ];
        let table =
            fixture.describe(crate::target::schema("t", columns, Identity::Key(vec![0]))).await;
        let names: Vec<String> = (0..2000).map(|number| format!("a{number}")).collect();
        let all: Vec<Change> =
            names.iter().map(|name| insert(&table, &[Value::Text(name), Value::Int(2)])).collect();
        for changes in [&all[7..8], &all[..]] {
            let error = fixture.replay(changes, ConflictPolicy::Repair).await.unwrap_err();
            assert!(matches!(error, TargetError::Conflict { .. }), "{error:?}");
            let said = error.to_string();
            assert!(said.contains("A7") && said.contains("a7"), "{said}");
            assert_eq!(fixture.sql("SELECT * FROM t ORDER BY v"), "A7\t1\nb\t1");
        }
        let same = [insert(&table, &[Value::Text("b"), Value::Int(2)])];
        assert_eq!(fixture.replay(&same, ConflictPolicy::Repair).await.unwrap(), 1);
        assert_eq!(fixture.sql("SELECT * FROM t ORDER BY v"), "A7\t1\nb\t2");
    }
}

/// Both ways a COMMIT can lose its answer, and the way it cannot.
#[tokio::test]
async fn a_connection_cut_in_commit_has_an_unknown_outcome() {
    use tailwater_scratch::{Cut, Proxy};
    let server = Server::shared(Flavor::Postgres15);
    for (happens, cut) in
        [(false, Cut::Before(b"COMMIT\0".into())), (true, Cut::After(b"COMMIT\0".into()))]
    {
        let mut fixture = Fixture::new(Flavor::Postgres15, SIMPLE).await;
        let table = fixture.describe(simple("t")).await;
        let ours = fixture.target.take_over(&initial("shop")).await.unwrap();
        let proxy = Proxy::start(server.port()).unwrap();
        let url = server.url_through(&proxy, &fixture.database);
        let through = connector(TargetConfig { name: "copy".into(), url }).unwrap();
        let mut target: Box<dyn Target> = through.connect().await.unwrap();
        target.begin().await.unwrap();
        let rows = vec![insert(&table, &[Value::Int(1), Value::Null, Value::Null])];
        target.step(&Step::Insert { table: Arc::clone(&table), rows }).await.unwrap();
        proxy.cut_on(cut);
        let moved = tailwater_apply::Progress { next_offset: 42, ..ours.clone() };
        let error = target.commit(&moved).await.unwrap_err();
        assert!(matches!(error, TargetError::UnknownOutcome(_)), "{error:?}");
        proxy.wait_for_cut(Duration::from_secs(20)).unwrap();
        drop(target);
        if happens {
            // The server has the COMMIT, and finishes it without us.
            tailwater_scratch::wait_until(Duration::from_secs(20), "the commit", || {
                Ok((fixture.sql("SELECT count(*) FROM t") == "1").then_some(()))
            })
            .unwrap();
        }
        let expected = if happens { moved } else { ours };
        assert_eq!(fixture.target.progress("shop").await.unwrap(), Some(expected));
        assert_eq!(fixture.sql("SELECT count(*) FROM t"), if happens { "1" } else { "0" });
    }
}
