//! The clients of a measurement: `Load.java`, which uses Kafka's own client library, run from its
//! source. One process for all that is measured of a cluster, warm from one thing to the next.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use tailwater_scratch::Kafka;
use tempfile::TempDir;

use crate::shell;

const SOURCE: &str = include_str!("Load.java");

/// See the module.
#[derive(Debug)]
pub(super) struct Load {
    process: Child,
    /// Closed on drop, which ends it.
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    folder: TempDir,
}

/// From a record's time to its receipt, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) longest: f64,
}

impl Load {
    /// Fetches what it needs that can be fetched.
    ///
    /// # Errors
    /// What is missing here, and what to do about it.
    pub(super) fn prepare() -> Result<()> {
        Kafka::prepare()?;
        Kafka::available().map_err(anyhow::Error::msg)?;
        if shell::find("javac").is_none() {
            bail!("the load is a Java program: apt-get install default-jdk-headless");
        }
        Ok(())
    }

    /// Clients of the cluster at `servers`.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub(super) fn start(servers: &str) -> Result<Load> {
        let folder = tempfile::tempdir().context("make a folder for the load")?;
        let source = folder.path().join("Load.java");
        fs::write(&source, SOURCE).context("write the load's source")?;
        let complaints = File::create(folder.path().join("load.log"))?;
        let mut process = Command::new("java")
            .args(["-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp"])
            .arg(Kafka::class_path())
            .arg(source)
            .arg(servers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .context("start java")?;
        let commands = process.stdin.take().context("the load's input")?;
        let answers = process.stdout.take().context("the load's output")?;
        Ok(Load { process, commands, answers: BufReader::new(answers), folder })
    }

    /// Makes the topic and waits until every replica is in sync.
    pub(super) fn make_topic(&mut self, partitions: usize, replicas: usize) -> Result<()> {
        self.ask(&format!("topic {partitions} {replicas}")).map(drop)
    }

    /// Writes so many records, as fast as they are taken; seconds.
    pub(super) fn produce(&mut self, records: u64) -> Result<f64> {
        let [seconds] = self.numbers(&format!("produce {records}"))?;
        Ok(seconds)
    }

    /// Writes so many records a second, and reads them.
    pub(super) fn latency(&mut self, rate: u64, seconds: u64) -> Result<Latency> {
        let [p50, p99, longest] = self.numbers(&format!("latency {rate} {seconds}"))?;
        Ok(Latency { p50, p99, longest })
    }

    /// The id of each partition's leader.
    pub(super) fn leaders(&mut self) -> Result<Vec<i32>> {
        let answer = self.ask("leaders")?;
        let id = |word: &str| word.parse().with_context(|| format!("not an id: {word}"));
        answer.split_whitespace().map(id).collect()
    }

    /// The id of Kafka's active controller.
    pub(super) fn controller(&mut self) -> Result<i32> {
        let answer = self.ask("controller")?;
        answer.parse().with_context(|| format!("not an id: {answer}"))
    }

    /// Waits until every replica is in sync.
    pub(super) fn wait_until_whole(&mut self, replicas: usize) -> Result<()> {
        self.ask(&format!("whole {replicas}")).map(drop)
    }

    /// Writes to every partition every 10 ms from now on.
    pub(super) fn write_steadily(&mut self) -> Result<()> {
        self.ask("steady").map(drop)
    }

    /// The longest time that a partition had nothing acknowledged because of what `happens`.
    pub(super) fn gap(&mut self, happens: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.ask("watch")?;
        happens()?;
        let [seconds] = self.numbers("gap")?;
        Ok(seconds)
    }

    fn numbers<const COUNT: usize>(&mut self, command: &str) -> Result<[f64; COUNT]> {
        let answer = self.ask(command)?;
        let numbers: Option<Vec<f64>> =
            answer.split_whitespace().map(|word| word.parse().ok()).collect();
        let numbers = numbers.and_then(|numbers| <[f64; COUNT]>::try_from(numbers).ok());
        numbers.with_context(|| format!("{command}: not {COUNT} numbers: {answer}"))
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        let answered = writeln!(self.commands, "{command}").and_then(|()| {
            let mut answer = String::new();
            self.answers.read_line(&mut answer).map(|_| answer)
        });
        let answer = answered.with_context(|| format!("tell the load: {command}"))?;
        match answer.trim_end().split_once(' ').unwrap_or((answer.trim_end(), "")) {
            ("ok", rest) => Ok(rest.trim().to_owned()),
            ("error", why) => bail!("{command}: {why}"),
            _ => bail!("{command}: the load has ended:{}", self.complaints()),
        }
    }

    fn complaints(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("load.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].iter().fold(String::new(), |mut text, line| {
            // Writing to a string cannot fail.
            let _written = write!(text, "\n{line}");
            text
        })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may be in the middle of something; nobody wants to know any more.
        let _killed = self.process.kill();
        let _ended = self.process.wait();
    }
}
