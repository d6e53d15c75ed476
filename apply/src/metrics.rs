//! Numbers of a pipeline, as atomics: the daemon gives them their `tailwater_apply_*` names.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one pipeline since its process started.
#[derive(Debug, Default)]
pub struct Metrics {
    rows: AtomicU64,
    transactions: AtomicU64,
    commits: AtomicU64,
    conflicts: AtomicU64,
    refusals: AtomicU64,
    skipped: AtomicU64,
    retries: AtomicU64,
    latency: Histogram,
}

/// What [`Metrics`] held at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsSnapshot {
    /// Rows applied.
    pub rows: u64,
    /// Source transactions applied.
    pub transactions: u64,
    /// Transactions of the target.
    pub commits: u64,
    /// Rows that were not as the source said and were repaired.
    pub conflicts: u64,
    /// Set-based steps that the target refused, and whose changes were replayed.
    pub refusals: u64,
    /// Transactions and schema changes left out on command.
    pub skipped: u64,
    /// Attempts that failed and were made again.
    pub retries: u64,
    /// Source commit to target commit.
    pub latency: LatencySnapshot,
}

/// A histogram at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencySnapshot {
    /// Per bound of [`LATENCY_BOUNDS_SECONDS`] and one for all above: how many were at or below it
    /// and above the one before. Not cumulative.
    pub counts: Vec<u64>,
    /// Seconds in all.
    pub sum_seconds: f64,
}

/// Upper bounds of the latency histogram's buckets, in seconds: fine around the milliseconds that
/// replication takes, coarse where only catching up is.
pub const LATENCY_BOUNDS_SECONDS: [f64; 16] = [
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
    300.0,
];

#[derive(Debug)]
struct Histogram {
    counts: [AtomicU64; LATENCY_BOUNDS_SECONDS.len() + 1],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; 17], sum_us: AtomicU64::new(0) }
    }
}

impl Metrics {
    /// The numbers now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a sum for a rate")]
        let sum_seconds = get(&self.latency.sum_us) as f64 / 1e6;
        MetricsSnapshot {
            rows: get(&self.rows),
            transactions: get(&self.transactions),
            commits: get(&self.commits),
            conflicts: get(&self.conflicts),
            refusals: get(&self.refusals),
            skipped: get(&self.skipped),
            retries: get(&self.retries),
            latency: LatencySnapshot {
                counts: self.latency.counts.iter().map(get).collect(),
                sum_seconds,
            },
        }
    }

    pub(crate) fn note_commit(&self, rows: usize, transactions: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
        self.transactions.fetch_add(transactions as u64, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_conflicts(&self, rows: u64) {
        self.conflicts.fetch_add(rows, Ordering::Relaxed);
    }

    pub(crate) fn note_refusal(&self) {
        self.refusals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn note_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// A transaction took this long from commit to commit. Clocks of two machines may disagree:
    /// less than nothing counts as nothing.
    pub(crate) fn note_latency(&self, microseconds: i64) {
        let microseconds = u64::try_from(microseconds).unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "compared with round bounds")]
        let seconds = microseconds as f64 / 1e6;
        let bucket = LATENCY_BOUNDS_SECONDS.partition_point(|bound| *bound < seconds);
        self.latency.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency.sum_us.fetch_add(microseconds, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        let metrics = Metrics::default();
        for microseconds in [-5, 1000, 1001, 400_000_000] {
            metrics.note_latency(microseconds);
        }
        let latency = metrics.snapshot().latency;
        assert_eq!((latency.counts[0], latency.counts[1], latency.counts[16]), (2, 1, 1));
        assert!((latency.sum_seconds - 400.002_001).abs() < 1e-9);
    }
}
