//! Changes of definition: noticed where they take effect, told, and a stop.

use tailwater_capture::{Resume, SourceError};
use tailwater_change::Disposition;

use crate::source::support::{Database, Log, catch_up, flavors, said, snapshot, stream_at};

/// What the stream says until it stops.
async fn stopped(database: &Database, resume: &Resume) -> (Log, SourceError) {
    let source = database.source();
    let mut log = Log { through: resume.after, ..Log::default() };
    let mut stream = match stream_at(&*source, resume).await {
        Ok(stream) => stream,
        Err(error) => return (log, error),
    };
    let error = catch_up(&*source, &mut *stream, &mut log).await.expect_err("stops");
    assert_eq!(error.disposition(), Disposition::Operator);
    (log, error)
}

#[tokio::test]
async fn every_change_of_a_table_is_told_and_stops_the_stream() {
    for flavor in flavors() {
        for (ddl, what) in [
            ("ALTER TABLE t ADD extra text DEFAULT 'x'", "public.t: column extra added"),
            ("ALTER TABLE t DROP v", "public.t: column v dropped"),
            ("ALTER TABLE t RENAME v TO w", "public.t: column v dropped, column w added"),
            ("ALTER TABLE t ALTER v TYPE varchar(9)", "public.t: column v is no longer text"),
            ("ALTER TABLE t RENAME TO u", "public.t: renamed to public.u"),
            ("ALTER TABLE t REPLICA IDENTITY FULL", "public.t: replica identity changed"),
        ] {
            let database = Database::new(flavor);
            database.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
            let (_, resume) = snapshot(&*database.source()).await;
            let table = if ddl.ends_with("TO u") { "u" } else { "t" };
            database.sql(&format!(
                "INSERT INTO t VALUES (1); {ddl}; INSERT INTO {table} (id) VALUES (2)"
            ));
            let (log, error) = stopped(&database, &resume).await;
            // What came before is there; nothing of what came after.
            assert_eq!(log.texts(), ["insert [1 -]"], "{ddl}");
            assert_eq!(log.schema_changes, [what]);
            assert!(said(&error).contains("tailwater resync"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_table_made_again_under_its_name_is_told_from_the_old_one() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
        let (_, resume) = snapshot(&*database.source()).await;
        database.sql("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text)");
        let (_, error) = stopped(&database, &resume).await;
        assert!(said(&error).contains("dropped and created again"), "{error}");

        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY, v text)");
        let (_, resume) = snapshot(&*database.source()).await;
        database.sql("ALTER TABLE t DROP v; ALTER TABLE t ADD v text");
        let (_, error) = stopped(&database, &resume).await;
        assert!(said(&error).contains("column v dropped and added again"), "{error}");
    }
}

#[tokio::test]
async fn a_table_added_later_is_not_passed_over() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY)");
        let source = database.source();
        let (_, resume) = snapshot(&*source).await;
        let mut stream = stream_at(&*source, &resume).await.unwrap();
        database.sql(&format!(
            "CREATE TABLE late (id int PRIMARY KEY);
             ALTER PUBLICATION tailwater_{} ADD TABLE late; INSERT INTO late VALUES (1)",
            database.name
        ));
        let mut log = Log { through: resume.after, ..Log::default() };
        let error = catch_up(&*source, &mut *stream, &mut log).await.expect_err("stops");
        assert_eq!(log.schema_changes, ["public.late: added after the snapshot"]);
        assert!(said(&error).contains("public.late"));
        drop(stream);
        let (_, error) = stopped(&database, &resume).await;
        assert!(said(&error).contains("`exclude`"), "{error}");
    }
}

#[tokio::test]
async fn a_table_left_out_for_a_while_is_not_taken_back_unasked() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
        let (_, mut resume) = snapshot(&*database.source()).await;
        let fewer = database.source_of(&["public.t"]);
        let mut stream = stream_at(&*fewer, &resume).await.unwrap();
        database.sql("INSERT INTO u VALUES (1); INSERT INTO t VALUES (2)");
        let mut log = Log { through: resume.after, ..Log::default() };
        catch_up(&*fewer, &mut *stream, &mut log).await.unwrap();
        assert_eq!(log.texts(), ["insert [2]"]);
        resume.state = stream.state();
        drop(stream);
        let (_, error) = stopped(&database, &resume).await;
        assert!(said(&error).contains("public.u"), "{error}");
        assert!(said(&error).contains("added after the snapshot"), "{error}");
    }
}

#[tokio::test]
async fn partitions_that_leave_or_come_with_rows_stop_the_stream() {
    for flavor in flavors() {
        for (ddl, what) in [
            ("CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)", None),
            ("ALTER TABLE p DETACH PARTITION p1", Some("a partition was detached or dropped")),
            ("DROP TABLE p1", Some("a partition was detached or dropped")),
            (
                "CREATE TABLE old (id int PRIMARY KEY); INSERT INTO old VALUES (11);
                 ALTER TABLE p ATTACH PARTITION old FOR VALUES FROM (10) TO (20)",
                Some("a partition was attached"),
            ),
        ] {
            let database = Database::new(flavor);
            database.sql(
                "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
                 CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
                 INSERT INTO p VALUES (1)",
            );
            let source = database.source_of(&["public.p"]);
            let (_, resume) = snapshot(&*source).await;
            // Each in a transaction of its own.
            ddl.split_inclusive(';').for_each(|statement| drop(database.sql(statement)));
            match (stream_at(&*source, &resume).await, what) {
                (Ok(_), None) => {}
                (Err(error), Some(what)) => assert!(said(&error).contains(what), "{error}"),
                (Ok(_), Some(_)) => panic!("not noticed: {ddl}"),
                (Err(error), None) => panic!("{ddl}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_new_label_of_an_enum_stops_by_name() {
    let database = Database::new(flavors()[0]);
    database.sql("CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE t (id int PRIMARY KEY, m mood)");
    let (_, resume) = snapshot(&*database.source()).await;
    database.sql("ALTER TYPE mood ADD VALUE 'glad'");
    database.sql("INSERT INTO t VALUES (1, 'glad')");
    let (_, error) = stopped(&database, &resume).await;
    assert!(said(&error).contains("column m of public.t"), "{error}");
    assert!(!said(&error).contains("glad"), "{error}");
}

#[tokio::test]
async fn a_publication_that_was_changed_by_hand_is_noticed() {
    let database = Database::new(flavors()[0]);
    database
        .sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)");
    let (_, resume) = snapshot(&*database.source()).await;
    let publication = format!("tailwater_{}", database.name);
    for (ddl, what) in [
        (format!("ALTER PUBLICATION {publication} DROP TABLE u"), "no longer has public.u"),
        (format!("ALTER PUBLICATION {publication} SET TABLE u, t WHERE (id > 5)"), "was changed"),
        (format!("ALTER PUBLICATION {publication} SET (publish = 'insert')"), "was changed"),
        (format!("DROP PUBLICATION {publication}"), "is gone"),
    ] {
        database.sql(&ddl);
        let (_, error) = stopped(&database, &resume).await;
        assert!(said(&error).contains(what), "{ddl}: {error}");
    }
}
