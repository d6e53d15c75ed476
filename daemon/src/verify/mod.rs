//! Comparing source and target while both run.
//!
//! ```text
//!   chunk of the source ─► the same keys on the target ─► equal
//!                                     └► set aside ─► looked at again, and held against the log
//! ```
//!
//! A chunk is compared at once. What differs may only be newer on one side and is set aside; when
//! enough is, or the table is through, all of it is looked at again: read on the source, on the
//! target once the pipeline has passed that moment, and on the source again. The log says which of
//! these keys were changed meanwhile, and into what: such a row may be what the log says it was at
//! some moment in between. A row that nothing in the log has touched and that is still not the
//! source's, time after time, is different. Then the target is walked for keys that the source does
//! not have.
//!
//! Nothing is locked. Rows are compared by what they hash to, and one at a time is held. What stays
//! while a table is compared are keys and hashes, both bounded in number: the keys of a chunk and of
//! what is set aside (`keyed`), and the states into which the log says that rows were changed
//! (`live`), which at their most are some 40 MB with what finds them. A table without a key is
//! compared as a bag of hashes (`keyless`).

mod keyed;
mod keyless;
mod live;
mod print;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tailwater_capture::TableReader;
use tailwater_change::{TableId, TableSchema};
use tailwater_kafka::Offset;

use crate::app::App;
use crate::connectors;
use crate::wait::standby;

/// How often what differs is looked at again.
const LOOKS: usize = 8;
/// How often a row must be found different while nothing touches it: a commit may be in the log a
/// moment before the source shows it.
const CONVINCED: usize = 3;
/// How long the pipeline may take to pass a moment, and the log to be read up to it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Differences that are listed; the rest is counted.
const LISTED: usize = 20;

/// What a comparison found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verdict {
    /// Rows compared.
    pub(crate) rows: u64,
    /// Tables compared.
    pub(crate) tables: u64,
    /// How many rows differ; of tables without a key, at least.
    pub(crate) different: u64,
    /// Some of them.
    pub(crate) differences: Vec<Difference>,
}

/// One row that differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    pub(crate) table: String,
    /// The key's columns.
    pub(crate) key: String,
    /// `missing`, `extra`, `repeated` or `unequal`: what the target's row is.
    pub(crate) target: &'static str,
}

/// Compares everything that `pipeline` applies.
///
/// # Errors
/// A side cannot be read, the pipeline does not pass, or a row never stands still.
pub(crate) async fn verify(app: &App, pipeline: &str) -> anyhow::Result<Verdict> {
    let role = app
        .pipelines
        .get(pipeline)
        .ok_or_else(|| anyhow::anyhow!("there is no pipeline {pipeline:?} in this process"))?;
    let source = app.sources.get(&role.source).ok_or_else(|| {
        anyhow::anyhow!("source {:?} is captured by another process: ask that one", role.source)
    })?;
    if let Some(why) = standby(&role.handle.status()) {
        anyhow::bail!(why);
    }
    let live = live::Live { app, role, source };
    let mut verifier = Verifier {
        from: connectors::reader(source.kind, &source.url).await?,
        to: connectors::reader(role.kind, &role.url).await?,
        flow: &live,
        verdict: Verdict::default(),
    };
    // What the target lacks by now is not to be set aside row by row.
    live.pass().await?;
    for schema in source.connector.tables().await? {
        let Some(name) = role.route.target(&schema.table) else { continue };
        verifier.table(&schema, &name).await?;
    }
    Ok(verifier.verdict)
}

/// What is asked of a pipeline that runs.
#[async_trait]
trait Flow: Sync {
    /// Waits until the target has everything that is committed on the source now.
    async fn pass(&self) -> anyhow::Result<()>;

    /// The first offset after what is in the log now, of each partition.
    async fn end(&self) -> anyhow::Result<Vec<Offset>>;

    /// What the log says in this span of `keys` of a table; of a table without a key, of all of it.
    async fn changed(
        &self,
        table: &TableId,
        keys: &BTreeSet<Vec<u8>>,
        span: Range<Vec<Offset>>,
    ) -> anyhow::Result<Changed>;
}

/// What the log says of some rows, or of a table without a key.
#[derive(Debug, Default)]
struct Changed {
    /// Something else happened to the table as well, which is not looked into.
    vague: bool,
    /// What the rows became, one state after the other.
    states: BTreeMap<Vec<u8>, Vec<Seen>>,
    /// What the table without a key became, one state after the other, each less what the table was
    /// at the beginning.
    sums: Vec<Seen>,
}

/// What stands under a key, or in a part of a table: how many rows, and the sum of their hashes.
/// Equal bags of rows are equal; others, but for an accident of one in 2^128, are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Seen {
    rows: u64,
    hashes: u128,
}

impl Seen {
    /// One row.
    fn one(row: &[u8]) -> Self {
        let mut seen = Self::default();
        seen.add(hash(row));
        seen
    }

    fn add(&mut self, hash: u128) {
        *self = self.plus(Self { rows: 1, hashes: hash });
    }

    /// Wraps, so that differences can be added, too.
    fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows.wrapping_add(other.rows),
            hashes: self.hashes.wrapping_add(other.hashes),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            rows: self.rows.wrapping_sub(other.rows),
            hashes: self.hashes.wrapping_sub(other.hashes),
        }
    }
}

fn hash(row: &[u8]) -> u128 {
    let digest = Sha256::digest(row);
    digest.iter().take(16).fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}

struct Verifier<'a> {
    from: Box<dyn TableReader>,
    to: Box<dyn TableReader>,
    flow: &'a dyn Flow,
    verdict: Verdict,
}

impl Verifier<'_> {
    async fn table(&mut self, schema: &TableSchema, name: &TableId) -> anyhow::Result<()> {
        if schema.key().is_empty() {
            self.keyless(schema, name).await?;
        } else {
            self.keyed(schema, name).await?;
        }
        self.verdict.tables += 1;
        Ok(())
    }
}

impl Verdict {
    fn is_full(&self) -> bool {
        self.differences.len() >= LISTED
    }

    /// Names a row that differs, if there is room.
    fn list(&mut self, schema: &TableSchema, key: String, target: &'static str) {
        if !self.is_full() {
            self.differences.push(Difference { table: schema.table.to_string(), key, target });
        }
    }
}
