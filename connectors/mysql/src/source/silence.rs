//! How long a server has said nothing, over any number of waits.
//!
//! Capture gives up a wait at every tick of its own, so a limit of one wait would never be reached
//! and a connection whose other end is gone without a word would hang for ever.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// Counts from when the server was last heard.
#[derive(Debug)]
pub(crate) struct Silence {
    limit: Duration,
    heard_at: Instant,
}

impl Silence {
    /// The server was heard now.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, heard_at: Instant::now() }
    }

    /// Waits for a sign of the server; `None` once it has been silent for too long. Cancel-safe.
    pub(crate) async fn end<T>(&mut self, sign: impl Future<Output = T>) -> Option<T> {
        // What has come while nobody waited counts first.
        let sign = timeout_at(self.heard_at + self.limit, sign).await.ok()?;
        self.heard_at = Instant::now();
        Some(sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_that_are_given_up_do_not_start_it_anew() {
        let mut silence = Silence::new(Duration::from_millis(100));
        let mut given_up = 0;
        let ended = loop {
            let wait = silence.end(std::future::pending::<()>());
            match tokio::time::timeout(Duration::from_millis(10), wait).await {
                Ok(ended) => break ended,
                Err(_elapsed) => given_up += 1,
            }
            assert!(given_up < 1000, "it never ends");
        };
        assert_eq!(ended, None);
        assert!(given_up > 0);
        assert_eq!(silence.end(std::future::ready(7)).await, Some(7));
        assert!(silence.heard_at.elapsed() < silence.limit);
    }
}
