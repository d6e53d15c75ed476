//! Every type: a snapshot's row and the stream's are the same bytes.

use crate::source::support::{Database, changes_after, flavors, snapshot};

const TABLE: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'so so', 'it''s fine, \\ ü');
    CREATE TABLE every (
        n int, b bool, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, num numeric,
        money numeric(12,2), t text, vc varchar(20), c char(5), na name, by bytea,
        d date, ti time, ts timestamp, tz timestamptz, u uuid, j json, jb jsonb, m mood,
        ti3 time(3), ts0 timestamp(0),
        twice int GENERATED ALWAYS AS (n * 2) STORED);
    ALTER TABLE every REPLICA IDENTITY FULL;";

const COLUMNS: &str = "n, b, i2, i4, i8, f4, f8, num, money, t, vc, c, na, by, d, ti, ts, tz, u, \
                       j, jb, m, ti3, ts0";

const ROWS: &str = r#"
    INSERT INTO every VALUES
    (1, true, -32768, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', '-0.00', '',
     '', '', '', '', '0044-03-15 BC', '00:00', '0044-03-15 12:00 BC', '0044-03-15 12:00+02 BC',
     '00000000-0000-0000-0000-000000000000', '{"b":  1, "a": [1,2 ]}', '{"b":  1, "a": [1,2 ]}',
     'sad', '23:59:59.999', '2024-02-29 23:59:59'),
    (2, false, 32767, 2147483647, 9223372036854775807, '-0', '-0', '-123456789012345678901234567890.00100',
     '9999999999.99', E'tab\there\nline\\N \\ "quoted" \x01 ü 😀', 'a  ', 'ab', 'x', '\x00ff5c4e',
     'infinity', '24:00', 'infinity', '-infinity', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '"\\N"',
     'null', 'it''s fine, \ ü', '12:00', '1999-12-31 23:59:59.5'),
    (3, NULL, 0, 0, 0, 'Infinity', '5e-324', 'Infinity', 0, '\N', '\.', E'\t', E'\\', '\x5c4e0a09',
     '-infinity', '12:34:56.000001', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999999+00',
     'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '1e400', '12345678901234567890.10', 'so so', NULL, NULL),
    (4, NULL, 1, 1, 1, 3.4028235e38, 1.7976931348623157e308, 1e-20, 0.5, ' lead', 'ü', 'ü', 'ü', NULL,
     '4713-01-01 BC', '00:00:00.1', '4713-01-01 00:00:00 BC', '4713-01-01 00:00:00+00 BC', NULL, NULL, NULL,
     NULL, NULL, NULL),
    (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);"#;

/// Rows of any bits that SQL can make, the same at every run.
const RANDOM_ROWS: &str = r"
    SELECT setseed(0.42);
    INSERT INTO every
    SELECT g, random() < 0.5, ((random() - 0.5) * 65535)::int2, ((random() - 0.5) * 4294967295)::int4,
           ((random() - 0.5) * 1.8e19)::int8, ((random() - 0.5) * 10 ^ (random() * 60 - 30))::float4,
           (random() - 0.5) * 10 ^ (random() * 600 - 300), ((random() - 0.5) * 1e15)::numeric,
           (random() * 1e9)::numeric(12,2),
           translate(md5(random()::text), '0123', E'\t\n\\ü'), left(md5(random()::text), 20),
           left(md5(random()::text), 5), md5(random()::text), decode(md5(random()::text), 'hex'),
           '2000-01-01'::date + ((random() - 0.5) * 2000000)::int, '00:00'::time + random() * '1 day'::interval,
           '2000-01-01'::timestamp + (random() - 0.5) * '3000 years'::interval,
           '2000-01-01'::timestamptz + (random() - 0.5) * '3000 years'::interval,
           md5(random()::text)::uuid, json_build_object('k', random(), 't', md5(random()::text)),
           jsonb_build_object('k', random(), 't', md5(random()::text)), 'so so', now()::time, now()
      FROM generate_series(10, 300) g;";

#[tokio::test]
async fn a_snapshot_and_the_stream_say_the_same_bytes() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(TABLE);
        database.sql(ROWS);
        database.sql(RANDOM_ROWS);
        // What a careless session would print by.
        database.sql(&format!(
            "ALTER DATABASE {0} SET datestyle TO 'German';
             ALTER DATABASE {0} SET timezone TO 'Asia/Kathmandu';
             ALTER DATABASE {0} SET extra_float_digits TO -3;
             ALTER DATABASE {0} SET bytea_output TO 'escape';
             ALTER DATABASE {0} SET client_encoding TO 'LATIN1';
             ALTER DATABASE {0} SET intervalstyle TO 'sql_standard';",
            database.name
        ));
        let source = database.source();
        let (found, resume) = snapshot(&*source).await;
        assert_eq!(found.rows.len(), 296);
        database.sql(&format!(
            "SET datestyle TO 'ISO, MDY'; SET client_encoding TO 'UTF8';
             INSERT INTO every ({COLUMNS}) SELECT {COLUMNS} FROM every"
        ));
        let streamed = changes_after(&*source, &resume).await;
        let images = |log: &super::support::Log| {
            let mut images: Vec<_> = log.rows.iter().map(|row| row.after.clone()).collect();
            images.sort();
            images
        };
        for (read, inserted) in found.rows.iter().zip(&streamed.rows) {
            assert_eq!(read.text.replacen("read", "insert", 1), inserted.text);
        }
        assert_eq!(images(&found), images(&streamed), "on {flavor}");
    }
}

#[tokio::test]
async fn values_are_canonical() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(TABLE);
        database.sql(ROWS);
        let (found, _) = snapshot(&*database.source()).await;
        let expected = [
            "read [1 true -32768 -2147483648 -9223372036854775808 NaN -inf 'NaN' '0.00' '' '' \
             '     ' '' [] '0044-03-15 BC' '00:00:00' '0044-03-15 12:00:00 BC' \
             '0044-03-15 10:00:00+00 BC' '00000000-0000-0000-0000-000000000000' \
             '{\"b\":  1, \"a\": [1,2 ]}' '{\"a\": [1, 2], \"b\": 1}' 'sad' '23:59:59.999' \
             '2024-02-29 23:59:59' -]",
            "read [4 - 1 1 1 3.4028235e38 1.7976931348623157e308 '0.00000000000000000001' '0.50' \
             ' lead' 'ü' 'ü    ' 'ü' - '4713-01-01 BC' '00:00:00.1' '4713-01-01 00:00:00 BC' \
             '4713-01-01 00:00:00+00 BC' - - - - - - -]",
        ];
        assert_eq!([found.rows[0].text.as_str(), found.rows[3].text.as_str()], expected);
    }
}
