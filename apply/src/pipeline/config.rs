//! What a pipeline is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tailwater_change::Problem;

use super::Route;
use crate::{ConflictPolicy, PartBounds};

/// What to do about a target table that has rows which this pipeline has not written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExisting {
    /// Stop and ask.
    #[default]
    Stop,
    /// Keep them; rows of the source overwrite those with their identity.
    Merge,
    /// Delete them.
    Replace,
}

/// What a reader of the target may see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Whole transactions, in the source's order.
    #[default]
    Transaction,
    /// Of each key the source's order; partitions are applied each on its own, by any number of
    /// processes.
    Key,
}

/// Microseconds since 1970, UTC.
pub type Clock = fn() -> i64;

/// How much is taken into one transaction of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchBounds {
    /// Rows. More make statements larger without making them cheaper per row.
    pub rows: usize,
    /// Bytes held.
    pub bytes: usize,
    /// How long whole transactions may wait for others behind them.
    pub time: Duration,
    /// How long a batch that is not full waits for more to be read, counted from the one before it.
    /// Only while the target is [far behind](tailwater_change::is_far_behind): few large commits get
    /// it there sooner than many small ones.
    pub linger: Duration,
}

impl Default for BatchBounds {
    fn default() -> Self {
        Self {
            rows: 50_000,
            bytes: 16 << 20,
            time: Duration::from_millis(200),
            linger: Duration::from_millis(50),
        }
    }
}

/// A pipeline.
#[derive(Debug, Clone)]
pub struct PipelineConfig {
    /// Its name: that of its progress row and its consumer group.
    pub name: String,
    /// What its source is called: for the commands that a stop names.
    pub source: String,
    /// Which tables go where.
    pub route: Route,
    /// What a reader may see.
    pub consistency: Consistency,
    /// What to do about rows that are not as expected.
    pub on_conflict: ConflictPolicy,
    /// What to do about rows that were there before.
    pub on_existing: OnExisting,
    /// How much goes into one transaction of the target.
    pub batch: BatchBounds,
    /// Bytes that rows on their way may hold in all, besides a single row that is larger.
    pub memory_bytes: usize,
    /// A row's size in bytes at most; a larger one stops the pipeline.
    pub max_row_bytes: usize,
    /// Where the time of day comes from: for latencies and lag.
    pub clock: Clock,
}

impl PipelineConfig {
    /// A pipeline with the defaults of everything but its name and clock.
    pub fn new(name: impl Into<String>, clock: Clock) -> Self {
        Self {
            name: name.into(),
            source: String::new(),
            route: Route::default(),
            consistency: Consistency::default(),
            on_conflict: ConflictPolicy::Repair,
            on_existing: OnExisting::default(),
            batch: BatchBounds::default(),
            memory_bytes: 64 << 20,
            // The largest value either database takes.
            max_row_bytes: 1 << 30,
            clock,
        }
    }

    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = self.route.validate();
        if self.name.is_empty() {
            problems.push(Problem::new("the pipeline has no name", "give it one"));
        }
        if self.batch.rows == 0 || self.batch.bytes == 0 {
            problems.push(Problem::new("a batch of nothing", "raise the batch's bounds above 0"));
        }
        problems
    }

    /// Bytes to read ahead. A quarter of the budget: read ahead, decompressed, held as rows, and
    /// once more as what the connector sends.
    pub(super) fn prefetch_bytes(&self) -> usize {
        (self.memory_bytes / 4).max(64 << 10)
    }

    /// How large the parts of a transaction are.
    pub(super) fn part_bounds(&self) -> PartBounds {
        PartBounds {
            rows: self.batch.rows,
            bytes: self.held_bytes(),
            row_bytes: self.max_row_bytes,
        }
    }

    /// Bytes of rows to hold for one batch: an eighth, since the next one is assembled while one is
    /// applied.
    pub(super) fn held_bytes(&self) -> usize {
        self.batch.bytes.min((self.memory_bytes / 8).max(64 << 10))
    }
}
