//! A network namespace: what stands for another machine's network here. Only root may make one.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::flavor::run;
use crate::process;

/// A namespace of this process; it is gone on drop, or when the next one is made after this
/// process was killed.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with nothing in it but its loopback interface.
    pub(crate) fn create() -> Result<Namespace> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);

        sweep()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Interfaces are named alike, and have names of at most 15 characters.
        let namespace = Namespace { name: format!("tw{}x{number}", std::process::id()) };
        ip(&["netns", "add", &namespace.name])?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// A name that nothing else on this machine has.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `ip`, in there.
    pub(crate) fn ip(&self, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    /// `command`, in there: the same program, arguments, environment and process id.
    pub(crate) fn wrap(&self, command: &Command) -> Command {
        let mut around = Command::new("ip");
        around.args(["netns", "exec", &self.name]);
        process::through(around, command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The interfaces go with it, once nothing runs there any more; ours at once, if there is one.
        let _gone = ip(&["netns", "del", &self.name]);
        let _gone = ip(&["link", "del", &self.name]);
    }
}

/// Removes what processes have left that were killed.
fn sweep() -> Result<()> {
    let listed = Command::new("ip").args(["netns", "list"]).output().context("run ip")?;
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let ours = name.strip_prefix("tw").and_then(|rest| rest.split_once('x'));
        let Some(pid) = ours.and_then(|(pid, _)| pid.parse::<u32>().ok()) else { continue };
        if !crate::folder::alive(pid) {
            // Another process may be sweeping, too.
            let _gone = ip(&["netns", "del", name]);
        }
    }
    Ok(())
}

/// `ip`, here.
pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    match run(Command::new("ip").args(arguments)) {
        Ok(()) => Ok(()),
        Err(error) => bail!("ip {}: {error:#}", arguments.join(" ")),
    }
}
