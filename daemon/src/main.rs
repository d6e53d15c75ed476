//! `tailwater`: the whole program on one screen.
//!
//! ```text
//! sources ─► capture ─► log ─► apply ─► targets
//! ```
//!
//! `run` wires the roles that the configuration names and ends them in order; every other command
//! asks a running process, but for `check`, which tries what `run` would need, and `cluster`, which
//! asks the nodes of the log.

mod admin;
mod app;
mod check;
mod cli;
mod cluster;
mod config;
mod connectors;
mod limits;
mod memory;
mod metrics;
mod remote;
mod run;
mod schema_api;
mod schemas;
mod tail;
mod text;
mod verify;
mod wait;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use remote::Remote;
use text::complain;

/// The exit code of a command that could not do what it was asked.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match execute(command) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("tailwater: {error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(file) => {
            if let Err(error) = memory::settle() {
                complain(&format!("tailwater: large rows may leave memory in use: {error}"));
            }
            run::run(&file.config)
        }
        Command::Check(file) => check::check(&file.config),
        Command::Status { process, json } => Remote::find(&process)?.status(json),
        Command::Wait { process, pipeline, timeout } => {
            Remote::find(&process)?.wait(&pipeline, timeout)
        }
        Command::Verify { process, pipeline, json } => {
            Remote::find(&process)?.verify(&pipeline, json)
        }
        Command::Tail { process, source, from, limit } => {
            Remote::find(&process)?.tail(&source, &from, limit)
        }
        Command::Pause(named) => {
            Remote::find(&named.process)?.act(&format!("{}/pause", named.role.path()))
        }
        Command::Resume(named) => {
            Remote::find(&named.process)?.act(&format!("{}/resume", named.role.path()))
        }
        Command::Skip { process, pipeline, place } => {
            // `#` and `@` have a meaning in URLs.
            let place = place.replace('#', "%23").replace('@', "%40").replace('/', "%2F");
            Remote::find(&process)?.act(&format!("pipelines/{pipeline}/skip?place={place}"))
        }
        Command::Resync { process, source } => {
            Remote::find(&process)?.act(&format!("sources/{source}/resync"))
        }
        Command::Cluster(command) => cluster::run(command),
        Command::Detach { process, pipeline } => {
            Remote::find(&process)?.act(&format!("pipelines/{pipeline}/detach"))
        }
    }
}
