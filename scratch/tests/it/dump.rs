//! Dumps of equal databases are equal, and every kind of difference shows.

use tailwater_scratch::{Flavor, Server};

/// Values that a careless dump would print alike, one row each.
const POSTGRES: (&str, [&str; 11]) = (
    "CREATE TABLE item (id int, t text, f float4, d float8, b bytea)",
    [
        "(1, NULL, NULL, NULL, NULL)",
        "(1, 'NULL', NULL, NULL, NULL)",
        "(1, '', NULL, NULL, NULL)",
        r"(1, '\N', NULL, NULL, NULL)",
        "(1, 'a ', NULL, NULL, NULL)",
        "(1, E'a\\tb\\nc', NULL, NULL, NULL)",
        "(1, NULL, 16777216, NULL, NULL)",
        "(1, NULL, 16777218, NULL, NULL)",
        "(1, NULL, NULL, 0.1, NULL)",
        "(1, NULL, NULL, 0.10000000000000002, NULL)",
        "(1, NULL, NULL, NULL, decode('00ff', 'hex'))",
    ],
);

const MYSQL: (&str, [&str; 11]) = (
    "CREATE TABLE item (id int, t text, f float, d double, b blob)",
    [
        "(1, NULL, NULL, NULL, NULL)",
        "(1, 'NULL', NULL, NULL, NULL)",
        "(1, '', NULL, NULL, NULL)",
        r"(1, '\\N', NULL, NULL, NULL)",
        "(1, 'a ', NULL, NULL, NULL)",
        r"(1, 'a\tb\nc', NULL, NULL, NULL)",
        "(1, NULL, 16777216, NULL, NULL)",
        "(1, NULL, 16777218, NULL, NULL)",
        "(1, NULL, NULL, 0.1, NULL)",
        "(1, NULL, NULL, 0.10000000000000002, NULL)",
        "(1, NULL, NULL, NULL, x'00ff')",
    ],
);

#[test]
fn values_that_look_alike_are_told_apart() {
    for flavor in Flavor::matrix() {
        let (table, rows) = if flavor.is_postgres() { POSTGRES } else { MYSQL };
        let server = Server::shared(flavor);
        let database = server.create_database().unwrap();
        server.sql(&database, table).unwrap();
        let mut dumps: Vec<String> = Vec::new();
        for row in rows {
            let statements = format!("DELETE FROM item; INSERT INTO item VALUES {row}");
            server.sql(&database, &statements).unwrap();
            let dump = server.dump(&database).unwrap();
            assert!(!dumps.contains(&dump), "{flavor}: {row} looks like another row:\n{dump}");
            dumps.push(dump);
        }
    }
}

#[test]
fn the_order_of_rows_and_columns_does_not_matter_and_our_bookkeeping_is_left_out() {
    for flavor in Flavor::matrix() {
        let server = Server::shared(flavor);
        let (first, second) =
            (server.create_database().unwrap(), server.create_database().unwrap());
        server
            .sql(
                &first,
                "CREATE TABLE item (a int, b int); INSERT INTO item VALUES (1, 2), (3, 4);",
            )
            .unwrap();
        server
            .sql(
                &second,
                "CREATE TABLE item (b int, a int); INSERT INTO item VALUES (4, 3), (2, 1);",
            )
            .unwrap();
        if flavor.is_postgres() {
            let bookkeeping = "CREATE SCHEMA tailwater; CREATE TABLE tailwater.progress (id int);";
            server.sql(&second, bookkeeping).unwrap();
        }
        let dump = server.dump(&first).unwrap();
        assert_eq!(dump, server.dump(&second).unwrap(), "{flavor}");
        assert!(dump.contains("item (a, b): 2 rows"), "{flavor}: {dump}");

        server.sql(&second, "INSERT INTO item VALUES (4, 3)").unwrap();
        assert_ne!(dump, server.dump(&second).unwrap(), "{flavor}: one row more");
    }
}
