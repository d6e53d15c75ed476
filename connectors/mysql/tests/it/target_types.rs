//! Every type, written every way, arrives as the server itself would have written it.

use tailwater_apply::StepOutcome;
use tailwater_change::{Column, Dialect, Kind, TableSchema, Value};

use crate::target::{
    Bench, column, insert, inserts, int, moved, on_every_flavor, text, update, updates,
};

/// A type, and values of it: as they flow and as SQL.
struct Sample {
    native: &'static str,
    kind: Kind,
    charset: Option<(&'static str, &'static str)>,
    values: Vec<(Value<'static>, &'static str)>,
}

fn sample(native: &'static str, kind: Kind, values: Vec<(Value<'static>, &'static str)>) -> Sample {
    Sample { native, kind, charset: None, values }
}

fn characters(
    native: &'static str,
    kind: Kind,
    charset: &'static str,
    collation: &'static str,
    values: Vec<(Value<'static>, &'static str)>,
) -> Sample {
    Sample { native, kind, charset: Some((charset, collation)), values }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn samples() -> Vec<Sample> {
    use Value::{Bytes, Float32, Float64, Int, Text, Uint};
    let int = |bits, signed| Kind::Int { bits, signed };
    let text = |length, fixed| Kind::Text { length, fixed };
    let bytes = |length, fixed| Kind::Bytes { length, fixed };
    vec![
        sample("tinyint", int(8, true), vec![(Int(-128), "-128"), (Int(127), "127")]),
        sample("tinyint unsigned", int(8, false), vec![(Uint(255), "255"), (Uint(0), "0")]),
        sample("smallint", int(16, true), vec![(Int(-32768), "-32768")]),
        sample("mediumint unsigned", int(24, false), vec![(Uint(16_777_215), "16777215")]),
        sample("int", int(32, true), vec![(Int(-2_147_483_648), "-2147483648")]),
        sample(
            "bigint",
            int(64, true),
            vec![(Int(i64::MIN), "-9223372036854775808"), (Int(i64::MAX), "9223372036854775807")],
        ),
        sample("bigint unsigned", int(64, false), vec![(Uint(u64::MAX), "18446744073709551615")]),
        sample(
            "year",
            int(16, false),
            vec![(Uint(0), "0"), (Uint(1901), "1901"), (Uint(2155), "2155")],
        ),
        sample(
            "decimal(65,30)",
            Kind::Decimal { precision: Some(65), scale: Some(30) },
            vec![
                (
                    Text("-99999999999999999999999999999999999.999999999999999999999999999999"),
                    "-99999999999999999999999999999999999.999999999999999999999999999999",
                ),
                (Text("0.000000000000000000000000000001"), "0.000000000000000000000000000001"),
            ],
        ),
        sample(
            "decimal(10,0) unsigned",
            Kind::Decimal { precision: Some(10), scale: Some(0) },
            vec![(Text("9999999999"), "9999999999")],
        ),
        sample(
            "float",
            Kind::Float32,
            vec![
                (Float32(0.1), "0.1"),
                (Float32(f32::MIN_POSITIVE), "1.17549435e-38"),
                (Float32(16_777_216.0), "16777216"),
            ],
        ),
        sample(
            "double",
            Kind::Float64,
            vec![
                (Float64(0.1), "0.1"),
                (Float64(f64::MAX), "1.7976931348623157e308"),
                (Float64(-1e-300), "-1e-300"),
                (Float64(9_007_199_254_740_993.0), "9007199254740992"),
            ],
        ),
        characters(
            "char(5)",
            text(Some(5), true),
            "utf8mb4",
            "utf8mb4_general_ci",
            vec![(Text("héllo"), "'héllo'"), (Text(""), "''")],
        ),
        characters(
            "varchar(40)",
            text(Some(40), false),
            "utf8mb4",
            "utf8mb4_bin",
            vec![
                (
                    Text("tab\tline\nquote'back\\slash\0nul\r\u{1a}"),
                    "'tab\\tline\\nquote\\'back\\\\slash\\0nul\\r\\Z'",
                ),
                (Text("\\N"), "'\\\\N'"),
                (Text("trailing  "), "'trailing  '"),
                (Text("😀𝄞"), "'😀𝄞'"),
                (Text(""), "''"),
            ],
        ),
        characters(
            "varchar(20)",
            text(Some(20), false),
            "latin1",
            "latin1_swedish_ci",
            vec![(Text("Größe €"), "'Größe €'")],
        ),
        characters(
            "varchar(20)",
            text(Some(20), false),
            "utf8mb3",
            "utf8mb3_general_ci",
            vec![(Text("Größe €"), "'Größe €'")],
        ),
        characters(
            "tinytext",
            text(None, false),
            "utf8mb4",
            "utf8mb4_general_ci",
            vec![(Text("é"), "'é'")],
        ),
        characters(
            "longtext",
            text(None, false),
            "utf8mb4",
            "utf8mb4_general_ci",
            vec![(Text("long"), "'long'")],
        ),
        characters(
            "enum('a','it''s','ö')",
            Kind::Enum { labels: vec!["a".into(), "it's".into(), "ö".into()] },
            "utf8mb4",
            "utf8mb4_general_ci",
            vec![(Text("it's"), "'it''s'"), (Text("ö"), "'ö'")],
        ),
        characters(
            "enum('a','ö')",
            Kind::Enum { labels: vec!["a".into(), "ö".into()] },
            "latin1",
            "latin1_swedish_ci",
            vec![(Text("ö"), "'ö'")],
        ),
        sample("binary(4)", bytes(Some(4), true), vec![(Bytes(b"\0\xff\n\t"), "0x00ff0a09")]),
        sample(
            "varbinary(300)",
            bytes(Some(300), false),
            vec![
                (Bytes(b"\\N"), "0x5c4e"),
                (Bytes(b"\xc3'\\\0\t\n\xe2\x5c"), "0xc3275c00090ae25c"),
                (Bytes(b""), "''"),
            ],
        ),
        sample("longblob", bytes(None, false), vec![(Bytes(b"\xfe\xff\x80"), "0xfeff80")]),
        sample(
            "date",
            Kind::Date,
            vec![
                (Text("0000-00-00"), "'0000-00-00'"),
                (Text("2024-02-00"), "'2024-02-00'"),
                (Text("2024-02-31"), "'2024-02-31'"),
                (Text("9999-12-31"), "'9999-12-31'"),
            ],
        ),
        sample(
            "time(6)",
            Kind::Time,
            vec![
                (Text("-838:59:59"), "'-838:59:59'"),
                (Text("00:00:00.000001"), "'00:00:00.000001'"),
            ],
        ),
        sample(
            "datetime(6)",
            Kind::Timestamp,
            vec![
                (Text("0000-00-00 00:00:00"), "'0000-00-00 00:00:00'"),
                (Text("2024-02-29 23:59:59.999999"), "'2024-02-29 23:59:59.999999'"),
            ],
        ),
        sample(
            "datetime",
            Kind::Timestamp,
            vec![(Text("1000-01-01 00:00:00"), "'1000-01-01 00:00:00'")],
        ),
        sample(
            "timestamp(3)",
            Kind::TimestampTz,
            vec![
                (Text("2024-03-31 02:30:00.125+00"), "'2024-03-31 02:30:00.125'"),
                (Text("0000-00-00 00:00:00+00"), "'0000-00-00 00:00:00'"),
            ],
        ),
        sample(
            "json",
            Kind::Json,
            vec![
                (Text("{\"a\": [1, null, \"ö\\n\"]}"), "'{\"a\": [1, null, \"ö\\\\n\"]}'"),
                (Text("12345678901234567890"), "'12345678901234567890'"),
            ],
        ),
    ]
}

fn typed(sample: &Sample) -> Column {
    Column {
        charset: sample.charset.map(|(charset, _)| charset.to_owned()),
        collation: sample.charset.map(|(_, collation)| collation.to_owned()),
        ..column("v", 2, sample.kind.clone(), sample.native)
    }
}

/// What the server says the rows are, byte by byte.
fn content(bench: &Bench, table: &str) -> String {
    bench.sql(&format!(
        "SELECT id, HEX(CAST(v AS CHAR)), HEX(v), v IS NULL FROM {table} ORDER BY id"
    ))
}

const MODE: &str =
    "SET NAMES utf8mb4; SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES'; ";

#[tokio::test(flavor = "multi_thread")]
async fn every_type_arrives_equal_whichever_way_it_goes() {
    on_every_flavor(async |mut bench| {
        for (nth, sample) in samples().iter().enumerate() {
            let name = format!("t{nth}");
            let schema = bench.schema(&name, vec![int("id", 1), typed(sample)]);
            bench.target.create_table(&schema, &schema.table).await.unwrap();
            let problems = bench.connector.check_table(&schema, &schema.table).await;
            assert!(problems.is_empty(), "{}: {problems:?}", sample.native);
            let table = bench.table(schema).await;
            bench.sql(&format!("CREATE TABLE e{nth} LIKE {name}"));

            // Six hundred rows go by load and join, four of them by single statements.
            let value = |at: i64| -> (Value<'static>, &'static str) {
                let values = &sample.values;
                let at = usize::try_from(at).unwrap() % (values.len() + 1);
                values.get(at).copied().unwrap_or((Value::Null, "NULL"))
            };
            let rows = |from: i64, to: i64, turn: i64| -> Vec<[Value<'static>; 2]> {
                (from..to).map(|id| [Value::Int(id), value(id + turn).0]).collect()
            };
            let many = rows(0, 600, 0);
            bench
                .applied(inserts(&table, many.iter().map(|row| insert(&table, row)).collect()))
                .await;
            let few = rows(600, 604, 0);
            bench
                .applied(inserts(&table, few.iter().map(|row| insert(&table, row)).collect()))
                .await;
            let expect = |bench: &Bench, turn: i64| {
                let tuples: Vec<String> =
                    (0..604).map(|id| format!("({id},{})", value(id + turn).1)).collect();
                bench.sql(&format!(
                    "{MODE} DELETE FROM e{nth}; INSERT INTO e{nth} VALUES {}",
                    tuples.join(",")
                ));
                content(bench, &format!("e{nth}"))
            };
            assert_eq!(content(&bench, &name), expect(&bench, 0), "inserts of {}", sample.native);

            let many = rows(0, 600, 1);
            bench
                .applied(updates(&table, many.iter().map(|row| update(&table, row)).collect()))
                .await;
            let few = rows(600, 604, 1);
            bench
                .applied(updates(&table, few.iter().map(|row| update(&table, row)).collect()))
                .await;
            assert_eq!(content(&bench, &name), expect(&bench, 1), "updates of {}", sample.native);
        }
    })
    .await;
}

/// Columns of a PostgreSQL source, with a value that MySQL holds and what it then reads.
fn postgres(bench: &Bench) -> (TableSchema, Vec<(Value<'static>, &'static str)>) {
    use Value::{Bool, Bytes, Float32, Int, Text};
    let columns = vec![
        (column("id", 1, Kind::Uuid, "uuid"), Text("0123e4567-0000"), ""),
        (column("b", 2, Kind::Bool, "boolean"), Bool(true), "1"),
        (column("i", 3, Kind::Int { bits: 64, signed: true }, "bigint"), Int(-5), "-5"),
        (column("f", 4, Kind::Float32, "real"), Float32(0.1), "0.1"),
        (
            column("n", 5, Kind::Decimal { precision: Some(12), scale: Some(4) }, "numeric(12,4)"),
            Text("-12345678.1234"),
            "-12345678.1234",
        ),
        (
            column("t", 6, Kind::Text { length: None, fixed: false }, "text"),
            Text("a\tb  "),
            "a\\tb  ",
        ),
        (
            column("v", 7, Kind::Text { length: Some(8), fixed: false }, "character varying(8)"),
            Text("ä😀"),
            "ä😀",
        ),
        (column("y", 8, Kind::Bytes { length: None, fixed: false }, "bytea"), Bytes(b"xyz"), "xyz"),
        (column("j", 9, Kind::Json, "jsonb"), Text("{\"a\": 1}"), "{\"a\": 1}"),
        (column("d", 10, Kind::Date, "date"), Text("2024-02-29"), "2024-02-29"),
        (
            column("m", 11, Kind::Time, "time without time zone"),
            Text("24:00:00"),
            "24:00:00.000000",
        ),
        (
            column("s", 12, Kind::Timestamp, "timestamp without time zone"),
            Text("2024-02-29 12:00:00.5"),
            "2024-02-29 12:00:00.500000",
        ),
        (
            column("z", 13, Kind::TimestampTz, "timestamp with time zone"),
            Text("2150-02-28 12:00:00+00"),
            "2150-02-28 12:00:00.000000",
        ),
        (
            column("e", 14, Kind::Enum { labels: vec!["new".into(), "New".into()] }, "mood"),
            Text("New"),
            "New",
        ),
    ];
    let mut schema =
        bench.schema("from_pg", columns.iter().map(|(column, ..)| column.clone()).collect());
    schema.dialect = Dialect::Postgres;
    (schema, columns.into_iter().map(|(_, value, read)| (value, read)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_table_gets_types_that_hold_its_values() {
    on_every_flavor(async |mut bench| {
        let (schema, mut values) = postgres(&bench);
        let key = "0123e456-89ab-cdef-0123-456789abcdef";
        values[0] = (Value::Text(key), key);
        bench.target.create_table(&schema, &schema.table).await.unwrap();
        assert_eq!(bench.connector.check_table(&schema, &schema.table).await, []);
        let table = bench.table(schema).await;
        assert!(table.target.identity_is_bytes);
        let row: Vec<Value<'_>> = values.iter().map(|(value, _)| *value).collect();
        bench.applied(inserts(&table, vec![insert(&table, &row)])).await;
        let read: Vec<&str> = values.iter().map(|(_, read)| *read).collect();
        assert_eq!(bench.sql("SELECT * FROM from_pg"), read.join("\t"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_mysql_does_not_have_stop_with_the_columns_name() {
    on_every_flavor(async |mut bench| {
        let (schema, values) = postgres(&bench);
        bench.target.create_table(&schema, &schema.table).await.unwrap();
        let table = bench.table(schema).await;
        let key = "0123e456-89ab-cdef-0123-456789abcdef";
        for (at, bad) in [
            (3, Value::Float32(f32::NAN)),
            (4, Value::Text("NaN")),
            (9, Value::Text("infinity")),
            (9, Value::Text("0044-03-15 BC")),
            (11, Value::Text("-infinity")),
            (12, Value::Text("10000-01-01 00:00:00+00")),
        ] {
            let mut row: Vec<Value<'_>> = values.iter().map(|(value, _)| *value).collect();
            row[0] = Value::Text(key);
            row[at] = bad;
            let name = table.schema.columns[at].name.clone();
            for count in [1, 200] {
                bench.target.begin().await.unwrap();
                let rows = (0..count).map(|_| insert(&table, &row)).collect();
                let error = bench.target.step(&inserts(&table, rows)).await.unwrap_err();
                assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
                assert!(error.to_string().contains("from_pg"), "{error}");
                bench.target.rollback().await.unwrap();
            }
        }
        assert_eq!(bench.sql("SELECT COUNT(*) FROM from_pg"), "0");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_under_a_case_insensitive_collation_are_not_bytes() {
    on_every_flavor(async |mut bench| {
        bench.sql(
            "CREATE TABLE t (id VARCHAR(20) COLLATE utf8mb4_general_ci NOT NULL PRIMARY KEY, v INT)",
        );
        let mut key = text("id", 1, 20);
        key.collation = Some("utf8mb4_general_ci".into());
        let schema = bench.schema("t", vec![key, int("v", 2)]);
        let table = bench.table(schema).await;
        assert!(!table.target.identity_is_bytes);
        let one = |id, v| [Value::Text(id), Value::Int(v)];
        bench.applied(inserts(&table, vec![insert(&table, &one("Ada", 1))])).await;
        // Equal under the collation: the key is there.
        let outcome = bench.step(inserts(&table, vec![insert(&table, &one("ADA", 2))])).await;
        assert!(matches!(outcome, StepOutcome::Refused(_)));
        bench
            .applied(updates(&table, vec![moved(&table, &one("Ada", 1), &one("ADA", 3))]))
            .await;
        assert_eq!(bench.sql("SELECT * FROM t"), "ADA\t3");
    })
    .await;
}
