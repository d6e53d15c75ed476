//! One server's folder, and the guard that removes it.
//!
//! `Drop` does not run in a process that is killed, nor for a server in a `static`. So each folder
//! has a guard: a shell that reads from a pipe whose other end this process holds. When the
//! process ends, for whatever reason, the pipe closes, and the guard ends the server named in the
//! folder's `pid` file and removes the folder. It lives in a process group of its own, so that
//! Ctrl-C does not end it first.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// `$1` is the folder, `$2` the signal that ends its server at once. CONT is for a paused one.
/// A zombie has ended: whoever adopts orphans here may be slow to look after them.
const GUARD: &str = r#"
trap '' INT TERM HUP
read -r _
if [ -s "$1/pid" ]; then
    pid=$(cat "$1/pid")
    kill -"$2" "$pid"
    kill -CONT "$pid"
    n=0
    while [ $n -lt 100 ]; do
        case $(cat "/proc/$pid/stat") in "" | *") Z "*) break ;; esac
        sleep 0.05
        n=$((n + 1))
    done
    kill -KILL "$pid"
fi
rm -rf "$1"
"#;

/// A folder that is removed with its owner, and with this process at the latest.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    guard: Child,
    /// Closing it wakes the guard.
    leash: Option<ChildStdin>,
}

impl Folder {
    /// Makes a folder for a server that `end_signal` ends at once.
    pub(crate) fn create(name: &str, end_signal: &str) -> Result<Folder> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(1);

        let root = root()?;
        SWEEP.call_once(|| sweep(&root));
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("{}-{number}-{name}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make folder {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(&path)
            .arg(end_signal)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start the guard of a scratch folder")?;
        let leash = guard.stdin.take();
        Ok(Folder { path, guard, leash })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the guard looks for the process it has to end.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.path.join("pid")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.leash.take());
        // The guard removes the folder; what hinders it would only leave files in a temp folder.
        let _status = self.guard.wait();
    }
}

/// Where all scratch folders of this user lie. Server users may pass through it, not list it.
pub(crate) fn root() -> Result<PathBuf> {
    let user = fs::metadata("/proc/self").context("read /proc/self")?.uid();
    let root = std::env::temp_dir().join(format!("tailwater-scratch-{user}"));
    fs::create_dir_all(&root).with_context(|| format!("make folder {}", root.display()))?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o711))?;
    Ok(root)
}

/// Removes what was left by processes whose guard was killed as well.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
        let server = fs::read_to_string(entry.path().join("pid")).unwrap_or_default();
        if owner.is_some_and(|pid| !alive(pid)) && !server.trim().parse().is_ok_and(alive) {
            // Another process may be sweeping too; who comes second finds nothing, which is fine.
            let _removed = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether a process with this id runs; one that has ended and waits to be reaped does not.
pub(crate) fn alive(pid: u32) -> bool {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(stat_field(&stat, 0).as_deref(), None | Some("Z" | "X"))
}

/// The parent of a process; `None` if there is no such process.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    stat_field(&stat, 1)?.parse().ok()
}

/// Of `pid (name) state parent …` the field `number`, counted from the state: the name before it
/// may hold anything, parentheses included.
fn stat_field(stat: &[u8], number: usize) -> Option<String> {
    let text = String::from_utf8_lossy(stat);
    let (_, fields) = text.rsplit_once(')')?;
    fields.split_whitespace().nth(number).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_a_name_with_parentheses() {
        let stat = b"7 (a) Z (b) S 42 7 7 0";
        assert_eq!(stat_field(stat, 0).as_deref(), Some("S"));
        assert_eq!(stat_field(stat, 1).as_deref(), Some("42"));
    }

    #[test]
    fn this_process_is_alive_and_an_impossible_one_is_not() {
        assert!(alive(std::process::id()));
        assert!(!alive(u32::MAX));
    }
}
