//! Data folders that are initialised once per machine and copied per server.
//!
//! `initdb` takes a second and MySQL's initialisation ten; a copy takes a fraction of one. A
//! template is named after the program that made it, appears whole or not at all (a rename under a
//! file lock), and is never changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::flavor::{Flavor, Programs, cache_dir, run};
use crate::folder::Folder;
use crate::{mysql, postgres};

/// Rises when what the initialisation does changes.
const RECIPE: u32 = 1;

/// Puts a fresh data folder at `data`.
pub(crate) fn copy_to(flavor: Flavor, programs: &Programs, data: &Path) -> Result<()> {
    let template = ensure(flavor, programs)?;
    copy(&template, data)
}

/// The template's place; makes it if this is the first server of its kind.
fn ensure(flavor: Flavor, programs: &Programs) -> Result<PathBuf> {
    let templates = cache_dir().join("templates");
    let name = format!("{}-r{RECIPE}", programs.identity()?);
    let template = templates.join(&name);
    if template.exists() {
        return Ok(template);
    }
    fs::create_dir_all(&templates).with_context(|| format!("make {}", templates.display()))?;
    let lock = File::create(templates.join(format!("{name}.lock")))?;
    lock.lock().context("wait for another process that initialises the same data folder")?;
    if template.exists() {
        return Ok(template);
    }
    initialise(flavor, programs, &template)
        .with_context(|| format!("initialise a data folder for {flavor}"))?;
    Ok(template)
}

/// Works in a scratch folder, because server users cannot enter a cache below `/root`.
fn initialise(flavor: Flavor, programs: &Programs, template: &Path) -> Result<()> {
    let folder = Folder::create("template", "KILL")?;
    let work = folder.path().join("work");
    fs::create_dir(&work)?;
    programs.hand_over(&work)?;
    if flavor.is_postgres() {
        postgres::initialise(programs, &work)?;
    } else {
        mysql::initialise(flavor, programs, &work)?;
    }
    let partial = template.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    copy(&work.join("data"), &partial)?;
    fs::rename(&partial, template).context("put the data folder in its place")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["-a", "--reflink=auto", "--sparse=always"]).arg(from).arg(to))
}
