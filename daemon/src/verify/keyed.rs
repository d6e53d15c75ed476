//! Tables with a key: chunk by chunk, what differs set aside.

use std::collections::{BTreeMap, BTreeSet};

use tailwater_capture::{TableReader, Wanted};
use tailwater_change::{Identity, TableId, TableSchema};

use super::print::key_text;
use super::{CONVINCED, Changed, LOOKS, Seen, Verifier, hash};

/// Rows of a chunk: their keys are held.
pub(super) const CHUNK_ROWS: usize = 2_000;
/// Keys set aside until they are looked at: each look waits for the pipeline, which many share.
const SET_ASIDE: usize = 2_000;

type ByKey = BTreeMap<Vec<u8>, Seen>;

impl Verifier<'_> {
    pub(super) async fn keyed(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
    ) -> anyhow::Result<()> {
        let mut aside = BTreeSet::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let (mut source, mut last) = (ByKey::new(), None);
            let wanted = Wanted::Above { after: after.as_deref(), limit: CHUNK_ROWS };
            self.from
                .read(schema, &schema.table, wanted, &mut |row| {
                    source.entry(row.key.clone()).or_default().add(hash(&row.row));
                    last = Some(row.key);
                })
                .await?;
            if last.is_none() {
                break;
            }
            after = last;
            self.verdict.rows += source.values().map(|seen| seen.rows).sum::<u64>();
            let keys: Vec<_> = source.keys().cloned().collect();
            let target = seen(&mut *self.to, schema, name, &keys).await?;
            aside.extend(keys.into_iter().filter(|key| target.get(key) != source.get(key)));
            if aside.len() >= SET_ASIDE {
                self.look_again(schema, name, std::mem::take(&mut aside)).await?;
            }
        }
        self.extras(schema, name, &mut aside).await?;
        self.look_again(schema, name, aside).await
    }

    /// Sets aside keys that only the target has.
    async fn extras(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        aside: &mut BTreeSet<Vec<u8>>,
    ) -> anyhow::Result<()> {
        let keys_only = keys_only(schema);
        let mut after: Option<Vec<u8>> = None;
        loop {
            let mut keys = Vec::new();
            let wanted = Wanted::Above { after: after.as_deref(), limit: CHUNK_ROWS };
            self.to.read(&keys_only, name, wanted, &mut |row| keys.push(row.key)).await?;
            let Some(last) = keys.last() else { return Ok(()) };
            after = Some(last.clone());
            let source = seen(&mut *self.from, &keys_only, &schema.table, &keys).await?;
            aside.extend(keys.into_iter().filter(|key| !source.contains_key(key)));
            if aside.len() >= SET_ASIDE {
                self.look_again(schema, name, std::mem::take(aside)).await?;
            }
        }
    }

    /// Looks at the keys set aside until each is equal or surely different.
    async fn look_again(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        aside: BTreeSet<Vec<u8>>,
    ) -> anyhow::Result<()> {
        let mut open: BTreeMap<Vec<u8>, usize> = aside.into_iter().map(|key| (key, 0)).collect();
        for _look in 0..LOOKS {
            if open.is_empty() {
                return Ok(());
            }
            let look = self.look(schema, name, open.keys().cloned().collect()).await?;
            for (key, found) in look {
                match found {
                    Found::Equal => drop(open.remove(&key)),
                    Found::Moving => {}
                    Found::Different(target) => {
                        let times = open.get(&key).map_or(1, |times| times + 1);
                        if times >= CONVINCED {
                            open.remove(&key);
                            self.verdict.different += 1;
                            self.verdict.list(schema, key_text(schema, &key)?, target);
                        } else {
                            open.insert(key, times);
                        }
                    }
                }
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        anyhow::bail!(
            "{} rows of {} changed at every look: try again when the table is less busy",
            open.len(),
            schema.table
        )
    }

    async fn look(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        keys: Vec<Vec<u8>>,
    ) -> anyhow::Result<Vec<(Vec<u8>, Found)>> {
        let begin = self.flow.end().await?;
        let before = seen(&mut *self.from, schema, &schema.table, &keys).await?;
        self.flow.pass().await?;
        let target = seen(&mut *self.to, schema, name, &keys).await?;
        let after = seen(&mut *self.from, schema, &schema.table, &keys).await?;
        let sides = |key: &Vec<u8>| {
            let at = |side: &ByKey| side.get(key).copied().unwrap_or_default();
            Sides { before: at(&before), target: at(&target), after: at(&after) }
        };
        let unlike: BTreeSet<_> =
            keys.iter().filter(|key| !sides(key).are_alike()).cloned().collect();
        let mut changed = Changed::default();
        if !unlike.is_empty() {
            // Whatever the target has shown by now is in the log by then.
            self.flow.pass().await?;
            let span = begin..self.flow.end().await?;
            changed = self.flow.changed(&schema.table, &unlike, span).await?;
        }
        let judged = keys.into_iter().map(|key| {
            let found = sides(&key).judge(&changed, &key);
            (key, found)
        });
        Ok(judged.collect())
    }
}

/// What a look found of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Equal,
    /// The source was changing it.
    Moving,
    /// What the target's row is.
    Different(&'static str),
}

/// A key on the source, then on the target, then on the source.
#[derive(Debug, Clone, Copy)]
struct Sides {
    before: Seen,
    target: Seen,
    after: Seen,
}

impl Sides {
    fn are_alike(self) -> bool {
        self.target == self.before || self.target == self.after
    }

    fn judge(self, changed: &Changed, key: &[u8]) -> Found {
        if self.are_alike() {
            return Found::Equal;
        }
        if let Some(states) = changed.states.get(key) {
            // The log is believed about the moments in between if it leads to what the source has.
            let leads = self.after == self.before || states.contains(&self.after);
            let was = leads && states.contains(&self.target);
            return if was { Found::Equal } else { Found::Moving };
        }
        if changed.vague || self.before != self.after {
            return Found::Moving;
        }
        Found::Different(match (self.before.rows, self.target.rows) {
            (_, 0) => "missing",
            (0, _) => "extra",
            (before, there) if there > before => "repeated",
            _ => "unequal",
        })
    }
}

/// What these keys are on one side.
async fn seen(
    side: &mut dyn TableReader,
    schema: &TableSchema,
    name: &TableId,
    keys: &[Vec<u8>],
) -> anyhow::Result<ByKey> {
    let mut found = ByKey::new();
    side.read(schema, name, Wanted::Keys(keys), &mut |row| {
        found.entry(row.key).or_default().add(hash(&row.row));
    })
    .await?;
    Ok(found)
}

/// The table as if it had no columns but its key.
fn keys_only(schema: &TableSchema) -> TableSchema {
    let mut kept: Vec<usize> = schema.key().to_vec();
    kept.sort_unstable();
    let place = |index: &usize| kept.iter().position(|kept| kept == index);
    TableSchema {
        columns: kept.iter().map(|&index| schema.columns[index].clone()).collect(),
        identity: Identity::Key(schema.key().iter().filter_map(place).collect()),
        indexes: Vec::new(),
        foreign_keys: Vec::new(),
        ..schema.clone()
    }
}
