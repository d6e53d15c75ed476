//! A server on a small disk runs full, says so, and goes on when there is space again.

use tailwater_scratch::{Flavor, Server, SmallDisk};

const DISK_BYTES: u64 = 400 << 20;

#[test]
fn a_postgres_server_runs_out_of_disk_and_goes_on_when_there_is_space() {
    if SmallDisk::available().is_err() {
        // Only root can mount: `cargo xtask test` says in its closing line what that leaves out.
        return;
    }
    for flavor in Flavor::matrix().into_iter().filter(|flavor| flavor.is_postgres()) {
        let server = Server::start_on_small_disk(flavor, DISK_BYTES, &[]).unwrap();
        let database = server.create_database().unwrap();
        server.sql(&database, "CREATE TABLE item (t text)").unwrap();
        let insert = "INSERT INTO item SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
        server.sql(&database, insert).unwrap();

        server.fill_disk().unwrap();
        let error = server.sql(&database, insert).unwrap_err().to_string();
        assert!(error.contains("No space left on device"), "{flavor}: {error}");
        assert_eq!(server.sql(&database, "SELECT count(*) FROM item").unwrap(), "1000");

        server.free_disk().unwrap();
        server.sql(&database, insert).unwrap();
        assert_eq!(server.sql(&database, "SELECT count(*) FROM item").unwrap(), "2000");
    }
}

#[test]
fn a_mysql_server_runs_out_of_disk_and_goes_on_when_there_is_space() {
    if SmallDisk::available().is_err() {
        // As above.
        return;
    }
    for flavor in Flavor::matrix().into_iter().filter(|flavor| !flavor.is_postgres()) {
        // Without a binlog: a server that cannot write it waits for space instead of failing.
        let settings = [("skip_log_bin", "")];
        let server = Server::start_on_small_disk(flavor, DISK_BYTES, &settings).unwrap();
        let database = server.create_database().unwrap();
        server.sql(&database, "CREATE TABLE item (t text)").unwrap();
        let insert = "INSERT INTO item WITH RECURSIVE n AS
            (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
            SELECT repeat('x', 5000) FROM n";
        server.sql(&database, insert).unwrap();

        server.fill_disk().unwrap();
        let error = server.sql(&database, insert).unwrap_err().to_string();
        assert!(error.contains("is full"), "{flavor}: {error}\n{}", server.log());

        server.free_disk().unwrap();
        server.sql(&database, insert).unwrap();
        let count = server.sql(&database, "SELECT count(*) FROM item").unwrap();
        assert_eq!(count, "2000", "{flavor}");
    }
}

#[test]
fn a_server_on_a_small_disk_cannot_start_again() {
    if SmallDisk::available().is_err() {
        // As above.
        return;
    }
    let mut server = Server::start_on_small_disk(Flavor::Postgres15, DISK_BYTES, &[]).unwrap();
    server.stop().unwrap();
    assert!(server.start_again().unwrap_err().to_string().contains("disk"));
}
