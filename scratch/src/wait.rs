//! Waiting for a condition of another process: the only clock and the only sleep of this crate.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};

/// The time that other processes have too, µs since 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "what other processes note is compared with it")]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Another process cannot wake us, so we look; 5 ms is below what starting one costs.
const PAUSE: Duration = Duration::from_millis(5);

/// Calls `condition` until it gives a value; `what` names it in the error.
///
/// # Errors
/// What `condition` fails with, at once; or that `what` did not come true within `limit`.
#[expect(
    clippy::disallowed_methods,
    reason = "the condition lies in another process, which offers nothing to wait on"
)]
pub fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(PAUSE);
    }
}
