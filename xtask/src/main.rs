//! One-word commands for people and CI: `cargo xtask demo`, `test`, `sim`, `bench`, `check`,
//! `tidy`, `fmt`, `db`.
//!
//! A clean clone needs nothing else: `test` finds out what this machine lacks (`setup`), gets it
//! where it may, runs every test and says in its last line what it could not cover.
#![expect(clippy::print_stdout, reason = "a command line program talks to who typed it")]

mod admin;
mod bench;
mod check;
mod clock;
mod db;
mod demo;
mod session;
mod setup;
mod shell;
mod sim;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tailwater's commands for developers.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Three pipelines between scratch servers, under load, in a live table.
    Demo(demo::Arguments),
    /// Gets what the tests need, builds the binary, runs every test.
    Test(test::Arguments),
    /// The whole system under many seeds, or one.
    Sim(sim::Arguments),
    /// How fast, beside native replication and raw dumps.
    Bench(bench::Arguments),
    /// Format, lints, documentation, tidy, and the dependencies' licences and sources.
    Check(check::Arguments),
    /// The invariants of the tree: which crate may know which, file sizes, headers.
    Tidy,
    /// Formats every file.
    Fmt,
    /// Scratch servers to try things on.
    #[command(subcommand)]
    Db(db::Command),
}

fn main() -> ExitCode {
    let root = root();
    let done = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&root, &arguments),
        Command::Test(arguments) => test::run(&root, &arguments),
        Command::Sim(arguments) => sim::run(&root, &arguments),
        Command::Bench(arguments) => bench::run(&root, &arguments),
        Command::Check(arguments) => check::run(&root, &arguments),
        Command::Tidy => tidy::run(&root),
        Command::Fmt => shell::cargo(&root, &["fmt", "--all"]),
        Command::Db(command) => db::run(&command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace this program was called in.
fn root() -> PathBuf {
    root_of(std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from))
}

/// Of the package that cargo says it runs. Where this program was built says less: clones that share
/// a target folder share the program, too.
fn root_of(package: Option<PathBuf>) -> PathBuf {
    let package = package.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    package.parent().expect("xtask lies in the workspace").to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn it_works_on_the_clone_it_is_called_in() {
        let other = root_of(Some(PathBuf::from("/elsewhere/clone/xtask")));
        assert_eq!(other, Path::new("/elsewhere/clone"));
        let built = root_of(None);
        assert_eq!(Some(built.as_path()), Path::new(env!("CARGO_MANIFEST_DIR")).parent());
    }
}
