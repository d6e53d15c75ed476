//! A disk that is full on demand.
//!
//! A folder lies on a file system of a given size, seen by one process and its children alone: a
//! `tmpfs` in a private mount namespace, which goes with them. Only root may mount.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::flavor::run;
use crate::process;

/// Moves what folder `$1` holds to a file system of `$2` bytes, mounts that in its place, and
/// becomes the command that follows. Without holes: what a server has allocated ahead, such as
/// its write-ahead log, must be there when the disk is full.
const MOUNT: &str = r#"
set -e
folder=$1; bytes=$2; shift 2
mkdir -p "$folder.disk"
mount -t tmpfs -o "size=$bytes,mode=755" none "$folder.disk"
cp -a --sparse=never "$folder" "$folder.disk/content"
mount --bind "$folder.disk/content" "$folder"
exec "$@"
"#;

/// What takes up the space that is left.
const FILLER: &str = "filler";

/// A folder on a disk of its own for one process.
///
/// The process starts with what the folder holds; what it writes there is gone when it ends.
#[derive(Debug, Clone)]
pub struct SmallDisk {
    folder: PathBuf,
    bytes: u64,
}

impl SmallDisk {
    /// A disk of `bytes` for `folder`, which exists.
    #[must_use]
    pub fn new(folder: &Path, bytes: u64) -> SmallDisk {
        SmallDisk { folder: folder.to_owned(), bytes }
    }

    /// Whether this machine lets us mount one.
    ///
    /// # Errors
    /// The reason why not.
    pub fn available() -> Result<(), String> {
        run(Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]))
            .map_err(|error| format!("a small disk needs root and a mount namespace: {error:#}"))
    }

    /// `command`, on this disk: the same program, arguments, environment and process id.
    #[must_use]
    pub fn wrap(&self, command: &Command) -> Command {
        let mut around = Command::new("unshare");
        around.args(["--mount", "--propagation", "private", "sh", "-c", MOUNT, "sh"]);
        around.arg(&self.folder).arg(self.bytes.to_string());
        process::through(around, command)
    }

    /// Takes up all space that is left on the disk of process `pid`.
    ///
    /// # Errors
    /// If that process does not run, or not on this disk.
    pub fn fill(&self, pid: u32) -> Result<()> {
        // `dd` fails when there is no space left, which is the aim; whether it is, is asked after.
        let fill = r#"dd if=/dev/zero of="$1" bs=64k; ! echo x >"$1.more""#;
        self.enter(pid, fill).context("fill a small disk")
    }

    /// Gives back the space that [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// As [`SmallDisk::fill`].
    pub fn free(&self, pid: u32) -> Result<()> {
        self.enter(pid, r#"rm "$1" "$1.more""#).context("free a small disk")
    }

    /// Runs `script` where process `pid` sees its files, on the filler.
    fn enter(&self, pid: u32, script: &str) -> Result<()> {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &pid.to_string(), "sh", "-c", script, "sh"]);
        run(command.arg(self.folder.join(FILLER)))
    }
}
