//! Where a stream may go on, and where it must not.

use std::time::Duration;

use tailwater_capture::{LockHolder, SourceError, SourceState};
use tailwater_change::Disposition;
use tailwater_scratch::{Flavor, Server};

use crate::source::support::{
    Database, Log, catch_up, changes_after, flavors, resume_after, said, snapshot, soon, source_at,
    stream_at,
};

async fn prepared(flavor: Flavor) -> (Database, tailwater_capture::Resume) {
    let database = Database::new(flavor);
    database.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let (_, resume) = snapshot(&*database.source()).await;
    (database, resume)
}

async fn lost(database: &Database, resume: &tailwater_capture::Resume) -> String {
    let error = stream_at(&*database.source(), resume).await.err().expect("refused");
    assert_eq!(error.disposition(), Disposition::Operator);
    assert!(matches!(error, SourceError::PositionLost { .. }), "{error:?}");
    said(&error)
}

fn slot(database: &Database) -> String {
    format!("tailwater_{}", database.name)
}

#[tokio::test]
async fn a_dropped_slot_is_a_lost_position() {
    for flavor in flavors() {
        let (database, resume) = prepared(flavor).await;
        database.sql(&format!("SELECT pg_drop_replication_slot('{}')", slot(&database)));
        let text = lost(&database, &resume).await;
        assert!(text.contains("is gone") && text.contains("tailwater resync"), "{text}");
    }
}

#[tokio::test]
async fn a_slot_made_again_is_a_lost_position() {
    for flavor in flavors() {
        let (database, resume) = prepared(flavor).await;
        database.sql(&format!("SELECT pg_drop_replication_slot('{}')", slot(&database)));
        database.sql("INSERT INTO t VALUES (1)");
        database.sql(&format!(
            "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
            slot(&database)
        ));
        let text = lost(&database, &resume).await;
        assert!(text.contains("ahead of the log"), "{text}");
    }
}

#[tokio::test]
async fn a_slot_advanced_by_hand_is_a_lost_position() {
    for flavor in flavors() {
        let (database, resume) = prepared(flavor).await;
        database.sql("INSERT INTO t VALUES (1)");
        database.sql(&format!(
            "SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())",
            slot(&database)
        ));
        let text = lost(&database, &resume).await;
        assert!(text.contains("ahead of the log") && text.contains(&resume.after.to_string()));
    }
}

#[tokio::test]
async fn another_server_is_a_lost_position() {
    let (database, resume) = prepared(flavors()[0]).await;
    let mut state: serde_json::Value = serde_json::from_str(&resume.state.0).unwrap();
    let own = std::mem::replace(&mut state["system"]["identifier"], "1".into());
    let resume = resume_after(resume.after, false, &SourceState(state.to_string()));
    let text = lost(&database, &resume).await;
    assert!(text.contains("another server"), "{text}");
    state["system"]["identifier"] = own;
    state["system"]["timeline"] = 7.into();
    let resume = resume_after(resume.after, false, &SourceState(state.to_string()));
    let text = lost(&database, &resume).await;
    assert!(text.contains("timeline"), "{text}");
}

#[tokio::test]
async fn a_slot_whose_wal_was_removed_is_a_lost_position() {
    let server = Server::start_with(
        Flavor::Postgres15,
        &[("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")],
    )
    .unwrap();
    let name = server.create_database().unwrap();
    server.sql(&name, "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let source = source_at(&server.url(&name), &name, &["public.t"]);
    let (_, resume) = snapshot(&*source).await;
    for _ in 0..5 {
        server.sql(&name, "SELECT pg_switch_wal(); CREATE TABLE x (); DROP TABLE x;").unwrap();
    }
    server.sql(&name, "CHECKPOINT").unwrap();
    let error = source.stream(Some(&resume)).await.err().expect("refused");
    assert!(matches!(error, SourceError::PositionLost { .. }), "{error:?}");
    assert!(said(&error).contains("max_slot_wal_keep_size"), "{error}");
}

#[tokio::test]
async fn a_slot_in_use_is_waited_for() {
    for flavor in flavors() {
        let (database, resume) = prepared(flavor).await;
        let _reading = stream_at(&*database.source(), &resume).await.unwrap();
        let error = database.source().stream(Some(&resume)).await.err().expect("refused");
        assert!(matches!(error, SourceError::InUse(_)), "{error:?}");
        assert_eq!(error.disposition(), Disposition::Retry);
        let error = database.source().snapshot().await.err().expect("refused");
        assert!(matches!(error, SourceError::InUse(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_killed_server_ends_the_stream_and_loses_nothing() {
    let mut server = Server::start(Flavor::Postgres15).unwrap();
    let name = server.create_database().unwrap();
    server.sql(&name, "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let source = source_at(&server.url(&name), &name, &["public.t"]);
    let (_, resume) = snapshot(&*source).await;
    let mut stream = source.stream(Some(&resume)).await.unwrap();
    server.sql(&name, "INSERT INTO t VALUES (1)").unwrap();
    let mut log = Log { through: resume.after, ..Log::default() };
    catch_up(&*source, &mut *stream, &mut log).await.unwrap();
    stream.confirm(log.through).await.unwrap();
    server.sql(&name, "INSERT INTO t VALUES (2)").unwrap();
    server.kill().unwrap();
    let mut changes = tailwater_capture::Changes::new();
    let error = loop {
        match soon(stream.next(&mut changes, 1 << 20)).await {
            Ok(()) => changes.clear(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
    let error = source.stream(Some(&resume)).await.err().expect("no server");
    assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
    server.start_again().unwrap();
    server.sql(&name, "INSERT INTO t VALUES (3)").unwrap();
    let resume = resume_after(log.ended[0].0, false, &resume.state);
    let again = changes_after(&*source, &resume).await;
    assert_eq!(again.texts(), ["insert [2]", "insert [3]"]);
}

#[tokio::test]
async fn from_now_on_without_a_snapshot() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let source = database.source();
        let mut stream = source.stream(None).await.unwrap();
        database.sql("INSERT INTO t VALUES (2)");
        let (mut log, mut changes) = (Log::default(), tailwater_capture::Changes::new());
        stream.next(&mut changes, 1 << 20).await.unwrap();
        assert!(
            matches!(changes.events(), [tailwater_capture::Event::Idle { .. }]),
            "where it began, first of all"
        );
        log.take(&changes);
        catch_up(&*source, &mut *stream, &mut log).await.unwrap();
        assert_eq!(log.texts(), ["insert [2]"]);
        let resume = resume_after(log.through, false, &stream.state());
        drop(stream);
        database.sql("INSERT INTO t VALUES (3)");
        assert_eq!(changes_after(&*source, &resume).await.texts(), ["insert [3]"]);
    }
}

#[tokio::test]
async fn a_released_source_leaves_nothing_behind() {
    for flavor in flavors() {
        let (database, _) = prepared(flavor).await;
        database.source().release().await.unwrap();
        database.source().release().await.unwrap();
        let left = database.sql(&format!(
            "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{0}')
                  + (SELECT count(*) FROM pg_publication WHERE pubname = '{0}')",
            slot(&database)
        ));
        assert_eq!(left.trim(), "0");
    }
}

#[tokio::test]
async fn a_wait_that_is_given_up_loses_nothing() {
    let (database, resume) = prepared(flavors()[0]).await;
    let source = database.source();
    let mut stream = stream_at(&*source, &resume).await.unwrap();
    let (mut log, mut changes) = (Log::default(), tailwater_capture::Changes::new());
    let writer = database.session().await;
    let writing = tokio::spawn(async move {
        for id in 1..=300 {
            writer.execute("INSERT INTO t VALUES ($1)", &[&id]).await.unwrap();
        }
    });
    let mut dropped = 0;
    soon(async {
        while log.rows.len() < 300 {
            // Polled once or twice, then dropped.
            let next = stream.next(&mut changes, 100);
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => dropped += 1,
                done = next => done.unwrap(),
            }
            log.take(&changes);
            changes.clear();
            stream.probe().await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
    writing.await.unwrap();
    assert!(dropped > 0);
    let ids: Vec<String> = (1..=300).map(|id| format!("insert [{id}]")).collect();
    assert_eq!(log.texts(), ids);
}

/// A host that vanished, or a process that hangs: the server hears nothing more of it.
#[tokio::test]
async fn a_lock_of_which_nothing_is_heard_goes_to_the_next() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        let mut held = database.source().lock_session().await.unwrap();
        let mut waiting = database.source().lock_session().await.unwrap();
        assert_eq!(held.try_take().await.unwrap(), LockHolder::Us);
        soon(async {
            while waiting.try_take().await.unwrap() != LockHolder::Us {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
        .await;
        let error = held.check().await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
        waiting.check().await.unwrap();
    }
}

#[tokio::test]
async fn one_process_at_a_time_captures_a_source() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        let mut held = database.source().lock_session().await.unwrap();
        let mut waiting = database.source().lock_session().await.unwrap();
        assert_eq!(held.try_take().await.unwrap(), LockHolder::Us);
        let LockHolder::Another(who) = waiting.try_take().await.unwrap() else { panic!() };
        assert!(who.contains("session") && who.contains("127.0.0.1"), "{who}");
        held.check().await.unwrap();
        drop(held);
        // The server notices the end of the session a moment later.
        soon(async {
            while waiting.try_take().await.unwrap() != LockHolder::Us {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}
