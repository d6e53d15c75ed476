//! Several partitions merged are what one partition would have been, however their records come.

use std::hash::{BuildHasher, Hasher};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_apply::{
    AssembleProblem, Assembler, Change, Item, PartBounds, Position, Resume, SchemaUse,
};
use tailwater_change::{Commit, Control, Epoch, Operation, Ordinal, Place, SchemaId, TableId};
use tailwater_kafka::{Offset, RecordBatch};
use tailwater_memory::ScriptedChange;

use crate::support::{CONTROL, LogWriter, change_value, row, schema, table};

const TABLE: SchemaId = SchemaId::new(2);
const OTHER: SchemaId = SchemaId::new(3);
const PARTITIONS: usize = 3;

fn bounds(rows: usize) -> PartBounds {
    PartBounds { rows, bytes: 1 << 20, row_bytes: 1 << 20 }
}

fn place(commit: u64, ordinal: u64) -> Place {
    Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::new(ordinal))
}

fn control(control: &Control<'_>) -> Vec<u8> {
    let mut value = tailwater_change::Frame::prefix(CONTROL).to_vec();
    control.encode(&mut value);
    value
}

fn scripted(operation: Operation, before: Option<i64>, after: Option<i64>) -> ScriptedChange {
    let cells = |id: i64| row(id, None, "b", "c");
    ScriptedChange {
        table: 0,
        operation,
        before: before.map(cells),
        after: after.map(cells),
        unsent: Vec::new(),
    }
}

fn value(id: SchemaId, change: &ScriptedChange, at: Place, last: bool) -> Vec<u8> {
    let name = if id == TABLE { "t" } else { "u" };
    change_value(id, &schema(name, &[]), change, at, last)
}

fn partition_of(id: i64) -> usize {
    usize::try_from(id * 7 % 11).unwrap() % PARTITIONS
}

/// One history, as a topic of one partition has it and as one of several does.
struct History {
    one: Vec<Vec<u8>>,
    several: Vec<Vec<Vec<u8>>>,
}

impl History {
    fn random(rng: &mut SmallRng) -> Self {
        let mut history = Self { one: Vec::new(), several: vec![Vec::new(); PARTITIONS] };
        history.snapshot(rng, 8);
        let mut owed = None;
        let mut told = [0; PARTITIONS];
        for commit in (16..).step_by(8).take(25) {
            let touched = history.transaction(rng, commit);
            for at in touched {
                told[at] = commit;
            }
            owed = Some(commit);
            // The round may go on with the next transaction.
            if rng.random_bool(0.6) {
                history.tell(owed.take(), &mut told);
            }
            if rng.random_bool(0.1) {
                history.tell(owed.take(), &mut told);
                let idle = Commit::lsn(commit + 4);
                history.all(&control(&Control::Idle { epoch: Epoch::FIRST, commit: idle }));
            }
        }
        history.tell(owed, &mut told);
        history
    }

    /// Whoever does not know of this end yet.
    fn tell(&mut self, owed: Option<u64>, told: &mut [u64; PARTITIONS]) {
        let Some(commit) = owed else { return };
        for (partition, told) in self.several.iter_mut().zip(told) {
            if *told < commit {
                partition.push(end(commit));
                *told = commit;
            }
        }
    }

    fn all(&mut self, value: &[u8]) {
        self.one.push(value.to_vec());
        for partition in &mut self.several {
            partition.push(value.to_vec());
        }
    }

    fn snapshot(&mut self, rng: &mut SmallRng, commit: u64) {
        let (epoch, at) = (Epoch::FIRST, Commit::lsn(commit));
        self.all(&control(&Control::SnapshotBegin { epoch, commit: at }));
        let mut ordinal = 0;
        for schema in [TABLE, OTHER] {
            let begin = place(commit, ordinal);
            self.all(&control(&Control::TableBegin { place: begin, schema }));
            let rows = rng.random_range(0..8);
            for id in 0..rows {
                let read = scripted(Operation::Read, None, Some(id));
                let value = value(schema, &read, place(commit, ordinal), false);
                self.several[partition_of(id)].push(value.clone());
                self.one.push(value);
                ordinal += 1;
            }
            let rows = rows.unsigned_abs();
            let end = place(commit, ordinal);
            self.all(&control(&Control::TableEnd { place: end, schema, rows }));
        }
        self.all(&control(&Control::SnapshotEnd { epoch, commit: at }));
    }

    /// Which partitions have something of it.
    fn transaction(&mut self, rng: &mut SmallRng, commit: u64) -> Vec<usize> {
        let mut last: Vec<Option<(ScriptedChange, Place)>> = vec![None; PARTITIONS];
        let rows = rng.random_range(1..6);
        for ordinal in 0..rows {
            let at = place(commit, ordinal);
            let (old, new) = (rng.random_range(0..20), rng.random_range(0..20));
            let change = match rng.random_range(0..4) {
                0 => scripted(Operation::Insert, None, Some(new)),
                1 => scripted(Operation::Delete, Some(old), None),
                2 => scripted(Operation::Update, Some(new), Some(new)),
                _ => scripted(Operation::Update, Some(old), Some(new)),
            };
            self.one.push(value(TABLE, &change, at, ordinal + 1 == rows));
            let ids = [&change.before, &change.after].map(|cells| {
                cells.as_ref().map(|cells| match cells[0] {
                    tailwater_memory::Cell::Int(id) => id,
                    _ => unreachable!("an id"),
                })
            });
            let halves = match ids {
                [Some(old), Some(new)] if partition_of(old) != partition_of(new) => vec![
                    (partition_of(old), scripted(Operation::Delete, Some(old), None)),
                    (partition_of(new), scripted(Operation::Insert, None, Some(new))),
                ],
                [_, Some(id)] | [Some(id), None] => vec![(partition_of(id), change)],
                [None, None] => unreachable!("a change of nothing"),
            };
            for (partition, half) in halves {
                if let Some((before, at)) = last[partition].replace((half, at)) {
                    self.several[partition].push(value(TABLE, &before, at, false));
                }
            }
        }
        let mut touched = Vec::new();
        for (partition, held) in last.into_iter().enumerate() {
            let Some((change, at)) = held else { continue };
            // With its flag, or with a marker behind it.
            let flagged = rng.random_bool(0.7);
            self.several[partition].push(value(TABLE, &change, at, flagged));
            if !flagged {
                self.several[partition].push(end(commit));
            }
            touched.push(partition);
        }
        touched
    }
}

fn end(commit: u64) -> Vec<u8> {
    control(&Control::End {
        epoch: Epoch::FIRST,
        commit: Commit::lsn(commit),
        committed_at_us: Some(1000),
        transaction: None,
        rows: 0,
    })
}

/// Writes the partitions, each of a few writers, of whom each but the last dies somewhere: what the
/// others have not, his successor writes.
fn write(rng: &mut SmallRng, several: &[Vec<Vec<u8>>]) -> Vec<Vec<RecordBatch>> {
    let mut logs: Vec<_> = several.iter().map(|_| LogWriter::new()).collect();
    let mut written = vec![0; several.len()];
    let deaths = rng.random_range(0..4);
    for epoch in 0..=deaths {
        for (at, log) in logs.iter_mut().enumerate() {
            log.producer(7, epoch).open(1);
            let rest = several[at].len() - written[at];
            // What the one before still had on its way comes late, and does not count.
            if epoch > 0 && rest > 0 && rng.random_bool(0.3) {
                log.producer(7, epoch - 1).value(&several[at][written[at]]);
                log.producer(7, epoch);
            }
            let count = if epoch == deaths { rest } else { rng.random_range(0..=rest.min(40)) };
            for value in &several[at][written[at]..written[at] + count] {
                log.value(value);
                if rng.random_bool(0.2) {
                    log.seal();
                }
            }
            written[at] += count;
        }
    }
    logs.iter_mut().map(LogWriter::batches).collect()
}

fn line(change: &Change) -> String {
    let before = change.before.as_ref().map(|before| before.bytes.clone());
    format!("{} {:?} {before:?} {:?}\n", change.place, change.operation, change.after)
}

/// Reads the partitions in any order, resuming anywhere.
struct Reader<'a> {
    logs: &'a [Vec<RecordBatch>],
    read: Vec<usize>,
    assembler: Assembler,
    bounds: PartBounds,
    snapshot: Option<Place>,
    text: String,
}

impl<'a> Reader<'a> {
    fn new(logs: &'a [Vec<RecordBatch>], rows: usize) -> Self {
        let bounds = bounds(rows);
        let begin = Position { next_offset: Offset::ZERO, writer: None };
        let assembler = Assembler::merging(Resume::default(), &vec![begin; logs.len()], bounds);
        let read = vec![0; logs.len()];
        Self { logs, read, assembler, bounds, snapshot: None, text: String::new() }
    }

    /// Pushes the next batch of a partition that is waited for, if it has one.
    fn push(&mut self, at: usize) -> bool {
        let Some(batch) = self.logs[at].get(self.read[at]) else { return false };
        if !self.assembler.wants(at) {
            return false;
        }
        self.assembler.push_to(at, batch.clone());
        self.read[at] += 1;
        true
    }

    fn resume(&mut self, applied: Place, positions: &[Position]) {
        let resume = Resume { applied, writer: positions[0].writer, snapshot: self.snapshot };
        self.assembler = Assembler::merging(resume, positions, self.bounds);
        for (at, position) in positions.iter().enumerate() {
            let from = position.next_offset;
            let next = self.logs[at].iter().position(|batch| batch.next_offset() > from);
            self.read[at] = next.unwrap_or(self.logs[at].len());
            if let Some(batch) = next.map(|next| &self.logs[at][next])
                && batch.base_offset() < from
            {
                self.assembler.push_to(at, batch.clone().visible_from(from));
                self.read[at] += 1;
            }
        }
    }

    /// Takes what is there; `die`: how likely it is to begin anew from each mark.
    fn drain(&mut self, rng: &mut SmallRng, die: f64) {
        while let Some(item) = self.assembler.next_item().unwrap() {
            let mark = match item {
                Item::Schema(id) if id == CONTROL => {
                    self.assembler.learn(id, SchemaUse::Control);
                    continue;
                }
                Item::Schema(id) => {
                    let name = if id == TABLE { "t" } else { "u" };
                    self.assembler.learn(id, SchemaUse::Table(table(&schema(name, &[]))));
                    continue;
                }
                Item::Opened { .. } => continue,
                Item::Part(part) => {
                    self.text.extend(part.changes.iter().map(line));
                    if part.end {
                        self.text.push_str(&format!("end {}\n", part.mark.place));
                    } else if !part.snapshot {
                        continue;
                    }
                    part.mark
                }
                Item::Idle(mark) => {
                    self.text.push_str(&format!("idle {}\n", mark.place));
                    mark
                }
                Item::SnapshotBegin { snapshot, mark } => {
                    self.snapshot = Some(snapshot);
                    self.text.push_str(&format!("snapshot {snapshot}\n"));
                    mark
                }
                Item::TableBegin { schema, begin, mark } => {
                    self.text.push_str(&format!("table {schema} {begin}\n"));
                    mark
                }
                Item::TableEnd { schema, mark } => {
                    self.text.push_str(&format!("table {schema} ends\n"));
                    mark
                }
                Item::SnapshotEnd(mark) => {
                    self.snapshot = None;
                    self.text.push_str("snapshot ends\n");
                    mark
                }
                other => {
                    self.text.push_str(&format!("{other:?}\n"));
                    continue;
                }
            };
            if rng.random_bool(die) {
                let positions: Vec<_> = mark.positions().collect();
                self.resume(mark.place, &positions);
            }
        }
    }

    fn all(mut self, rng: &mut SmallRng, die: f64) -> String {
        loop {
            let at = rng.random_range(0..self.logs.len());
            self.push(at);
            self.drain(rng, die);
            let mut waits = 0..self.logs.len();
            if waits.all(|at| self.read[at] == self.logs[at].len() || !self.assembler.wants(at)) {
                let open = self.assembler.unfinished();
                assert!(open.is_none(), "{open:?} is left:\n{}", self.text);
                return self.text;
            }
        }
    }
}

#[test]
fn any_interleaving_is_the_one_partition() {
    let base = std::hash::RandomState::new().build_hasher().finish();
    for seed in (0..150).chain(base..base.saturating_add(150)) {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let history = History::random(&mut rng);
        let mut one = LogWriter::new();
        one.open(1);
        history.one.iter().for_each(|value| {
            one.value(value);
        });
        let one = [one.batches()];
        let rows = rng.random_range(1..8);
        let expected = Reader::new(&one, rows).all(&mut rng, 0.0);
        let several = write(&mut rng, &history.several);
        assert_eq!(Reader::new(&several, rows).all(&mut rng, 0.0), expected, "seed {seed}");
        assert_eq!(
            Reader::new(&several, rows).all(&mut rng, 0.2),
            expected,
            "seed {seed}, resumed"
        );
    }
}

/// What two partitions give when both are read to their ends.
fn both(first: &mut LogWriter, second: &mut LogWriter) -> String {
    let mut rng = SmallRng::seed_from_u64(0);
    let logs = [first.batches(), second.batches()];
    let mut reader = Reader::new(&logs, 1000);
    while reader.push(0) || reader.push(1) {
        reader.drain(&mut rng, 0.0);
    }
    let mut text = std::mem::take(&mut reader.text);
    if let Some(open) = reader.assembler.unfinished() {
        text.push_str(&format!("unfinished {open}\n"));
    }
    text
}

fn ends(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.contains("Some(")).collect()
}

#[test]
fn a_partition_that_lags_is_waited_for() {
    let (mut first, mut second) = (LogWriter::new(), LogWriter::new());
    first.open(1).insert(16, 0, true).insert(24, 0, true);
    second.open(1).end(16);
    let text = both(&mut first, &mut second);
    assert_eq!(ends(&text), ["end 1@0/10#end", "unfinished 1@0/18#0"]);
}

#[test]
fn half_of_a_transaction_in_one_partition_is_no_transaction() {
    let (mut first, mut second) = (LogWriter::new(), LogWriter::new());
    first.open(1).insert(16, 0, false).insert(16, 2, true);
    second.open(1).insert(16, 1, false);
    // What the first has whole, the second goes on without: in another epoch.
    let two = Epoch::new(2);
    first.producer(7, 1).open(2).insert_in(two, 8, 0, true);
    let end = Control::End {
        epoch: two,
        commit: Commit::lsn(8),
        committed_at_us: None,
        transaction: None,
        rows: 0,
    };
    second.producer(7, 1).open(2).control(&end);
    assert_eq!(ends(&both(&mut first, &mut second)), ["end 2@0/8#end"]);
}

#[test]
fn a_partition_that_shows_no_end_in_the_epoch_may_have_lost_its_part() {
    let (mut first, mut second) = (LogWriter::new(), LogWriter::new());
    first.open(1).insert(16, 0, true);
    second.open(1);
    let two = Epoch::new(2);
    first.producer(7, 1).open(2).insert_in(two, 8, 0, true);
    second.producer(7, 1).open(2).insert_in(two, 8, 1, true);
    assert_eq!(ends(&both(&mut first, &mut second)), ["end 2@0/8#end"]);
}

fn begin(epoch: u32) -> Control<'static> {
    Control::SnapshotBegin { epoch: Epoch::new(epoch), commit: Commit::lsn(8) }
}

#[test]
fn a_snapshot_that_began_in_one_partition_alone_is_void() {
    let (mut first, mut second) = (LogWriter::new(), LogWriter::new());
    let at = |epoch| Place::new(Epoch::new(epoch), Commit::lsn(8), Ordinal::ZERO);
    let table = |epoch| Control::TableBegin { place: at(epoch), schema: TABLE };
    first.open(1).control(&begin(1)).control(&table(1)).read(8, 0).read(8, 1);
    second.open(1);
    for log in [&mut first, &mut second] {
        log.producer(7, 1).open(2).control(&begin(2)).control(&table(2));
    }
    second.read_in(Epoch::new(2), 8, 0);
    let end = Control::SnapshotEnd { epoch: Epoch::new(2), commit: Commit::lsn(8) };
    first.control(&end);
    second.control(&end);
    let text = both(&mut first, &mut second);
    assert_eq!(ends(&text), ["snapshot 2@0/8#0", "table 2 2@0/8#0", "snapshot ends"]);
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn a_marker_that_its_own_writer_left_out_is_an_error_and_not_a_gap() {
    let (mut first, mut second) = (LogWriter::new(), LogWriter::new());
    first.open(1).control(&begin(1)).read(8, 0);
    second.open(1).read(8, 1);
    let mut assembler = Assembler::merging(
        Resume::default(),
        &[Position { next_offset: Offset::ZERO, writer: None }; 2],
        bounds(10),
    );
    for (at, log) in [&mut first, &mut second].into_iter().enumerate() {
        log.batches().into_iter().for_each(|batch| assembler.push_to(at, batch));
    }
    let error = loop {
        match assembler.next_item() {
            Ok(Some(Item::Schema(id))) if id == CONTROL => assembler.learn(id, SchemaUse::Control),
            Ok(Some(Item::Schema(id))) => {
                assembler.learn(id, SchemaUse::Table(table(&schema("t", &[]))));
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("no error"),
            Err(error) => break error,
        }
    };
    let unmatched = matches!(error.problem, AssembleProblem::Unmatched { partition: 1, .. });
    assert!(unmatched && error.partition == Some(0), "{error}");
}

#[test]
fn a_changed_definition_stands_behind_what_came_before_it_everywhere() {
    let (mut first, mut second) = (LogWriter::new(), LogWriter::new());
    let change = Control::SchemaChange {
        place: Place::new(Epoch::FIRST, Commit::ZERO, Ordinal::ZERO),
        table: TableId::new("public", "t"),
        description: "a column more",
    };
    first.open(1).insert(16, 0, true).control(&change);
    second.open(1).end(16).control(&change);
    let text = both(&mut first, &mut second);
    let lines = ends(&text);
    assert_eq!((lines[0], lines.len()), ("end 1@0/10#end", 2), "{text}");
    assert!(lines[1].starts_with("SchemaChange"), "{text}");
}

#[test]
fn a_partition_is_told_how_far_a_long_transaction_is() {
    let (mut first, mut second) = (LogWriter::new(), LogWriter::new());
    let reached = |ordinal| Control::Reached { place: place(16, ordinal), snapshot: false };
    for ordinal in 0..5 {
        first.insert(16, ordinal, false);
    }
    second.control(&reached(2)).control(&reached(3));
    let logs = [first.batches(), second.batches()];
    let mut reader = Reader::new(&logs, 1);
    let mut rng = SmallRng::seed_from_u64(0);
    while reader.push(0) || reader.push(1) {
        reader.drain(&mut rng, 0.0);
    }
    assert_eq!(reader.text.lines().count(), 4, "{}", reader.text);
}
