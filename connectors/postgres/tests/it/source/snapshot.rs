//! The first snapshot: exact, streaming, and clean when it fails.

use tailwater_capture::{Changes, SourceConnector};
use tailwater_scratch::wait_until;

use crate::source::support::{
    Database, Log, changes_after, flavors, read_snapshot, resume_after, snapshot, soon,
};

#[tokio::test]
async fn nothing_is_missing_or_twice_between_snapshot_and_stream() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY)");
        let source = database.source();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..3 {
            let (session, stop) = (database.session().await, std::sync::Arc::clone(&stop));
            writers.push(tokio::spawn(async move {
                let mut written = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let id = writer * 1_000_000 + written;
                    session.execute("INSERT INTO t VALUES ($1)", &[&id]).await.unwrap();
                    written += 1;
                }
            }));
        }
        let (found, resume) = snapshot(&*source).await;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        let streamed = changes_after(&*source, &resume).await;
        let ids = |log: &Log| -> Vec<String> {
            log.rows.iter().map(|row| row.text.split_once(' ').unwrap().1.to_owned()).collect()
        };
        let mut all = [ids(&found), ids(&streamed)].concat();
        all.sort();
        let mut expected: Vec<String> =
            database.sql("SELECT id FROM t").lines().map(|id| format!("[{id}]")).collect();
        expected.sort();
        assert_eq!(all, expected, "on {flavor}");
        assert!(!streamed.rows.is_empty());
    }
}

#[tokio::test]
async fn a_snapshot_streams_in_bounded_rounds() {
    let database = Database::new(flavors()[0]);
    database.sql(
        "CREATE TABLE a (id int PRIMARY KEY, v text);
         CREATE TABLE b (id int PRIMARY KEY REFERENCES a);
         CREATE TABLE empty ();
         ALTER TABLE empty REPLICA IDENTITY FULL;
         INSERT INTO empty DEFAULT VALUES;
         INSERT INTO a SELECT g, repeat('x', 100) FROM generate_series(1, 20000) g;
         INSERT INTO b SELECT id FROM a WHERE id < 10;",
    );
    let source = database.source();
    let mut snapshot = source.snapshot().await.unwrap();
    let log = read_snapshot(&mut *snapshot, 16 << 10).await;
    assert_eq!(log.rows.len(), 20_010);
    assert!(log.rows.iter().zip(0..).all(|(row, ordinal)| row.ordinal == ordinal));
    assert!(log.largest_round < (16 << 10) + 1024, "{}", log.largest_round);
    let tables: Vec<String> =
        source.tables().await.unwrap().iter().map(|table| table.table.to_string()).collect();
    assert_eq!(tables, ["public.a", "public.b", "public.empty"]);
}

#[tokio::test]
async fn an_old_slot_of_an_unfinished_snapshot_is_replaced() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let source = database.source();
        drop(source.snapshot().await.unwrap());
        database.sql("INSERT INTO t VALUES (2)");
        let (found, resume) = snapshot(&*source).await;
        assert_eq!(found.rows.len(), 2);
        let slots = database
            .sql("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()");
        assert_eq!(slots.trim(), "1");
        assert!(changes_after(&*source, &resume).await.rows.is_empty());
    }
}

/// What was read to its end may be completed: capture knows, and releases the slot if not.
#[tokio::test]
async fn a_failed_snapshot_leaves_its_slot_to_capture() {
    let database = Database::new(flavors()[0]);
    database.sql(
        "CREATE TABLE t (id int PRIMARY KEY, v text);
                  INSERT INTO t SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g",
    );
    let source = database.source();
    let mut snapshot = source.snapshot().await.unwrap();
    let mut changes = Changes::new();
    snapshot.next(&mut changes, 1000).await.unwrap();
    database.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND query LIKE 'COPY%'",
    );
    let error = loop {
        changes.clear();
        match soon(snapshot.next(&mut changes, 1 << 20)).await {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.disposition(), tailwater_change::Disposition::Retry, "{error:?}");
    let slots = || {
        let sql = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
        database.sql(sql).trim().to_owned()
    };
    assert_eq!(slots(), "1");
    source.release().await.unwrap();
    assert_eq!(slots(), "0");
}

#[tokio::test]
async fn a_snapshot_waits_for_open_transactions_and_has_them() {
    let database = Database::new(flavors()[0]);
    database.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let writer = database.session().await;
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let source = database.source();
    let taken = tokio::spawn(async move {
        let (found, resume) = snapshot(&*source).await;
        (source, found, resume)
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND query LIKE 'CREATE_REPLICATION_SLOT%' AND wait_event_type = 'Lock'";
    let (server, name) = (database.server, database.name.clone());
    tokio::task::spawn_blocking(move || {
        wait_until(std::time::Duration::from_secs(60), "the slot waits", || {
            Ok((server.sql(&name, waiting)?.trim() == "1").then_some(()))
        })
    })
    .await
    .unwrap()
    .unwrap();
    writer.batch_execute("COMMIT").await.unwrap();
    let (source, found, resume) = taken.await.unwrap();
    let streamed = changes_after(&*source, &resume_after(resume.after, false, &resume.state)).await;
    assert_eq!(found.rows.len() + streamed.rows.len(), 1);
}

#[tokio::test]
async fn what_a_table_is_stands_in_its_schema() {
    let database = Database::new(flavors()[0]);
    database.sql(
        "CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
         CREATE TABLE child (
            a serial, b text COLLATE \"C\" DEFAULT 'x''y', c int NOT NULL, gone int,
            d int GENERATED ALWAYS AS (c + 1) STORED, parent int REFERENCES parent ON DELETE CASCADE
                DEFERRABLE INITIALLY DEFERRED,
            PRIMARY KEY (c, a));
         ALTER TABLE child DROP gone;
         CREATE UNIQUE INDEX lower ON child (lower(b));",
    );
    let tables = database.source().tables().await.unwrap();
    let text = serde_json::to_string_pretty(&*tables[1]).unwrap();
    for part in [
        "\"key\": [\n    2,\n    0\n  ]",
        "\"generated\": \"stored\"",
        "\"expression\": \"(c + 1)\"",
        "\"default\": \"'x''y'::text\"",
        "\"collation\": \"\\\"C\\\"\"",
        "\"generated\": \"identity_by_default\"",
        "\"on_delete\": \"cascade\"",
        "\"initially_deferred\": true",
        "\"field\": 6",
        "CREATE UNIQUE INDEX lower ON public.child USING btree (lower(b))",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(tables[0].table.name, "parent");
    let _object_safe: &dyn SourceConnector = &*database.source();
}
