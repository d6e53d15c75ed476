//! A row looks the same whichever way it comes: by snapshot, by stream, by key.

use tailwater_capture::SourceConnector;
use tailwater_change::{Operation, TableId};
use tailwater_scratch::{Flavor, Server};

use super::support::{Row, Tail, on_each, snapshot, source};

/// Makes the table `t`, fills it, and compares its rows in the snapshot with those that
/// `INSERT … SELECT` puts into a table like it, as the stream brings them.
async fn check(server: &Server, database: &str, columns: &str, rows: &[&str]) -> Vec<Row> {
    let mut sql = format!(
        "SET SESSION sql_mode = '';
         SET NAMES utf8mb4;
         CREATE TABLE t (id int PRIMARY KEY, {columns}); CREATE TABLE u LIKE t;"
    );
    for (id, row) in rows.iter().enumerate() {
        sql.push_str(&format!("INSERT INTO t VALUES ({id}, {row});"));
    }
    server.sql(database, &sql).unwrap();
    let source = source(server, database);
    let (snapshot, resume) = snapshot(&*source).await;
    let mut tail = Tail::open(&*source, Some(&resume)).await;
    server.sql(database, "SET SESSION sql_mode = ''; INSERT INTO u SELECT * FROM t").unwrap();
    tail.catch_up(&*source).await;
    let (read, streamed) = (snapshot.rows(), tail.recorder.rows());
    assert_eq!(read.len(), rows.len());
    assert_eq!(streamed.len(), rows.len());
    for (read, streamed) in read.iter().zip(&streamed) {
        assert_eq!(read.operation, Operation::Read);
        assert_eq!(streamed.operation, Operation::Insert);
        assert_eq!(read.after, streamed.after);
        assert_eq!(read.image, streamed.image, "{:?}", read.after);
        assert_eq!(read.key, streamed.key);
    }
    by_key(&*source, database, &streamed).await;
    read
}

async fn by_key(source: &dyn SourceConnector, database: &str, streamed: &[Row]) {
    let schemas = source.tables().await.unwrap();
    let schema = schemas.iter().find(|schema| schema.table.name == "u").unwrap();
    let name = TableId::new(database, "u");
    let mut reader = source.table_reader().await.unwrap();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let chunk = reader.chunk(schema, &name, after.as_deref(), 3).await.unwrap();
        let Some(last) = chunk.last() else { break };
        after = Some(last.key.clone());
        found.extend(chunk);
    }
    let expected: Vec<_> =
        streamed.iter().map(|row| (row.key.clone(), row.image.clone())).collect();
    let found: Vec<_> = found.into_iter().map(|row| (row.key, row.row)).collect();
    assert_eq!(found, expected);
    let keys: Vec<_> = expected.iter().map(|(key, _)| key.clone()).rev().take(2).collect();
    assert_eq!(reader.rows(schema, &name, &keys).await.unwrap().len(), keys.len().min(2));
}

fn column(rows: &[Row], name: &str) -> Vec<String> {
    rows.iter().map(|row| row.after.as_ref().unwrap()[name].clone()).collect()
}

#[test]
fn numbers() {
    on_each(async |server, database| {
        let rows = check(
            server,
            database,
            "a tinyint, b tinyint unsigned, c smallint, d smallint unsigned, e mediumint,
             f mediumint unsigned, g int, h int unsigned, i bigint, j bigint unsigned, y year,
             k float, l double, m decimal(65,30), n decimal(10,0), o decimal(9,9) unsigned,
             p int(8) unsigned zerofill, q float(7,2), r double(20,3), s decimal(12,3) zerofill",
            &[
                "-128, 0, -32768, 0, -8388608, 0, -2147483648, 0, -9223372036854775808, 0, 0,
                 -3.4028235e38, -1.7976931348623157e308, -0.1, -9999999999, 0.000000001, 7, -1.5,
                 -1.25, 0",
                "127, 255, 32767, 65535, 8388607, 16777215, 2147483647, 4294967295,
                 9223372036854775807, 18446744073709551615, 2155, 1.17549435e-38, 5e-324,
                 99999999999999999999999999999999999.999999999999999999999999999999, 9999999999,
                 0.999999999, 12345678, 99999.99, 12345678901234567.891, 123456789.123",
                "-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, 1901, 0.1, 0.1, 0, -0, 0, 0, 0.1, 0.1, 0.5",
                "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                 NULL, NULL, NULL, NULL, NULL, NULL",
                "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2024, 16777217, 123456789.123456789, 12.50, 1, 0.5,
                 42, 3.14159, 2.71828, 12.5",
                "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2024, '-0', '-0', -0.0, -0.0, 0.0, 0, '-0', '-0', 0",
            ],
        )
        .await;
        assert_eq!(column(&rows, "j")[1], "18446744073709551615");
        assert_eq!(column(&rows, "f")[1], "16777215");
        assert_eq!(column(&rows, "y"), ["0", "2155", "1901", "NULL", "2024", "2024"]);
        assert_eq!(column(&rows, "m")[0], "-0.100000000000000000000000000000");
        assert_eq!(column(&rows, "s")[4], "12.500");
        assert_eq!(column(&rows, "k")[0], "-3.4028235e38f");
    });
}

#[test]
fn dates_and_times() {
    on_each(async |server, database| {
        server.sql(database, "SET GLOBAL sql_mode = ''").unwrap();
        let rows = check(
            server,
            database,
            "a date, b time, c time(1), d time(6), e datetime, f datetime(3), g datetime(6),
             h timestamp NULL, i timestamp(4) NULL, j timestamp(6) NULL",
            &[
                "'2024-02-29', '12:34:56', '-838:59:58.9', '838:59:58.999999', '9999-12-31 23:59:59',
                 '2024-02-29 12:34:56.120', '1000-01-01 00:00:00.000001', '2038-01-19 03:14:07',
                 '1970-01-01 00:00:01.0001', '2024-02-29 12:34:56.5'",
                "'0000-00-00', '-00:00:01', '-00:00:00.1', '-00:00:00.000001', '0000-00-00 00:00:00',
                 '2024-00-00 00:00:00', '2024-02-00 00:00:00', '0000-00-00 00:00:00',
                 '0000-00-00 00:00:00', '2000-01-01 00:00:00'",
                "'2024-00-00', '00:00:00', '-12:00:00', '-101:02:03.004', '2024-01-01',
                 '2024-01-01', '2024-01-01', '2024-01-01', '2024-01-01', '2024-01-01 00:00:00.000100'",
                "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL",
            ],
        )
        .await;
        assert_eq!(column(&rows, "a"), ["2024-02-29", "0000-00-00", "2024-00-00", "NULL"]);
        assert_eq!(column(&rows, "c")[..3], ["-838:59:58.9", "-00:00:00.1", "-12:00:00"]);
        assert_eq!(column(&rows, "f")[..2], ["2024-02-29 12:34:56.12", "2024-00-00 00:00:00"]);
        assert_eq!(column(&rows, "h")[..2], ["2038-01-19 03:14:07+00", "0000-00-00 00:00:00+00"]);
        assert_eq!(column(&rows, "j")[2], "2024-01-01 00:00:00.0001+00");
    });
}

#[test]
fn text_bytes_and_labels() {
    on_each(async |server, database| {
        let rows = check(
            server,
            database,
            r"a char(10), b varchar(20), c text, d binary(4), e varbinary(300), f blob,
              g enum('x','it''s','ß','b\\a'), h char(5) CHARACTER SET latin1,
              i varchar(300) CHARACTER SET utf16, j tinytext, k longtext, l mediumblob,
              m char(255) CHARACTER SET utf8mb4",
            &[
                "'abc  ', 'abc  ', 'zwölf 😀', 'ab', x'00ff00', x'', 'x', 'äöü€', 'häß 😀', '', 'x',
                 x'00', 'lang'",
                "'', '', '', x'00000000', '', repeat('x', 65535), 'it''s', '', '', 'tiny',
                 repeat('ä', 70000), repeat('b', 66000), repeat('ß', 255)",
                "NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL",
                r"' a', 'tab\tnew\nline\\', '\0', x'01020304', repeat('e', 300), 'f', 'ß', 'a b',
                 repeat('i', 300), 'j', 'k', 'l', 'm '",
                r"'a', 'b', 'c', 'd', 'e', 'f', 'b\\a', 'h', 'i', 'j', 'k', 'l', 'm'",
                "'a', 'b', 'c', 'd', 'e', 'f', 0, 'h', 'i', 'j', 'k', 'l', 'm'",
            ],
        )
        .await;
        assert_eq!(column(&rows, "a")[0], "abc");
        assert_eq!(column(&rows, "b")[0], "abc  ");
        assert_eq!(column(&rows, "d")[0], "61620000");
        assert_eq!(column(&rows, "g"), ["x", "it's", "NULL", "ß", "b\\a", ""]);
        assert_eq!(column(&rows, "h")[0], "äöü€");
        assert_eq!(column(&rows, "i")[0], "häß 😀");
    });
}

#[test]
fn json_is_the_servers_text() {
    on_each(async |server, database| {
        let rows = check(
            server,
            database,
            "j json",
            &[
                r#"'{"b": 1, "a": [1, -1, 1.5, "x", null, true, false, {}], "": []}'"#,
                r#"'[1e100, 1.0, -0.0, 1e15, 123456789012345.0, 0.00001, 1e-16, 1.7976931348623157e308]'"#,
                r#"'[65535, 65536, -32769, 4294967296, 18446744073709551615, -9223372036854775808]'"#,
                r#"'"quote \\" back \\\\ slash \\/ \\b\\f\\n\\r\\t \\u0001 ü 😀"'"#,
                "'null'",
                "NULL",
                "JSON_OBJECT('d', CAST(1.50 AS DECIMAL(10,2)), 't', CAST('12:00:00.5' AS TIME(6)))",
                "JSON_OBJECT('k', REPEAT('x', 70000))",
            ],
        )
        .await;
        let expected = server.sql(database, "SELECT j FROM t WHERE id IN (0, 3) ORDER BY id");
        assert!(expected.is_ok());
        assert_eq!(column(&rows, "j")[4], "null");
    });
}

#[test]
fn json_of_sql_values_is_the_servers_text() {
    on_each(async |server, database| {
        if server.flavor() != Flavor::MySql {
            return;
        }
        check(
            server,
            database,
            "j json",
            &[
                "JSON_ARRAY(CAST('2024-02-29' AS DATE), CAST('2024-02-29 01:02:03.000456' AS DATETIME(6)),
                 CAST('-838:59:59' AS TIME), CAST(-12.345 AS DECIMAL(20,10)), CURRENT_TIMESTAMP(3))",
                "JSON_ARRAY(x'00ff', REPEAT(x'61', 100), b'101', CAST('x' AS BINARY(3)))",
                "CAST(CAST(1 AS UNSIGNED) AS JSON)",
                "JSON_ARRAY(1e0/3, -1e-7, 1e14, 1e17, 3.0e-320)",
                "CAST('{}' AS JSON)",
                "CAST('[]' AS JSON)",
            ],
        )
        .await;
    });
}
