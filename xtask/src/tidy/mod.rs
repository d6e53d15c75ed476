//! `cargo xtask tidy`: what the tree promises about itself and the compiler cannot check.
//!
//! `arrows` holds the invariants of the design about which crate may know which, `manifests` the
//! rules for `Cargo.toml` files, `sources` those for source files. Each is a table and a pure
//! function from what was read here to violations, with tests that plant one of every kind.

mod arrows;
mod manifests;
mod sources;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::shell;

/// Something that is not as it should be, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    /// File or package.
    place: String,
    message: String,
}

impl Violation {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Violation {
        Violation { place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// A member of the workspace, as `cargo metadata` tells it.
#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `None` for one of the built crate; else `dev` or `build`.
    kind: Option<String>,
}

/// A file of the tree; `path` from the workspace's root on, with `/`.
#[derive(Debug)]
struct File {
    path: String,
    text: String,
}

/// Prints every violation in the workspace at `root` and fails if there is one.
pub(crate) fn run(root: &Path) -> Result<()> {
    let violations = check(root)?;
    for violation in &violations {
        println!("{violation}");
    }
    if !violations.is_empty() {
        bail!("tidy: {} violations", violations.len());
    }
    println!("tidy: all is well");
    Ok(())
}

fn check(root: &Path) -> Result<Vec<Violation>> {
    let packages = packages(root)?;
    let mut violations = arrows::check(&packages);
    let mut files = Vec::new();
    for package in &packages {
        let manifest = read(root, &package.manifest_path)?;
        violations.extend(manifests::check(&manifest)?);
        let folder = package.manifest_path.parent().context("a manifest lies in a folder")?;
        collect_sources(root, folder, &mut files)?;
    }
    violations.extend(sources::check(&files));
    Ok(violations)
}

fn packages(root: &Path) -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let output = shell::cargo_command(root)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    Ok(metadata.packages)
}

fn collect_sources(root: &Path, folder: &Path, files: &mut Vec<File>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            let other_package = path.join("Cargo.toml").exists();
            if name != "target" && !name.starts_with('.') && !other_package {
                collect_sources(root, &path, files)?;
            }
        } else if name.ends_with(".rs") {
            files.push(read(root, &path)?);
        }
    }
    Ok(())
}

fn read(root: &Path, path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let path = path.strip_prefix(root).unwrap_or(path).display().to_string();
    Ok(File { path, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_is_tidy() {
        let violations = check(&crate::root()).unwrap();
        let lines: Vec<String> = violations.iter().map(Violation::to_string).collect();
        assert!(lines.is_empty(), "\n{}", lines.join("\n"));
    }

    /// A workspace whose `log` knows what a change is, in a crate without lints and header.
    #[test]
    fn a_tree_with_planted_violations_is_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "Cargo.toml",
            "[workspace]\nresolver = \"3\"\nmembers = [\"log\", \"change\"]\n\
             [workspace.package]\nversion = \"0.0.0\"\n",
        );
        let package = |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\n");
        write("change/Cargo.toml", &package("tailwater-change"));
        write("change/src/lib.rs", "//! A header.\nuse std::fs;\n");
        let dependency = "[dependencies]\ntailwater-change = { path = \"../change\" }\n";
        write("log/Cargo.toml", &(package("tailwater-log") + dependency));
        write("log/src/lib.rs", "pub struct NoHeader;\n");

        let lines: Vec<String> =
            check(root.path()).unwrap().iter().map(Violation::to_string).collect();
        let all = lines.join("\n");
        assert!(all.contains("tailwater-log: may not depend on tailwater-change"), "{all}");
        assert!(all.contains("log/Cargo.toml: lacks `[lints] workspace = true`"), "{all}");
        assert!(all.contains("log/src/lib.rs: does not open with a `//!` header"), "{all}");
        assert!(all.contains("change/src/lib.rs: line 2 has `std::fs`"), "{all}");
    }
}
