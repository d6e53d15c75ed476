//! Every value arrives as it left: through COPY and through parameters, like to like and across.

use std::sync::Arc;

use tailwater_apply::{ConflictPolicy, Step, TargetConnector as _, TargetError};
use tailwater_change::{Column, Dialect, Identity, Kind, TableId, Value};

use crate::target::{Fixture, column, delete, flavors, insert, int, schema, text, update};

/// One column of every type, its native spelling, and values with the SQL that means the same.
#[expect(clippy::type_complexity, reason = "a table of tests")]
fn types() -> Vec<(Kind, &'static str, Vec<(Value<'static>, &'static str)>)> {
    let bits = |bits| Kind::Int { bits, signed: true };
    let decimal = |precision, scale| Kind::Decimal { precision, scale };
    vec![
        (Kind::Bool, "boolean", vec![(Value::Bool(true), "true"), (Value::Bool(false), "false")]),
        (
            bits(16),
            "smallint",
            vec![(Value::Int(-32_768), "-32768"), (Value::Int(32_767), "32767")],
        ),
        (bits(32), "integer", vec![(Value::Int(i64::from(i32::MIN)), "-2147483648")]),
        (
            bits(64),
            "bigint",
            vec![(Value::Int(i64::MIN), "'-9223372036854775808'"), (Value::Int(0), "0")],
        ),
        (
            Kind::Float32,
            "real",
            vec![
                (Value::Float32(f32::NAN), "'NaN'"),
                (Value::Float32(f32::NEG_INFINITY), "'-Infinity'"),
                (Value::Float32(f32::MIN_POSITIVE), "'1.17549435e-38'"),
                (Value::Float32(-0.0), "'-0'"),
            ],
        ),
        (
            Kind::Float64,
            "double precision",
            vec![
                (Value::Float64(f64::NAN), "'NaN'"),
                (Value::Float64(f64::INFINITY), "'Infinity'"),
                (Value::Float64(5e-324), "'5e-324'"),
                (Value::Float64(f64::MAX), "'1.7976931348623157e308'"),
                (Value::Float64(0.1), "0.1"),
            ],
        ),
        (
            decimal(None, None),
            "numeric",
            vec![
                (Value::Text("NaN"), "'NaN'"),
                (Value::Text("-Infinity"), "'-Infinity'"),
                (Value::Text("-123.4500"), "'-123.4500'"),
                (Value::Text("0.000000000000000000000001"), "'0.000000000000000000000001'"),
                (Value::Text("100000000000000000000000000.000"), "'1e26'::numeric(99,3)"),
                (Value::Text("0"), "0"),
            ],
        ),
        (decimal(Some(10), Some(2)), "numeric(10,2)", vec![(Value::Text("-0.10"), "-0.1")]),
        (
            text(),
            "text",
            vec![
                (Value::Text(""), "''"),
                (Value::Text("\\N"), "E'\\\\N'"),
                (Value::Text("a\\b\tc\nd\re\u{1}"), "E'a\\\\b\\tc\\nd\\re\\001'"),
                (Value::Text("Grüße 😀"), "'Grüße 😀'"),
                (Value::Text("\\."), "E'\\\\.'"),
            ],
        ),
        (
            Kind::Text { length: Some(5), fixed: false },
            "character varying(5)",
            vec![(Value::Text("ab  "), "'ab  '")],
        ),
        (
            Kind::Text { length: Some(5), fixed: true },
            "character(5)",
            vec![(Value::Text("ab   "), "'ab'")],
        ),
        (
            Kind::Bytes { length: None, fixed: false },
            "bytea",
            vec![(Value::Bytes(b""), "''"), (Value::Bytes(b"\x00\\\n\xFF"), "'\\x005c0aff'")],
        ),
        (
            Kind::Date,
            "date",
            vec![
                (Value::Text("2024-02-29"), "'2024-02-29'"),
                (Value::Text("0044-03-15 BC"), "'0044-03-15 BC'"),
                (Value::Text("4713-01-01 BC"), "'4713-01-01 BC'"),
                (Value::Text("5874897-12-31"), "'5874897-12-31'"),
                (Value::Text("infinity"), "'infinity'"),
                (Value::Text("-infinity"), "'-infinity'"),
            ],
        ),
        (
            Kind::Time,
            "time without time zone",
            vec![
                (Value::Text("24:00:00"), "'24:00:00'"),
                (Value::Text("01:02:03.4"), "'01:02:03.4'"),
            ],
        ),
        (
            Kind::Timestamp,
            "timestamp without time zone",
            vec![
                (Value::Text("2024-02-29 23:59:59.999999"), "'2024-02-29 23:59:59.999999'"),
                (Value::Text("0044-03-15 12:00:00 BC"), "'0044-03-15 12:00:00 BC'"),
                (Value::Text("294276-12-31 23:59:59.999999"), "'294276-12-31 23:59:59.999999'"),
                (Value::Text("infinity"), "'infinity'"),
            ],
        ),
        (
            Kind::TimestampTz,
            "timestamp with time zone",
            vec![
                (Value::Text("1969-12-31 23:59:59.5+00"), "'1969-12-31 23:59:59.5+00'"),
                (Value::Text("0044-03-15 12:00:00+00 BC"), "'0044-03-15 12:00:00+00 BC'"),
                (Value::Text("-infinity"), "'-infinity'"),
            ],
        ),
        (
            Kind::Uuid,
            "uuid",
            vec![(
                Value::Text("00112233-4455-6677-8899-aabbccddeeff"),
                "'00112233-4455-6677-8899-aabbccddeeff'",
            )],
        ),
        (
            Kind::Json,
            "json",
            vec![(
                Value::Text("{\"b\": 1,\n \"b\":2, \"a\\\\\":null}"),
                "E'{\"b\": 1,\\n \"b\":2, \"a\\\\\\\\\":null}'",
            )],
        ),
        (Kind::Json, "jsonb", vec![(Value::Text("{\"a\": 1.00}"), "'{\"a\":1.00}'")]),
        (
            Kind::Enum { labels: vec!["sad".into(), "it's \"ok\"".into()] },
            "mood",
            vec![(Value::Text("it's \"ok\""), "'it''s \"ok\"'")],
        ),
        (
            Kind::Enum { labels: vec!["x".into()] },
            "other.\"Weird type\"",
            vec![(Value::Text("x"), "'x'")],
        ),
    ]
}

/// A table of all types is made by us and by SQL; rows come by COPY, by parameters and by updates
/// of both kinds; the server finds no difference.
#[tokio::test]
async fn every_type_arrives_as_it_left() {
    for flavor in flavors() {
        let types = types();
        let mut columns = vec![column("id", int(), "integer")];
        for (number, (kind, native, _)) in types.iter().enumerate() {
            columns.push(column(&format!("c\"{number}"), kind.clone(), native));
        }
        let source = schema("all_types", columns, Identity::Key(vec![0]));
        let longest = types.iter().map(|(_, _, values)| values.len()).max().unwrap();

        let mut fixture = Fixture::new(flavor, "CREATE TABLE keep (id int)").await;
        fixture.target.create_table(&source, &source.table).await.unwrap();
        // Again: no error.
        fixture.target.create_table(&source, &source.table).await.unwrap();
        let spelled: Vec<String> = types
            .iter()
            .enumerate()
            .map(|(n, (_, native, _))| format!("\"c\"\"{n}\" {native}"))
            .collect();
        fixture.sql(&format!("CREATE TABLE expected (id int PRIMARY KEY, {})", spelled.join(", ")));
        let same = "SELECT string_agg(format_type(atttypid, atttypmod), ',' ORDER BY attnum)
                      FROM pg_attribute WHERE attnum > 0 AND attrelid = ";
        assert_eq!(
            fixture.sql(&format!("{same}'all_types'::regclass")),
            fixture.sql(&format!("{same}'expected'::regclass"))
        );

        // One row per value, each column its own; then a row of NULLs.
        let mut rows = Vec::new();
        for number in 0..=longest {
            let mut values = vec![Value::Int(i64::try_from(number).unwrap())];
            let mut sql = vec![number.to_string()];
            for (_, _, column) in &types {
                let (value, text) = match column.get(number % column.len()) {
                    Some(pair) if number < longest => *pair,
                    _ => (Value::Null, "NULL"),
                };
                values.push(value);
                sql.push(text.to_owned());
            }
            fixture.sql(&format!("INSERT INTO expected VALUES ({})", sql.join(", ")));
            rows.push(values);
        }
        let table = fixture.describe(source).await;
        let differences = "
            SELECT count(*) FROM (
                (SELECT t::text FROM all_types t EXCEPT ALL SELECT e::text FROM expected e)
                UNION ALL
                (SELECT e::text FROM expected e EXCEPT ALL SELECT t::text FROM all_types t)) d";

        let inserts: Vec<_> = rows.iter().map(|values| insert(&table, values)).collect();
        let step = |rows| Step::Insert { table: Arc::clone(&table), rows };
        fixture.apply(&[step(inserts.clone())]).await;
        assert_eq!(fixture.sql(differences), "0", "by parameters, {flavor}");

        // The same rows over and over make a step large enough for COPY.
        fixture.sql("TRUNCATE all_types");
        let mut many = inserts.clone();
        for copy in 1..10 {
            for values in &rows {
                let mut values = values.clone();
                values[0] = Value::Int(
                    1000 * copy
                        + match values[0] {
                            Value::Int(id) => id,
                            _ => 0,
                        },
                );
                many.push(insert(&table, &values));
            }
        }
        fixture.apply(&[step(many.clone())]).await;
        assert_eq!(fixture.sql("SELECT count(*) FROM all_types"), many.len().to_string());
        fixture.sql("DELETE FROM all_types WHERE id >= 1000");
        assert_eq!(fixture.sql(differences), "0", "by COPY, {flavor}");

        // Updates: every row to all NULL and back, by both ways.
        for large in [false, true] {
            if large {
                fixture.apply(&[step(many[inserts.len()..].to_vec())]).await;
            }
            let all = if large { many.as_slice() } else { inserts.as_slice() };
            fixture.sql(
                "UPDATE all_types SET \"c\"\"0\" = NULL, \"c\"\"8\" = 'gone', \"c\"\"17\" = '1'",
            );
            let rows: Vec<_> = all
                .iter()
                .map(|change| tailwater_apply::Change {
                    operation: tailwater_change::Operation::Update,
                    ..change.clone()
                })
                .collect();
            fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;
            fixture.sql("DELETE FROM all_types WHERE id >= 1000");
            assert_eq!(fixture.sql(differences), "0", "by updates, large: {large}, {flavor}");
        }
    }
}

#[tokio::test]
async fn large_values_go_in_pieces() {
    for flavor in flavors() {
        let mut fixture =
            Fixture::new(flavor, "CREATE TABLE big (id int PRIMARY KEY, v text, b bytea, j jsonb)")
                .await;
        let columns = vec![
            column("id", int(), "integer"),
            column("v", text(), "text"),
            column("b", Kind::Bytes { length: None, fixed: false }, "bytea"),
            column("j", Kind::Json, "jsonb"),
        ];
        let table = fixture.describe(schema("big", columns, Identity::Key(vec![0]))).await;
        let long = "ä\\\n\t".repeat(1 << 20);
        let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let json = format!("\"{}\"", "x".repeat(200_000));
        let values = [Value::Int(1), Value::Text(&long), Value::Bytes(&bytes), Value::Text(&json)];
        let digest = "SELECT md5(v), md5(b), length(v), length(b), length(j::text) FROM big";
        let rows = vec![insert(&table, &values)];
        fixture.apply(&[Step::Insert { table: Arc::clone(&table), rows }]).await;
        let expected = fixture.sql(digest);
        assert!(expected.ends_with("\t4194304\t800000\t200002"), "{expected}");
        fixture.sql("UPDATE big SET v = '', b = '', j = '1'");
        let rows = vec![update(&table, &values)];
        fixture.apply(&[Step::Update { table: Arc::clone(&table), rows }]).await;
        assert_eq!(fixture.sql(digest), expected);
        fixture.sql("DELETE FROM big");
        fixture.replay(&[insert(&table, &values)], ConflictPolicy::Stop).await.unwrap();
        assert_eq!(fixture.sql(digest), expected);
    }
}

fn mysql(columns: Vec<Column>) -> tailwater_change::TableSchema {
    let mut schema = schema("from_mysql", columns, Identity::Key(vec![0]));
    schema.dialect = Dialect::Mysql;
    schema
}

#[tokio::test]
async fn what_postgres_lacks_stops_with_column_and_key() {
    for flavor in flavors() {
        let columns = vec![
            column("id", Kind::Int { bits: 64, signed: false }, "bigint unsigned"),
            column("d", Kind::Date, "date"),
            column("t", Kind::Time, "time(6)"),
            column("at", Kind::Timestamp, "datetime(6)"),
            column("v", Kind::Text { length: Some(9), fixed: true }, "char(9)"),
        ];
        let source = mysql(columns);
        let to = TableId::new("shop", "copy");
        let mut fixture = Fixture::new(flavor, "").await;
        assert!(fixture.connector.check_table(&source, &to).await.is_empty());
        fixture.target.create_table(&source, &to).await.unwrap();
        assert!(fixture.connector.check_table(&source, &to).await.is_empty());
        let described = fixture.target.describe(&source, &to).await.unwrap().unwrap();
        assert!(described.identity_is_bytes);
        let table =
            Arc::new(tailwater_apply::Table { schema: Arc::new(source), target: described });
        let good = [
            Value::Uint(u64::MAX),
            Value::Text("2024-02-29"),
            Value::Text("23:59:59.5"),
            Value::Text("2024-02-29 00:00:00"),
            Value::Text("ü"),
        ];
        fixture.replay(&[insert(&table, &good)], ConflictPolicy::Stop).await.unwrap();
        assert_eq!(
            fixture.sql("SELECT * FROM shop.copy"),
            "18446744073709551615\t2024-02-29\t23:59:59.5\t2024-02-29 00:00:00\tü"
        );
        for (index, bad, name) in [
            (1, "0000-00-00", "column d "),
            (1, "2024-02-00", "column d "),
            (2, "-00:00:01", "column t "),
            (2, "838:59:59", "column t "),
            (3, "0000-00-00 00:00:00", "column at "),
            (4, "a\0b", "column v "),
        ] {
            let mut values = good;
            values[0] = Value::Uint(7);
            values[index] = Value::Text(bad);
            for count in [1, 40] {
                let rows = vec![insert(&table, &values); count];
                fixture.target.begin().await.unwrap();
                let step = Step::Insert { table: Arc::clone(&table), rows };
                let error = fixture.target.step(&step).await.unwrap_err();
                fixture.target.rollback().await.unwrap();
                let text = error.to_string();
                assert!(matches!(error, TargetError::Conflict { .. }), "{text}");
                assert!(text.contains(name) && text.contains("key (id) = (7)"), "{text}");
            }
        }
        assert_eq!(fixture.sql("SELECT count(*) FROM shop.copy"), "1");
    }
}

#[tokio::test]
async fn an_existing_table_is_judged_column_by_column() {
    for flavor in flavors() {
        let source = schema(
            "t",
            vec![
                column("id", int(), "integer"),
                column("n", Kind::Decimal { precision: Some(10), scale: Some(2) }, "numeric(10,2)"),
                column("v", Kind::Text { length: Some(40), fixed: false }, "character varying(40)"),
                column("e", Kind::Enum { labels: vec!["a".into(), "b".into()] }, "public.e"),
                column("gone", text(), "text"),
            ],
            Identity::Key(vec![0]),
        );
        let fixture = Fixture::new(
            flavor,
            "CREATE TYPE e AS ENUM ('a');
             CREATE TABLE t (id smallint, n numeric(9,2), v varchar(20) NOT NULL, e e,
                             extra int NOT NULL)",
        )
        .await;
        let problems = fixture.connector.check_table(&source, &source.table).await;
        let said = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in [
            "column id is smallint",
            "column n is numeric(9,2)",
            "column v is character varying(20)",
            "column v takes no NULL",
            "column e is public.e",
            "no column gone",
            "column extra is not in the source",
            "ADD PRIMARY KEY (\"id\")",
        ] {
            assert!(said.contains(part), "{part} not in:\n{said}");
        }
    }
}

/// What would be rounded or cut without a word is refused when the table is met, not only by
/// `check`.
#[tokio::test]
async fn a_column_that_would_change_values_is_refused_at_once() {
    for flavor in flavors() {
        let sql = "CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2), at timestamp(0), f real,
                                   j jsonb, b jsonb)";
        let mut fixture = Fixture::new(flavor, sql).await;
        let with = |kind: Kind, name: &str, native: &str| {
            let columns = vec![column("id", int(), "integer"), column(name, kind, native)];
            schema("t", columns, Identity::Key(vec![0]))
        };
        let decimal = Kind::Decimal { precision: Some(10), scale: Some(4) };
        for (kind, name, native) in [
            (decimal, "n", "numeric(10,4)"),
            (Kind::Timestamp, "at", "timestamp without time zone"),
            (Kind::Float64, "f", "double precision"),
            (Kind::Json, "j", "json"),
        ] {
            let source = with(kind, name, native);
            let error = fixture.target.describe(&source, &source.table).await.unwrap_err();
            assert!(matches!(error, TargetError::Refused(_)), "{error:?}");
            assert!(error.to_string().contains(&format!("column {name} is")), "{error}");
        }
        fixture.describe(with(Kind::Json, "b", "jsonb")).await;
    }
}

/// A replica session fires no foreign key: cascades that the source does not log never happen.
#[tokio::test]
async fn hidden_cascades_are_refused_at_once() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(flavor, "CREATE TABLE t (id int PRIMARY KEY)").await;
        let mut source = schema("t", vec![column("id", int(), "integer")], Identity::Key(vec![0]));
        source.hides_cascades = true;
        source.foreign_keys = vec![tailwater_change::ForeignKey {
            name: "to_parent".into(),
            columns: vec!["id".into()],
            referenced: tailwater_change::TableId::new("public", "parent"),
            referenced_columns: vec!["id".into()],
            on_delete: tailwater_change::ReferentialAction::Cascade,
            on_update: tailwater_change::ReferentialAction::NoAction,
            deferrable: false,
            initially_deferred: false,
        }];
        let error = fixture.target.describe(&source, &source.table).await.unwrap_err();
        assert!(error.to_string().contains("to_parent"), "{error}");
        let new = tailwater_change::TableId::new("public", "new");
        assert!(fixture.target.create_table(&source, &new).await.is_err());
    }
}

#[tokio::test]
async fn a_type_without_a_binary_form_goes_as_text() {
    for flavor in flavors() {
        let mut fixture = Fixture::new(
            flavor,
            "CREATE EXTENSION citext; CREATE TABLE t (id int PRIMARY KEY, v citext UNIQUE, n name)",
        )
        .await;
        let columns = vec![
            column("id", int(), "integer"),
            column("v", text(), "citext"),
            column("n", text(), "name"),
        ];
        let table = fixture.describe(schema("t", columns, Identity::Key(vec![1]))).await;
        assert!(!table.target.identity_is_bytes);
        let texts: Vec<String> = (0..100).map(|number| format!("A\\{number}\n\t")).collect();
        let values = |id: usize| {
            [Value::Int(i64::try_from(id).unwrap()), Value::Text(&texts[id]), Value::Text("n\\")]
        };
        let rows = (0..100).map(|id| insert(&table, &values(id))).collect();
        fixture.apply(&[Step::Insert { table: Arc::clone(&table), rows }]).await;
        assert_eq!(
            fixture.sql("SELECT count(*) FROM t WHERE v::text = E'A\\\\' || id || E'\\n\\t'"),
            "100"
        );
        // The operator is the extension's, wherever it lies: 'a' is 'A'.
        let lower: Vec<String> = texts.iter().map(|text| text.to_lowercase()).collect();
        let named = |id: usize| [Value::Null, Value::Text(lower[id].as_str()), Value::Null];
        let rows = (0..3).map(|id| delete(&table, &named(id))).collect();
        fixture.apply(&[Step::Delete { table: Arc::clone(&table), rows }]).await;
        let rows = (3..100).map(|id| delete(&table, &named(id))).collect();
        fixture.apply(&[Step::Delete { table: Arc::clone(&table), rows }]).await;
        assert_eq!(fixture.sql("SELECT count(*) FROM t"), "0");
    }
}
