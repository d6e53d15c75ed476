//! `cargo xtask test`: every test, on a machine that had nothing prepared.

use std::path::Path;

use anyhow::{Context, Result, bail};
use tailwater_scratch::{Client, Flavor, Host, Kafka, SmallDisk};

use crate::{setup, shell};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The long tests too: ten million rows, a row of 200 MB, many more crashes. Takes hours, and
    /// 40 GB in the folder of temporary files.
    #[arg(long)]
    all: bool,
    /// Only name what is missing on this machine, install nothing.
    #[arg(long)]
    no_install: bool,
    /// For `cargo test`, behind `--`: a filter, or `-p PACKAGE`.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    setup::prepare(!arguments.no_install)?;
    require_servers()?;
    // Tests start the program as a process; `cargo test` builds it for its own package only.
    shell::cargo(root, &["build", "--workspace", "--bin", "tailwater"])?;
    let mut tests = shell::cargo_command(root);
    tests.args(["test", "--no-fail-fast"]);
    if !arguments.rest.iter().any(|argument| argument == "-p" || argument == "--package") {
        tests.arg("--workspace");
    }
    tests.args(&arguments.rest).env("TAILWATER_TEST_ALL", if arguments.all { "1" } else { "0" });
    let passed = shell::run(&mut tests);
    println!("{}", closing_line(&gaps(), arguments.all));
    passed.context("tests failed")
}

/// Stops before the first test if a server is missing without which the result means nothing.
fn require_servers() -> Result<()> {
    for flavor in Flavor::ALL.into_iter().filter(|flavor| flavor.required()) {
        if let Err(reason) = flavor.available() {
            bail!("{reason}");
        }
    }
    Ok(())
}

/// What this machine lacks and tests therefore went without: name and reason.
fn gaps() -> Vec<(String, String)> {
    let mut gaps: Vec<_> = Flavor::ALL
        .into_iter()
        .filter_map(|flavor| Some((flavor.to_string(), flavor.available().err()?)))
        .collect();
    if let Err(reason) = Kafka::available() {
        gaps.push(("kafka".to_owned(), reason));
    }
    for client in Client::ALL {
        if let Err(reason) = client.available() {
            gaps.push((format!("producers of {}", client.name()), reason));
        }
    }
    if let Err(reason) = Host::available() {
        gaps.push(("cut links".to_owned(), reason));
    }
    if let Err(reason) = SmallDisk::available() {
        gaps.push(("full disks".to_owned(), reason));
    }
    if shell::find("kcat").is_none() {
        gaps.push(("kcat".to_owned(), "not installed".to_owned()));
    }
    gaps
}

/// The one line at the end that says what was covered and what was not.
fn closing_line(gaps: &[(String, String)], all: bool) -> String {
    let lengths = if all { "long tests included" } else { "without the long tests (--all)" };
    if gaps.is_empty() {
        return format!("covered: every server, {lengths}; nothing left out for want of a server");
    }
    let gaps: Vec<String> = gaps.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    format!("not covered on this machine: {}; {lengths}", gaps.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_names_each_gap_with_its_reason_in_one_line() {
        let gaps = [("mysql".to_owned(), "no root".to_owned()), ("kafka".into(), "no java".into())];
        let line = closing_line(&gaps, false);
        assert!(line.contains("mysql (no root); kafka (no java)"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn the_closing_line_says_when_nothing_was_left_out() {
        assert!(closing_line(&[], true).contains("nothing left out"));
    }
}
