//! Each promise of `Server`, on every flavor this machine has.

use std::path::Path;
use std::process::Command;

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
