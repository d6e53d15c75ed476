//! A snapshot that broke off and is completed: exact at two points, with the stream between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tailwater_capture::{Changes, Rest, Resume, SourceConnector, SourceError};
use tailwater_change::{Commit, TableId};

use crate::source::support::{
    Database, Log, changes_after, flavors, read_snapshot, said, snapshot, soon,
};

fn a() -> TableId {
    TableId::new("public", "a")
}

/// Asks for the rest. The server notices the end of the last connection a moment later.
async fn rest(source: &dyn SourceConnector, resume: &Resume) -> Result<Rest, SourceError> {
    soon(async {
        loop {
            match source.snapshot_rest(resume, &[a()]).await {
                Err(SourceError::InUse(_)) => tokio::task::yield_now().await,
                other => return other,
            }
        }
    })
    .await
}

/// Reads a snapshot until its second table has begun, and breaks it off.
async fn broken_off(source: &dyn SourceConnector) -> (Log, Resume) {
    let mut snapshot = soon(source.snapshot()).await.unwrap();
    let (mut log, mut changes) = (Log::default(), Changes::new());
    while !log.rows.iter().any(|row| row.table == "b") {
        soon(snapshot.next(&mut changes, 1000)).await.unwrap();
        log.take(&changes);
        changes.clear();
    }
    assert!(!log.snapshot_ended);
    (log, Resume { after: snapshot.commit(), again: false, state: snapshot.state() })
}

fn ids<'a>(log: &'a Log, table: &'a str, after: Commit) -> impl Iterator<Item = String> + 'a {
    let rows = log.rows.iter().filter(move |row| row.table == table && row.commit >= after);
    rows.map(|row| row.text.split_once(' ').unwrap().1.to_owned())
}

fn slots(database: &Database) -> String {
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    database.sql(sql).trim().to_owned()
}

#[tokio::test]
async fn nothing_is_missing_or_twice_between_the_two_parts_and_the_stream() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(
            "CREATE TABLE a (id int PRIMARY KEY);
             CREATE TABLE b (id int PRIMARY KEY REFERENCES a);
             INSERT INTO a SELECT g FROM generate_series(-3000, -1) g;
             INSERT INTO b SELECT id FROM a;",
        );
        let source = database.source();
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..3 {
            let (session, stop) = (database.session().await, Arc::clone(&stop));
            writers.push(tokio::spawn(async move {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    let id = writer * 1_000_000 + written;
                    let sql = format!(
                        "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}); COMMIT"
                    );
                    session.batch_execute(&sql).await.unwrap();
                    written += 1;
                }
            }));
        }
        let (first, resume) = broken_off(&*source).await;
        let Rest::Snapshot(mut second) = rest(&*source, &resume).await.unwrap() else {
            panic!("nothing has changed")
        };
        let point = second.commit();
        assert!(point > resume.after);
        let rest = read_snapshot(&mut *second, 1 << 20).await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        assert!(rest.rows.iter().all(|row| row.table == "b"));
        assert_eq!(slots(&database), "1", "only the source's own");
        // From the first part's point: what the second has of `b` is left out.
        let streamed = changes_after(&*source, &resume).await;
        assert!(streamed.ended.iter().any(|(commit, _)| *commit < point), "nothing in between");
        assert!(streamed.ended.iter().all(|(commit, _)| *commit != point));
        let behind = Commit::lsn(point.position() + 1);
        for (table, read, from) in [("a", &first, Commit::ZERO), ("b", &rest, behind)] {
            let mut found: Vec<String> = ids(read, table, Commit::ZERO).collect();
            found.extend(ids(&streamed, table, from));
            found.sort();
            let sql = format!("SELECT id FROM {table}");
            let mut expected: Vec<String> =
                database.sql(&sql).lines().map(|id| format!("[{id}]")).collect();
            expected.sort();
            assert_eq!(found, expected, "{table} on {flavor}");
        }
        // And the stream of all goes on with what the second part knows.
        let resume = Resume { after: point, again: false, state: second.state() };
        let streamed = changes_after(&*source, &resume).await;
        assert!(ids(&streamed, "a", Commit::ZERO).eq(ids(&streamed, "b", Commit::ZERO)));
    }
}

/// An empty table `a` and a table `b` that takes more than one read.
fn two_tables() -> Database {
    let database = Database::new(flavors()[0]);
    database.sql(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
         INSERT INTO b SELECT g FROM generate_series(1, 2000) g;",
    );
    database
}

#[tokio::test]
async fn nothing_but_time_passes_and_the_stream_gets_there() {
    let database = two_tables();
    let source = database.source();
    let (_, resume) = broken_off(&*source).await;
    let Rest::Snapshot(second) = rest(&*source, &resume).await.unwrap() else { panic!("goes on") };
    let mut stream = crate::source::support::stream_at(&*source, &resume).await.unwrap();
    let mut log = Log { through: resume.after, ..Log::default() };
    crate::source::support::read_through(&mut *stream, &mut log, second.commit()).await.unwrap();
    assert!(log.rows.is_empty());
}

#[tokio::test]
async fn what_changed_meanwhile_is_named() {
    for (change, named) in [
        ("ALTER TABLE b ADD v text", "the definition of public.b changed"),
        ("ALTER TABLE a ALTER id TYPE bigint", "the definition of public.a changed"),
        ("DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY)", "the definition of public.a changed"),
        ("CREATE TABLE c (id int PRIMARY KEY)", "public.c was added"),
        ("DROP TABLE a", "public.a is no longer captured"),
    ] {
        let database = two_tables();
        let source = database.source();
        let (_, resume) = broken_off(&*source).await;
        database.sql(change);
        match rest(&*source, &resume).await.unwrap() {
            Rest::Void(why) => assert!(why.contains(named), "{why}"),
            other @ Rest::Snapshot(_) => panic!("{change}: {other:?}"),
        }
        // What was there is still there: capture decides.
        assert_eq!(slots(&database), "1");
        snapshot(&*source).await;
    }
}

#[tokio::test]
async fn a_slot_that_is_gone_is_a_lost_position() {
    let database = two_tables();
    let source = database.source();
    let (_, resume) = broken_off(&*source).await;
    source.release().await.unwrap();
    let error = rest(&*source, &resume).await.unwrap_err();
    assert!(matches!(error, SourceError::PositionLost { .. }), "{}", said(&error));
}
