//! What counts in a partition and what does not.

use tailwater_apply::{
    AssembleProblem, Assembler, Item, Mark, PartBounds, Resume, SchemaUse, Writer,
};
use tailwater_change::{
    Chunks, Commit, Control, Epoch, Operation, Ordinal, Place, SchemaId, TableId,
};
use tailwater_kafka::Offset;

use crate::support::{CONTROL, LogWriter, insert_value, schema, table};

const BOUNDS: PartBounds = PartBounds { rows: 1000, bytes: 1 << 20, row_bytes: 1 << 20 };

fn place(commit: u64, ordinal: u64) -> Place {
    Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::new(ordinal))
}

fn end_of(commit: u64) -> Place {
    Place::end_of(Epoch::FIRST, Commit::lsn(commit))
}

/// What the partition gives, a line for each item.
fn items(log: &mut LogWriter) -> String {
    resumed(log, Resume::default(), BOUNDS)
}

fn resumed(log: &mut LogWriter, resume: Resume, bounds: PartBounds) -> String {
    let mut assembler = Assembler::new(resume, Offset::ZERO, bounds);
    for batch in log.batches() {
        assembler.push(batch);
    }
    let mut text = String::new();
    loop {
        match assembler.next_item() {
            Ok(Some(item)) => write_item(&mut text, &item, &mut assembler),
            Ok(None) => break,
            Err(error) => {
                text.push_str(&format!("{error}\n"));
                break;
            }
        }
    }
    if let Some(open) = assembler.unfinished() {
        text.push_str(&format!("unfinished {open}\n"));
    }
    text
}

fn write_item(text: &mut String, item: &Item, assembler: &mut Assembler) {
    let at = |mark: &Mark| format!("{} next {}", mark.place, mark.next_offset);
    match item {
        Item::Schema(id) if *id == CONTROL => assembler.learn(*id, SchemaUse::Control),
        Item::Schema(id) => {
            assembler.learn(*id, SchemaUse::Table(table(&schema("t", &[]))));
        }
        Item::Opened { .. } => {}
        Item::Part(part) => {
            let ordinals: Vec<_> =
                part.changes.iter().map(|change| change.place.ordinal.to_string()).collect();
            let kind = match (part.snapshot, part.first, part.end) {
                (true, ..) => "snapshot",
                (_, true, true) => "transaction",
                (_, true, false) => "begin",
                (_, false, false) => "more",
                (_, false, true) => "end",
            };
            text.push_str(&format!("{kind} [{}] {}\n", ordinals.join(" "), at(&part.mark)));
        }
        Item::Voided { transaction, .. } => text.push_str(&format!("voided {transaction}\n")),
        Item::Idle(mark) => text.push_str(&format!("idle {}\n", at(mark))),
        Item::SnapshotBegin { snapshot, mark } => {
            text.push_str(&format!("snapshot begin {snapshot}; {}\n", at(mark)));
        }
        Item::TableBegin { begin, mark, .. } => {
            text.push_str(&format!("table begin {begin}; {}\n", at(mark)));
        }
        Item::TableEnd { mark, .. } => text.push_str(&format!("table end {}\n", at(mark))),
        Item::SnapshotEnd(mark) => text.push_str(&format!("snapshot end {}\n", at(mark))),
        Item::SnapshotCut(mark) => text.push_str(&format!("snapshot cut {}\n", at(mark))),
        Item::SnapshotRest { snapshot, mark } => {
            text.push_str(&format!("snapshot rest {snapshot}; {}\n", at(mark)));
        }
        Item::SchemaChange { table, place, .. } => {
            text.push_str(&format!("schema change of {table} {place}\n"));
        }
    }
}

#[test]
fn a_transaction_counts_with_its_flag_or_its_marker() {
    let mut log = LogWriter::new();
    log.insert(16, 0, false).insert(16, 3, true);
    log.insert(32, 0, false).seal().insert(32, 1, false).end(32);
    log.end(48).insert(64, 0, false);
    assert_eq!(
        items(&mut log),
        "transaction [0 3] 1@0/10#end next 2\n\
         transaction [0 1] 1@0/20#end next 5\n\
         transaction [] 1@0/30#end next 6\n\
         unfinished 1@0/40#0\n"
    );
}

#[test]
fn what_is_applied_or_given_already_is_dropped() {
    let mut log = LogWriter::new();
    log.insert(16, 0, true).insert(32, 0, false).insert(32, 1, true);
    log.insert(16, 0, true).insert(32, 0, false).insert(32, 1, true).insert(48, 0, true);
    let resume = Resume { applied: end_of(16), ..Resume::default() };
    assert_eq!(
        resumed(&mut log, resume, BOUNDS),
        "transaction [0 1] 1@0/20#end next 3\n\
         transaction [0] 1@0/30#end next 7\n"
    );
}

#[test]
fn a_transaction_goes_on_after_its_writer_died() {
    let mut log = LogWriter::new();
    log.open(1).insert(16, 0, false).insert(16, 1, false);
    log.producer(7, 1).open(1).insert(16, 0, false).insert(16, 1, false).insert(16, 2, true);
    assert_eq!(items(&mut log), "transaction [0 1 2] 1@0/10#end next 7\n");
}

#[test]
fn the_last_flag_counts_on_a_duplicate() {
    let mut log = LogWriter::new();
    log.insert(16, 0, false).insert(16, 1, false).insert(16, 1, true);
    assert_eq!(items(&mut log), "transaction [0 1] 1@0/10#end next 3\n");
}

#[test]
fn a_greater_place_voids_what_has_no_end() {
    let mut log = LogWriter::new();
    log.insert(16, 0, false).insert(32, 0, true);
    log.insert(48, 0, false).insert_in(Epoch::new(2), 8, 0, true);
    assert_eq!(
        items(&mut log),
        "transaction [0] 1@0/20#end next 2\n\
         transaction [0] 2@0/8#end next 4\n"
    );
}

#[test]
fn parts_that_were_given_are_voided_by_name() {
    let mut log = LogWriter::new();
    log.insert(16, 0, false).insert(16, 1, false).insert(16, 2, false).end(32);
    let bounds = PartBounds { rows: 2, ..BOUNDS };
    assert_eq!(
        resumed(&mut log, Resume::default(), bounds),
        "begin [0 1] 1@0/10#1 next 2\n\
         voided 1@0/10#0\n\
         transaction [] 1@0/20#end next 4\n"
    );
}

#[test]
fn a_large_transaction_comes_in_bounded_parts() {
    let mut log = LogWriter::new();
    for ordinal in 0..5 {
        log.insert(16, ordinal, ordinal == 4);
    }
    let bounds = PartBounds { rows: 2, ..BOUNDS };
    assert_eq!(
        resumed(&mut log, Resume::default(), bounds),
        "begin [0 1] 1@0/10#1 next 2\n\
         more [2 3] 1@0/10#3 next 4\n\
         end [4] 1@0/10#end next 5\n"
    );
    for ordinal in 0..3 {
        log.insert(16, ordinal, ordinal == 2);
    }
    let bounds = PartBounds { bytes: 1, ..BOUNDS };
    assert_eq!(
        resumed(&mut log, Resume::default(), bounds),
        "begin [0] 1@0/10#0 next 6\n\
         more [1] 1@0/10#1 next 7\n\
         end [2] 1@0/10#end next 8\n"
    );
}

/// The planted bug of the test above: it is the bound that makes parts.
#[test]
fn without_a_bound_a_large_transaction_comes_in_one_part() {
    let mut log = LogWriter::new();
    for ordinal in 0..5 {
        log.insert(16, ordinal, ordinal == 4);
    }
    let bounds = PartBounds { rows: usize::MAX, bytes: usize::MAX, ..BOUNDS };
    assert_eq!(
        resumed(&mut log, Resume::default(), bounds),
        "transaction [0 1 2 3 4] 1@0/10#end next 5\n"
    );
}

#[test]
fn a_superseded_writer_does_not_count() {
    let mut log = LogWriter::new();
    log.open(1).insert(16, 0, true);
    log.producer(9, 0).open(1).insert(32, 0, false);
    // The zombie wakes: its rows, its end marker and its idle marker mean nothing.
    log.producer(7, 0)
        .insert(32, 1, true)
        .end(32)
        .control(&Control::Idle { epoch: Epoch::FIRST, commit: Commit::lsn(900) });
    log.producer(9, 0).insert(32, 1, false).insert(32, 2, true);
    assert_eq!(
        items(&mut log),
        "transaction [0] 1@0/10#end next 2\n\
         transaction [0 1 2] 1@0/20#end next 9\n"
    );
}

#[test]
fn a_late_open_marker_of_an_older_epoch_does_not_take_over() {
    let mut log = LogWriter::new();
    log.producer(7, 1).open(1).producer(7, 0).open(1).insert(16, 0, true);
    log.producer(7, 1).insert(32, 0, true);
    assert_eq!(items(&mut log), "transaction [0] 1@0/20#end next 4\n");
}

#[test]
fn who_writes_is_remembered_across_a_restart() {
    let mut log = LogWriter::new();
    log.producer(7, 0).insert(16, 0, true).producer(9, 0).insert(32, 0, true);
    let writer = Some(Writer { producer_id: 9, producer_epoch: 0 });
    assert_eq!(
        resumed(&mut log, Resume { writer, ..Resume::default() }, BOUNDS),
        "transaction [0] 1@0/20#end next 2\n"
    );
}

#[test]
fn a_copied_log_names_other_producers_and_places_decide() {
    let mut log = LogWriter::new();
    log.producer(7, 0);
    let open = Control::Open { producer_id: 3, producer_epoch: 0, epoch: Epoch::FIRST, server: "" };
    log.control(&open).insert(16, 0, true).producer(8, 0).insert(16, 0, true).insert(32, 0, true);
    assert_eq!(
        items(&mut log),
        "transaction [0] 1@0/10#end next 2\n\
         transaction [0] 1@0/20#end next 4\n"
    );
}

#[test]
fn a_row_in_chunks_is_there_with_its_last_chunk() {
    let value = insert_value(Operation::Insert, Epoch::FIRST, 16, 1, true);
    let chunks: Vec<_> = Chunks::new(&value, 7, 5).collect();
    let again: Vec<_> = Chunks::new(&value, 11, 6).collect();
    let mut log = LogWriter::new();
    log.open(1).insert(16, 0, false);
    for chunk in &chunks[..chunks.len() - 1] {
        log.control(chunk);
    }
    // The writer dies before the last chunk; its successor writes the row again. A zombie's
    // chunk between does no harm.
    log.producer(9, 0).open(1).control(&again[0]);
    log.producer(7, 0).control(&chunks[chunks.len() - 1]).producer(9, 0);
    for chunk in &again[1..] {
        log.control(chunk);
    }
    let records = 2 + chunks.len() - 1 + 1 + again.len() + 1;
    assert_eq!(items(&mut log), format!("transaction [0 1] 1@0/10#end next {records}\n"));
}

#[test]
fn a_run_of_chunks_cut_off_by_another_record_is_no_row() {
    let value = insert_value(Operation::Insert, Epoch::FIRST, 16, 0, true);
    let chunks: Vec<_> = Chunks::new(&value, value.len() / 2 + 1, 5).collect();
    let mut log = LogWriter::new();
    log.control(&chunks[0]).end(8).control(&chunks[1]).insert(32, 0, true);
    assert_eq!(
        items(&mut log),
        "transaction [] 1@0/8#end next 2\n\
         transaction [0] 1@0/20#end next 4\n"
    );
}

#[test]
fn idle_moves_the_place_but_not_back() {
    let idle = |commit| Control::Idle { epoch: Epoch::FIRST, commit: Commit::lsn(commit) };
    let mut log = LogWriter::new();
    log.control(&idle(16)).control(&idle(8)).insert(32, 0, false).control(&idle(16));
    log.control(&idle(32)).insert(32, 1, true).insert(48, 0, false).control(&idle(64));
    assert_eq!(
        items(&mut log),
        "idle 1@0/10#end next 1\n\
         transaction [0 1] 1@0/20#end next 6\n\
         idle 1@0/40#end next 8\n"
    );
}

fn snapshot(log: &mut LogWriter, commit: u64, from: u64, rows: u64) {
    let schema = SchemaId::new(2);
    log.control(&Control::TableBegin { place: place(commit, from), schema });
    for ordinal in from..from + rows {
        log.read(commit, ordinal);
    }
    log.control(&Control::TableEnd { place: place(commit, from + rows), schema, rows });
}

fn begin(commit: u64) -> Control<'static> {
    Control::SnapshotBegin { epoch: Epoch::FIRST, commit: Commit::lsn(commit) }
}

fn end(commit: u64) -> Control<'static> {
    Control::SnapshotEnd { epoch: Epoch::FIRST, commit: Commit::lsn(commit) }
}

#[test]
fn a_snapshot_comes_table_by_table() {
    let mut log = LogWriter::new();
    log.control(&begin(16));
    snapshot(&mut log, 16, 0, 3);
    snapshot(&mut log, 16, 3, 1);
    log.control(&end(16)).insert(16, 0, true).insert(32, 0, true);
    let bounds = PartBounds { rows: 2, ..BOUNDS };
    let text = resumed(&mut log, Resume::default(), bounds);
    assert_eq!(
        text,
        "snapshot begin 1@0/10#0; 0@0/0#0 next 1\n\
         table begin 1@0/10#0; 0@0/0#0 next 2\n\
         snapshot [0 1] 1@0/10#1 next 4\n\
         snapshot [2] 1@0/10#2 next 5\n\
         table end 1@0/10#2 next 6\n\
         table begin 1@0/10#3; 1@0/10#2 next 7\n\
         snapshot [3] 1@0/10#3 next 8\n\
         table end 1@0/10#3 next 9\n\
         snapshot end 1@0/10#end next 10\n\
         transaction [0] 1@0/20#end next 12\n"
    );
}

#[test]
fn a_cut_closes_a_snapshot_and_its_rest_follows_behind_the_stream() {
    let mut log = LogWriter::new();
    let (epoch, cut) = (Epoch::FIRST, Commit::lsn(16));
    log.control(&begin(16));
    snapshot(&mut log, 16, 0, 1);
    log.read(16, 1).control(&Control::SnapshotCut { epoch, commit: cut });
    // Twice, across a take-over; and half a transaction that the rest voids.
    log.control(&Control::SnapshotCut { epoch, commit: cut }).insert(32, 0, true);
    log.insert(40, 0, false).control(&Control::SnapshotRest { epoch, commit: Commit::lsn(48) });
    snapshot(&mut log, 48, 0, 1);
    log.control(&end(48)).insert(48, 0, true).insert(64, 0, true);
    assert_eq!(
        items(&mut log),
        "snapshot begin 1@0/10#0; 0@0/0#0 next 1\n\
         table begin 1@0/10#0; 0@0/0#0 next 2\n\
         snapshot [0] 1@0/10#0 next 3\n\
         table end 1@0/10#0 next 4\n\
         snapshot [1] 1@0/10#1 next 5\n\
         snapshot cut 1@0/10#end next 6\n\
         transaction [0] 1@0/20#end next 8\n\
         snapshot rest 1@0/30#0; 1@0/20#end next 10\n\
         table begin 1@0/30#0; 1@0/20#end next 11\n\
         snapshot [0] 1@0/30#0 next 12\n\
         table end 1@0/30#0 next 13\n\
         snapshot end 1@0/30#end next 14\n\
         transaction [0] 1@0/40#end next 16\n"
    );
    let mut log = LogWriter::new();
    log.control(&Control::SnapshotCut { epoch, commit: cut });
    assert!(items(&mut log).contains("snapshot at 1@0/10#end that has not begun"));
}

#[test]
fn a_snapshot_resumes_in_the_middle_of_a_table() {
    let mut log = LogWriter::new();
    log.read(16, 1).read(16, 2);
    log.control(&end(16));
    let resume =
        Resume { applied: place(16, 1), snapshot: Some(place(16, 1)), ..Resume::default() };
    assert_eq!(
        resumed(&mut log, resume, BOUNDS),
        "snapshot [2] 1@0/10#2 next 2\n\
         snapshot end 1@0/10#end next 3\n"
    );
}

#[test]
fn a_later_snapshot_voids_an_unfinished_one() {
    let mut log = LogWriter::new();
    log.control(&begin(16));
    snapshot(&mut log, 16, 0, 1);
    log.control(&begin(32));
    snapshot(&mut log, 32, 0, 1);
    log.control(&end(32));
    assert_eq!(
        items(&mut log),
        "snapshot begin 1@0/10#0; 0@0/0#0 next 1\n\
         table begin 1@0/10#0; 0@0/0#0 next 2\n\
         snapshot [0] 1@0/10#0 next 3\n\
         table end 1@0/10#0 next 4\n\
         voided 1@0/10#0\n\
         snapshot begin 1@0/20#0; 0@0/0#0 next 5\n\
         table begin 1@0/20#0; 0@0/0#0 next 6\n\
         snapshot [0] 1@0/20#0 next 7\n\
         table end 1@0/20#0 next 8\n\
         snapshot end 1@0/20#end next 9\n"
    );
}

#[test]
fn a_schema_change_stands_between_the_rows() {
    let mut log = LogWriter::new();
    log.insert(16, 0, false);
    log.control(&Control::SchemaChange {
        place: place(16, 1),
        table: TableId::new("public", "t"),
        description: "a column more",
    });
    log.insert(16, 2, true);
    assert_eq!(
        items(&mut log),
        "begin [0] 1@0/10#0 next 1\n\
         schema change of public.t 1@0/10#1\n\
         end [2] 1@0/10#end next 3\n"
    );
}

#[test]
fn bad_bytes_are_an_error_that_names_the_offset() {
    for bad in [&b"{}"[..], &[0, 0, 0, 0, 2, 0, 0xFF], &[0, 0, 0, 0, 1, 0, 0xFF], b""] {
        let mut log = LogWriter::new();
        log.insert(16, 0, true).value(bad).insert(32, 0, true);
        let text = items(&mut log);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("transaction [0] 1@0/10#end next 1"));
        assert!(lines.next().unwrap().starts_with("record at offset 1: "), "{text}");
        assert_eq!(lines.next(), None);
    }
}

#[test]
fn a_place_behind_an_unfinished_transaction_is_an_error() {
    let mut log = LogWriter::new();
    log.insert(32, 0, false).insert(16, 0, true);
    assert!(items(&mut log).contains("record at offset 1: place 1@0/10#0 stands after"));
    log.read(16, 0);
    assert!(items(&mut log).contains("snapshot at 1@0/10#0 that has not begun"));
}

#[test]
fn a_row_beyond_the_bound_is_an_error() {
    let value = insert_value(Operation::Insert, Epoch::FIRST, 16, 0, true);
    let mut log = LogWriter::new();
    for chunk in Chunks::new(&value, 7, 5) {
        log.control(&chunk);
    }
    let mut assembler =
        Assembler::new(Resume::default(), Offset::ZERO, PartBounds { row_bytes: 10, ..BOUNDS });
    assembler.learn(CONTROL, SchemaUse::Control);
    for batch in log.batches() {
        assembler.push(batch);
    }
    assert!(matches!(assembler.next_item().unwrap_err().problem, AssembleProblem::Chunk(_)));
}

#[test]
fn any_resume_point_gives_the_same_rest() {
    let mut log = LogWriter::new();
    log.open(1).insert(16, 0, false).insert(16, 1, true).insert(32, 0, false);
    log.producer(9, 3).open(1).insert(32, 0, false).insert(32, 1, true).end(48);
    log.insert(64, 0, true);
    let batches = log.batches();
    let run = |resume: Resume, from: Offset| {
        let mut assembler = Assembler::new(resume, from, BOUNDS);
        assembler.learn(CONTROL, SchemaUse::Control);
        assembler.learn(SchemaId::new(2), SchemaUse::Ignored);
        for batch in &batches {
            if batch.next_offset() > from {
                assembler.push(batch.clone().visible_from(from));
            }
        }
        let mut marks = Vec::new();
        while let Some(item) = assembler.next_item().unwrap() {
            match item {
                Item::Opened { .. } => {}
                Item::Part(part) => marks.push(part.mark.clone()),
                item => panic!("{item:?}"),
            }
        }
        marks
    };
    let whole = run(Resume::default(), Offset::ZERO);
    assert_eq!(whole.len(), 4);
    for (at, mark) in whole.iter().enumerate() {
        let resume = Resume { applied: mark.place, writer: mark.writer, snapshot: None };
        assert_eq!(run(resume, mark.next_offset), whole[at + 1..]);
    }
}
