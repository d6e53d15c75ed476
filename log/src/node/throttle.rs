//! How fast replicas that are not in sync may copy.
//!
//! A replica that a reassignment adds, or that begins with an empty disk, has everything to copy, and
//! would take the network and the disks from those that acknowledge writes meanwhile. So what such
//! replicas of a node copy goes through one token bucket. Whoever is in sync, or nearly, never does:
//! it would leave the ISR, and producers would wait for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::storage::partition::lock;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// A token bucket: so many bytes a second on average, a second's worth at once after a rest. What has
/// no size beforehand may be taken once it is open, and is paid for afterwards. It is told the time,
/// since any beginning.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    bytes_per_second: u64,
    /// Of a byte, so many nanoseconds' worth; below zero while more has been taken than was there.
    credit: i128,
    at: Duration,
}

impl TokenBucket {
    /// A full one.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let credit = i128::from(bytes_per_second) * NANOS_PER_SECOND;
        Self { bytes_per_second, credit, at: Duration::ZERO }
    }

    /// Whether something may be taken at `now`.
    pub(crate) fn is_open(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.credit > 0
    }

    /// Takes so many bytes at `now`, also those that are not there.
    pub(crate) fn take(&mut self, now: Duration, bytes: u64) {
        self.fill(now);
        self.credit -= i128::from(bytes) * NANOS_PER_SECOND;
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let rate = i128::from(self.bytes_per_second);
        // A duration's nanoseconds are below 2^94.
        let nanos = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let gained = rate.saturating_mul(nanos);
        self.credit = self.credit.saturating_add(gained).min(rate * NANOS_PER_SECOND);
    }
}

/// What the replicas of this node that are not in sync copy.
#[derive(Debug)]
pub(crate) struct CatchUp {
    /// `None`: without a limit.
    bucket: Option<Mutex<TokenBucket>>,
    bytes: AtomicU64,
}

impl CatchUp {
    /// With at most so many bytes a second.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        let bucket = bytes_per_second.map(|rate| Mutex::new(TokenBucket::new(rate)));
        Self { bucket, bytes: AtomicU64::new(0) }
    }

    /// Whether they may ask for more.
    pub(crate) fn may_ask(&self, now: Duration) -> bool {
        self.bucket.as_ref().is_none_or(|bucket| lock(bucket).is_open(now))
    }

    /// So many bytes have come for them.
    pub(crate) fn note(&self, now: Duration, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bucket) = &self.bucket {
            lock(bucket).take(now, bytes);
        }
    }

    /// How many bytes have come for them since the node started.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_second_is_there_at_once_and_then_it_is_the_rate() {
        let mut bucket = TokenBucket::new(1000);
        assert!(bucket.is_open(ms(0)));
        bucket.take(ms(0), 999);
        assert!(bucket.is_open(ms(0)));
        bucket.take(ms(0), 1);
        assert!(!bucket.is_open(ms(0)));
        assert!(bucket.is_open(ms(1)), "one byte");
        // A long rest gives no more than a second's worth.
        assert!(bucket.is_open(ms(100_000)));
        bucket.take(ms(100_000), 1000);
        assert!(!bucket.is_open(ms(100_000)));
    }

    #[test]
    fn what_was_taken_on_credit_is_paid_before_it_opens_again() {
        let mut bucket = TokenBucket::new(1000);
        bucket.take(ms(0), 6000);
        assert!(!bucket.is_open(ms(5000)));
        assert!(bucket.is_open(ms(5001)));
        // Time that comes late, or not at all, gives nothing.
        bucket.take(ms(5001), 1);
        assert!(!bucket.is_open(ms(4000)));
        assert!(!bucket.is_open(ms(5001)));
        assert!(bucket.is_open(ms(5002)));
    }

    #[test]
    fn over_a_long_time_it_is_the_rate_exactly() {
        let mut bucket = TokenBucket::new(7);
        let (mut now, mut taken) = (Duration::ZERO, 0);
        while now < Duration::from_secs(100) {
            if bucket.is_open(now) {
                bucket.take(now, 1);
                taken += 1;
            }
            now += Duration::from_nanos(1_234_567);
        }
        assert!((7 * 100..=7 * 101 + 1).contains(&taken), "{taken}");
    }

    #[test]
    fn without_a_rate_all_is_counted_and_nothing_held() {
        let catch_up = CatchUp::new(None);
        catch_up.note(ms(0), 1 << 40);
        assert!(catch_up.may_ask(ms(0)));
        assert_eq!(catch_up.bytes(), 1 << 40);
        let catch_up = CatchUp::new(Some(10));
        catch_up.note(ms(0), 11);
        assert!(!catch_up.may_ask(ms(100)));
        assert!(catch_up.may_ask(ms(101)));
    }
}
