//! How to read a stream that comes in thousands of small pieces.
//!
//! The walsender writes every row to its socket by itself. Who always waits is woken for every
//! few hundred bytes, and on a machine that both share takes the time away from the server that it
//! waits for; everything behind, from the log's flushes to the target's commits, then comes in
//! small pieces, too. So while much comes we let it gather first: some milliseconds, the more the
//! more comes, and nothing at all while little comes.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Bytes in a millisecond for each millisecond of rest: some eight rows, eight system calls. Not
/// more: a server that gets too little of the machine because of us looks as if it had little to
/// say.
const MUCH_BYTES: u128 = 2 << 10;
/// The longest rest, in milliseconds: what comes meanwhile has room in the socket's buffers.
const LONGEST_MS: u128 = 5;
/// A read of this many was perhaps not all there is: the next follows at once.
const LARGE_BYTES: usize = 64 << 10;
/// How long it is counted before it is judged: long enough that one row is not a flood.
const WINDOW: Duration = Duration::from_millis(4);

/// Counts what comes.
#[derive(Debug)]
pub(crate) struct Pace {
    since: Instant,
    bytes: usize,
    /// After each read.
    rest: Duration,
    /// When the rest after the last read is over: waits that are given up do not make it longer.
    until: Instant,
}

impl Pace {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { since: now, bytes: 0, rest: Duration::ZERO, until: now }
    }

    /// Takes note of `bytes` that were read.
    pub(crate) fn note(&mut self, bytes: usize) {
        self.note_at(Instant::now(), bytes);
    }

    fn note_at(&mut self, now: Instant, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now - self.since;
        if elapsed >= WINDOW {
            let per_ms = self.bytes as u128 * 1000 / elapsed.as_micros();
            let rest = (per_ms / MUCH_BYTES).min(LONGEST_MS);
            self.rest = Duration::from_millis(u64::try_from(rest).unwrap_or_default());
            self.since = now;
            self.bytes = 0;
        }
        self.until = if bytes >= LARGE_BYTES { now } else { now + self.rest };
    }

    /// Lets more come, if much does. Cancel-safe.
    pub(crate) async fn rest(&self) {
        if !self.rest.is_zero() {
            sleep_until(self.until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_flood_is_gathered() {
        let mut pace = Pace::new();
        let mut now = pace.since;
        let mut after = |pace: &mut Pace, micros: u64, bytes: usize| {
            now += Duration::from_micros(micros);
            pace.note_at(now, bytes);
            !pace.rest.is_zero()
        };
        assert!(!after(&mut pace, 10, 1 << 20), "one large row is not judged at once");
        for _row in 0..1000 {
            after(&mut pace, 5, 250);
        }
        assert_eq!(pace.rest, Duration::from_millis(5), "200,000 rows a second");
        assert!(after(&mut pace, 4_000, 128 << 10), "it comes in larger pieces now");
        for _transaction in 0..10 {
            after(&mut pace, 1_000, 400);
        }
        assert!(pace.rest.is_zero(), "1,000 small transactions a second wait for nothing");
        assert!(!after(&mut pace, 10_000_000, 400), "nor does what comes after silence");
    }
}
