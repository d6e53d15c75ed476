//! Time for the commands that show or measure it, and the order to stop.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Now.
#[expect(clippy::disallowed_methods, reason = "a demo and a bench show and measure real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What everything that goes on looks at: whether it is to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Stops at the first SIGINT or SIGTERM; at the second the process ends at once.
    ///
    /// # Errors
    /// If signals cannot be caught.
    pub(crate) fn at_signals() -> Result<Stop> {
        let stop = Stop::default();
        let mut signals = Signals::new([SIGINT, SIGTERM]).context("catch signals")?;
        let asked = stop.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                if asked.asked() {
                    std::process::exit(128 + signal);
                }
                asked.ask();
            }
        });
        Ok(stop)
    }

    /// Asks everything to end.
    pub(crate) fn ask(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether it is to end.
    pub(crate) fn asked(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `at`, or until everything is to end; says whether it is.
    pub(crate) fn wait_until(&self, at: Instant) -> bool {
        let (asked, changed) = &*self.0;
        let guard = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let left = at.saturating_duration_since(now());
        let waited = changed.wait_timeout_while(guard, left, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A duration as people write it: `30s`, `5m`, `500ms`.
///
/// # Errors
/// What to write instead.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write it as 30s, 5m or 500ms");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..unit_at].parse().map_err(|_| wrong())?;
    match &text[unit_at..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "30", "s", "-1s", "1h30", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_order_to_stop_ends_every_wait() {
        let stop = Stop::default();
        assert!(!stop.wait_until(now()));
        stop.ask();
        assert!(stop.wait_until(now() + Duration::from_secs(3600)));
    }
}
