//! A server's process: started in a group of its own, signalled with its children, always reaped.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::folder::{Folder, alive, parent_of};
use crate::wait::wait_until;

/// `around`, which ends by running `command`: the same program, arguments, environment and folder.
pub(crate) fn through(mut around: Command, command: &Command) -> Command {
    around.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => around.env(name, value),
            None => around.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        around.current_dir(folder);
    }
    around
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pid_file: PathBuf,
}

impl Process {
    /// Starts `command`, its output going to `log`, under the guard of `folder`.
    pub(crate) fn spawn(mut command: Command, folder: &Folder, log: &Path) -> Result<Process> {
        let output = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let process = Process { child, pid_file: folder.pid_file() };
        fs::write(&process.pid_file, process.id().to_string())?;
        Ok(process)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("wait for a server")
    }

    /// Asks it to end with `name` and waits; kills it, and says so, when it takes over `limit`.
    pub(crate) fn end(mut self, name: &str, limit: Duration) -> Result<()> {
        signal(name, &[self.id()])?;
        let ended = wait_until(limit, "end of the server", || self.ended());
        if ended.is_err() {
            self.kill()?;
            bail!("the server did not end within {limit:?} of SIG{name} and was killed");
        }
        self.forget()
    }

    /// SIGKILL to it and its children, at once: what a crash looks like.
    pub(crate) fn kill(mut self) -> Result<()> {
        // Stopped, it starts no further children while we look for them.
        signal("STOP", &[self.id()])?;
        let children = self.children()?;
        self.child.kill().context("kill a server")?;
        signal("KILL", &children)?;
        self.child.wait().context("wait for a killed server")?;
        wait_until(Duration::from_secs(10), "end of a killed server's children", || {
            Ok((!children.iter().any(|pid| alive(*pid))).then_some(()))
        })?;
        self.forget()
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait(mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("wait for a server")?;
        self.forget()?;
        Ok(status)
    }

    /// Sends `name` to it and to its children.
    pub(crate) fn signal_all(&self, name: &str) -> Result<()> {
        signal(name, &[self.id()])?;
        signal(name, &self.children()?)
    }

    /// Lets go of it if it has ended and been reaped: gives it back if it runs.
    pub(crate) fn forget_if_ended(mut self) -> Result<Option<Process>> {
        if self.ended()?.is_none() {
            return Ok(Some(self));
        }
        self.forget()?;
        Ok(None)
    }

    /// The number may belong to another process from now on: the guard must not know it.
    fn forget(self) -> Result<()> {
        fs::remove_file(&self.pid_file).context("remove a server's pid file")
    }

    fn children(&self) -> Result<Vec<u32>> {
        let processes = fs::read_dir("/proc").context("read /proc")?.flatten();
        Ok(processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| parent_of(*pid) == Some(self.id()))
            .collect())
    }
}

/// Sends signal `name` to processes; those that are gone already do not matter.
fn signal(name: &str, pids: &[u32]) -> Result<()> {
    if pids.is_empty() {
        return Ok(());
    }
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    Command::new("sh")
        .args(["-c", r#"name=$1; shift; kill -"$name" "$@""#, "sh", name])
        .args(pids)
        .stderr(Stdio::null())
        .status()
        .context("run kill")?;
    Ok(())
}

/// The last lines of a log, for an error.
pub(crate) fn log_end(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
