//! Tables without a key: bags of rows, compared by what they sum up to.
//!
//! Each row goes by its hash into one of many buckets, which count and sum up. Equal tables have
//! equal buckets, whatever the order of their rows. Where buckets differ, the rows that fall into
//! them are counted one by one, as many buckets as there is room for, to name what differs.

use std::collections::{BTreeSet, HashMap};

use tailwater_capture::{TableReader, Wanted};
use tailwater_change::{TableId, TableSchema};

use super::print::key_text;
use super::{CONVINCED, LISTED, LOOKS, Seen, Verifier, hash};

/// Parts of a table that are told apart: 128 KiB.
const BUCKETS: usize = 1 << 12;
/// Hashes that are counted one by one: about 10 MB.
const COUNTED: u64 = 200_000;

/// A table at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bag {
    buckets: Vec<Seen>,
}

impl Bag {
    /// All of it.
    fn sum(&self) -> Seen {
        self.buckets.iter().fold(Seen::default(), |sum, bucket| sum.plus(*bucket))
    }
}

/// Whether the log leads from what the source was to what the target is, and on to what the source
/// became.
fn was(sums: &[Seen], before: &Bag, target: &Bag, after: &Bag) -> bool {
    let states: Vec<Seen> = std::iter::once(Seen::default()).chain(sums.iter().copied()).collect();
    let last: HashMap<Seen, usize> = states.iter().copied().zip(0..).collect();
    let to_target = target.sum().minus(before.sum());
    let to_after = after.sum().minus(before.sum());
    let follows = |at: usize, sum: Seen| last.get(&sum).is_some_and(|last| *last >= at);
    // Where the source stood when it was read, the log does not say.
    states
        .iter()
        .enumerate()
        .any(|(at, sum)| follows(at, sum.plus(to_target)) && follows(at, sum.plus(to_after)))
}

fn bucket_of(hash: u128) -> usize {
    usize::try_from(hash % BUCKETS as u128).expect("below BUCKETS")
}

/// How many more rows with this hash the source has than the target.
type Surplus = HashMap<u128, i64>;

impl Verifier<'_> {
    pub(super) async fn keyless(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
    ) -> anyhow::Result<()> {
        let source = bag(&mut *self.from, schema, &schema.table, |_| {}).await?;
        let target = bag(&mut *self.to, schema, name, |_| {}).await?;
        self.verdict.rows += source.sum().rows;
        if source == target {
            return Ok(());
        }
        let mut times = 0;
        for _look in 0..LOOKS {
            let begin = self.flow.end().await?;
            let before = bag(&mut *self.from, schema, &schema.table, |_| {}).await?;
            self.flow.pass().await?;
            let target = bag(&mut *self.to, schema, name, |_| {}).await?;
            let after = bag(&mut *self.from, schema, &schema.table, |_| {}).await?;
            if target == before || target == after {
                return Ok(());
            }
            // Whatever the target has shown by now is in the log by then.
            self.flow.pass().await?;
            let span = begin..self.flow.end().await?;
            let changed = self.flow.changed(&schema.table, &BTreeSet::new(), span).await?;
            if was(&changed.sums, &before, &target, &after) {
                return Ok(());
            }
            if changed.vague || !changed.sums.is_empty() || before != after {
                continue;
            }
            times += 1;
            if times >= CONVINCED && self.name(schema, name, &before, &target).await? {
                return Ok(());
            }
        }
        anyhow::bail!("{} changed at every look: try again when it is less busy", schema.table)
    }

    /// Counts what differs between the two and lists some of it; `false`: they are not so any more.
    async fn name(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        source: &Bag,
        target: &Bag,
    ) -> anyhow::Result<bool> {
        let (mut picked, mut room, mut rest) = (BTreeSet::new(), COUNTED, 0);
        for (at, (source, target)) in source.buckets.iter().zip(&target.buckets).enumerate() {
            let rows = source.rows + target.rows;
            if source == target {
                continue;
            }
            if picked.is_empty() || rows <= room {
                picked.insert(at);
                room = room.saturating_sub(rows);
            } else {
                rest += source.rows.abs_diff(target.rows).max(1);
            }
        }
        let mut surplus = Surplus::new();
        let mut count = |hash, rows| {
            if picked.contains(&bucket_of(hash)) {
                *surplus.entry(hash).or_default() += rows;
            }
        };
        let there = bag(&mut *self.from, schema, &schema.table, |hash| count(hash, 1)).await?;
        let here = bag(&mut *self.to, schema, name, |hash| count(hash, -1)).await?;
        let same = |counted: &Bag, bag: &Bag| {
            picked.iter().all(|&at| counted.buckets[at] == bag.buckets[at])
        };
        if !same(&there, source) || !same(&here, target) {
            return Ok(false);
        }
        surplus.retain(|_, rows| *rows != 0);
        self.verdict.different += rest;
        self.list(schema, name, surplus).await?;
        Ok(true)
    }

    async fn list(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        mut surplus: Surplus,
    ) -> anyhow::Result<()> {
        let different: u64 = surplus.values().map(|rows| rows.unsigned_abs()).sum();
        let (mut texts, mut failed) = (Vec::new(), None);
        for (target, side, table) in
            [("missing", &mut self.from, &schema.table), ("extra", &mut self.to, name)]
        {
            if self.verdict.is_full() || texts.len() >= LISTED {
                break;
            }
            let each = &mut |row: tailwater_capture::ReadRow| {
                let hash = hash(&row.row);
                let of_this_side =
                    surplus.get(&hash).is_some_and(|rows| (*rows > 0) == (target == "missing"));
                if of_this_side && texts.len() < LISTED {
                    surplus.remove(&hash);
                    match key_text(schema, &row.row) {
                        Ok(text) => texts.push((text, target)),
                        Err(error) => failed = Some(error),
                    }
                }
            };
            side.read(schema, table, Wanted::All, each).await?;
        }
        self.verdict.different += different;
        for (key, target) in texts {
            self.verdict.list(schema, key, target);
        }
        failed.map_or(Ok(()), Err)
    }
}

/// A table as it is now; `each` gets the hash of every row.
async fn bag(
    side: &mut dyn TableReader,
    schema: &TableSchema,
    name: &TableId,
    mut each: impl FnMut(u128) + Send,
) -> anyhow::Result<Bag> {
    let mut bag = Bag { buckets: vec![Seen::default(); BUCKETS] };
    side.read(schema, name, Wanted::All, &mut |row| {
        let hash = hash(&row.row);
        bag.buckets[bucket_of(hash)].add(hash);
        each(hash);
    })
    .await?;
    Ok(bag)
}
