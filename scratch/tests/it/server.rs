//! Each promise of `Server`, on every flavor this machine has.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tailwater_scratch::{Flavor, Server};

#[test]
fn a_database_can_be_made_written_and_read() {
    for flavor in Flavor::matrix() {
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        let text = server
            .sql(
                &database,
                "CREATE TABLE item (id int PRIMARY KEY, name varchar(20));
                 INSERT INTO item VALUES (2, 'zwei'), (1, NULL);
                 SELECT id, name FROM item ORDER BY id;",
            )
            .unwrap();
        assert_eq!(text, "1\tNULL\n2\tzwei", "{flavor}");
    }
}

#[test]
fn sql_stops_at_the_first_statement_that_fails() {
    for flavor in Flavor::matrix() {
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        let statements = "CREATE TABLE a (id int); SELECT nonsense; CREATE TABLE b (id int);";
        let error = server.sql(&database, statements).unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{flavor}: {error}");
        assert!(server.sql(&database, "SELECT * FROM a").is_ok(), "{flavor}");
        assert!(server.sql(&database, "SELECT * FROM b").is_err(), "{flavor}");
    }
}

#[test]
fn everything_replication_needs_is_switched_on() {
    for flavor in Flavor::matrix() {
        let server = Server::shared(flavor);
        let (query, expected) = match flavor {
            Flavor::Postgres15 | Flavor::Postgres18 => ("SHOW wal_level", "logical"),
            Flavor::MariaDb => (
                "SELECT @@log_bin, @@binlog_format, @@binlog_row_image, @@binlog_row_metadata,
                        @@local_infile, @@time_zone",
                "1\tROW\tFULL\tFULL\t1\t+00:00",
            ),
            Flavor::MySql => (
                "SELECT @@log_bin, @@binlog_format, @@binlog_row_image, @@binlog_row_metadata,
                        @@local_infile, @@time_zone, @@gtid_mode, @@gtid_executed",
                "1\tROW\tFULL\tFULL\t1\t+00:00\tON\t",
            ),
        };
        // A server of its own: on the shared one others have committed.
        let fresh;
        let server = if flavor == Flavor::MySql {
            fresh = Server::start(flavor).unwrap();
            &fresh
        } else {
            server
        };
        assert_eq!(server.sql("", query).unwrap(), expected, "{flavor}");
    }
}

#[test]
fn two_servers_have_different_identities() {
    for flavor in Flavor::matrix() {
        let query = match flavor {
            Flavor::Postgres15 | Flavor::Postgres18 => {
                "SELECT system_identifier FROM pg_control_system()"
            }
            Flavor::MariaDb => "SELECT @@server_id",
            Flavor::MySql => "SELECT @@server_uuid",
        };
        let (first, second) = (Server::shared(flavor), Server::start(flavor).unwrap());
        let (first, second) = (first.sql("", query).unwrap(), second.sql("", query).unwrap());
        assert_ne!(first, second, "{flavor}");
    }
}

#[test]
fn what_was_committed_outlives_a_restart_and_a_crash() {
    for flavor in Flavor::matrix() {
        let mut server = Server::start(flavor).unwrap();
        let database = server.create_database().unwrap();
        let port = server.port();
        server.sql(&database, "CREATE TABLE item (id int PRIMARY KEY)").unwrap();

        server.sql(&database, "INSERT INTO item VALUES (1)").unwrap();
        server.restart().unwrap();
        assert_eq!(server.port(), port);
        assert_eq!(server.sql(&database, "SELECT id FROM item").unwrap(), "1", "{flavor}");

        server.sql(&database, "INSERT INTO item VALUES (2)").unwrap();
        server.kill().unwrap();
        assert!(server.sql(&database, "SELECT 1").is_err(), "{flavor}");
        server.start_again().unwrap();
        let ids = server.sql(&database, "SELECT id FROM item ORDER BY id").unwrap();
        assert_eq!(ids, "1\n2", "{flavor}");
    }
}

#[test]
fn a_paused_server_answers_only_after_it_is_resumed() {
    for flavor in Flavor::matrix() {
        let server = Server::start(flavor).unwrap();
        server.pause().unwrap();
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let server = &server;
            scope.spawn(move || sender.send(server.sql("", "SELECT 1")).unwrap());
            assert!(receiver.recv_timeout(Duration::from_millis(500)).is_err(), "{flavor}");
            server.resume().unwrap();
            assert_eq!(receiver.recv().unwrap().unwrap(), "1", "{flavor}");
        });
    }
}

#[test]
fn a_setting_of_the_test_wins_over_ours_and_can_be_changed_for_the_next_start() {
    for flavor in Flavor::matrix() {
        let (name, query) = if flavor.is_postgres() {
            ("max_connections", "SHOW max_connections")
        } else {
            ("max_connections", "SELECT @@max_connections")
        };
        let mut server = Server::start_with(flavor, &[(name, "77")]).unwrap();
        assert_eq!(server.sql("", query).unwrap(), "77", "{flavor}");
        server.configure(&[(name, "78")]).unwrap();
        server.restart().unwrap();
        assert_eq!(server.sql("", query).unwrap(), "78", "{flavor}");
    }
}

#[test]
fn a_server_that_cannot_start_says_why() {
    for flavor in Flavor::matrix() {
        let error = Server::start_with(flavor, &[("no_such_setting", "1")]).unwrap_err();
        assert!(format!("{error:#}").contains("no_such_setting"), "{flavor}: {error:#}");
    }
}

#[test]
fn a_dropped_server_leaves_nothing_behind() {
    for flavor in Flavor::matrix() {
        let server = Server::start(flavor).unwrap();
        let folder = server.folder().to_owned();
        assert!(folder.join("data").exists());
        drop(server);
        assert!(!folder.exists(), "{flavor}");
    }
}

#[test]
fn every_flavor_is_found_by_its_name() {
    for flavor in Flavor::ALL {
        assert_eq!(Flavor::from_name(&flavor.to_string()), Some(flavor));
    }
    assert_eq!(Flavor::from_name("oracle"), None);
}
