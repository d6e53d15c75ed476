//! Foreign producers that write numbers and note each acknowledgement, so that what a log has
//! acknowledged can be compared with what it holds.
//!
//! Two programs that do the same ([`Client`]): every interval each partition gets its next number,
//! idempotently and with `acks=all`, and each acknowledgement is a line of a file, with its time.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::Kafka;
use crate::flavor::run;
use crate::folder::Folder;
use crate::kafka::{Jvm, java};
use crate::process::{Process, log_end};
use crate::wait::wait_until;

/// Whose client it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// Debian's librdkafka, in a program of C.
    Librdkafka,
    /// Apache Kafka's own.
    Java,
}

/// What is acknowledged, as the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Of the topic.
    pub partition: i32,
    /// Negative where the client could not say.
    pub offset: i64,
    /// The number that was written.
    pub number: u64,
    /// When the client heard of it, µs since 1970.
    pub at_us: u64,
}

/// How a writer writes.
#[derive(Debug, Clone, Copy)]
pub struct Writing<'a> {
    /// `host:port` of one or more nodes.
    pub addresses: &'a [String],
    /// Which must be there.
    pub topic: &'a str,
    /// How many partitions of the topic get numbers.
    pub partitions: i32,
    /// Between two numbers of a partition.
    pub interval: Duration,
    /// How long an answer, or a connection, may take before it is given up; else as the client has
    /// it.
    pub request_timeout: Option<Duration>,
}

/// A producer that runs; it ends on drop or with this process.
#[derive(Debug)]
pub struct Writer {
    client: Client,
    process: Option<Process>,
    folder: Folder,
}

const PROGRAM: &str = include_str!("numbers.c");
const JAVA_PROGRAM: &str = include_str!("Numbers.java");

/// What is on its way when a writer is to end may wait for an election.
const FINISH_LIMIT: Duration = Duration::from_secs(120);

/// Longer than any test: no record is given up.
const DELIVERY_TIMEOUT_MS: &str = "1800000";

impl Client {
    /// All there are.
    pub const ALL: [Client; 2] = [Client::Librdkafka, Client::Java];

    /// The word that its records begin with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Client::Librdkafka => "librdkafka",
            Client::Java => "java",
        }
    }

    /// Whether it can be built and run here.
    ///
    /// # Errors
    /// The reason why not, and what to do about it.
    pub fn available(self) -> Result<(), String> {
        match self {
            Client::Librdkafka => run(Command::new("cc").args([
                "-fsyntax-only",
                "-include",
                "librdkafka/rdkafka.h",
                "-x",
                "c",
                "/dev/null",
            ]))
            .map_err(|error| {
                format!("a producer with librdkafka needs cc and librdkafka-dev: {error:#}")
            }),
            Client::Java => {
                Kafka::available()?;
                run(Command::new("javac").arg("-version")).map_err(|error| {
                    format!("a producer of Kafka's own needs default-jdk-headless: {error:#}")
                })
            }
        }
    }

    fn command(self, folder: &Folder) -> Result<Command> {
        let folder = folder.path();
        match self {
            Client::Librdkafka => {
                fs::write(folder.join("numbers.c"), PROGRAM)?;
                let mut cc = Command::new("cc");
                cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o", "numbers", "numbers.c"]);
                run(cc.arg("-lrdkafka").current_dir(folder)).context("build numbers.c")?;
                let mut command = Command::new(folder.join("numbers"));
                command.current_dir(folder);
                Ok(command)
            }
            Client::Java => {
                fs::write(folder.join("Numbers.java"), JAVA_PROGRAM)?;
                let mut command = java(folder, Jvm::Quick);
                command.arg("Numbers.java");
                Ok(command)
            }
        }
    }

    /// What `writing` is in the client's own words.
    fn settings(self, writing: &Writing<'_>) -> Vec<String> {
        let mut settings = vec![format!("delivery.timeout.ms={DELIVERY_TIMEOUT_MS}")];
        if let Some(timeout) = writing.request_timeout {
            let timeout = timeout.as_millis();
            settings.push(format!("request.timeout.ms={timeout}"));
            settings.push(format!("socket.connection.setup.timeout.ms={timeout}"));
            if self == Client::Librdkafka {
                settings.push(format!("socket.timeout.ms={timeout}"));
            }
        }
        match self {
            // As the other has it. By default it may stay away from a node for ten seconds that it
            // could not connect to, also when that has become the leader meanwhile.
            Client::Librdkafka => settings.push("reconnect.backoff.max.ms=1000".to_owned()),
            // Waits for partitions without a leader as long as the other does.
            Client::Java => settings.push(format!("max.block.ms={DELIVERY_TIMEOUT_MS}")),
        }
        settings
    }
}

impl Writer {
    /// Starts one.
    ///
    /// # Errors
    /// If it cannot be built or started.
    pub fn start(client: Client, writing: &Writing<'_>) -> Result<Writer> {
        let folder = Folder::create(client.name(), "KILL")?;
        let mut command = client.command(&folder)?;
        command.arg(writing.addresses.join(",")).arg(writing.topic);
        command.arg(writing.partitions.to_string()).arg(writing.interval.as_micros().to_string());
        command.arg("acks").args(client.settings(writing));
        let process = Process::spawn(command, &folder, &folder.path().join("log"))?;
        Ok(Writer { client, process: Some(process), folder })
    }

    /// Whose client it is.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client
    }

    /// What has been acknowledged so far.
    ///
    /// # Errors
    /// If it has ended, or a record has failed: with what it said.
    pub fn acknowledged(&mut self) -> Result<Vec<Acknowledged>> {
        if let Some(process) = &mut self.process
            && let Some(status) = process.ended()?
        {
            bail!("the {} writer ended with {status}:\n{}", self.client.name(), self.log_end());
        }
        Ok(self.read()?.acknowledged)
    }

    /// Ends the writing, and waits until all is acknowledged.
    ///
    /// # Errors
    /// If a record has failed or is not acknowledged in time: with what it said.
    pub fn finish(&mut self) -> Result<Vec<Acknowledged>> {
        let mut process = self.process.take().context("the writer runs")?;
        process.signal_all("TERM")?;
        let ended = wait_until(FINISH_LIMIT, "the end of a writer", || process.ended());
        if ended.is_err() {
            process.kill()?;
        }
        ended.with_context(|| self.log_end())?;
        let Noted { acknowledged, done } = self.read()?;
        let (count, done) = (acknowledged.len(), done.with_context(|| self.log_end())?);
        ensure!(count == done, "{count} of {done} records are acknowledged:\n{}", self.log_end());
        Ok(acknowledged)
    }

    /// What it said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn log_end(&self) -> String {
        log_end(&self.log())
    }

    fn read(&self) -> Result<Noted> {
        let file = self.folder.path().join("acks");
        let text = fs::read_to_string(file).unwrap_or_default();
        Noted::parse(&text).with_context(|| format!("{}: {}", self.client.name(), self.log_end()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            // Failing that, the folder's guard ends it.
            let _killed = process.kill();
        }
    }
}

/// What stands in a writer's file.
#[derive(Debug, PartialEq, Eq)]
struct Noted {
    acknowledged: Vec<Acknowledged>,
    /// How many records it has written, once it has ended.
    done: Option<usize>,
}

impl Noted {
    /// The last line counts once it is whole.
    fn parse(text: &str) -> Result<Noted> {
        let mut noted = Noted { acknowledged: Vec::new(), done: None };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["ack", partition, offset, number, at] => noted.acknowledged.push(Acknowledged {
                    partition: partition.parse()?,
                    offset: offset.parse()?,
                    number: number.parse()?,
                    at_us: at.parse()?,
                }),
                ["done", count] => noted.done = Some(count.parse()?),
                _ => bail!("a record was given up: {line}"),
            }
        }
        Ok(noted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_are_read() {
        let one = Acknowledged { partition: 2, offset: 30, number: 4, at_us: 5 };
        let read = Noted::parse("ack 2 30 4 5\nack 2 31 5").unwrap();
        assert_eq!(read, Noted { acknowledged: vec![one], done: None });
        let read = Noted::parse("ack 2 30 4 5\ndone 1\n").unwrap();
        assert_eq!(read, Noted { acknowledged: vec![one], done: Some(1) });
        assert!(Noted::parse("").unwrap().acknowledged.is_empty());
    }

    #[test]
    fn a_record_that_failed_is_an_error() {
        let error = Noted::parse("failed 1 7 _MSG_TIMED_OUT\n").unwrap_err().to_string();
        assert!(error.contains("_MSG_TIMED_OUT"), "{error}");
    }
}
