//! The decoder against events made up here: what no recording of a server shows.

use std::sync::Arc;

use bytes::Bytes;
use tailwater_capture::{Changes, Event};
use tailwater_change::{Commit, Dialect, Identity, TableId, TableSchema};

use super::header::kind;
use super::{Collations, DecodeError, Decoder, Delivered, Tables};
use crate::source::filter::Filter;

/// A binlog without checksums, as it is sent.
struct Script {
    decoder: Decoder,
    position: u32,
    out: Changes,
}

impl Script {
    /// Begins at the first file's first event; `shop.t` is captured.
    fn new() -> Self {
        let filter = Filter::new(&["shop.t".into(), "shop.late".into()], &[], None).unwrap();
        let mut tables = Tables::new(filter, Collations::default());
        for (name, born) in [("t", true), ("late", false)] {
            let schema = TableSchema {
                table: TableId::new("shop", name),
                dialect: Dialect::Mysql,
                columns: Vec::new(),
                identity: Identity::Full,
                indexes: Vec::new(),
                foreign_keys: Vec::new(),
                hides_cascades: false,
                options: None,
            };
            tables.add(Arc::new(schema), born);
        }
        let delivered = Delivered { through: Commit::ZERO, again: true };
        let from = Commit::binlog(1, 4);
        let decoder = Decoder::new(Dialect::Mysql, "binlog".into(), from, delivered, tables);
        Self { decoder, position: 4, out: Changes::new() }
    }

    fn event(&mut self, kind: u8, timestamp: u32, body: &[u8]) -> Result<(), DecodeError> {
        let size = u32::try_from(19 + body.len()).unwrap();
        self.position += size;
        let mut event = timestamp.to_le_bytes().to_vec();
        event.push(kind);
        event.extend(1_u32.to_le_bytes());
        event.extend(size.to_le_bytes());
        event.extend(self.position.to_le_bytes());
        event.extend([0; 2]);
        event.extend(body);
        self.decoder.event(&Bytes::from(event), &mut self.out).map(|_more| ())
    }

    /// The head of a file: no checksums.
    fn file(&mut self, made_at: u32) -> Result<(), DecodeError> {
        self.event(kind::FORMAT_DESCRIPTION, made_at, &[0; 60])
    }

    fn statement(&mut self, sql: &str) -> Result<(), DecodeError> {
        let mut body = vec![0; 8];
        body.extend([4, 0, 0, 0, 0]);
        body.extend(b"shop\0");
        body.extend(sql.as_bytes());
        self.event(kind::QUERY, 7, &body)
    }
}

#[test]
fn a_file_of_the_same_name_made_at_another_time_is_another() {
    let mut first = Script::new();
    first.file(1_700_000_000).unwrap();
    assert_eq!(first.decoder.files, [(1, 1_700_000_000)]);
    let mut again = Script::new();
    again.decoder.files.clone_from(&first.decoder.files);
    again.file(1_700_000_000).unwrap();
    let mut reset = Script::new();
    reset.decoder.files.clone_from(&first.decoder.files);
    assert!(matches!(reset.file(1_700_000_060), Err(DecodeError::Renamed(_))));
}

#[test]
fn definitions_that_empty_or_swap_a_captured_table_stop() {
    for sql in [
        "CREATE OR REPLACE TABLE t (id int)",
        "ALTER TABLE archive EXCHANGE PARTITION p0 WITH TABLE t",
        "RENAME TABLE late TO x, t TO y",
    ] {
        let mut script = Script::new();
        script.file(1).unwrap();
        script.statement(sql).unwrap();
        assert!(
            matches!(script.out.events(), [Event::SchemaChange { table, .. }] if table.name == "t"),
            "{sql}: {:?}",
            script.out.events()
        );
        assert!(matches!(script.statement("BEGIN"), Err(DecodeError::Stop(_))), "{sql}");
    }
}

#[test]
fn a_table_that_may_have_been_there_before_is_not_taken_for_new() {
    for (sql, born) in [
        ("CREATE TABLE IF NOT EXISTS t (id int)", 1),
        ("CREATE TABLE IF NOT EXISTS late (id int)", 1),
        ("CREATE TABLE late (id int)", 2),
    ] {
        let mut script = Script::new();
        script.file(1).unwrap();
        script.statement(sql).unwrap();
        script.statement("FLUSH TABLES").unwrap();
        assert_eq!(script.decoder.tables.schemas().count(), born, "{sql}");
    }
}

/// A large transaction of other tables must not hold back what came before it.
#[test]
fn what_came_before_an_open_transaction_of_others_is_told() {
    let mut script = Script::new();
    script.file(1).unwrap();
    let begin = u64::from(script.position);
    script.statement("BEGIN").unwrap();
    script.statement("SAVEPOINT a").unwrap();
    script.decoder.idle(&mut script.out);
    let [Event::Idle { through }] = script.out.events() else {
        panic!("{:?}", script.out.events());
    };
    assert_eq!(*through, Commit::binlog(1, begin - 1));
    script.out.clear();
    script.decoder.idle(&mut script.out);
    assert!(script.out.is_empty(), "once");
    script.statement("COMMIT").unwrap();
    script.decoder.idle(&mut script.out);
    let end = u64::from(script.position);
    assert!(
        matches!(script.out.events(), [Event::Idle { through }] if *through == Commit::binlog(1, end - 1))
    );
}
