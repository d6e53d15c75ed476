//! `cargo xtask check`: everything that is wrong without a test having to run.
//!
//! Every step runs, whatever became of the one before: one call shows all there is to repair.
//!
//! Warnings fail it, as far as somebody could have heeded them: those of a compiler newer than the
//! tree's `rust-version` are shown and no more (`docs/decisions/0006`).

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{setup, shell, tidy};

/// The compiler whose warnings this tree heeds.
const RUST_VERSION: &str = env!("CARGO_PKG_RUST_VERSION");

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only name what is missing on this machine, install nothing.
    #[arg(long)]
    no_install: bool,
}

pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    let deny = setup::cargo_deny(root, !arguments.no_install);
    let strict = heeds_warnings_of(&rustc_version(root)?);
    if !strict {
        println!("a compiler newer than {RUST_VERSION}: its warnings do not fail this check");
    }
    let steps: [(&str, Result<()>); 4] = [
        ("fmt", shell::cargo(root, &["fmt", "--all", "--check"])),
        ("clippy", clippy(root, strict)),
        ("doc", doc(root, strict)),
        ("tidy", tidy::run(root)),
    ];
    let mut results = Vec::from(steps);
    if deny {
        let check = shell::cargo(root, &["deny", "check", "bans", "licenses", "sources"]);
        results.push(("deny", check));
    }
    let mut failed = Vec::new();
    for (name, result) in results {
        if let Err(error) = result {
            println!("{name}: {error:#}");
            failed.push(name);
        }
    }
    if !deny {
        println!(
            "not checked: licences, sources and versions of dependencies \
             (deny.toml): `{}` gets what it takes",
            setup::CARGO_DENY.join(" ")
        );
    }
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join(", "));
    }
    println!("check: all is well");
    Ok(())
}

fn clippy(root: &Path, strict: bool) -> Result<()> {
    let mut command = shell::cargo_command(root);
    command.args(["clippy", "--workspace", "--all-targets"]);
    if strict {
        command.args(["--", "-D", "warnings"]);
    }
    shell::run(&mut command)
}

fn doc(root: &Path, strict: bool) -> Result<()> {
    let mut command = shell::cargo_command(root);
    command.args(["doc", "--workspace", "--no-deps"]);
    if strict {
        command.env("RUSTDOCFLAGS", "-D warnings");
    }
    shell::run(&mut command)
}

/// What `rustc --version` says here.
fn rustc_version(root: &Path) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = std::process::Command::new(rustc);
    let output = command.arg("--version").current_dir(root).output().context("start rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the compiler is none that came after this tree. One that cannot be read is taken at its
/// word.
fn heeds_warnings_of(version: &str) -> bool {
    let minor = |version: &str| version.split('.').nth(1)?.parse::<u32>().ok();
    let number = version.split_whitespace().nth(1).and_then(minor);
    number.zip(minor(RUST_VERSION)).is_none_or(|(here, ours)| here <= ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_a_newer_compiler_do_not_fail_the_check() {
        let (_, minor) = RUST_VERSION.split_once('.').unwrap();
        let minor: u32 = minor.parse().unwrap();
        let version = |minor: u32| format!("rustc 1.{minor}.0 (59807616e 2026-04-14)\n");
        assert!(heeds_warnings_of(&version(minor)));
        assert!(heeds_warnings_of(&version(minor - 1)));
        assert!(!heeds_warnings_of(&version(minor + 1)));
        assert!(heeds_warnings_of("something else"));
    }
}
