//! `cargo xtask demo`: real databases, kept equal while both are written to, for a person to watch.
//!
//! ```text
//! missing packages → build → servers and sample rows → Tailwater → live table → wait → verify
//! ```
//!
//! One Tailwater process runs three pipelines. Customers go on ordering on the sources while the
//! first snapshot runs; readers look at the targets for half a transaction from the moment a
//! pipeline is `streaming`. At the end nobody writes any more and `tailwater verify` compares.
//! Everything lies in temporary folders and goes with this process, however it ends.

mod pairs;
mod screen;
mod shop;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tailwater_scratch::{Flavor, Ran, Tailwater};

use crate::admin::{self, Metrics, Status};
use crate::clock::{Stop, duration, now};
use crate::{setup, shell};
use pairs::Pair;
use screen::{Row, Screen, thousands};
use writer::Worker;

/// How often the table is drawn.
const LOOK: Duration = Duration::from_secs(1);
/// Looks that a rate or a latency is taken over.
const RATE_LOOKS: usize = 2;
const LATENCY_LOOKS: usize = 10;
/// Looks after which a pipeline that streams has done what had waited for its snapshot.
const SETTLED_LOOKS: usize = 4;
/// A loaded machine may be behind when the writing ends.
const WAIT_LIMIT: &str = "300s";

const LATENCY: &str = "tailwater_apply_commit_latency_seconds";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Ends by itself after this long, as 30s or 5m; without it Ctrl-C ends it.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    end_after: Option<Duration>,
    /// Only name what is missing on this machine, install nothing.
    #[arg(long)]
    no_install: bool,
    /// Build with all optimisations first.
    ///
    /// The demo writes a few thousand rows a second, which the development build carries as well,
    /// and that build shares what it compiles with this command and with `cargo xtask test`: on a
    /// clean clone it is there in a fraction of the time.
    #[arg(long, conflicts_with = "binary")]
    release: bool,
    /// Shows this program instead of building one.
    #[arg(long)]
    binary: Option<PathBuf>,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    setup::servers(!arguments.no_install)?;
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => build(root, arguments.release)?,
    };
    let stop = Stop::at_signals()?;
    println!("starting two PostgreSQL and two MariaDB servers in temporary folders");
    let began = now();
    let pairs = match pairs::start() {
        // Ctrl-C reaches the clients that load, too.
        Err(_) if stop.asked() => return Ok(()),
        started => started?,
    };
    println!(
        "loaded {} rows of a sample order system in {:.1} s",
        thousands(shop::ROWS * u64::try_from(pairs.len())?),
        began.elapsed().as_secs_f64()
    );
    let mut tailwater = Tailwater::start(&binary, &pairs::configuration(&pairs))?;
    introduce(&pairs, &tailwater);
    let watched = watch(&pairs, &tailwater, &stop, arguments.end_after);
    let verified = watched.and_then(|()| verify(&pairs, &tailwater));
    let stopped = tailwater.stop();
    verified.and(stopped.context("stop Tailwater"))
}

fn build(root: &Path, release: bool) -> Result<PathBuf> {
    println!(
        "building Tailwater{} (some minutes, the first time)",
        if release { ", optimised" } else { "" }
    );
    shell::tailwater(root, if release { "release" } else { "dev" })
}

/// What there is to look at besides the table.
fn introduce(pairs: &[Pair], tailwater: &Tailwater) {
    println!("\n  dashboard   http://{}/", tailwater.admin());
    println!("  metrics     http://{}/metrics", tailwater.admin());
    println!("  log         kcat -b {} -L      (Kafka protocol)", tailwater.brokers());
    println!("  settings    {}", tailwater.config().display());
    for pair in pairs {
        println!("  {:<15} {}  →  {}", pair.name, pair.from.url(), pair.to.url());
    }
    println!();
}

/// Writes and shows until the time is over or someone says so.
fn watch(
    pairs: &[Pair],
    tailwater: &Tailwater,
    stop: &Stop,
    end_after: Option<Duration>,
) -> Result<()> {
    let mut show = Show::start(pairs, stop)?;
    let (mut screen, began) = (Screen::new(), now());
    let mut next = began;
    let shown: Result<()> = loop {
        let drawn = show.look(&tailwater.admin()).and_then(|rows| {
            screen.draw(began.elapsed(), end_after, &rows).context("draw the table")
        });
        if drawn.is_err() || end_after.is_some_and(|end| began.elapsed() >= end) {
            break drawn;
        }
        next += LOOK;
        if stop.wait_until(next) {
            break Ok(());
        }
    };
    stop.ask();
    show.end().and(shown)
}

/// The pipelines, who works on them, and what was last seen of them.
struct Show<'a> {
    stop: &'a Stop,
    pairs: Vec<Shown<'a>>,
}

struct Shown<'a> {
    pair: &'a Pair,
    writer: Worker,
    /// From the moment the pipeline streams.
    reader: Option<Worker>,
    /// How often it was seen to stream.
    streaming_looks: usize,
    seen: VecDeque<Seen>,
}

/// One look at a pipeline.
struct Seen {
    at: Instant,
    written: u64,
    applied: u64,
    latency: Vec<(f64, f64)>,
}

impl<'a> Show<'a> {
    fn start(pairs: &'a [Pair], stop: &'a Stop) -> Result<Show<'a>> {
        let shown = |pair| {
            let writer = Worker::write(pair, stop)?;
            Ok(Shown { pair, writer, reader: None, streaming_looks: 0, seen: VecDeque::new() })
        };
        Ok(Show { stop, pairs: pairs.iter().map(shown).collect::<Result<_>>()? })
    }

    fn look(&mut self, admin: &str) -> Result<Vec<Row>> {
        let (status, metrics) = (admin::status(admin)?, admin::metrics(admin)?);
        self.pairs.iter_mut().map(|shown| shown.look(&status, &metrics, self.stop)).collect()
    }

    /// Joins everyone who works; the first failure is the demo's.
    fn end(self) -> Result<()> {
        let mut ended = Ok(());
        for shown in self.pairs {
            let written = shown.writer.join().with_context(|| shown.pair.name).map(drop);
            let looked = shown.reader.map_or(Ok(()), |reader| reader.join().map(drop));
            ended = ended.and(written).and(looked);
        }
        ended
    }
}

impl Shown<'_> {
    fn look(&mut self, status: &Status, metrics: &Metrics, stop: &Stop) -> Result<Row> {
        let name = self.pair.name;
        let pipeline = status.pipelines.iter().find(|pipeline| pipeline.name == name);
        let pipeline = pipeline.with_context(|| format!("no pipeline {name} in the status"))?;
        let source = status.sources.iter().find(|source| source.name == pipeline.source);
        if pipeline.state == "streaming" && self.reader.is_none() && !stop.asked() {
            self.reader = Some(Worker::look(self.pair, stop)?);
        }
        self.streaming_looks += usize::from(pipeline.state == "streaming");
        if self.streaming_looks == SETTLED_LOOKS {
            self.seen.clear();
        }
        self.seen.push_back(Seen {
            at: now(),
            written: self.writer.count(),
            applied: pipeline.rows_applied,
            latency: metrics.histogram(LATENCY, &format!("pipeline=\"{name}\"")),
        });
        if self.seen.len() > LATENCY_LOOKS + 1 {
            self.seen.pop_front();
        }
        let error = pipeline.error.clone().or_else(|| source.and_then(|it| it.error.clone()));
        // A source that has stopped says more than a pipeline that waits for it.
        let source_stopped = source.is_some_and(|source| source.state == "stopped");
        let state = if source_stopped { "stopped" } else { &pipeline.state };
        Ok(Row {
            name,
            steady: self.streaming_looks > SETTLED_LOOKS,
            state: state.to_owned(),
            written: self.rate(|seen| seen.written),
            applied: self.rate(|seen| seen.applied),
            lag_seconds: pipeline.lag_seconds,
            p50: self.latency(0.5),
            p99: self.latency(0.99),
            rows: pipeline.rows_applied,
            looks: self.reader.as_ref().map(Worker::count),
            error,
        })
    }

    fn rate(&self, count: impl Fn(&Seen) -> u64) -> f64 {
        let before = self.seen.iter().rev().nth(RATE_LOOKS).or_else(|| self.seen.front());
        let (Some(before), Some(last)) = (before, self.seen.back()) else { return 0.0 };
        let seconds = (last.at - before.at).as_secs_f64();
        // After a restart of the pipeline it counts from 0 again.
        let rows = count(last).saturating_sub(count(before));
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        if seconds > 0.0 { f64::from(rows) / seconds } else { 0.0 }
    }

    /// None for MariaDB's sources: its binlog tells the whole second of a commit, not more.
    fn latency(&self, rank: f64) -> Option<f64> {
        if self.pair.from.server.flavor() == Flavor::MariaDb {
            return None;
        }
        let (first, last) = (self.seen.front()?, self.seen.back()?);
        admin::quantile(&first.latency, &last.latency, rank)
    }
}

/// What `tailwater verify --json` prints.
#[derive(Debug, Deserialize)]
struct Answer {
    message: String,
    verdict: Option<Verdict>,
}

#[derive(Debug, Deserialize)]
struct Verdict {
    rows: u64,
    tables: u64,
    different: u64,
    differences: Vec<Difference>,
}

#[derive(Debug, Deserialize)]
struct Difference {
    table: String,
    key: String,
    target: String,
}

/// Compares every pair, all at once; each says what came of it as soon as it is known.
fn verify(pairs: &[Pair], tailwater: &Tailwater) -> Result<()> {
    println!("\n  The writing has ended. Comparing every row of source and target:\n");
    let failed: Vec<&str> = thread::scope(|scope| {
        let verifying: Vec<_> = pairs
            .iter()
            .map(|pair| (pair.name, scope.spawn(|| say_verdict(pair, tailwater))))
            .collect();
        // A comparison that panicked has shown nothing.
        let equal = verifying.into_iter().map(|(name, one)| (name, one.join().unwrap_or(false)));
        equal.filter_map(|(name, equal)| (!equal).then_some(name)).collect()
    });
    println!();
    if !failed.is_empty() {
        bail!("not shown to be equal: {}", failed.join(", "));
    }
    Ok(())
}

/// Whether a pair was found equal.
fn say_verdict(pair: &Pair, tailwater: &Tailwater) -> bool {
    let verdict = verdict(pair, tailwater);
    match &verdict {
        Ok(text) => println!("  \u{2713} {:<14} {text}", pair.name),
        Err(error) => println!("  \u{2717} {:<14} {error:#}", pair.name),
    }
    verdict.is_ok()
}

fn verdict(pair: &Pair, tailwater: &Tailwater) -> Result<String> {
    tailwater.wait_for(pair.name, WAIT_LIMIT)?;
    let began = now();
    let ran = tailwater.command(&["verify", "--json", "--pipeline", pair.name])?;
    let text = judged(&ran)?;
    Ok(format!("{text} ({:.1} s)", began.elapsed().as_secs_f64()))
}

/// What a run of `verify` says; an error unless it found both sides equal.
fn judged(ran: &Ran) -> Result<String> {
    let answer: Answer = serde_json::from_str(&ran.out)
        .with_context(|| format!("verify did not answer: {} {}", ran.out, ran.err))?;
    let Some(verdict) = answer.verdict else { bail!("could not compare: {}", answer.message) };
    if ran.code == Some(0) && verdict.different == 0 {
        let (rows, tables) = (thousands(verdict.rows), verdict.tables);
        return Ok(format!("equal: {rows} rows of {tables} tables"));
    }
    let listed: Vec<String> = verdict
        .differences
        .iter()
        .map(|difference| {
            format!("{} {}: {} on the target", difference.table, difference.key, difference.target)
        })
        .collect();
    bail!("{} of {} rows differ: {}", verdict.different, verdict.rows, listed.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(code: i32, out: &str) -> Ran {
        Ran { code: Some(code), out: out.to_owned(), err: String::new() }
    }

    #[test]
    fn only_a_verdict_without_differences_is_equal() {
        let equal = r#"{"exit":0,"message":"","verdict":{"rows":1200,"tables":4,"different":0,"differences":[]}}"#;
        assert_eq!(judged(&ran(0, equal)).unwrap(), "equal: 1,200 rows of 4 tables");
        assert!(judged(&ran(1, equal)).is_err());
        let different = r#"{"exit":1,"message":"","verdict":{"rows":3,"tables":1,"different":1,
            "differences":[{"table":"public.orders","key":"id=7","target":"missing"}]}}"#;
        let text = judged(&ran(1, different)).unwrap_err().to_string();
        assert!(text.contains("public.orders id=7: missing on the target"), "{text}");
    }

    #[test]
    fn a_comparison_that_could_not_be_made_says_why() {
        let text = judged(&ran(2, r#"{"exit":2,"message":"paused"}"#)).unwrap_err().to_string();
        assert!(text.contains("paused"), "{text}");
        assert!(judged(&ran(101, "")).is_err());
    }
}
