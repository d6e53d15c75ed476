//! The whole system under one seed: capture, the log, apply and the client between them, as they
//! are, on one thread whose clock, network and disks are made up.
//!
//! ```text
//!   writers, readers ─┐                                ┌─ machine: Log ── disk that loses what is
//!   capture  ─────────┼── network that delays, cuts, ──┤                  not flushed
//!   apply    ─────────┘   breaks                       └─ …
//! ```
//!
//! A run is a [`Workload`] with a seed. While it works, `chaos` cuts power, ends processes, slows
//! disks and parts hosts; then everything heals, and an oracle says whether what was promised was
//! kept, and that the replicas of each partition are alike. Everything that depends on chance is
//! thrown from the seed, and the trace of what happened has a hash: the same seed is the same run.
//!
//! **One process runs one seed.** The system's random numbers (hash maps, ids, tokio's `select!`)
//! come from the seed too, by way of the process's `getrandom`; and tokio counts its runtimes. So
//! `main` runs one seed when it is given one, and itself once for each when it is given many.

mod chaos;
mod dice;
mod disk;
mod image;
mod machine;
mod mistaken;
mod network;
mod pipeline;
mod plant;
mod produce;
mod replicas;
mod trace;
mod wire;
mod world;

use std::time::Duration;

use clap::ValueEnum;
pub use plant::Plant;
pub use trace::Show;
use trace::Trace;
use world::World;

/// Simulated time after which a run is stuck.
const LIMIT: Duration = Duration::from_secs(1200);

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Producers and readers on topics.
    Produce,
    /// From a source through capture, log and apply to a target.
    Pipeline,
}

/// A run to be done.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// What.
    pub workload: Workload,
    /// How many log nodes there are.
    pub nodes: i32,
    /// With which seed.
    pub seed: u64,
    /// What is to be wrong.
    pub plant: Option<Plant>,
    /// How much of the trace is printed.
    pub show: Show,
}

/// A run that is done.
#[derive(Debug)]
pub struct Outcome {
    /// The trace's hash: the same for the same seed.
    pub hash: u64,
    /// Lines of the trace.
    pub lines: u64,
    /// What must not have happened.
    pub failure: Option<String>,
}

/// Does a run in the current folder, which must be empty.
///
/// # Errors
/// If there is no runtime.
pub fn run(order: Order) -> std::io::Result<Outcome> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let trace = Trace::new(order.show);
    let failure = runtime.block_on(async {
        let world = World::new(order, trace.clone());
        let working = async {
            match order.workload {
                Workload::Produce => produce::run(&world).await,
                Workload::Pipeline => pipeline::run(&world).await,
            }
        };
        tokio::select! {
            biased;
            failure = world.failed() => Some(failure),
            outcome = tokio::time::timeout(LIMIT, working) => {
                outcome.unwrap_or_else(|_| Err("the run does not end".into())).err()
            }
        }
    });
    let (hash, lines) = trace.hash();
    Ok(Outcome { hash, lines, failure })
}
