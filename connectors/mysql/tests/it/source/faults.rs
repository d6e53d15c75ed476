//! What a source must refuse, and say why.

use std::time::Duration;

use tailwater_capture::{LockHolder, SourceError};
use tailwater_change::Disposition;
use tailwater_scratch::{Flavor, Server};

use super::support::{Tail, flavors, on_each, run, snapshot, source, source_of};

#[test]
fn a_ready_server_has_no_problem() {
    on_each(async |server, database| {
        server.sql(database, "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        assert_eq!(source(server, database).check().await, []);
    });
}

/// Something takes the connection and never says a word. The limit passes on the virtual clock.
#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up_in_time() {
    use tailwater_apply::TargetConnector;
    use tailwater_capture::SourceConnector;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("mysql://root@127.0.0.1:{}/shop", listener.local_addr().unwrap().port());
    let source = tailwater_mysql::source::connector(tailwater_mysql::source::SourceConfig {
        name: "mute".into(),
        url: url.clone(),
        tables: vec!["shop.*".into()],
        exclude: Vec::new(),
    })
    .unwrap();
    let target = tailwater_mysql::target::TargetConfig { name: "mute".into(), url };
    let target = tailwater_mysql::target::connector(target).unwrap();
    let patience = Duration::from_secs(60);
    let problems = tokio::time::timeout(patience, source.check()).await.unwrap();
    assert!(problems[0].what.contains("did not answer within 15 s"), "{problems:?}");
    let problems = tokio::time::timeout(patience, target.check()).await.unwrap();
    assert!(problems[0].what.contains("did not answer within 15 s"), "{problems:?}");
    let failures = [
        tokio::time::timeout(patience, source.stream(None)).await.unwrap().err(),
        tokio::time::timeout(patience, source.snapshot()).await.unwrap().err(),
        tokio::time::timeout(patience, source.table_reader()).await.unwrap().err(),
    ];
    for error in failures {
        assert_eq!(error.unwrap().disposition(), Disposition::Retry);
    }
    let error = tokio::time::timeout(patience, target.connect()).await.unwrap().err().unwrap();
    assert_eq!(error.disposition(), Disposition::Retry);
}

#[test]
fn check_names_what_cannot_be_captured() {
    on_each(async |server, database| {
        server
            .sql(
                database,
                "CREATE TABLE b (id int PRIMARY KEY, flags bit(3), s set('a','b'), g point);
                 CREATE TABLE m (id int PRIMARY KEY) ENGINE = MyISAM;",
            )
            .unwrap();
        let problems = source_of(server, database, &["*", "nothing"]).check().await;
        let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for expected in [
            "b.flags: type bit(3)",
            "b.s: type set('a','b')",
            "b.g: type point",
            "MyISAM",
            ".nothing",
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert_eq!(problems.len(), 5, "{text}");
    });
}

#[test]
fn check_names_missing_privileges_and_settings() {
    for flavor in flavors() {
        let server = Server::start_with(
            flavor,
            &[("binlog_row_metadata", "MINIMAL"), ("binlog_format", "ROW")],
        )
        .unwrap();
        let database = server.create_database().unwrap();
        server
            .sql(
                &database,
                "CREATE TABLE t (id int PRIMARY KEY);
                 CREATE USER poor@'127.0.0.1' IDENTIFIED BY 'pw';
                 GRANT SELECT ON *.* TO poor@'127.0.0.1';",
            )
            .unwrap();
        let url = server.url(&database).replace("root:@", "poor:pw@");
        let config = tailwater_mysql::source::SourceConfig {
            name: "poor".into(),
            url,
            tables: vec![format!("{database}.*")],
            exclude: Vec::new(),
        };
        let poor = tailwater_mysql::source::connector(config).unwrap();
        let text = run(async { tailwater_capture::SourceConnector::check(&poor).await });
        let text = text.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let client =
            if flavor == Flavor::MariaDb { "BINLOG MONITOR" } else { "REPLICATION CLIENT" };
        for expected in ["binlog_row_metadata is \"MINIMAL\"", "GRANT REPLICATION SLAVE", client] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
    }
}

#[test]
fn definitions_stop_the_stream_before_the_first_row_they_change() {
    for ddl in [
        "ALTER TABLE t ADD COLUMN c int",
        "ALTER TABLE t MODIFY v varchar(40)",
        "ALTER TABLE t RENAME COLUMN v TO w",
        "RENAME TABLE t TO u",
        "DROP TABLE t",
        "CREATE UNIQUE INDEX i ON t (v)",
        "CREATE TABLE fresh (id int PRIMARY KEY)",
        "SET SESSION sql_log_bin = 0; ALTER TABLE t ADD COLUMN c int; SET SESSION sql_log_bin = 1",
        "SET SESSION sql_log_bin = 0; ALTER TABLE t CHANGE v w varchar(20); SET SESSION sql_log_bin = 1",
        "SET SESSION sql_log_bin = 0; ALTER TABLE t MODIFY v varchar(20) CHARACTER SET latin1; SET SESSION sql_log_bin = 1",
        "SET SESSION sql_log_bin = 0; ALTER TABLE t MODIFY n int unsigned; SET SESSION sql_log_bin = 1",
        "SET SESSION sql_log_bin = 0; ALTER TABLE t DROP PRIMARY KEY; SET SESSION sql_log_bin = 1",
    ] {
        on_each(async |server, database| {
            server
                .sql(
                    database,
                    "CREATE TABLE t (id int PRIMARY KEY, v varchar(20), n int, e enum('a','b'))",
                )
                .unwrap();
            let source = source(server, database);
            let (_, resume) = snapshot(&*source).await;
            let mut tail = Tail::open(&*source, Some(&resume)).await;
            let after =
                if ddl.contains("sql_log_bin") { "INSERT INTO t (id) VALUES (2)" } else { "" };
            let other = "CREATE DATABASE IF NOT EXISTS elsewhere; CREATE TABLE elsewhere.t (id int); DROP TABLE elsewhere.t";
            server
                .sql(database, &format!("{other}; INSERT INTO t (id) VALUES (1); {ddl}; {after}"))
                .unwrap();
            let error = tail.failure().await;
            assert!(matches!(error, SourceError::Refused(_)), "{ddl}: {error:?}");
            assert_eq!(error.disposition(), Disposition::Operator);
            assert_eq!(tail.recorder.script("id"), "+1 | !", "{ddl}: {error}");
            // It says the same again.
            let begin = *tail.recorder.begins().last().unwrap();
            let mut again = Tail::open(&*source, Some(&tail.resume(begin, false))).await;
            if !ddl.starts_with("CREATE TABLE") {
                assert_eq!(again.failure().await.to_string(), error.to_string());
                // Here all of it has come at once: the marker all the same, before the error.
                assert_eq!(again.recorder.script("id"), "!", "{ddl}");
                let logged = ddl.starts_with("ALTER") || ddl.starts_with("CREATE UNIQUE");
                assert!(!logged || error.to_string().contains(ddl), "{error}");
            } else {
                // The new table is in the catalog now: it is captured from its creation on.
                server.sql(database, "INSERT INTO fresh VALUES (7)").unwrap();
                again.catch_up(&*source).await;
                assert_eq!(again.recorder.script("id"), "+7 |");
            }
        });
    }
}

#[test]
fn truncation_is_a_row_of_its_own_transaction() {
    on_each(async |server, database| {
        server
            .sql(database, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
            .unwrap();
        let source = source(server, database);
        let (_, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        server.sql(database, "TRUNCATE TABLE t; INSERT INTO t VALUES (2); TRUNCATE t").unwrap();
        tail.catch_up(&*source).await;
        assert_eq!(tail.recorder.script("id"), "truncate | +2 | truncate |");
    });
}

#[test]
fn statements_instead_of_rows_stop_the_stream() {
    for flavor in flavors() {
        // Not the shared server: it stops every stream of it.
        let server = Server::start(flavor).unwrap();
        let database = server.create_database().unwrap();
        server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        run(async {
            let source = source(&server, &database);
            let (_, resume) = snapshot(&*source).await;
            let mut tail = Tail::open(&*source, Some(&resume)).await;
            let change = "SET SESSION binlog_format = 'STATEMENT'; INSERT INTO t VALUES (1)";
            server.sql(&database, change).unwrap();
            let error = tail.failure().await.to_string();
            assert!(error.contains("logged as a statement"), "{error}");
        });
    }
}

#[test]
fn xa_in_two_phases_stops_by_name() {
    on_each(async |server, database| {
        server.sql(database, "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        let source = source(server, database);
        let (_, resume) = snapshot(&*source).await;
        let mut tail = Tail::open(&*source, Some(&resume)).await;
        let one = "XA START 'a'; INSERT INTO t VALUES (1); XA END 'a'; XA COMMIT 'a' ONE PHASE;";
        let two =
            "XA START 'b'; INSERT INTO t VALUES (2); XA END 'b'; XA PREPARE 'b'; XA COMMIT 'b';";
        server.sql(database, &format!("{one}{two}")).unwrap();
        let error = tail.failure().await.to_string();
        assert!(error.contains("XA"), "{error}");
        assert!(tail.recorder.script("id").starts_with("+1 |"), "{}", tail.recorder.script("id"));
    });
}

#[test]
fn a_position_that_is_gone_is_named() {
    for flavor in flavors() {
        let server = Server::start(flavor).unwrap();
        let database = server.create_database().unwrap();
        server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        run(async {
            let source = source(&server, &database);
            let (_, resume) = snapshot(&*source).await;
            let lost = async |resume| match source.stream(Some(&resume)).await {
                Err(error @ SourceError::PositionLost { .. }) => error.to_string(),
                Err(other) => panic!("{flavor}: {other:?}"),
                Ok(_) => panic!("{flavor}: it went on"),
            };
            let mut beyond = resume.clone();
            beyond.after = tailwater_change::Commit::binlog(beyond.after.file(), 1 << 30);
            assert!(lost(beyond).await.contains("ends at"));
            let mut future = resume.clone();
            future.after = tailwater_change::Commit::binlog(9999, 4);
            assert!(lost(future).await.contains("has no binlog.009999"));
            let mut between = resume.clone();
            let inside = between.after.position() - 10;
            between.after = tailwater_change::Commit::binlog(between.after.file(), inside);
            assert!(lost(between).await.contains("no event of binlog."));
            let mut renamed = resume.clone();
            renamed.state.0 = renamed.state.0.replace("\"base\":\"binlog\"", "\"base\":\"other\"");
            assert!(lost(renamed).await.contains("not other"));

            let tables = "FLUSH BINARY LOGS; FLUSH BINARY LOGS; INSERT INTO t VALUES (1);";
            server.sql(&database, tables).unwrap();
            let last = server.sql(&database, "SHOW BINARY LOGS").unwrap();
            let last = last.lines().last().unwrap().split('\t').next().unwrap().to_owned();
            server.sql(&database, &format!("PURGE BINARY LOGS TO '{last}'")).unwrap();
            assert!(lost(resume.clone()).await.contains("has purged binlog."));

            let reset = if flavor == Flavor::MySql {
                "RESET BINARY LOGS AND GTIDS"
            } else {
                "RESET MASTER"
            };
            server.sql(&database, reset).unwrap();
            assert!(lost(resume.clone()).await.contains("does not have transactions"));

            let other = Server::start(flavor).unwrap();
            other.create_database_named(&database).unwrap();
            let elsewhere = super::support::source(&other, &database);
            let error = elsewhere.stream(Some(&resume)).await.err().unwrap();
            assert!(error.to_string().contains("another one"), "{error}");
        });
    }
}

/// A host that vanished, or a process that hangs: the server hears nothing more of it.
#[test]
fn a_lock_of_which_nothing_is_heard_goes_to_the_next() {
    on_each(async |server, database| {
        let (first, second) = (source(server, database), source(server, database));
        let mut held = first.lock_session().await.unwrap();
        let mut waiting = second.lock_session().await.unwrap();
        assert_eq!(held.try_take().await.unwrap(), LockHolder::Us);
        while waiting.try_take().await.unwrap() != LockHolder::Us {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let error = held.check().await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Retry, "{error:?}");
        waiting.check().await.unwrap();
    });
}

#[test]
fn one_process_at_a_time_holds_the_source() {
    on_each(async |server, database| {
        let (first, second) = (source(server, database), source(server, database));
        let mut held = first.lock_session().await.unwrap();
        let mut waiting = second.lock_session().await.unwrap();
        assert_eq!(held.try_take().await.unwrap(), LockHolder::Us);
        let LockHolder::Another(who) = waiting.try_take().await.unwrap() else { panic!() };
        assert!(who.contains("session"), "{who}");
        held.check().await.unwrap();
        drop(held);
        while waiting.try_take().await.unwrap() != LockHolder::Us {
            tokio::task::yield_now().await;
        }
    });
}

/// What a person must see to is not tried again for ever, whoever reads.
#[test]
fn a_wrong_password_stops_every_reader() {
    on_each(async |server, database| {
        // For an account that it does not have, MySQL takes any login method.
        for user in ["root", "nobody", "noone", "none"] {
            let url = server.url(database).replace("root:@", &format!("{user}:geheim@"));
            let error = tailwater_mysql::table_reader(&url).await.err().unwrap();
            assert_eq!(error.disposition(), Disposition::Operator, "{error:?}");
            let said = error.to_string();
            assert!(said.contains(user) && !said.contains("geheim"), "{said}");
        }
    });
}

#[test]
fn encryption_and_passwords_work() {
    for flavor in flavors() {
        if flavor != Flavor::MySql {
            // Debian's MariaDB has no certificate of its own.
            continue;
        }
        let server = Server::start(flavor).unwrap();
        let database = server.create_database().unwrap();
        server
            .sql(
                &database,
                "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
                 CREATE USER repl@'127.0.0.1' IDENTIFIED WITH caching_sha2_password BY 'geh@eim';
                 GRANT SELECT, RELOAD, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO repl@'127.0.0.1';",
            )
            .unwrap();
        run(async {
            // First over plain TCP (the password goes encrypted with the server's key), then cached.
            for mode in ["", "", "?ssl-mode=REQUIRED"] {
                let config = tailwater_mysql::source::SourceConfig {
                    name: "secure".into(),
                    url: format!(
                        "{}{mode}",
                        server.url(&database).replace("root:@", "repl:geh%40eim@")
                    ),
                    tables: vec![format!("{database}.*")],
                    exclude: Vec::new(),
                };
                let source = tailwater_mysql::source::connector(config).unwrap();
                assert_eq!(tailwater_capture::SourceConnector::check(&source).await, []);
                let (read, resume) = snapshot(&source).await;
                assert_eq!(read.script("id"), "=1");
                let mut tail = Tail::open(&source, Some(&resume)).await;
                tail.catch_up(&source).await;
            }
        });
    }
}
