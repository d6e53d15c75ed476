//! Running other programs, their output going straight to the terminal.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Folders that a user's `PATH` may lack and servers and system tools lie in.
const SYSTEM_FOLDERS: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// Runs `cargo` in the workspace with the toolchain that built us.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    run(cargo_command(root).args(arguments))
}

/// `cargo` in the workspace, to add to.
pub(crate) fn cargo_command(root: &Path) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root);
    command
}

/// Builds the program in `profile` (`dev`, `release`, `profiling`) and returns where it lies.
pub(crate) fn tailwater(root: &Path, profile: &str) -> Result<PathBuf> {
    run(cargo_command(root).args(["build", "--package", "tailwater", "--profile", profile]))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(target_folder(root)?.join(folder).join("tailwater"))
}

/// Where cargo puts what it builds: an environment variable or a setting may say so.
fn target_folder(root: &Path) -> Result<PathBuf> {
    let mut command = cargo_command(root);
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.output().context("start cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let folder = metadata["target_directory"].as_str().context("no target folder in metadata")?;
    Ok(PathBuf::from(folder))
}

/// Runs `command`, says what it runs, and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("start {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Where `program` lies, on the `PATH` or where the system keeps its own.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(std::env::split_paths(SYSTEM_FOLDERS))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// As [`find`], for a part of `cargo`, which looks for those in a folder of its own as well.
pub(crate) fn find_cargo(part: &str) -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let own = home.map(|home| home.join("bin").join(part)).filter(|path| path.is_file());
    own.or_else(|| find(part))
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
