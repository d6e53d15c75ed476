//! `cargo xtask sim`: the whole system under many seeds, or once more under the one that failed.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{clock, shell};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// `produce`: producers and readers; `pipeline`: from a source to a target.
    #[arg(long, default_value = "produce")]
    workload: String,
    /// Runs so many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Runs this one only, and shows all that happens.
    #[arg(long)]
    seed: Option<u64>,
    /// For the simulator itself, behind `--`; `-- --help` lists it.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    shell::cargo(root, &["build", "--package", "tailwater-sim"])?;
    let mut command = shell::cargo_command(root);
    command.args(["run", "--quiet", "--package", "tailwater-sim", "--"]);
    command.args(["--workload", &arguments.workload]);
    match arguments.seed {
        Some(seed) => command.args(["--seed".to_owned(), seed.to_string()]),
        None => command.args([
            "--seeds".to_owned(),
            arguments.seeds.to_string(),
            "--from".to_owned(),
            arguments.from.to_string(),
        ]),
    };
    command.args(&arguments.rest);
    let began_at = clock::now();
    shell::run(&mut command).context("the simulator has found something")?;
    if arguments.seed.is_none() {
        let seconds = began_at.elapsed().as_secs_f64();
        let rate = f64::from(u32::try_from(arguments.seeds).unwrap_or(u32::MAX)) / seconds;
        println!("{rate:.0} seeds per second");
    }
    Ok(())
}
