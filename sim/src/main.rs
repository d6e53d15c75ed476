//! Runs seeds: one in this process, or many, each in a process of its own.
#![expect(clippy::print_stdout, reason = "a command line program talks to who typed it")]

use std::collections::VecDeque;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, ValueEnum};
use rand_process::SeedableRng;
use tailwater_sim::{Order, Plant, Show, Workload};

/// The whole system under one seed.
#[derive(Debug, Parser)]
#[command(name = "tailwater-sim")]
struct Arguments {
    /// What is run.
    #[arg(long, value_enum, default_value = "produce")]
    workload: Workload,
    /// Log nodes: one alone, or a cluster of three.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=9))]
    nodes: i32,
    /// Runs this seed only, here, and shows what happens.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// With `--seed`: only how it ended.
    #[arg(long)]
    quiet: bool,
    /// With `--seed`: what is in each message, too.
    #[arg(long)]
    messages: bool,
    /// With `--seed`: what the program itself says too, as RUST_LOG would select it.
    #[arg(long)]
    logs: Option<String>,
    /// Runs so many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many at a time; as many as there are processors where it is not said.
    #[arg(long)]
    jobs: Option<usize>,
    /// Goes on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
    /// Something that is to be wrong, so that the oracle must see it.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.seed {
        Some(seed) => one(&arguments, seed),
        None => many(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether something has panicked: our own mistake, wherever it was caught.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Runs a seed in this process; whether what was promised was kept.
fn one(arguments: &Arguments, seed: u64) -> std::io::Result<bool> {
    mad_turmoil::rand::set_rng(rand_process::rngs::StdRng::seed_from_u64(seed));
    if let Some(filter) = &arguments.logs {
        let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false);
        subscriber.with_env_filter(filter).init();
    }
    let ours = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, Ordering::SeqCst);
        ours(panic);
    }));
    let shared_memory = std::path::Path::new("/dev/shm");
    let mut folders = tempfile::Builder::new();
    let folder = match folders.prefix("tailwater-sim-") {
        folders if shared_memory.is_dir() => folders.tempdir_in(shared_memory)?,
        folders => folders.tempdir()?,
    };
    // The same names in every run.
    std::env::set_current_dir(&folder)?;
    let show = match (arguments.quiet, arguments.messages) {
        (true, _) => Show::Nothing,
        (_, true) => Show::Messages,
        _ => Show::Lines,
    };
    let Arguments { workload, nodes, plant, .. } = arguments;
    let (workload, nodes, plant) = (*workload, *nodes, *plant);
    let order = Order { workload, nodes, seed, plant, show };
    let outcome = tailwater_sim::run(order)?;
    let panicked = PANICKED.load(Ordering::SeqCst).then(|| "something panicked".to_owned());
    let failure = panicked.or(outcome.failure);
    let how = failure.as_ref().map_or("ok".to_owned(), |failure| format!("FAILED: {failure}"));
    println!("seed {seed}: trace {:016x}, {} lines, {how}", outcome.hash, outcome.lines);
    Ok(failure.is_none())
}

/// Runs many seeds, each in a process of its own; whether all were well.
fn many(arguments: &Arguments) -> std::io::Result<bool> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = arguments.jobs.unwrap_or(processors);
    let mut running = VecDeque::new();
    let mut failed = Vec::new();
    let mut seeds = arguments.from..arguments.from.saturating_add(arguments.seeds);
    loop {
        while running.len() < jobs
            && (failed.is_empty() || arguments.keep_going)
            && let Some(seed) = seeds.next()
        {
            running.push_back((seed, start(arguments, seed)?));
        }
        let Some((seed, child)) = running.pop_front() else { break };
        let output = child.wait_with_output()?;
        if !output.status.success() {
            print!("{}{}", text(&output.stdout), text(&output.stderr));
            if !text(&output.stdout).starts_with("seed") {
                println!("seed {seed}: ended with {}", output.status);
            }
            failed.push(seed);
        }
    }
    match failed.first() {
        None => println!("{} seeds from {} on: ok", arguments.seeds, arguments.from),
        Some(seed) => {
            let workload = name_of(arguments.workload);
            let plant = arguments.plant.map(|plant| format!(" --plant {}", name_of(plant)));
            let plant = plant.unwrap_or_default();
            let nodes = arguments.nodes;
            println!("failed: {failed:?}; to see the first:");
            println!(
                "  cargo xtask sim --workload {workload} --seed {seed} -- --nodes {nodes}{plant}"
            );
        }
    }
    Ok(failed.is_empty())
}

fn start(arguments: &Arguments, seed: u64) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--quiet", "--workload", &name_of(arguments.workload)]);
    command.args(["--seed", &seed.to_string(), "--nodes", &arguments.nodes.to_string()]);
    if let Some(plant) = arguments.plant {
        command.args(["--plant", &name_of(plant)]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}
