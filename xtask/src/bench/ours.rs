//! Our side of a measurement: a Tailwater that is started, watched and stopped.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tailwater_scratch::{Flavor, Tailwater};

use super::rows::PER_TRANSACTION;
use crate::admin;
use crate::clock::{Stop, now};

/// Between two looks at something in another process: little beside the seconds that are
/// measured, and much beside what a look costs the two cores.
const LOOK: Duration = Duration::from_millis(20);
/// After which a measurement is given up.
const LIMIT: Duration = Duration::from_secs(1_800);
/// Linux counts a process's time in these, whatever the machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is measured, and with what.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) binary: PathBuf,
    /// Transactions of [`PER_TRANSACTION`] rows per measurement.
    pub(crate) transactions: u64,
    pub(crate) rounds: u64,
    /// The server for the figures of MySQL.
    pub(crate) mysql: Flavor,
}

impl Bench {
    /// Rows per measurement.
    pub(crate) fn rows(&self) -> u64 {
        self.transactions * PER_TRANSACTION
    }

    /// A Tailwater that is configured and not yet started.
    pub(crate) fn tailwater(&self, sections: &str) -> Result<Tailwater> {
        Tailwater::prepare(&self.binary, sections)
    }
}

/// One measurement of our side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// User and system time of our process.
    pub(crate) cpu_seconds: f64,
    /// The most memory it ever had, in bytes.
    pub(crate) peak_memory: u64,
}

/// Starts `tailwater`, waits until `done`, and stops it: the time from start to done counts.
pub(crate) fn run(tailwater: &mut Tailwater, done: impl FnMut() -> Result<bool>) -> Result<Run> {
    let began = now();
    tailwater.start_again()?;
    let admin = tailwater.admin();
    let waited = until("our side", done).and_then(|()| stopped(&admin));
    let seconds = began.elapsed().as_secs_f64();
    let used = used(tailwater.pid().context("Tailwater does not run")?);
    let run = waited.and(used).map(|(cpu_seconds, peak_memory)| Run {
        seconds,
        cpu_seconds,
        peak_memory,
    });
    let run = run.with_context(|| format!("end of its log:\n{}", end_of(&tailwater.log())))?;
    tailwater.stop()?;
    Ok(run)
}

/// Starts `tailwater` for the first time, so that positions, slots and tables are there, and stops
/// it again.
pub(crate) fn begin(tailwater: &mut Tailwater, ready: impl FnMut() -> Result<bool>) -> Result<()> {
    run(tailwater, ready).map(drop)
}

/// Whether every source streams and every pipeline has begun to.
pub(crate) fn streaming(address: &str) -> Result<bool> {
    let status = admin::status(address)?;
    stopped(address)?;
    Ok(status.sources.iter().all(|source| source.state == "streaming")
        && status.pipelines.iter().all(|pipeline| pipeline.state == "streaming"))
}

/// Fails if anything has stopped: it would never be done.
fn stopped(address: &str) -> Result<()> {
    let status = admin::status(address)?;
    let sources = status.sources.iter().map(|it| (&it.name, &it.state, &it.error));
    let pipelines = status.pipelines.iter().map(|it| (&it.name, &it.state, &it.error));
    for (name, state, error) in sources.chain(pipelines) {
        if state == "stopped" {
            bail!("{name} has stopped: {}", error.as_deref().unwrap_or("no reason"));
        }
    }
    Ok(())
}

/// Waits until `done`.
///
/// # Errors
/// What it fails with, or that it took too long.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let (never, began): (Stop, Instant) = (Stop::default(), now());
    while !done()? {
        if began.elapsed() > LIMIT {
            bail!("{what}: not done within {LIMIT:?}");
        }
        never.wait_until(now() + LOOK);
    }
    Ok(())
}

/// Seconds that `done` takes to come true after `start`.
pub(crate) fn time(
    what: &str,
    start: impl FnOnce() -> Result<()>,
    done: impl FnMut() -> Result<bool>,
) -> Result<f64> {
    let began = now();
    start()?;
    until(what, done)?;
    Ok(began.elapsed().as_secs_f64())
}

/// CPU seconds and peak memory in bytes of a process so far.
pub(crate) fn used(pid: u32) -> Result<(f64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read a process's time")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read its memory")?;
    let cpu = stat_seconds(&stat, USER_TIME).context("no times in /proc/PID/stat")?;
    Ok((cpu, peak_memory(&status).context("no VmHWM in /proc/PID/status")?))
}

/// CPU seconds of all our children that have ended and been waited for.
pub(crate) fn children_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat").context("read our own times")?;
    stat_seconds(&stat, CHILDREN_TIME).context("no times in /proc/self/stat")
}

/// Of `pid (name) state …`, counted from the state: user time, followed by system time.
const USER_TIME: usize = 11;
/// And those of the children.
const CHILDREN_TIME: usize = 13;

fn stat_seconds(stat: &str, first: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(first);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn peak_memory(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn end_of(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 300 100 20 0 1 0 1 2 3";
        assert_eq!(stat_seconds(stat, USER_TIME), Some(3.0));
        assert_eq!(stat_seconds(stat, CHILDREN_TIME), Some(4.0));
        assert_eq!(stat_seconds("7 (a) S 1", USER_TIME), None);
    }

    #[test]
    fn peak_memory_is_in_bytes() {
        assert_eq!(peak_memory("VmPeak:\t  9 kB\nVmHWM:\t   2048 kB\n"), Some(2 << 20));
        assert_eq!(peak_memory("VmPeak:\t  9 kB\n"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let (_, memory) = used(std::process::id()).unwrap();
        assert!(memory > 0);
        assert!(children_seconds().unwrap() >= 0.0);
    }
}
