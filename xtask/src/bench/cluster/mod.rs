//! Three nodes of ours beside three Apache Kafka brokers, one cluster running at a time.
//!
//! Both have the same settings and the same clients ([`load`]): a topic of six partitions, three
//! replicas, two of which must be in sync, records of 1 KiB, `acks=all`, idempotence. What an
//! acknowledgement means is a setting as well, so like is measured beside like, twice: *copied* to
//! every in-sync replica's memory, as Kafka comes, and *flushed* there, as ours comes.

mod elections;
mod load;
mod nodes;

use std::time::Duration;

use anyhow::{Context, Result};

use super::figures::{Figure, Goal, Values, count, median};
use super::ours::Bench;
use crate::clock::now;
use elections::Elections;
use load::{Latency, Load};
use nodes::{Durability, NODES, Nodes, Side};

const PARTITIONS: usize = 6;

/// Records a second of which latencies are measured, and for how long.
const RATE: u64 = 2_000;
const LATENCY_SECONDS: u64 = 12;

const WARM_UP_LIMIT: Duration = Duration::from_mins(2);

const RECORD_BYTES: f64 = 1024.0;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;

/// What one cluster showed.
#[derive(Debug)]
struct Measured {
    side: Side,
    /// Records written, in MiB/s.
    rate: f64,
    cpu_seconds_per_gib: f64,
    latency: Latency,
    /// Of the nodes together, up to here, in bytes.
    peak_memory: u64,
    elections: Elections,
}

/// With Kafka as it comes.
pub(crate) fn copied(bench: &Bench) -> Result<Vec<Figure>> {
    cluster(bench, Durability::Copied)
}

/// With Tailwater as it comes.
pub(crate) fn flushed(bench: &Bench) -> Result<Vec<Figure>> {
    cluster(bench, Durability::Flushed)
}

fn cluster(bench: &Bench, durability: Durability) -> Result<Vec<Figure>> {
    Load::prepare()?;
    let mut all = Vec::new();
    for round in 0..bench.rounds {
        for turn in 0..2 {
            let side = if (round + turn) % 2 == 0 { Side::Kafka } else { Side::Ours };
            let measured = measure(bench, side, durability)
                .with_context(|| format!("{side:?}, {}", durability.name()))?;
            println!("  round {}: {}", round + 1, measured.line(durability));
            all.push(measured);
        }
    }
    Ok(figures(durability, &all))
}

fn measure(bench: &Bench, side: Side, durability: Durability) -> Result<Measured> {
    let mut nodes = Nodes::start(side, durability, &bench.binary)?;
    let mut load = Load::start(&nodes.servers())?;
    load.make_topic(PARTITIONS, NODES)?;
    let records = bench.rows();
    warm_up(&mut load, records / 4)?;
    let before = nodes.used()?;
    let seconds = load.produce(records)?;
    let after = nodes.used()?;
    let bytes = count(records) * RECORD_BYTES;
    load.latency(RATE, LATENCY_SECONDS / 2)?;
    let latency = load.latency(RATE, LATENCY_SECONDS)?;
    let peak_memory = nodes.used()?.peak_memory;
    let elections = elections::measure(&mut nodes, &mut load)?;
    Ok(Measured {
        side,
        rate: bytes / MIB / seconds,
        cpu_seconds_per_gib: (after.cpu_seconds - before.cpu_seconds) * GIB / bytes,
        latency,
        peak_memory,
        elections,
    })
}

/// Writes `records` again and again, until that becomes no faster: JVMs compile what they run often,
/// and with few cores that takes its time.
fn warm_up(load: &mut Load, records: u64) -> Result<()> {
    let (began, mut best, mut no_faster) = (now(), f64::INFINITY, 0);
    while no_faster < 2 && began.elapsed() < WARM_UP_LIMIT {
        let seconds = load.produce(records)?;
        no_faster = if seconds > best * 0.95 { no_faster + 1 } else { 0 };
        best = best.min(seconds);
    }
    Ok(())
}

impl Measured {
    fn line(&self, durability: Durability) -> String {
        format!(
            "{}, {}: {:.1} MiB/s, {:.2} s CPU/GiB, p50 {:.1} ms p99 {:.1} ms longest {:.1} ms, \
             {} MiB, written again after {}",
            match self.side {
                Side::Ours => "Tailwater",
                Side::Kafka => "Kafka",
            },
            durability.name(),
            self.rate,
            self.cpu_seconds_per_gib,
            self.latency.p50,
            self.latency.p99,
            self.latency.longest,
            self.peak_memory >> 20,
            self.elections,
        )
    }
}

fn figures(durability: Durability, all: &[Measured]) -> Vec<Figure> {
    let of = |side: Side| -> Vec<&Measured> { all.iter().filter(|it| it.side == side).collect() };
    let (ours, kafka) = (of(Side::Ours), of(Side::Kafka));
    let both = |pick: &dyn Fn(&Measured) -> f64| {
        let middle = |side: &[&Measured]| median(side.iter().map(|it| pick(it)));
        (middle(&ours), middle(&kafka))
    };
    let peak_memory = ours.iter().map(|it| it.peak_memory).max().unwrap_or(0);
    let cpu_seconds = both(&|it| it.cpu_seconds_per_gib).0;
    let figure = |name: String, unit: &str, pick: &dyn Fn(&Measured) -> f64, goal: GoalOf| {
        let (our, their) = both(pick);
        let ratio = our / their;
        let values = Values {
            ours: format!("{our:.2} {unit}"),
            beside: format!("Kafka {their:.2} {unit}"),
            score: ratio,
            unit: " x",
            goal: goal(),
            peak_memory,
            cpu_seconds,
        };
        Figure { name: format!("{name}, {}", durability.name()), values: Some(values) }
    };
    let sessions = match durability {
        Durability::Copied => "Kafka's sessions 9 s",
        Durability::Flushed => "sessions 2 s",
    };
    vec![
        figure("produce, acks=all".into(), "MiB/s", &|it| it.rate, more),
        figure("CPU of the nodes".into(), "s/GiB", &|it| it.cpu_seconds_per_gib, less),
        figure(format!("end to end, {RATE}/s, p50"), "ms", &|it| it.latency.p50, less),
        figure(format!("end to end, {RATE}/s, p99"), "ms", &|it| it.latency.p99, less),
        figure("memory of the nodes".into(), "MiB", &|it| count(it.peak_memory) / MIB, less),
        figure(
            format!("leader killed, {sessions}"),
            "s",
            &|it| median(it.elections.leader.iter().copied()),
            half,
        ),
        figure(
            format!("leader and controller killed, {sessions}"),
            "s",
            &|it| median(it.elections.controller.iter().copied()),
            half,
        ),
        figure(format!("longest of both, {sessions}"), "s", &|it| it.elections.longest(), half),
    ]
}

type GoalOf = fn() -> Goal;

fn more() -> Goal {
    Goal::times(1.0, 1.5)
}

fn less() -> Goal {
    Goal::at_most(1.0, 1.0)
}

fn half() -> Goal {
    Goal::at_most(1.0, 0.5)
}
