//! The decoder against bytes recorded from real servers, and against bytes that are none.
//!
//! `testdata/binlog/*.bin` are packets as the servers sent them (a length of four bytes, then the
//! event); the first packet's position is where an event begins. They are made anew by
//! `source/record.rs` (`--lib record -- --ignored`) with servers at hand, and what
//! the decoder makes of them stands beside each as `.txt`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::{any, proptest};
use serde::{Deserialize, Serialize};
use tailwater_capture::{Changes, Event};
use tailwater_change::{Commit, Dialect, RowReader, TableSchema};

use super::{Collations, Decoder, Delivered, Tables};
use crate::source::filter::Filter;

/// What a decoder must know to read a recording.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Recording {
    pub(crate) dialect: Dialect,
    pub(crate) base: String,
    pub(crate) file: u64,
    pub(crate) position: u64,
    pub(crate) patterns: Vec<String>,
    pub(crate) schemas: Vec<TableSchema>,
    pub(crate) collations: BTreeMap<usize, String>,
}

impl Recording {
    fn decoder(&self) -> Decoder {
        self.decoder_after(Delivered { through: Commit::ZERO, again: true })
    }

    fn decoder_after(&self, delivered: Delivered) -> Decoder {
        let filter = Filter::new(&self.patterns, &[], None).unwrap();
        let collations: Collations = self.collations.clone().into_iter().collect();
        let mut tables = Tables::new(filter, collations);
        for schema in &self.schemas {
            tables.add(Arc::new(schema.clone()), true);
        }
        let from = Commit::binlog(self.file, self.position);
        Decoder::new(self.dialect, self.base.clone(), from, delivered, tables)
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/binlog")
}

fn load(name: &str) -> (Recording, Vec<Bytes>) {
    let read = |ending: &str| std::fs::read(folder().join(format!("{name}.{ending}"))).unwrap();
    let recording = serde_json::from_slice(&read("json")).unwrap();
    let bytes = Bytes::from(read("bin"));
    let (mut events, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let length = usize::try_from(length).unwrap();
        events.push(bytes.slice(at + 4..at + 4 + length));
        at += 4 + length;
    }
    (recording, events)
}

fn describe(changes: &Changes, schemas: &mut BTreeMap<usize, Arc<TableSchema>>, out: &mut String) {
    for event in changes.events() {
        let line = match event {
            Event::Schema { slot, schema } => {
                schemas.insert(slot.0, Arc::clone(schema));
                format!("schema {}", schema.table.name)
            }
            Event::Row(row) => {
                let schema = &schemas[&row.slot.0];
                let show = |range: &Option<std::ops::Range<usize>>| {
                    let mut values = Vec::new();
                    let bytes = changes.image(range.as_ref()?);
                    RowReader::new(schema).read(bytes, &mut values).unwrap();
                    Some(format!("{values:?}"))
                };
                format!(
                    "row {} {:?} #{} {:?} -> {:?} unsent {:?}",
                    schema.table.name,
                    row.operation,
                    row.ordinal,
                    show(&row.before),
                    show(&row.after),
                    changes.unsent(&row.unsent)
                )
            }
            other => format!("{other:?}"),
        };
        out.push_str(&line);
        out.push('\n');
    }
}

fn decode(recording: &Recording, events: &[Bytes]) -> String {
    let (mut decoder, mut changes) = (recording.decoder(), Changes::new());
    let (mut out, mut schemas) = (String::new(), BTreeMap::new());
    for event in events {
        let mut more = decoder.event(event, &mut changes).unwrap();
        while more {
            more = decoder.more(&mut changes, 100).unwrap();
            describe(&changes, &mut schemas, &mut out);
            changes.clear();
        }
        describe(&changes, &mut schemas, &mut out);
        changes.clear();
    }
    out
}

const RECORDINGS: [&str; 4] = ["mariadb", "mariadb_compressed", "mysql", "mysql_compressed"];

#[test]
fn recorded_events_decode_as_they_did() {
    for name in RECORDINGS {
        let (recording, events) = load(name);
        let expected = folder().join(format!("{name}.txt"));
        let found = decode(&recording, &events);
        // To accept what it says now: remove the file and run again.
        if !expected.exists() {
            std::fs::write(&expected, &found).unwrap();
        }
        assert_eq!(found, std::fs::read_to_string(&expected).unwrap(), "{name}");
        assert!(found.contains(" Update "), "{name}");
    }
}

/// Every byte of a recording matters: whichever is wrong, the sum says so.
#[test]
fn a_wrong_byte_never_goes_unnoticed() {
    let (recording, events) = load("mariadb");
    for (index, event) in events.iter().enumerate().skip(2) {
        for at in 0..event.len() {
            let mut wrong = event.to_vec();
            wrong[at] ^= 0x10;
            let mut decoder = recording.decoder();
            let mut changes = Changes::new();
            for event in &events[..index] {
                decoder.event(event, &mut changes).unwrap();
            }
            assert!(decoder.event(&wrong.into(), &mut changes).is_err(), "{index} {at}");
        }
    }
}

fn sum(event: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(event);
    crc.sum().to_le_bytes()
}

/// The event as it would be further down the file: a header holds 32 bits of its position.
fn moved_by(event: &Bytes, from: u64, distance: u64) -> Bytes {
    let mut event = event.to_vec();
    let end = event.len() - 4;
    let summed = sum(&event[..end]) == event[end..];
    let next = u32::from_le_bytes(event[13..17].try_into().unwrap());
    if next != 0 {
        let [a, b, c, d, ..] = distance.to_le_bytes();
        let next = next.wrapping_add(u32::from_le_bytes([a, b, c, d]));
        event[13..17].copy_from_slice(&next.to_le_bytes());
    } else if event[4] == super::kind::ROTATE && event[19..27] == from.to_le_bytes() {
        event[19..27].copy_from_slice(&(from + distance).to_le_bytes());
    }
    if summed {
        let sum = sum(&event[..end]);
        event[end..].copy_from_slice(&sum);
    }
    event.into()
}

/// Where the transactions begin that a decoder gives.
fn commits(mut decoder: Decoder, events: &[Bytes]) -> Vec<u64> {
    let (mut commits, mut changes) = (Vec::new(), Changes::new());
    let mut take = |changes: &mut Changes| {
        for event in changes.events() {
            if let Event::Begin { commit, .. } = event {
                commits.push(commit.position());
            }
        }
        changes.clear();
    };
    for event in events {
        let mut more = decoder.event(event, &mut changes).unwrap();
        take(&mut changes);
        while more {
            more = decoder.more(&mut changes, 100).unwrap();
            take(&mut changes);
        }
    }
    commits
}

/// Silent loss 14: the header's position begins again at 0 there.
#[test]
fn positions_go_on_beyond_what_a_header_holds() {
    for name in RECORDINGS {
        let (mut recording, mut events) = load(name);
        // The next file begins at its own start again.
        let rotates = |event: &Bytes| event[4] == super::kind::ROTATE;
        let end = events.iter().skip(1).position(rotates).map_or(events.len(), |at| at + 1);
        events.truncate(end);
        let here = commits(recording.decoder(), &events);
        // The first event begins below 4 GiB, and all the others above.
        let from = recording.position;
        let distance = (1 << 32) - 1 - from;
        recording.position += distance;
        let events: Vec<Bytes> =
            events.iter().map(|event| moved_by(event, from, distance)).collect();
        let there: Vec<u64> = here.iter().map(|position| position + distance).collect();
        assert_eq!(commits(recording.decoder(), &events), there, "{name}");
        assert!(there.is_sorted(), "{name}: {there:?}");
        // Resuming at each of them, the file is read from its start and what is held passed over.
        for (at, &position) in there.iter().enumerate() {
            let through = Commit::binlog(recording.file, position);
            for (again, first) in [(true, at), (false, at + 1)] {
                let decoder = recording.decoder_after(Delivered { through, again });
                assert_eq!(commits(decoder, &events), there[first..], "{name} {at}");
            }
        }
    }
}

/// With the sums taken away: bytes that are wrong inside are errors or other rows, never a panic.
fn decode_damaged(name: &str, damage: &[(u16, u16, u8)]) {
    let (recording, mut events) = load(name);
    let mut decoder = recording.decoder();
    let mut changes = Changes::new();
    for &(event, at, value) in damage {
        let event = usize::from(event) % events.len();
        let mut bytes = events[event].to_vec();
        let at = usize::from(at) % bytes.len();
        bytes[at] = value;
        events[event] = bytes.into();
    }
    for event in &events {
        let Ok(mut more) = decoder.event_unsummed(event, &mut changes) else { return };
        while more {
            let Ok(next) = decoder.more(&mut changes, 1000) else { return };
            more = next;
            changes.clear();
        }
        changes.clear();
    }
}

proptest! {
    #[test]
    fn damaged_events_never_panic(
        name in 0..RECORDINGS.len(),
        damage in proptest::collection::vec(any::<(u16, u16, u8)>(), 1..8),
    ) {
        decode_damaged(RECORDINGS[name], &damage);
    }

    #[test]
    fn any_bytes_never_panic(kind in any::<u8>(), body in any::<Vec<u8>>()) {
        let (recording, events) = load("mysql");
        let mut decoder = recording.decoder();
        let mut changes = Changes::new();
        for event in &events[..4] {
            drop(decoder.event_unsummed(event, &mut changes));
        }
        let mut event = vec![0; 4];
        event.push(kind);
        event.extend([1, 0, 0, 0]);
        event.extend(u32::try_from(19 + body.len()).unwrap().to_le_bytes());
        event.extend([0; 6]);
        event.extend(body);
        if let Ok(true) = decoder.event_unsummed(&event.into(), &mut changes) {
            drop(decoder.more(&mut changes, 1000));
        }
    }
}
