//! Rows by key: canonical, in key order, the same bytes as the stream's.

use tailwater_change::{Kind, TableId};

use crate::source::support::{Database, flavors, snapshot};

#[tokio::test]
async fn chunks_walk_the_whole_table_and_equal_the_snapshot() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(
            "CREATE TABLE t (a text, b numeric, v bytea, f float8, twice int
                GENERATED ALWAYS AS (1) STORED, PRIMARY KEY (b, a));
             INSERT INTO t SELECT 'it''s \\ ' || g, g % 7 - 3.50, decode(md5(g::text), 'hex'),
                CASE g % 3 WHEN 0 THEN 'NaN' WHEN 1 THEN -g / 7.0 END FROM generate_series(1, 100) g",
        );
        let source = database.source();
        let (found, _) = snapshot(&*source).await;
        let schema = &source.tables().await.unwrap()[0];
        let mut reader = source.table_reader().await.unwrap();
        let (mut rows, mut after) = (Vec::new(), None);
        loop {
            let chunk = reader.chunk(schema, &schema.table, after.as_deref(), 7).await.unwrap();
            let Some(last) = chunk.last() else { break };
            after = Some(last.key.clone());
            rows.extend(chunk);
        }
        let mut read: Vec<_> = rows.iter().map(|row| Some(row.row.clone())).collect();
        let mut expected: Vec<_> = found.rows.iter().map(|row| row.after.clone()).collect();
        read.sort();
        expected.sort();
        assert_eq!(read, expected);

        let keys: Vec<_> = rows.iter().step_by(3).map(|row| row.key.clone()).collect();
        let mut some = reader.rows(schema, &schema.table, &keys).await.unwrap();
        assert_eq!(some.len(), keys.len());
        database.sql("DELETE FROM t WHERE b < 0");
        some.retain(|row| rows.contains(row));
        assert_eq!(some.len(), keys.len());
        assert!(reader.rows(schema, &schema.table, &keys).await.unwrap().len() < keys.len());
    }
}

#[tokio::test]
async fn rows_without_a_key_are_found_by_all_they_are() {
    let database = Database::new(flavors()[0]);
    database.sql(
        "CREATE TABLE t (a int, j json); ALTER TABLE t REPLICA IDENTITY FULL;
         INSERT INTO t VALUES (1, '{}'), (1, '{}'), (NULL, '[1 ]'), (2, NULL)",
    );
    let source = database.source();
    let schema = &source.tables().await.unwrap()[0];
    let mut reader = source.table_reader().await.unwrap();
    let rows = reader.chunk(schema, &schema.table, None, 2).await.unwrap();
    assert_eq!(rows.len(), 4, "whole");
    assert!(reader.chunk(schema, &schema.table, Some(&rows[0].key), 2).await.is_err());
    let found = reader.rows(schema, &schema.table, &[rows[2].key.clone()]).await.unwrap();
    assert_eq!(found, [rows[2].clone()]);
    let found = reader.rows(schema, &schema.table, &[rows[0].key.clone()]).await.unwrap();
    assert_eq!(found.len(), 2);
}

#[tokio::test]
async fn a_target_of_another_engine_is_read_as_its_source() {
    let database = Database::new(flavors()[0]);
    database.sql(
        "CREATE TABLE t (id numeric(20) PRIMARY KEY, small smallint, c char(5));
         INSERT INTO t VALUES (18446744073709551615, -7, 'ab'), (1, NULL, NULL)",
    );
    let source = database.source();
    let mut schema = (*source.tables().await.unwrap()[0]).clone();
    schema.dialect = tailwater_change::Dialect::Mysql;
    schema.table = TableId::new("shop", "T");
    schema.columns[0].kind = Kind::Int { bits: 64, signed: false };
    schema.columns[1].kind = Kind::Int { bits: 8, signed: true };
    let mut reader = source.table_reader().await.unwrap();
    let name = TableId::new("public", "t");
    let rows = reader.chunk(&schema, &name, None, 10).await.unwrap();
    let mut values = Vec::new();
    let read = tailwater_change::RowReader::new(&schema);
    read.read(&rows[1].row, &mut values).unwrap();
    use tailwater_change::Value::{Int, Text, Uint};
    assert_eq!(values, [Uint(u64::MAX), Int(-7), Text("ab")]);
    let rest = reader.chunk(&schema, &name, Some(&rows[0].key), 10).await.unwrap();
    assert_eq!(rest, rows[1..]);
}
