//! A Tailwater process of our own: its configuration, its commands, its death.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::folder::Folder;
use crate::host::Host;
use crate::port::free_port;
use crate::process::{Process, log_end};
use crate::wait::wait_until;

/// A loaded machine starts everything at once.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// A process that runs `tailwater run`; it ends, and its folder goes, on drop or with this process.
#[derive(Debug)]
pub struct Tailwater {
    binary: PathBuf,
    admin_port: u16,
    log_port: u16,
    process: Option<Process>,
    folder: Folder,
    /// Where it runs, if not here.
    host: Option<Host>,
}

/// How a command of the program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it complained.
    pub err: String,
}

impl Tailwater {
    /// Starts `binary` with a log of its own and `sections` (sources, targets, pipelines) behind
    /// it, and waits until its admin listener answers.
    ///
    /// # Errors
    /// If it does not come up: with the end of its log.
    pub fn start(binary: &Path, sections: &str) -> Result<Tailwater> {
        let mut tailwater = Tailwater::prepare(binary, sections)?;
        tailwater.start_again()?;
        Ok(tailwater)
    }

    /// As [`Tailwater::start`], not yet started.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn prepare(binary: &Path, sections: &str) -> Result<Tailwater> {
        let (log_port, folder) = (free_port(), Folder::create("tailwater", "KILL")?);
        let log = format!(
            "[log]\ndata_dir = \"{}\"\nlisten = \"127.0.0.1:{log_port}\"\n",
            folder.path().join("log").display()
        );
        Tailwater::with(binary, &format!("{log}{sections}"), log_port, folder)
    }

    /// A process whose `configuration` says everything but `[admin]`: its log may be elsewhere.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn prepare_whole(binary: &Path, configuration: &str) -> Result<Tailwater> {
        let folder = Folder::create("tailwater", "KILL")?;
        Tailwater::with(binary, configuration, 0, folder)
    }

    /// As [`Tailwater::prepare_whole`], on a host of its own.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn prepare_on(host: Host, binary: &Path, configuration: &str) -> Result<Tailwater> {
        let mut tailwater = Tailwater::prepare_whole(binary, configuration)?;
        tailwater.host = Some(host);
        Ok(tailwater)
    }

    fn with(binary: &Path, text: &str, log_port: u16, folder: Folder) -> Result<Tailwater> {
        let tailwater = Tailwater {
            binary: binary.to_owned(),
            admin_port: free_port(),
            log_port,
            process: None,
            folder,
            host: None,
        };
        tailwater.configure(text)?;
        Ok(tailwater)
    }

    /// Replaces everything in the configuration but `[admin]`; read at the next start.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, text: &str) -> Result<()> {
        // First the keys of no section, which `text` may begin with.
        let text = format!("{text}\n[admin]\nlisten = \"127.0.0.1:{}\"\n", self.admin_port);
        fs::write(self.config(), text).context("write a configuration")
    }

    /// Starts the process, which must not run.
    ///
    /// # Errors
    /// If it does not come up: with the end of its log.
    pub fn start_again(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_until_up()
    }

    /// As [`Tailwater::start_again`], without waiting for anything.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg("--config").arg(self.config());
        command.current_dir(self.folder.path());
        let log = self.folder.path().join("tailwater.log");
        self.process = Some(Process::spawn(self.on_host(command), &self.folder, &log)?);
        Ok(())
    }

    /// Waits until a process that was spawned answers on its admin listener.
    ///
    /// # Errors
    /// If it does not come up: with the end of its log.
    pub fn wait_until_up(&mut self) -> Result<()> {
        wait_until(START_LIMIT, "Tailwater's admin listener", || {
            if let Some(process) = &mut self.process
                && process.ended()?.is_some()
            {
                bail!("Tailwater did not start:\n{}", log_end(&self.log()));
            }
            if self.host.is_some() {
                return Ok((self.command(&["status"])?.code == Some(0)).then_some(()));
            }
            Ok(std::net::TcpStream::connect(("127.0.0.1", self.admin_port)).ok().map(drop))
        })
    }

    fn on_host(&self, command: Command) -> Command {
        match &self.host {
            Some(host) => host.wrap(&command),
            None => command,
        }
    }

    /// The host that it runs on, if it is not this one.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Runs one of the program's commands against this process.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn command(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--config").arg(self.config());
        let output = self
            .on_host(command)
            .output()
            .with_context(|| format!("run {} {arguments:?}", self.binary.display()))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
        Ok(Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) })
    }

    /// `tailwater wait`, which must succeed.
    ///
    /// # Errors
    /// If it does not: with what it said and the end of the log.
    pub fn wait_for(&self, pipeline: &str, timeout: &str) -> Result<()> {
        let ran = self.command(&["wait", "--pipeline", pipeline, "--timeout", timeout])?;
        if ran.code == Some(0) {
            return Ok(());
        }
        let status = self.command(&["status"])?;
        bail!("wait: {ran:?}\n{}\n{}", status.out, log_end(&self.log()))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("Tailwater does not run")?.kill()
    }

    /// SIGTERM, and its end.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().context("Tailwater does not run")?.end("TERM", STOP_LIMIT)
    }

    /// SIGSTOP: as a machine that hangs.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.process.as_ref().context("Tailwater does not run")?.signal_all("STOP")
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&self) -> Result<()> {
        self.process.as_ref().context("Tailwater does not run")?.signal_all("CONT")
    }

    /// Whether it was started and neither killed nor stopped.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("tailwater.toml")
    }

    /// The address of its log, for Kafka clients.
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.log_port)
    }

    /// The address of its admin listener.
    #[must_use]
    pub fn admin(&self) -> String {
        format!("127.0.0.1:{}", self.admin_port)
    }

    /// Everything it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("tailwater.log")).unwrap_or_default()
    }
}

impl Drop for Tailwater {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            // Failing that, the folder's guard ends it.
            let _killed = process.kill();
        }
    }
}
