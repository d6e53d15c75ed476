//! What real servers sent, and what we make of it.
//!
//! `testdata/pgoutput/<version>.bin` holds the messages of one scenario, each behind its length in
//! four bytes; the `.txt` beside it how they decode. Recorded anew from scratch servers with
//! `TAILWATER_UPDATE_GOLDEN=1 cargo test -p tailwater-postgres golden`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::pgoutput::{Message, Tuples, parse};
use crate::types::Cell;

const SCENARIO: &str = r"
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE keyed (id int PRIMARY KEY, t text, m mood, raw bytea);
    ALTER TABLE keyed ALTER t SET STORAGE EXTERNAL;
    CREATE TABLE loose (a numeric(9,2), b timestamptz);
    ALTER TABLE loose REPLICA IDENTITY FULL;
    CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (10);
    CREATE PUBLICATION golden FOR TABLE keyed, loose, root WITH (publish_via_partition_root = true);
    SELECT pg_create_logical_replication_slot('golden', 'pgoutput');
    BEGIN;
    INSERT INTO keyed VALUES (1, repeat('toast', 1000), 'glad', '\x00ff'), (2, '', NULL, NULL);
    UPDATE keyed SET m = 'sad' WHERE id = 1;
    SAVEPOINT undone;
    DELETE FROM keyed;
    ROLLBACK TO undone;
    UPDATE keyed SET id = 3 WHERE id = 2;
    COMMIT;
    INSERT INTO loose VALUES (1.50, '2024-02-29 12:00:00+00'), (NULL, 'infinity');
    UPDATE loose SET a = 'NaN' WHERE a IS NULL;
    DELETE FROM loose WHERE a = 1.5;
    INSERT INTO root VALUES (7);
    UPDATE root SET id = 8;
    ALTER TABLE loose ADD c char(3) DEFAULT 'x';
    INSERT INTO loose VALUES (0);
    SELECT pg_logical_emit_message(true, 'prefix', 'content');
    TRUNCATE keyed, loose RESTART IDENTITY;
    DELETE FROM root;";

const CHANGES: &str = "
    SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('golden', NULL, NULL,
        'proto_version', '1', 'publication_names', 'golden', 'messages', 'true')";

#[test]
fn recorded_messages_decode_as_written_down() {
    if option_env!("TAILWATER_UPDATE_GOLDEN").is_some() {
        record();
    }
    let mut checked = 0;
    for path in files() {
        let printed = print(&fs::read(&path).unwrap());
        let text = path.with_extension("txt");
        if option_env!("TAILWATER_UPDATE_GOLDEN").is_some() {
            fs::write(&text, &printed).unwrap();
        }
        assert_eq!(printed, fs::read_to_string(&text).unwrap(), "{}", text.display());
        checked += 1;
    }
    assert!(checked > 0, "there are recordings");
}

#[test]
fn recorded_messages_cut_or_changed_are_refused_or_decoded_but_never_panic() {
    for path in files() {
        for message in messages(&fs::read(&path).unwrap()) {
            for length in 0..message.len() {
                assert!(parse(&message[..length], &mut Tuples::default()).is_err());
                let mut changed = message.to_vec();
                changed[length] ^= 0xFF;
                let _any = parse(&changed, &mut Tuples::default());
            }
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/pgoutput")
}

fn files() -> Vec<PathBuf> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "bin")).collect();
    files.sort();
    files
}

fn messages(mut recording: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = recording.split_first_chunk::<4>() {
        let (message, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        messages.push(message);
        recording = rest;
    }
    messages
}

/// One line a message. OIDs, positions and clocks differ from run to run and say nothing.
fn print(recording: &[u8]) -> String {
    let mut text = String::new();
    let mut names = std::collections::HashMap::new();
    for message in messages(recording) {
        let mut tuples = Tuples::default();
        let message = parse(message, &mut tuples).unwrap();
        let name = |oid: &u32| names.get(oid).cloned().unwrap_or_else(|| "?".to_owned());
        let line = match &message {
            Message::Begin { .. } => "begin".to_owned(),
            Message::Commit { .. } => "commit".to_owned(),
            Message::Relation(relation) => {
                let columns: Vec<String> = relation
                    .columns
                    .iter()
                    .map(|column| {
                        let key = if column.key { " key" } else { "" };
                        let oid = if column.type_oid < 16384 { column.type_oid } else { 0 };
                        format!("{} {oid} {}{key}", column.name, column.typmod)
                    })
                    .collect();
                let what = format!("{}.{}", relation.namespace, relation.name);
                names.insert(relation.oid, what.clone());
                let identity = char::from(relation.replica_identity);
                format!("relation {what} {identity} ({})", columns.join(", "))
            }
            Message::Insert { relation } => format!("insert {}", name(relation)),
            Message::Update { relation, old } => format!("update {} {old:?}", name(relation)),
            Message::Delete { relation, old } => format!("delete {} {old:?}", name(relation)),
            Message::Truncate { relations } => {
                let all: Vec<String> =
                    relations.iter().map(|oid| name(&u32::from_be_bytes(*oid))).collect();
                format!("truncate {}", all.join(" "))
            }
            other => format!("{other:?}").to_lowercase(),
        };
        text.push_str(&line);
        for (what, cells) in [(" old", &tuples.old), (" new", &tuples.new)] {
            if !cells.is_empty() {
                text.push_str(what);
                cells.iter().for_each(|cell| text.push_str(&print_cell(cell)));
            }
        }
        text.push('\n');
    }
    text
}

fn print_cell(cell: &Cell<'_>) -> String {
    match cell {
        Cell::Null => " -".into(),
        Cell::Unsent => " ?".into(),
        Cell::Text(text) if text.len() > 40 => format!(" {} bytes", text.len()),
        Cell::Text(text) => format!(" {:?}", String::from_utf8_lossy(text)),
    }
}

fn record() {
    use tailwater_scratch::{Flavor, Server};

    fs::create_dir_all(folder()).unwrap();
    for flavor in Flavor::matrix().into_iter().filter(|flavor| flavor.is_postgres()) {
        let server = Server::start(flavor).unwrap();
        let database = server.create_database().unwrap();
        server.sql(&database, SCENARIO).unwrap();
        let mut recording = Vec::new();
        for line in server.sql(&database, CHANGES).unwrap().lines() {
            let message: Vec<u8> = line
                .as_bytes()
                .chunks(2)
                .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
                .collect();
            recording.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            recording.extend(message);
        }
        let name = flavor.to_string().replace(':', "");
        fs::write(folder().join(name).with_extension("bin"), recording).unwrap();
    }
}
