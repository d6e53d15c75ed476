//! `cargo xtask check`: everything that is wrong without a test having to run.
//!
//! Every step runs, whatever became of the one before: one call shows all there is to repair.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{shell, tidy};

pub(crate) fn run(root: &Path) -> Result<()> {
    let steps: [(&str, Result<()>); 4] = [
        ("fmt", shell::cargo(root, &["fmt", "--all", "--check"])),
        ("clippy", clippy(root)),
        ("doc", doc(root)),
        ("tidy", tidy::run(root)),
    ];
    let mut results = Vec::from(steps);
    let deny = shell::find("cargo-deny").is_some();
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
             (deny.toml): `cargo install --locked cargo-deny` gets what it takes"
        );
    }
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join(", "));
    }
    println!("check: all is well");
    Ok(())
}

fn clippy(root: &Path) -> Result<()> {
    shell::cargo(root, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
}

fn doc(root: &Path) -> Result<()> {
    let mut command = shell::cargo_command(root);
    command.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    shell::run(&mut command)
}
