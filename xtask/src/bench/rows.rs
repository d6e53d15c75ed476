//! The rows that are moved: about 160 bytes each, 100 a transaction, written by procedures in the
//! source so that writing them is quick.

use tailwater_scratch::Flavor;

/// Rows changed by each transaction.
pub(crate) const PER_TRANSACTION: u64 = 100;

/// Makes the tables (the rows, and markers that say how far someone is) and, in `helper` on MySQL, what writes the rows.
///
/// MySQL has no series of numbers, so there is a table of them; it and the procedures lie in a
/// database of their own, which nobody captures.
pub(crate) fn schema(flavor: Flavor) -> String {
    if flavor.is_postgres() {
        format!("{};\n{POSTGRES_PROCEDURES}", tables("timestamp(6)"))
    } else {
        format!("{};\n{MYSQL_PROCEDURES}", tables("datetime(6)"))
    }
}

fn tables(moment: &str) -> String {
    format!(
        "CREATE TABLE entries (id bigint PRIMARY KEY, customer int NOT NULL,
    amount numeric(12,2) NOT NULL, moment {moment} NOT NULL, status varchar(20) NOT NULL,
    note varchar(80), body text NOT NULL);
CREATE TABLE markers (id bigint PRIMARY KEY)"
    )
}

/// Calls what inserts `transactions` times 100 rows from `first` on, then leaves marker `marker`.
pub(crate) fn insert(flavor: Flavor, first: u64, transactions: u64, marker: u64) -> String {
    call(flavor, "insert_entries", first, transactions, marker)
}

/// Calls what changes the rows that [`insert`] inserted, each once: of four one is deleted, the
/// others are updated. A transaction's rows lie apart, as they do in real life.
pub(crate) fn change(flavor: Flavor, first: u64, transactions: u64, marker: u64) -> String {
    call(flavor, "change_entries", first, transactions, marker)
}

fn call(flavor: Flavor, procedure: &str, first: u64, transactions: u64, marker: u64) -> String {
    let insert = format!("INSERT INTO markers VALUES ({marker});");
    if flavor.is_postgres() {
        // What is prepared need not be durable one by one; the marker's commit flushes it all.
        format!(
            "SET synchronous_commit = off;\nCALL {procedure}({first}, {transactions});\n\
             SET synchronous_commit = on;\n{insert}"
        )
    } else {
        format!(
            "SET GLOBAL sync_binlog = 0, GLOBAL innodb_flush_log_at_trx_commit = 2;\n\
             CALL helper.{procedure}({first}, {transactions});\n\
             SET GLOBAL sync_binlog = 1, GLOBAL innodb_flush_log_at_trx_commit = 1;\n{insert}"
        )
    }
}

const POSTGRES_PROCEDURES: &str = "
CREATE PROCEDURE insert_entries(start bigint, transactions bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN 0 .. transactions - 1 LOOP
        INSERT INTO entries SELECT n, n % 10000, n % 100000 / 100.0,
            timestamp '2026-01-01' + n * interval '1 second', 'placed',
            CONCAT('Order number ', n), repeat(md5(n::text), 3)
            FROM generate_series(start + t * 100, start + t * 100 + 99) n;
        COMMIT;
    END LOOP;
END $$;
CREATE PROCEDURE change_entries(start bigint, transactions bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN 0 .. transactions - 1 LOOP
        UPDATE entries SET status = 'sent', amount = amount + 1
            WHERE id IN (SELECT start + t + n * transactions FROM generate_series(0, 99) n
                         WHERE n % 4 <> 3);
        DELETE FROM entries
            WHERE id IN (SELECT start + t + n * transactions FROM generate_series(0, 99) n
                         WHERE n % 4 = 3);
        COMMIT;
    END LOOP;
END $$;
";

/// The names of MySQL's procedures' variables begin with `v_`: a column of the name would win.
/// MySQL 9 has no MD5 any more.
const MYSQL_PROCEDURES: &str = "
CREATE DATABASE helper;
CREATE TABLE helper.numbers (n bigint PRIMARY KEY);
INSERT INTO helper.numbers
    WITH RECURSIVE series (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM series WHERE n < 99)
    SELECT n FROM series;
DELIMITER //
CREATE PROCEDURE helper.insert_entries(v_first bigint, v_transactions bigint)
BEGIN
    DECLARE v_at bigint DEFAULT v_first;
    WHILE v_at < v_first + v_transactions * 100 DO
        INSERT INTO bench.entries SELECT v_at + n, (v_at + n) % 10000, (v_at + n) % 100000 / 100,
            TIMESTAMP '2026-01-01 00:00:00' + INTERVAL v_at + n SECOND, 'placed',
            CONCAT('Order number ', v_at + n), REPEAT(LEFT(SHA2(v_at + n, 256), 32), 3) FROM helper.numbers;
        SET v_at = v_at + 100;
    END WHILE;
END//
CREATE PROCEDURE helper.change_entries(v_first bigint, v_transactions bigint)
BEGIN
    DECLARE v_at bigint DEFAULT v_first;
    WHILE v_at < v_first + v_transactions DO
        START TRANSACTION;
        UPDATE bench.entries JOIN helper.numbers ON id = v_at + n * v_transactions
            SET status = 'sent', amount = amount + 1 WHERE n % 4 <> 3;
        DELETE bench.entries FROM bench.entries JOIN helper.numbers ON id = v_at + n * v_transactions
            WHERE n % 4 = 3;
        COMMIT;
        SET v_at = v_at + 1;
    END WHILE;
END//
DELIMITER ;
";
