//! Comparing source and target while both run.
//!
//! A chunk of the source is read, then the pipeline is given time to pass that moment, then the
//! same keys are read on the target. Rows that differ may only be newer on one side: they are set
//! aside and looked at again, with the source read before and after the target. A row that is the
//! same on the source twice and still not so on the target, again and again, is different. The
//! target is walked the same way for rows that the source does not have.
//!
//! Nothing is locked, and memory is one chunk; tables without a key are read whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use tailwater_capture::{ReadRow, TableReader};
use tailwater_change::{RowReader, TableId, TableSchema, Value};
use tokio::time::Instant;

use crate::app::{App, PipelineRole, SourceRole};
use crate::connectors;
use crate::wait::{Waited, reach};

/// Rows of a chunk.
const CHUNK_ROWS: usize = 2_000;
/// How often a row that differs is looked at again.
const LOOKS: usize = 8;
/// How often it must be found different while the source stands still.
const CONVINCED: usize = 3;
/// How long the pipeline may take to pass the moment of a chunk.
const PASS_TIMEOUT: Duration = Duration::from_secs(60);
/// Differences that are listed; the rest is counted.
const LISTED: usize = 20;

/// What a comparison found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verdict {
    /// Rows compared.
    pub(crate) rows: u64,
    /// Tables compared.
    pub(crate) tables: u64,
    /// How many rows differ.
    pub(crate) different: u64,
    /// Some of them.
    pub(crate) differences: Vec<Difference>,
}

/// One row that differs.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    pub(crate) table: String,
    /// The key's columns.
    pub(crate) key: String,
    /// `missing`, `extra` or `unequal`: what the target's row is.
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
    let mut verifier = Verifier {
        role,
        source,
        from: connectors::reader(source.kind, &source.url).await?,
        to: connectors::reader(role.kind, &role.url).await?,
        verdict: Verdict::default(),
    };
    pass(role, source).await?;
    for schema in source.connector.tables().await? {
        let Some(name) = role.route.target(&schema.table) else { continue };
        verifier.table(&schema, &name).await?;
        verifier.verdict.tables += 1;
    }
    Ok(verifier.verdict)
}

struct Verifier<'a> {
    role: &'a PipelineRole,
    source: &'a SourceRole,
    from: Box<dyn TableReader>,
    to: Box<dyn TableReader>,
    verdict: Verdict,
}

impl Verifier<'_> {
    async fn table(&mut self, schema: &TableSchema, name: &TableId) -> anyhow::Result<()> {
        if schema.key().is_empty() {
            return self.keyless(schema, name).await;
        }
        let mut after: Option<Vec<u8>> = None;
        loop {
            let source =
                self.from.chunk(schema, &schema.table, after.as_deref(), CHUNK_ROWS).await?;
            let Some(last) = source.last() else { break };
            after = Some(last.key.clone());
            self.verdict.rows += source.len() as u64;
            pass(self.role, self.source).await?;
            let keys: Vec<_> = source.iter().map(|row| row.key.clone()).collect();
            let target = by_key(self.to.rows(schema, name, &keys).await?);
            let suspects = source
                .into_iter()
                .filter(|row| target.get(&row.key) != Some(&row.row))
                .map(|row| row.key)
                .collect();
            self.look_again(schema, name, suspects).await?;
        }
        self.extras(schema, name).await
    }

    /// Rows that only the target has.
    async fn extras(&mut self, schema: &TableSchema, name: &TableId) -> anyhow::Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let target = self.to.chunk(schema, name, after.as_deref(), CHUNK_ROWS).await?;
            let Some(last) = target.last() else { return Ok(()) };
            after = Some(last.key.clone());
            let keys: Vec<_> = target.into_iter().map(|row| row.key).collect();
            let source = by_key(self.from.rows(schema, &schema.table, &keys).await?);
            let suspects = keys.into_iter().filter(|key| !source.contains_key(key)).collect();
            self.look_again(schema, name, suspects).await?;
        }
    }

    /// Looks at `suspects` until each is equal or surely different.
    async fn look_again(
        &mut self,
        schema: &TableSchema,
        name: &TableId,
        suspects: Vec<Vec<u8>>,
    ) -> anyhow::Result<()> {
        let mut open: BTreeMap<Vec<u8>, usize> = suspects.into_iter().map(|key| (key, 0)).collect();
        for _look in 0..LOOKS {
            if open.is_empty() {
                return Ok(());
            }
            let keys: Vec<_> = open.keys().cloned().collect();
            let before = by_key(self.from.rows(schema, &schema.table, &keys).await?);
            pass(self.role, self.source).await?;
            let target = by_key(self.to.rows(schema, name, &keys).await?);
            let after = by_key(self.from.rows(schema, &schema.table, &keys).await?);
            for key in keys {
                let there = target.get(&key);
                if there == before.get(&key) || there == after.get(&key) {
                    open.remove(&key);
                } else if before.get(&key) == after.get(&key) {
                    let times = open.entry(key.clone()).or_default();
                    *times += 1;
                    if *times >= CONVINCED {
                        open.remove(&key);
                        self.different(schema, &key, before.get(&key), there)?;
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

    /// Without a key only the whole tables can be compared, as sets in which rows may repeat.
    async fn keyless(&mut self, schema: &TableSchema, name: &TableId) -> anyhow::Result<()> {
        let mut times = 0;
        for _look in 0..LOOKS {
            let before = self.whole(schema).await?;
            pass(self.role, self.source).await?;
            let target = counted(self.to.chunk(schema, name, None, usize::MAX).await?);
            let after = self.whole(schema).await?;
            if target == before || target == after {
                self.verdict.rows += target.values().sum::<u64>();
                return Ok(());
            }
            times += usize::from(before == after);
            if times >= CONVINCED {
                let rows: BTreeSet<_> = before.keys().chain(target.keys()).collect();
                for row in rows {
                    if before.get(row) != target.get(row) {
                        let (source, target) = (before.get(row), target.get(row));
                        let there = source.map(|_| row).filter(|_| source > target);
                        self.different(schema, row, there, target.map(|_| row))?;
                    }
                }
                return Ok(());
            }
        }
        anyhow::bail!("{} changed at every look: try again when it is less busy", schema.table)
    }

    async fn whole(&mut self, schema: &TableSchema) -> anyhow::Result<BTreeMap<Vec<u8>, u64>> {
        Ok(counted(self.from.chunk(schema, &schema.table, None, usize::MAX).await?))
    }

    fn different(
        &mut self,
        schema: &TableSchema,
        key: &[u8],
        source: Option<&Vec<u8>>,
        target: Option<&Vec<u8>>,
    ) -> anyhow::Result<()> {
        self.verdict.different += 1;
        if self.verdict.differences.len() < LISTED {
            self.verdict.differences.push(Difference {
                table: schema.table.to_string(),
                key: key_text(schema, key)?,
                target: match (source, target) {
                    (_, None) => "missing",
                    (None, Some(_)) => "extra",
                    (Some(_), Some(_)) => "unequal",
                },
            });
        }
        Ok(())
    }
}

/// Waits until the target has everything that is committed on the source now.
async fn pass(role: &PipelineRole, source: &SourceRole) -> anyhow::Result<()> {
    let goal = source.connector.current().await?;
    match reach(role, source, goal, Instant::now() + PASS_TIMEOUT).await {
        Waited::Reached => Ok(()),
        Waited::TimedOut(why) | Waited::Cannot(why) => anyhow::bail!("{why}"),
    }
}

fn by_key(rows: Vec<ReadRow>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    rows.into_iter().map(|row| (row.key, row.row)).collect()
}

fn counted(rows: Vec<ReadRow>) -> BTreeMap<Vec<u8>, u64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row.row).or_default() += 1;
    }
    counts
}

/// A key as people read it: `id=7, line=2`.
fn key_text(schema: &TableSchema, key: &[u8]) -> anyhow::Result<String> {
    let mut values = Vec::new();
    RowReader::new(schema).read(key, &mut values)?;
    let all: Vec<usize> = (0..schema.columns.len()).collect();
    let columns = if schema.key().is_empty() { all.as_slice() } else { schema.key() };
    let parts: Vec<String> = columns
        .iter()
        .map(|&index| {
            let value = match values[index] {
                Value::Null | Value::Unsent => "NULL".to_owned(),
                Value::Bool(value) => value.to_string(),
                Value::Int(value) => value.to_string(),
                Value::Uint(value) => value.to_string(),
                Value::Float32(value) => value.to_string(),
                Value::Float64(value) => value.to_string(),
                Value::Text(value) => format!("{value:?}"),
                Value::Bytes(value) => format!("{} bytes", value.len()),
            };
            format!("{}={value}", schema.columns[index].name)
        })
        .collect();
    Ok(parts.join(", "))
}
