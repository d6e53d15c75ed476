//! MySQL or MariaDB: into the log beside a raw dump of the binlog, and into another server beside
//! its own replica with four workers.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tailwater_scratch::{Flavor, Server, Tailwater, sid_root};

use super::figures::{Figure, Goal};
use super::ours::{Bench, Run, begin, children_seconds, run, streaming, time};
use super::postgres::{captured, say, seen};
use super::rows;
use crate::session::Session;
use crate::shell;

/// As one would run it: flushing at each commit, and with room for the rows.
const SETTINGS: &[(&str, &str)] = &[
    ("sync_binlog", "1"),
    ("innodb_flush_log_at_trx_commit", "1"),
    ("innodb_buffer_pool_size", "1G"),
];

/// A redo log in which no checkpoint hits only one side; and the four workers.
fn settings(flavor: Flavor) -> Vec<(&'static str, &'static str)> {
    let own: &[(&str, &str)] = if flavor == Flavor::MySql {
        &[("innodb_redo_log_capacity", "2G"), ("replica_parallel_workers", "4")]
    } else {
        &[("innodb_log_file_size", "2G"), ("slave_parallel_threads", "4")]
    };
    SETTINGS.iter().chain(own).copied().collect()
}

/// Our CPU seconds into the log, beside those of a raw dump.
pub(crate) fn log(bench: &Bench) -> Result<Vec<Figure>> {
    let flavor = bench.mysql;
    let source = source(flavor)?;
    let mut tailwater = bench.tailwater(&source_section(&source))?;
    let address = tailwater.admin();
    begin(&mut tailwater, || streaming(&address))?;
    let mut writer = Session::open(&source, "bench")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        // A file of its own for each round: what is dumped is what we read.
        writer.run("FLUSH BINARY LOGS;")?;
        let status =
            if flavor == Flavor::MySql { "SHOW BINARY LOG STATUS;" } else { "SHOW MASTER STATUS;" };
        let position = writer.value(status)?;
        let file = position.split('\t').next().unwrap_or_default().to_owned();
        let first = 1 + round * bench.rows();
        writer.run(&rows::insert(flavor, first, bench.transactions, round))?;
        if round % 2 == 0 {
            theirs.push(dump(&source, &file)?);
        }
        ours.push(run(&mut tailwater, || captured(&address, bench.transactions + 1))?);
        if round % 2 == 1 {
            theirs.push(dump(&source, &file)?);
        }
        say(round, &[("raw dump's CPU", theirs.last().copied())], ("Tailwater", ours.last()));
    }
    let name = format!("{flavor} -> durable log, CPU");
    let beside = ("raw dump", theirs.as_slice());
    Ok(vec![Figure::cpu(name, bench.rows(), &ours, beside, Goal::at_most(1.0, 0.6))])
}

/// CPU seconds of the server's own client for fetching `file` as it is.
fn dump(source: &Server, file: &str) -> Result<f64> {
    let before = children_seconds()?;
    let folder = source.folder().join("dump");
    std::fs::create_dir_all(&folder)?;
    let mut command = if source.flavor() == Flavor::MySql {
        // The client of its own version lies in the root that the server runs in.
        let mut command = Command::new("unshare");
        let enter =
            r#"mount --bind "$2" "$1/srv" && root=$1 && shift 2 && exec chroot "$root" "$@""#;
        command.args(["--mount", "--propagation", "private", "sh", "-c", enter, "sh"]);
        command.arg(sid_root()).arg(&folder).args(["/usr/bin/mysqlbinlog", "--no-defaults"]);
        command.args(["--get-server-public-key", "--result-file=/srv/"]);
        command
    } else {
        let program = shell::find("mariadb-binlog").context("mariadb-binlog is not installed")?;
        let mut command = Command::new(program);
        command.arg("--no-defaults").arg(format!("--result-file={}/", folder.display()));
        command
    };
    command.args(["--read-from-remote-server", "--raw", "-h127.0.0.1", "-uroot"]);
    command.arg(format!("-P{}", source.port())).arg(file);
    let output = command.stdin(Stdio::null()).output().context("start the binlog's client")?;
    if !output.status.success() {
        bail!("the raw dump: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(children_seconds()? - before)
}

/// Into another server, with and without LOAD DATA LOCAL, beside the server's own replica.
pub(crate) fn catch_up(bench: &Bench) -> Result<Vec<Figure>> {
    let flavor = bench.mysql;
    let source = source(flavor)?;
    let replica = replica(&source)?;
    let target = Server::start_with(flavor, &settings(flavor))?;
    let (mut with, mut without) =
        (Ours::new(bench, &source, &target, true)?, Ours::new(bench, &source, &target, false)?);
    let mut writer = Session::open(&source, "bench")?;
    let mut native =
        Native { session: Session::open(&replica, "bench")?, flavor, server: &replica };
    let mut theirs = [Vec::new(), Vec::new()];
    for round in 0..bench.rounds {
        let first = 1 + round * bench.rows();
        for (phase, write) in [rows::insert, rows::change].into_iter().enumerate() {
            let marker = 2 * round + u64::from(phase == 1);
            writer.run(&write(flavor, first, bench.transactions, marker))?;
            if round % 2 == 0 {
                theirs[phase].push(native.catch_up(marker)?);
            }
            for ours in [&mut with, &mut without] {
                ours.catch_up(phase, marker)?;
            }
            if round % 2 == 1 {
                theirs[phase].push(native.catch_up(marker)?);
            }
            let what = ["inserts", "mixed"][phase];
            say(
                round,
                &[("native", theirs[phase].last().copied())],
                (&format!("Tailwater, {what}, local_infile"), with.runs[phase].last()),
            );
            say(round, &[], (&format!("Tailwater, {what}, without"), without.runs[phase].last()));
        }
    }
    let figure = |ours: &Ours, phase: usize, what: &str, goal| {
        let name = format!("{flavor} -> {flavor} catch-up, {what}");
        Figure::speed(name, &ours.runs[phase], ("native", &theirs[phase]), goal)
    };
    Ok(vec![
        figure(&with, 0, "inserts", Goal::times(1.5, 2.0)),
        figure(&with, 1, "updates and deletes", Goal::times(1.5, 2.0)),
        figure(&without, 0, "inserts, no local_infile", Goal::times(1.0, 2.0)),
        figure(&without, 1, "updates and deletes, no local_infile", Goal::times(1.0, 2.0)),
    ])
}

/// Ours into a database of its own on `target`.
struct Ours {
    tailwater: Tailwater,
    session: Session,
    /// `SET GLOBAL local_infile`, before each start.
    local_infile: bool,
    /// Of the inserts, and of the updates and deletes.
    runs: [Vec<Run>; 2],
}

impl Ours {
    fn new(bench: &Bench, source: &Server, target: &Server, local_infile: bool) -> Result<Ours> {
        let database = if local_infile { "with_infile" } else { "without_infile" };
        target.create_database_named(database)?;
        let sections = format!(
            "{}[targets.copy]\nconnector = \"mysql\"\nurl = \"{}\"\n\
             [pipelines.{database}]\nsource = \"bench\"\ntarget = \"copy\"\n\
             route = {{ \"bench.*\" = \"{database}.*\" }}\n",
            source_section(source),
            target.url(database),
        );
        let mut tailwater = bench.tailwater(&sections)?;
        let address = tailwater.admin();
        let mut session = Session::open(target, database)?;
        session.run(&set_infile(local_infile))?;
        begin(&mut tailwater, || streaming(&address))?;
        Ok(Ours { tailwater, session, local_infile, runs: [Vec::new(), Vec::new()] })
    }

    fn catch_up(&mut self, phase: usize, marker: u64) -> Result<()> {
        self.session.run(&set_infile(self.local_infile))?;
        let session = &mut self.session;
        self.runs[phase].push(run(&mut self.tailwater, || seen(session, marker))?);
        Ok(())
    }
}

fn set_infile(on: bool) -> String {
    format!("SET GLOBAL local_infile = {};", u8::from(on))
}

/// The server's own replication.
struct Native<'a> {
    session: Session,
    flavor: Flavor,
    server: &'a Server,
}

impl Native<'_> {
    /// Seconds it takes from its start to `marker`; it is stopped again.
    fn catch_up(&mut self, marker: u64) -> Result<f64> {
        let (start, stop) = match self.flavor {
            Flavor::MySql => ("START REPLICA;", "STOP REPLICA;"),
            _ => ("START SLAVE;", "STOP SLAVE;"),
        };
        let (server, session) = (self.server, &mut self.session);
        let started = || server.sql("", start).map(drop);
        let seconds = time("native replication", started, || seen(session, marker))?;
        server.sql("", stop)?;
        Ok(seconds)
    }
}

/// A replica that has everything up to now and stands still.
fn replica(source: &Server) -> Result<Server> {
    let flavor = source.flavor();
    let replica = Server::start_with(flavor, &settings(flavor))?;
    let port = source.port();
    let (change, start, stop) = if flavor == Flavor::MySql {
        (
            format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, \
                 SOURCE_USER = 'root', SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1;"
            ),
            "START REPLICA;",
            "STOP REPLICA;",
        )
    } else {
        (
            format!(
                "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, \
                 MASTER_USER = 'root', MASTER_USE_GTID = slave_pos;"
            ),
            "START SLAVE;",
            "STOP SLAVE;",
        )
    };
    source.sql("bench", "INSERT INTO markers VALUES (999999999);")?;
    replica.sql("", &format!("{change}\n{start}"))?;
    super::ours::until("the native replica's start", || {
        let there = "SELECT COUNT(*) FROM information_schema.tables \
                     WHERE table_schema = 'bench' AND table_name = 'markers';";
        Ok(replica.sql("", there)? == "1"
            && replica.sql("bench", "SELECT COUNT(*) FROM markers;")? == "1")
    })?;
    replica.sql("", stop)?;
    Ok(replica)
}

fn source(flavor: Flavor) -> Result<Server> {
    let source = Server::start_with(flavor, &settings(flavor))?;
    source.create_database_named("bench")?;
    source.sql("bench", &rows::schema(flavor))?;
    Ok(source)
}

fn source_section(source: &Server) -> String {
    format!(
        "[sources.bench]\nconnector = \"mysql\"\nurl = \"{}\"\ntables = [\"bench.*\"]\n",
        source.url("bench")
    )
}
