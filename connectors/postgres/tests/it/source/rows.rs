//! Transactions and the rows in them.

use tailwater_change::Commit;

use crate::source::support::{
    Database, Log, catch_up, changes_after, flavors, resume_after, snapshot, stream_at,
};

#[tokio::test]
async fn old_and_new_rows_are_told_as_the_identity_needs() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(
            "CREATE TABLE keyed (id int PRIMARY KEY, t text, n int);
             CREATE TABLE indexed (a int, b int NOT NULL, c int NOT NULL, UNIQUE (c, b));
             ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_c_b_key;
             CREATE TABLE loose (a int, b text);
             ALTER TABLE loose REPLICA IDENTITY FULL;
             CREATE TABLE twofold (id int PRIMARY KEY, t text);
             ALTER TABLE twofold REPLICA IDENTITY FULL;
             ALTER TABLE keyed ALTER t SET STORAGE EXTERNAL;
             ALTER TABLE twofold ALTER t SET STORAGE EXTERNAL;
             INSERT INTO keyed VALUES (1, repeat('long', 1000), 0);
             INSERT INTO twofold VALUES (1, repeat('long', 1000));",
        );
        let source = database.source();
        let (_, resume) = snapshot(&*source).await;
        database.sql(
            "UPDATE keyed SET n = 1;
             UPDATE keyed SET id = 2;
             UPDATE keyed SET t = NULL;
             DELETE FROM keyed;
             INSERT INTO indexed VALUES (1, 2, 3);
             UPDATE indexed SET a = 9;
             UPDATE indexed SET b = 8;
             DELETE FROM indexed;
             INSERT INTO loose VALUES (1, NULL), (1, NULL);
             UPDATE loose SET b = 'x' WHERE ctid = '(0,1)';
             DELETE FROM loose WHERE b IS NULL;
             UPDATE twofold SET id = 2;
             UPDATE twofold SET t = 'short';
             DELETE FROM twofold;",
        );
        let log = changes_after(&*source, &resume).await;
        assert_eq!(
            log.texts(),
            [
                "update [1 - 1] unsent [2]",
                "update key [1 - -][2 - 1] unsent [2]".replace("][", "] [").as_str(),
                "update [2 - 1]",
                "delete key [2 - -]",
                "insert [1 2 3]",
                "update [9 2 3]",
                "update key [- 2 3] [9 8 3]",
                "delete key [- 8 3]",
                "insert [1 -]",
                "insert [1 -]",
                "update full [1 -] [1 'x']",
                "delete full [1 -]",
                "update key [1 -] [2 long…4000]",
                "update [2 'short']",
                "delete key [2 -]",
            ]
        );
    }
}

#[tokio::test]
async fn interleaved_transactions_come_whole_in_commit_order() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY)");
        let source = database.source();
        let (_, resume) = snapshot(&*source).await;
        let (first, second) = (database.session().await, database.session().await);
        first.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
        second.batch_execute("BEGIN; INSERT INTO t VALUES (2)").await.unwrap();
        first.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
        second.batch_execute("INSERT INTO t VALUES (4); COMMIT").await.unwrap();
        // The first is still open: its rows must not be there, nor be lost by a restart here.
        let log = changes_after(&*source, &resume).await;
        assert_eq!(log.texts(), ["insert [2]", "insert [4]"]);
        first.batch_execute("INSERT INTO t VALUES (5); COMMIT").await.unwrap();
        let resume = resume_after(log.ended[0].0, false, &resume.state);
        let log = changes_after(&*source, &resume).await;
        assert_eq!(log.texts(), ["insert [1]", "insert [3]", "insert [5]"]);
        let ordinals: Vec<u64> = log.rows.iter().map(|row| row.ordinal).collect();
        assert_eq!(ordinals, [0, 1, 2]);
    }
}

#[tokio::test]
async fn a_transaction_cut_anywhere_comes_again_the_same() {
    let database = Database::new(flavors()[0]);
    database.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let source = database.source();
    let (_, resume) = snapshot(&*source).await;
    database.sql("INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 6) g");
    let whole = changes_after(&*source, &resume).await;
    let commit = whole.ended[0].0;
    for rows_kept in 0..=6 {
        // One row at a time, then gone.
        let mut stream = stream_at(&*source, &resume).await.unwrap();
        let (mut log, mut changes) = (Log::default(), tailwater_capture::Changes::new());
        while log.rows.len() < rows_kept {
            stream.next(&mut changes, 1).await.unwrap();
            log.take(&changes);
            changes.clear();
        }
        assert_eq!(log.rows, whole.rows[..log.rows.len()]);
    }
    // Half of it may be in the log: whole again. All of it: not again.
    let again = changes_after(&*source, &resume_after(commit, true, &resume.state)).await;
    assert_eq!(again.rows, whole.rows);
    let after = changes_after(&*source, &resume_after(commit, false, &resume.state)).await;
    assert!(after.rows.is_empty());
}

#[tokio::test]
async fn truncates_savepoints_and_empty_transactions() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
             CREATE TABLE other (id int PRIMARY KEY);",
        );
        let source = database.source_of(&["public.a", "public.b"]);
        let (_, resume) = snapshot(&*source).await;
        database.sql(
            "BEGIN; INSERT INTO a VALUES (1); SAVEPOINT s; INSERT INTO a VALUES (2);
             ROLLBACK TO s; INSERT INTO a VALUES (3); COMMIT;
             BEGIN; INSERT INTO a VALUES (4); ROLLBACK;
             BEGIN; SELECT pg_current_xact_id(); COMMIT;
             INSERT INTO other VALUES (1);
             TRUNCATE a, other, b;
             SELECT pg_logical_emit_message(true, 'someone', 'else');
             INSERT INTO a VALUES (5);",
        );
        let log = changes_after(&*source, &resume).await;
        assert_eq!(
            log.texts(),
            ["insert [1]", "insert [3]", "truncate", "truncate", "insert [5]"],
            "on {flavor}"
        );
        assert_eq!(log.ended.iter().map(|(_, rows)| *rows).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!((log.rows[2].table.as_str(), log.rows[3].table.as_str()), ("a", "b"));
    }
}

#[tokio::test]
async fn a_large_transaction_is_handed_over_in_bounded_rounds() {
    let database = Database::new(flavors()[0]);
    database.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
    let source = database.source();
    let (_, resume) = snapshot(&*source).await;
    database.sql("INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 50000) g");
    let target = source.current().await.unwrap();
    let mut stream = stream_at(&*source, &resume).await.unwrap();
    let (mut log, mut changes) = (Log::default(), tailwater_capture::Changes::new());
    while log.through < target {
        stream.probe().await.unwrap();
        stream.next(&mut changes, 64 << 10).await.unwrap();
        log.take(&changes);
        changes.clear();
    }
    assert_eq!(log.ended.len(), 1);
    assert_eq!(log.rows.len(), 50_000);
    assert!(log.rows.iter().zip(0..).all(|(row, ordinal)| row.ordinal == ordinal));
    assert!(log.largest_round < (64 << 10) + 1024, "{}", log.largest_round);
}

#[tokio::test]
async fn partitions_come_as_their_root() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(
            "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
             CREATE TABLE p2 (v text, id int NOT NULL);
             ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20);
             INSERT INTO p VALUES (1, 'a'), (11, 'b');",
        );
        let source = database.source();
        let (found, resume) = snapshot(&*source).await;
        assert_eq!(found.texts(), ["read [1 'a']", "read [11 'b']"]);
        database.sql(
            "INSERT INTO p VALUES (2, 'c'); UPDATE p SET id = 12 WHERE id = 2;
                      UPDATE p SET v = 'd' WHERE id = 12; DELETE FROM p WHERE id = 11;
                      INSERT INTO p1 VALUES (3, 'e')",
        );
        let log = changes_after(&*source, &resume).await;
        assert!(log.rows.iter().all(|row| row.table == "p"));
        assert_eq!(
            log.texts(),
            [
                "insert [2 'c']",
                "delete key [2 -]",
                "insert [12 'c']",
                "update [12 'd']",
                "delete key [11 -]",
                "insert [3 'e']"
            ]
        );
    }
}

#[tokio::test]
async fn an_idle_source_still_moves_the_slot() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE noise (id int)");
        let source = database.source_of(&["public.t"]);
        let (_, resume) = snapshot(&*source).await;
        let mut stream = stream_at(&*source, &resume).await.unwrap();
        let mut log = Log { through: resume.after, ..Log::default() };
        database.sql("INSERT INTO noise SELECT generate_series(1, 1000)");
        catch_up(&*source, &mut *stream, &mut log).await.unwrap();
        assert!(log.rows.is_empty());
        stream.confirm(log.through).await.unwrap();
        let confirmed = || {
            let position = database.sql(
                "SELECT (confirmed_flush_lsn - '0/0')::int8 FROM pg_replication_slots
                  WHERE database = current_database()",
            );
            Commit::lsn(position.trim().parse().unwrap())
        };
        // The server reads our status when it wakes up.
        while confirmed().position() != log.through.position() + 1 {
            stream.confirm(log.through).await.unwrap();
        }
        database.sql("INSERT INTO t VALUES (1)");
        catch_up(&*source, &mut *stream, &mut log).await.unwrap();
        assert_eq!(log.texts(), ["insert [1]"]);
    }
}
