//! How to read a stream that comes in thousands of small pieces.
//!
//! The walsender writes every row to its socket by itself. Who always waits is woken for every
//! few hundred bytes, and on a machine that both share takes the time away from the server that it
//! waits for. So while much comes we let it gather first: a millisecond, which is little beside the
//! flush of the log that follows, and nothing at all while little comes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// What is gathered for, once much comes: the clock's own step.
const REST: Duration = Duration::from_millis(1);
/// Bytes in each [`REST`] that are much: some eight rows, eight system calls. Not more: where the
/// server gets too little of the machine because of us, it must not look as if it had little to say.
const MUCH_BYTES: usize = 2 << 10;
/// How long it is counted before it is judged: long enough that one row is not a flood.
const WINDOW: Duration = Duration::from_millis(4);

/// Counts what comes.
#[derive(Debug)]
pub(crate) struct Pace {
    since: Instant,
    bytes: usize,
    much: bool,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now(), bytes: 0, much: false }
    }

    /// Takes note of `bytes` that were read.
    pub(crate) fn note(&mut self, bytes: usize) {
        self.note_at(Instant::now(), bytes);
    }

    fn note_at(&mut self, now: Instant, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        let elapsed = now - self.since;
        if elapsed >= WINDOW {
            let rests = usize::try_from(elapsed.as_micros() / REST.as_micros());
            self.much = self.bytes / MUCH_BYTES >= rests.unwrap_or(usize::MAX);
            self.since = now;
            self.bytes = 0;
        }
    }

    /// Lets more come, if much does. Cancel-safe.
    pub(crate) async fn rest(&self) {
        if self.much {
            sleep(REST).await;
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
            pace.much
        };
        assert!(!after(&mut pace, 10, 1 << 20), "one large row is not judged at once");
        for _row in 0..1000 {
            after(&mut pace, 5, 250);
        }
        assert!(pace.much, "200,000 rows a second");
        assert!(after(&mut pace, 4_000, 128 << 10), "it comes in larger pieces now");
        for _transaction in 0..10 {
            after(&mut pace, 1_000, 400);
        }
        assert!(!pace.much, "1,000 small transactions a second wait for nothing");
        assert!(!after(&mut pace, 10_000_000, 400), "nor does what comes after silence");
    }
}
