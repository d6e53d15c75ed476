//! A scratch Apache Kafka on loopback: nodes that are broker and controller at once (KRaft), one or
//! several.
//!
//! Its jars come from Maven's central repository, fetched once per machine by `mvn` into the
//! cache. Nothing else of Kafka's distribution is needed: the classes are started directly.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::flavor::{cache_dir, run};
use crate::folder::Folder;
use crate::port::{free_port, random};
use crate::process::{self, Process};
use crate::wait::wait_until;

/// The version tests run against.
const VERSION: &str = "4.1.1";

/// A JVM that starts while eight others do, on two cores.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The line that Kafka logs once it takes requests.
const STARTED: &str = "Kafka Server started";

/// What `mvn` reads to find out which jars a broker is made of.
const POM: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tailwater</groupId>
  <artifactId>scratch-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>$VERSION</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"#;

/// An Apache Kafka of our own: it ends, and its folder goes, on drop or with this process.
#[derive(Debug)]
pub struct Kafka {
    port: u16,
    jvm: Jvm,
    process: Option<Process>,
    folder: Folder,
}

impl Kafka {
    /// Whether one can be started here without fetching anything.
    ///
    /// # Errors
    /// The reason why not, and what to do about it.
    pub fn available() -> Result<(), String> {
        if !libraries().exists() {
            return Err(format!(
                "Apache Kafka {VERSION} is not in {}: `cargo xtask db kafka` fetches it with mvn",
                libraries().display()
            ));
        }
        run(Command::new("java").arg("-version"))
            .map_err(|error| format!("Apache Kafka needs java 17 or newer: {error:#}"))
    }

    /// Fetches the jars into the cache, unless they are there.
    ///
    /// # Errors
    /// If `mvn` is missing or cannot fetch them.
    pub fn prepare() -> Result<()> {
        let libraries = libraries();
        if libraries.exists() {
            return Ok(());
        }
        let parent = libraries.parent().context("the cache folder has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let lock = File::create(libraries.with_extension("lock"))?;
        lock.lock().context("wait for another process that fetches Kafka")?;
        if libraries.exists() {
            return Ok(());
        }
        let partial = libraries.with_extension("partial");
        fs::create_dir_all(&partial)?;
        fs::write(partial.join("pom.xml"), POM.replace("$VERSION", VERSION))?;
        let mut mvn = Command::new("mvn");
        mvn.args(["-q", "-B", "dependency:copy-dependencies", "-DincludeScope=runtime"]);
        mvn.arg("-DoutputDirectory=.").arg("-f").arg(partial.join("pom.xml"));
        run(mvn.current_dir(&partial))
            .context("fetch Apache Kafka with mvn (apt-get install maven)")?;
        fs::rename(&partial, &libraries).context("put Kafka's jars in their place")
    }

    /// Runs a Java source file with Kafka's classes at hand; what it prints.
    ///
    /// # Errors
    /// If it cannot be run, or fails: with what it said.
    pub fn run_source(source: &Path, arguments: &[&str]) -> Result<String> {
        let folder = Folder::create("java", "KILL")?;
        let output = java(folder.path(), Jvm::Quick)
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
            .arg(source)
            .args(arguments)
            .output()
            .with_context(|| format!("run {}", source.display()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("{}:\n{}{}", source.display(), text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// Starts a broker with no topics, as a cluster of its own.
    ///
    /// # Errors
    /// If the jars cannot be had, or the broker does not come up: with the end of its log.
    pub fn start() -> Result<Kafka> {
        Kafka::start_with(&[])
    }

    /// Starts a broker with entries of `server.properties` added to ours, or instead of them.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn start_with(settings: &[(&str, &str)]) -> Result<Kafka> {
        Kafka::prepare()?;
        let mut kafka = Kafka::format(0, &Ports::of(1), Jvm::Quick, settings, &cluster_id())?;
        kafka.start_again()?;
        Ok(kafka)
    }

    /// Starts `count` nodes that are one cluster, in the JVM that Kafka's own scripts start, with
    /// half a gigabyte of heap each. Entries of `server.properties` are for all of them.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub fn cluster(count: usize, settings: &[(&str, &str)]) -> Result<Vec<Kafka>> {
        Kafka::prepare()?;
        let (ports, id) = (Ports::of(count), cluster_id());
        let format = |number| Kafka::format(number, &ports, Jvm::Long, settings, &id);
        let mut nodes = (0..count).map(format).collect::<Result<Vec<Kafka>>>()?;
        // None of them is up before a majority is.
        let begun = nodes.iter_mut().map(Kafka::begin).collect::<Result<Vec<usize>>>()?;
        for (node, log_start) in nodes.iter_mut().zip(begun) {
            node.wait_until_up(log_start)?;
        }
        Ok(nodes)
    }

    fn format(
        number: usize,
        ports: &[Ports],
        jvm: Jvm,
        settings: &[(&str, &str)],
        cluster_id: &str,
    ) -> Result<Kafka> {
        let folder = Folder::create("kafka", "KILL")?;
        // It runs as whoever runs the tests; nobody else has business in here.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700))?;
        write_properties(folder.path(), number, ports, settings)?;
        run(java(folder.path(), Jvm::Quick)
            .args(["kafka.tools.StorageTool", "format", "--config", "server.properties"])
            .args(["--cluster-id", cluster_id]))
        .context("format Kafka's log folder")?;
        Ok(Kafka { port: ports[number].broker, jvm, process: None, folder })
    }

    /// `host:port` for `bootstrap.servers`.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The class path of a program that uses Kafka's client, once [`Kafka::prepare`] is done.
    #[must_use]
    pub fn class_path() -> PathBuf {
        libraries().join("*")
    }

    /// Starts it again after [`Kafka::stop`] or [`Kafka::kill`], on the same port.
    ///
    /// # Errors
    /// If it runs already or does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        let log_start = self.begin()?;
        self.wait_until_up(log_start)
    }

    /// Starts the process; returns where in its log this start begins.
    fn begin(&mut self) -> Result<usize> {
        if self.process.is_some() {
            bail!("kafka runs already");
        }
        let folder = self.folder.path();
        let log_start = self.log().len();
        let mut command = java(folder, self.jvm);
        command.args(["kafka.Kafka", "server.properties"]);
        self.process = Some(Process::spawn(command, &self.folder, &folder.join("server.log"))?);
        Ok(log_start)
    }

    fn wait_until_up(&mut self, log_start: usize) -> Result<()> {
        let log_path = self.folder.path().join("server.log");
        let process = self.process.as_mut().context("kafka does not run")?;
        let up = wait_until(START_LIMIT, "the broker's start", || {
            if let Some(status) = process.ended()? {
                bail!("it ended with {status}");
            }
            let log = fs::read(&log_path).unwrap_or_default();
            let fresh = String::from_utf8_lossy(&log[log_start.min(log.len())..]);
            Ok(fresh.contains(STARTED).then_some(()))
        });
        if up.is_err() {
            self.process = self.take_process()?.forget_if_ended()?;
        }
        up.with_context(|| format!("start kafka; end of its log:\n{}", self.log_end()))
    }

    /// Shuts it down in order.
    ///
    /// # Errors
    /// If it does not run, or had to be killed because it did not end.
    pub fn stop(&mut self) -> Result<()> {
        self.take_process()?.end("TERM", STOP_LIMIT).context("stop kafka")
    }

    /// Stops and starts it.
    ///
    /// # Errors
    /// As [`Kafka::stop`] and [`Kafka::start_again`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Crashes it with SIGKILL.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.take_process()?.kill()
    }

    /// Freezes it: connections stay open and nothing answers, until [`Kafka::resume`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.process.as_ref().context("kafka does not run")?.signal_all("STOP")
    }

    /// Ends [`Kafka::pause`].
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&self) -> Result<()> {
        self.process.as_ref().context("kafka does not run")?.signal_all("CONT")
    }

    /// Waits until it ends by itself, as in `xtask db kafka`.
    ///
    /// # Errors
    /// If it does not run, or when it has ended: with how, and the end of its log.
    pub fn wait(&mut self) -> Result<()> {
        let status = self.take_process()?.wait()?;
        bail!("kafka ended with {status}; end of its log:\n{}", self.log_end());
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.folder.path().join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn take_process(&mut self) -> Result<Process> {
        self.process.take().context("kafka does not run")
    }

    fn log_end(&self) -> String {
        process::log_end(&self.log())
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            // In a drop there is nobody to tell; the guard of the folder tries once more.
            let _killed = process.kill();
        }
    }
}

/// Where the jars of this version lie once they have been fetched.
fn libraries() -> PathBuf {
    cache_dir().join(format!("kafka-{}", VERSION.replace('.', "_")))
}

/// What a JVM is good at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jvm {
    /// Its time goes into starting: the quick compiler and the smallest collector do best.
    Quick,
    /// It is measured: as Kafka's `bin/kafka-run-class.sh` starts it.
    Long,
}

impl Jvm {
    fn options(self) -> &'static [&'static str] {
        match self {
            Jvm::Quick => &["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
            Jvm::Long => &[
                "-Xms512m",
                "-Xmx512m",
                "-server",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=20",
                "-XX:InitiatingHeapOccupancyPercent=35",
                "-XX:+ExplicitGCInvokesConcurrent",
                "-XX:MaxInlineLevel=15",
                "-Djava.awt.headless=true",
            ],
        }
    }
}

/// A JVM with Kafka's classes that works in `folder`.
pub(crate) fn java(folder: &Path, jvm: Jvm) -> Command {
    let mut command = Command::new("java");
    command.args(jvm.options()).arg("-cp").arg(Kafka::class_path()).current_dir(folder);
    command
}

/// Where a node listens.
#[derive(Debug, Clone, Copy)]
struct Ports {
    broker: u16,
    controller: u16,
}

impl Ports {
    fn of(count: usize) -> Vec<Ports> {
        (0..count).map(|_| Ports { broker: free_port(), controller: free_port() }).collect()
    }
}

/// For the node with that number of those that listen on `ports`; they are counted from 0, their ids
/// from 1.
fn write_properties(
    folder: &Path,
    number: usize,
    ports: &[Ports],
    settings: &[(&str, &str)],
) -> Result<()> {
    let Ports { broker: port, controller } = ports[number];
    let voters = (1..).zip(ports).map(|(id, it)| format!("{id}@127.0.0.1:{}", it.controller));
    let mut file = File::create(folder.join("server.properties"))?;
    write!(
        file,
        "process.roles=broker,controller
node.id={}
controller.quorum.voters={}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={}
offsets.topic.replication.factor={count}
offsets.topic.num.partitions=1
transaction.state.log.replication.factor={count}
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor={count}
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
",
        number + 1,
        voters.collect::<Vec<_>>().join(","),
        folder.join("data").display(),
        count = ports.len(),
    )?;
    for (name, value) in settings {
        writeln!(file, "{name}={value}")?;
    }
    Ok(())
}

/// Kafka's form of an id: 16 bytes in 22 letters of URL-safe base64. Hexadecimal digits are
/// letters of that alphabet; the last one holds but two bits.
fn cluster_id() -> String {
    format!("{:016x}{:05x}A", random(), random() & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_ids_have_kafkas_length_and_differ() {
        assert_eq!(cluster_id().len(), 22);
        assert_ne!(cluster_id(), cluster_id());
    }
}
