//! Partitions that are applied each on its own, by whichever host has them, and called in where
//! their order matters: `consistency = "key"`, as far as it can be said without IO.
//!
//! ```text
//!             ┌──── the pipeline's own row says ─────┐
//!   together ─┤ parted, generation g                 │ each partition has a row of its own, which
//!             │      └─► called (no one may begin)   │ counts while it names g; else it begins
//!   together ◄┘              └─► rows are fenced     │ where all were when they parted
//! ```
//!
//! A pipeline is *together* or *parted*. Together, one session (the **leader**, who has the
//! pipeline's lock) merges all partitions and applies the source's transactions in their order, as
//! it does without `"key"`. Parted, each partition is a log of its own with a row, a fence and a
//! lock of its own. One row of the target says which of the two it is, so there is one moment at
//! which it changes.
//!
//! What concerns more than one partition (a snapshot, a TRUNCATE, a changed definition, a table not
//! seen before, another epoch, whatever a partition alone cannot apply) is no case of its own here:
//! the partition that meets it *waits*, the leader calls all partitions in and goes on together,
//! from wherever each of them is, until that record is passed. Then they part again.
//!
//! Why no change is applied twice: a partition begins by raising the fence of its row and only
//! **then** reads whether the pipeline is parted; the leader says that it is not and only **then**
//! raises the fence of each row, and goes on from what that row says. Whichever comes second sees
//! the other: either the partition does not begin, or its commits come before the leader has read
//! them, or they fail. [`model`] tries the interleavings, and what each of these steps is for.

#[cfg(test)]
mod model;

use std::collections::BTreeSet;

use tailwater_change::{Place, TableSchema};
use tailwater_kafka::Offset;

use super::state::{Apart, Parted, SavedState};
use crate::{Position, Progress, TargetTable};

/// A progress row, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) progress: Progress,
    pub(super) state: SavedState,
}

/// Whether a partition is applied on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stand {
    /// Not now: the pipeline is together, or this partition waits until it is.
    Aside,
    /// From here on.
    At(Box<Row>),
}

/// The name of a partition's row and lock.
pub(super) fn row_name(pipeline: &str, partition: usize) -> String {
    format!("{pipeline}#{partition}")
}

/// The name of a host's place among those that share the partitions.
pub(super) fn seat_name(pipeline: &str, seat: usize) -> String {
    format!("{pipeline}@{seat}")
}

/// Where `partition` goes on, if it may: `own` is its row as taking it over has left it, `main` the
/// pipeline's own as it was read **after** that.
pub(super) fn stand(main: &Row, own: &Row, partition: usize) -> Stand {
    let Some(parted) = main.state.parted.filter(|parted| !parted.called) else {
        return Stand::Aside;
    };
    let generation = parted.generation;
    let row = match own.state.apart {
        Some(apart) if apart.generation == generation => {
            if apart.waits.is_some() {
                return Stand::Aside;
            }
            own.clone()
        }
        _ => match begun(main, own, partition, generation) {
            Some(row) => row,
            None => return Stand::Aside,
        },
    };
    Stand::At(Box::new(row))
}

/// A partition's row at the moment of parting.
fn begun(main: &Row, own: &Row, partition: usize, generation: i64) -> Option<Row> {
    let position = positions(&main.progress, &main.state).nth(partition)?;
    let progress = Progress {
        pipeline: own.progress.pipeline.clone(),
        fence: own.progress.fence,
        next_offset: position.next_offset.get(),
        ..main.progress.clone()
    };
    let state = SavedState {
        writer: position.writer,
        source: main.state.source.clone(),
        streaming: true,
        apart: Some(Apart { generation, waits: None }),
        ..SavedState::default()
    };
    Some(Row { progress, state })
}

/// Where each partition is read on while all are together.
fn positions<'a>(
    progress: &Progress,
    state: &'a SavedState,
) -> impl Iterator<Item = Position> + use<'a> {
    let next_offset = Offset::new(progress.next_offset);
    let first = Position { next_offset, writer: state.writer };
    std::iter::once(first).chain(state.others.iter().map(|other| Position::from(*other)))
}

/// Whether one of the partitions waits for the others.
pub(super) fn is_awaited(main: &Row, rows: &[Option<Row>]) -> bool {
    let Some(parted) = main.state.parted else { return false };
    rows.iter()
        .flatten()
        .filter_map(|row| row.state.apart)
        .any(|apart| apart.generation == parted.generation && apart.waits.is_some())
}

/// The pipeline's row once all are together again: `rows` are those of its partitions as taking
/// over each of them has left it, **after** `main` said that they are called.
pub(super) fn gather(main: &Row, rows: &[Row]) -> Row {
    let Some(parted) = main.state.parted else { return main.clone() };
    let counts =
        |row: &Row| row.state.apart.filter(|apart| apart.generation == parted.generation).is_some();
    let mut gathered = main.clone();
    let mut at: Vec<_> = positions(&main.progress, &main.state).collect();
    let mut places = vec![main.progress.place; at.len()];
    let mut until = vec![-1; at.len()];
    for (partition, row) in rows.iter().enumerate().filter(|(_, row)| counts(row)) {
        let next_offset = Offset::new(row.progress.next_offset);
        at[partition] = Position { next_offset, writer: row.state.writer };
        places[partition] = row.progress.place;
        until[partition] = row.state.apart.and_then(|apart| apart.waits).unwrap_or(-1);
    }
    let least = places.iter().copied().min().unwrap_or(main.progress.place);
    // Whose positions the least of them are: there reading in another log would begin.
    let is_least = |row: &&Row| counts(row) && row.progress.place == least;
    if let Some(row) = rows.iter().find(is_least) {
        gathered.state.source.clone_from(&row.state.source);
    }
    gathered.progress.place = least;
    if let Some(first) = at.first() {
        gathered.progress.next_offset = first.next_offset.get();
        gathered.state.writer = first.writer;
    }
    gathered.state.others = at.iter().skip(1).map(|position| (*position).into()).collect();
    let apart = places.iter().any(|place| *place > least);
    gathered.state.floors = if apart { places } else { Vec::new() };
    gathered.state.until = until;
    gathered.state.parted = None;
    gathered
}

/// The pipeline's row when its partitions part: `now_us` tells this generation from any that a
/// forgotten pipeline of the same name has left behind.
pub(super) fn part(main: &SavedState, now_us: i64) -> SavedState {
    let generation = now_us.max(main.generation.saturating_add(1));
    SavedState {
        parted: Some(Parted { generation, called: false }),
        generation,
        until: Vec::new(),
        ..main.clone()
    }
}

/// Whether everything that partitions waited for is passed, and all are where the furthest was.
pub(super) fn is_passed(progress: &Progress, state: &SavedState) -> bool {
    let mut at = positions(progress, state).map(|position| position.next_offset.get());
    let passed = state.until.iter().all(|until| at.next().is_some_and(|at| at > *until));
    passed && state.floors.is_empty()
}

/// How far all partitions are: the least of their places.
pub(super) fn place(main: &Row, rows: &[Option<Row>]) -> Place {
    let Some(parted) = main.state.parted else { return main.progress.place };
    let places = rows.iter().map(|row| match row {
        Some(row) if row.state.apart.is_some_and(|apart| apart.generation == parted.generation) => {
            row.progress.place
        }
        _ => main.progress.place,
    });
    places.min().unwrap_or(main.progress.place)
}

/// Which partitions a host is to have: `held` says whose seats are taken, `mine` is its own.
pub(super) fn share(partitions: usize, held: &[bool], mine: usize) -> BTreeSet<usize> {
    let hosts: Vec<usize> = (0..held.len()).filter(|&seat| seat == mine || held[seat]).collect();
    let Some(rank) = hosts.iter().position(|&seat| seat == mine) else { return BTreeSet::new() };
    (0..partitions).filter(|partition| partition % hosts.len() == rank).collect()
}

/// Why rows of a table are right only in the source's order across partitions: what its rows do to
/// each other on the target, the partitions do not see.
pub fn needs_order(schema: &TableSchema, table: &TargetTable) -> Option<&'static str> {
    if table.fires {
        return Some("foreign keys or triggers act when it changes");
    }
    // Rows without a key stand in one partition.
    if schema.key().is_empty() {
        return None;
    }
    if !table.identity_is_bytes {
        return Some("keys that differ on the source are equal on the target");
    }
    (!table.unique_keys.is_empty()).then_some("it has unique keys besides its identity")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_is_one_hosts_and_shares_differ_by_one() {
        for partitions in 1..20 {
            for hosts in 1..=partitions {
                // Seats need not be without gaps: whoever had one between may be gone.
                let held: Vec<bool> = (0..partitions).map(|seat| seat % 2 == 0).collect();
                let seats: Vec<usize> =
                    (0..partitions).filter(|&seat| held[seat]).take(hosts).collect();
                let held: Vec<bool> = (0..partitions).map(|seat| seats.contains(&seat)).collect();
                let shares: Vec<_> =
                    seats.iter().map(|&seat| share(partitions, &held, seat)).collect();
                let mut all: Vec<usize> = shares.iter().flatten().copied().collect();
                all.sort_unstable();
                assert_eq!(all, (0..partitions).collect::<Vec<_>>());
                let sizes = shares.iter().map(BTreeSet::len);
                assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn who_does_not_see_his_own_seat_counts_himself() {
        assert_eq!(share(4, &[true, false, false, false], 2), [1, 3].into());
    }
}
