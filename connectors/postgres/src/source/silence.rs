//! How long a server has said nothing, over any number of waits.
//!
//! Capture gives up a wait at every tick of its own, so a limit of one wait would never be reached.
//! PostgreSQL has nothing to say while nothing happens: it is asked before it is taken for dead, as
//! its own replicas do (`wal_receiver_timeout`).

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// Counts from when the server was last heard.
#[derive(Debug)]
pub(crate) struct Silence {
    /// Half of what is endured: after the first half the server is asked.
    half: Duration,
    until: Instant,
    asked: bool,
}

/// What a wait brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<T> {
    /// A sign of the server.
    Sign(T),
    /// Nothing yet: ask it for one.
    Ask,
    /// Nothing, although it was asked.
    Nothing,
}

impl Silence {
    /// The server was heard now.
    pub(crate) fn new(limit: Duration) -> Self {
        let half = limit / 2;
        Self { half, until: Instant::now() + half, asked: false }
    }

    /// Waits for a sign of the server. Cancel-safe.
    pub(crate) async fn end<T>(&mut self, sign: impl Future<Output = T>) -> Heard<T> {
        // What has come while nobody waited counts first.
        let sign = timeout_at(self.until, sign).await;
        if sign.is_err() && self.asked {
            return Heard::Nothing;
        }
        self.until = Instant::now() + self.half;
        self.asked = sign.is_err();
        sign.map_or(Heard::Ask, Heard::Sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_asked_before_it_is_given_up_however_often_waits_are() {
        let mut silence = Silence::new(Duration::from_millis(200));
        let (mut given_up, mut asked) = (0, 0);
        loop {
            let wait = silence.end(std::future::pending::<()>());
            match tokio::time::timeout(Duration::from_millis(10), wait).await {
                Ok(Heard::Sign(())) => unreachable!(),
                Ok(Heard::Ask) => asked += 1,
                Ok(Heard::Nothing) => break,
                Err(_elapsed) => given_up += 1,
            }
            assert!(given_up < 1000, "it never ends");
        }
        assert_eq!(asked, 1);
        assert!(given_up > 0);
        assert_eq!(silence.end(std::future::ready(7)).await, Heard::Sign(7));
        assert!(!silence.asked);
    }
}
