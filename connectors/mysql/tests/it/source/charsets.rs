//! Text in every character set is what the server says it is.

use std::fmt::Write as _;

use super::support::{on_each, snapshot, source};

/// Character sets with codes of two bytes.
const DOUBLE: &[&str] = &["big5", "cp932", "euckr", "gb2312", "gbk", "sjis", "ujis", "eucjpms"];

const SINGLE: &[&str] = &[
    "armscii8", "cp1250", "cp1251", "cp1256", "cp1257", "cp850", "cp852", "cp866", "dec8",
    "geostd8", "greek", "hebrew", "hp8", "keybcs2", "koi8r", "koi8u", "latin1", "latin2", "latin5",
    "latin7", "macce", "macroman", "swe7", "tis620",
];

/// Values a table gets: codes that the character set defines, those that it does not become `?`.
const DEFINED: &str = "v <> '' AND HEX(CONVERT(v USING utf32)) NOT IN ('0000003F', '0000FFFD')
     AND CHAR_LENGTH(v) = 1";

#[test]
fn every_code_of_every_character_set_is_what_the_server_says() {
    on_each(async |server, database| {
        let mut sql = String::from("SET SESSION sql_mode = '';");
        for charset in SINGLE.iter().chain(DOUBLE) {
            write!(
                sql,
                "CREATE TABLE {charset} (id int PRIMARY KEY, v varchar(4) CHARACTER SET {charset},
                     u varchar(8) CHARACTER SET utf8mb4);"
            )
            .unwrap();
            let codes: Vec<u32> = if DOUBLE.contains(charset) {
                (0x8140..=0xFEFE).filter(|code| (0x40..=0xFE).contains(&(code & 0xFF))).collect()
            } else {
                (1..=0xFF).collect()
            };
            for codes in codes.chunks(4000) {
                let rows: Vec<String> =
                    codes.iter().map(|code| format!("({code}, x'{code:02x}', '')")).collect();
                write!(sql, "INSERT IGNORE INTO {charset} VALUES {};", rows.join(",")).unwrap();
            }
            write!(sql, "DELETE FROM {charset} WHERE NOT ({DEFINED}); UPDATE {charset} SET u = v;")
                .unwrap();
        }
        server.sql(database, &sql).unwrap();
        let (read, _) = snapshot(&*source(server, database)).await;
        let rows = read.rows();
        assert!(rows.len() > 50_000, "{}", rows.len());
        for row in rows {
            let columns = row.after.unwrap();
            assert_eq!(columns["v"], columns["u"], "{} {}", row.table, columns["id"]);
        }
    });
}
