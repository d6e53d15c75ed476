//! A snapshot that broke off and is completed: exact at two points, with the stream between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tailwater_capture::{Changes, Rest, Resume, SourceConnector};
use tailwater_change::{Commit, TableId};

use super::support::{Item, Recorder, Tail, on_each, source};

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY);
     CREATE TABLE b (id int PRIMARY KEY, FOREIGN KEY (id) REFERENCES a (id));";

/// Enough for a table to be read in several rounds.
fn rows(from: i64) -> String {
    let ids: Vec<String> = (from..from + 3000).map(|id| format!("({id})")).collect();
    let ids = ids.join(",");
    format!("INSERT INTO a VALUES {ids}; INSERT INTO b VALUES {ids};")
}

/// Reads a snapshot until its second table has begun, and breaks it off.
async fn broken_off(source: &dyn SourceConnector) -> (Recorder, Resume) {
    let mut snapshot = source.snapshot().await.unwrap();
    let (mut changes, mut recorder) = (Changes::new(), Recorder::default());
    while !recorder.rows().iter().any(|row| row.table == "b") {
        snapshot.next(&mut changes, 1000).await.unwrap();
        recorder.take(&mut changes);
    }
    assert_ne!(recorder.items.last(), Some(&Item::SnapshotEnd));
    let resume = Resume { after: snapshot.commit(), again: false, state: snapshot.state() };
    (recorder, resume)
}

/// Ids of a table's rows in transactions behind `after`.
fn ids(recorder: &Recorder, table: &str, after: Commit) -> Vec<i64> {
    let (mut ids, mut commit) = (Vec::new(), Commit::ZERO);
    for item in &recorder.items {
        match item {
            Item::Begin(at) => commit = *at,
            Item::Row(row) if row.table == table && (commit > after || after == Commit::ZERO) => {
                ids.push(row.after.as_ref().unwrap()["id"].parse().unwrap());
            }
            _ => {}
        }
    }
    ids
}

#[test]
fn nothing_is_missing_or_twice_between_the_two_parts_and_the_stream() {
    on_each(async |server, database| {
        server.sql(database, &format!("{TABLES}{}", rows(1))).unwrap();
        let source = source(server, database);
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (1..3_i64)
            .map(|writer| {
                let (stop, database) = (Arc::clone(&stop), database.to_owned());
                std::thread::spawn(move || {
                    let mut next = writer * 1_000_000;
                    while !stop.load(Ordering::Relaxed) {
                        let one = |id| {
                            format!(
                                "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}); \
                                 COMMIT;"
                            )
                        };
                        let sql: String = (next..next + 20).map(one).collect();
                        server.sql(&database, &sql).unwrap();
                        next += 20;
                    }
                })
            })
            .collect();
        let (first, resume) = broken_off(&*source).await;
        let from = source.current().await.unwrap();
        while source.current().await.unwrap() == from {
            tokio::task::yield_now().await;
        }
        let finished = [TableId::new(database, "a")];
        let rest = source.snapshot_rest(&resume, &finished).await.unwrap();
        let Rest::Snapshot(mut second) = rest else { panic!("nothing has changed: {rest:?}") };
        let point = second.commit();
        assert!(point > resume.after);
        let (mut changes, mut rest) = (Changes::new(), Recorder::default());
        while rest.items.last() != Some(&Item::SnapshotEnd) {
            second.next(&mut changes, 10_000).await.unwrap();
            rest.take(&mut changes);
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().unwrap();
        }
        assert!(rest.rows().iter().all(|row| row.table == "b"));
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        tail.catch_up(&*source).await;
        let begins = tail.recorder.begins();
        assert!(begins.iter().any(|commit| *commit < point), "nothing in between");
        assert!(!begins.contains(&point));
        for (table, read, from) in [("a", &first, Commit::ZERO), ("b", &rest, point)] {
            let mut found = ids(read, table, Commit::ZERO);
            found.extend(ids(&tail.recorder, table, from));
            found.sort_unstable();
            let sql = format!("SELECT id FROM {table} ORDER BY id");
            let expected = server.sql(database, &sql).unwrap();
            let expected: Vec<i64> = expected.lines().map(|id| id.parse().unwrap()).collect();
            assert_eq!(found, expected, "{table}");
        }
        // And the stream of all goes on with what the second part knows.
        let resume = Resume { after: point, again: false, state: second.state() };
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        tail.catch_up(&*source).await;
        let of = |table| ids(&tail.recorder, table, Commit::ZERO);
        assert_eq!(of("a"), of("b"));
    });
}

#[test]
fn on_a_quiet_source_the_point_is_the_same_or_the_stream_gets_there() {
    on_each(async |server, database| {
        server.sql(database, &format!("{TABLES}{}", rows(1))).unwrap();
        let source = source(server, database);
        let (_, resume) = broken_off(&*source).await;
        let finished = [TableId::new(database, "a")];
        let rest = source.snapshot_rest(&resume, &finished).await.unwrap();
        let Rest::Snapshot(second) = rest else { panic!("nothing has changed: {rest:?}") };
        let point = second.commit();
        assert!(point >= resume.after);
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        let passed = |item: &Item| matches!(item, Item::Idle(through) if *through >= point);
        while !tail.recorder.items.iter().any(passed) {
            tail.next().await.unwrap();
        }
        assert!(tail.recorder.rows().is_empty());
    });
}

#[test]
fn what_changed_meanwhile_is_named() {
    on_each(async |server, database| {
        server.sql(database, &format!("{TABLES}{}", rows(1))).unwrap();
        let source = source(server, database);
        let (_, resume) = broken_off(&*source).await;
        for (change, named) in [
            ("CREATE TABLE c (id int PRIMARY KEY)", "c was added"),
            ("DROP TABLE c; ALTER TABLE b ADD v int", "b changed"),
            ("DROP TABLE b", "b is no longer captured"),
        ] {
            server.sql(database, change).unwrap();
            let finished = [TableId::new(database, "a")];
            match source.snapshot_rest(&resume, &finished).await.unwrap() {
                Rest::Void(why) => assert!(why.contains(named), "{why}"),
                other @ Rest::Snapshot(_) => panic!("{change}: {other:?}"),
            }
        }
    });
}
