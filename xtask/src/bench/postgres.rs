//! PostgreSQL: into the log beside `pg_recvlogical`, and into another PostgreSQL beside native
//! logical replication.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tailwater_scratch::{Flavor, Server, Tailwater};

use super::figures::{Figure, Goal};
use super::ours::{Bench, Run, begin, run, streaming, time, until};
use super::rows;
use crate::session::Session;
use crate::{admin, shell};

const FLAVOR: Flavor = Flavor::Postgres15;

/// As one would run it: flushing, and with room enough that no checkpoint hits only one side.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "512MB"),
    ("max_wal_size", "16GB"),
    ("checkpoint_timeout", "30min"),
    // Else a subscription that was just disabled does not start again for five seconds.
    ("wal_retrieve_retry_interval", "10ms"),
];

/// Into the log, beside `pg_recvlogical` writing what it gets to nowhere.
pub(crate) fn log(bench: &Bench) -> Result<Vec<Figure>> {
    let source = source()?;
    source.sql(
        "bench",
        "CREATE PUBLICATION native FOR TABLE entries, markers;
         SELECT FROM pg_create_logical_replication_slot('native', 'pgoutput');",
    )?;
    let mut tailwater = bench.tailwater(&source_section(&source))?;
    let address = tailwater.admin();
    begin(&mut tailwater, || streaming(&address))?;
    let mut writer = Session::open(&source, "bench")?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        let first = 1 + round * bench.rows();
        writer.run(&rows::insert(FLAVOR, first, bench.transactions, round))?;
        // Something follows it, so that whoever reads up to here need not wait for more.
        let end = writer.value("SELECT pg_current_wal_lsn();")?;
        writer.run(&format!("INSERT INTO markers VALUES ({});", 1_000_000 + round))?;
        let mut native = || {
            let seconds = time("pg_recvlogical", || receive(&source, &end), || Ok(true))?;
            theirs.push(seconds);
            anyhow::Ok(())
        };
        if round % 2 == 0 {
            native()?;
        }
        ours.push(run(&mut tailwater, || captured(&address, bench.transactions + 2))?);
        if round % 2 == 1 {
            native()?;
        }
        say(round, &[("pg_recvlogical", theirs.last().copied())], ("Tailwater", ours.last()));
    }
    let name = format!("{FLAVOR} -> durable log");
    let beside = ("pg_recvlogical", theirs.as_slice());
    Ok(vec![Figure::speed(name, &ours, beside, Goal::times(0.85, 0.95))])
}

/// Whether the process has this many transactions in its log since it started.
pub(crate) fn captured(address: &str, transactions: u64) -> Result<bool> {
    let metrics = admin::metrics(address)?;
    let held = metrics.value("tailwater_capture_transactions_total", "source=\"bench\"");
    Ok(held.unwrap_or(0.0) >= super::figures::count(transactions))
}

/// Runs `pg_recvlogical` from where its slot stands up to `end`.
fn receive(source: &Server, end: &str) -> Result<()> {
    let program = shell::find("pg_recvlogical").context("pg_recvlogical is not installed")?;
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "bench", "--slot=native", "--start"]);
    command.args(["--file=/dev/null", "--option=proto_version=1"]);
    command.args(["--option=publication_names=native", "--no-loop"]);
    command.arg(format!("--port={}", source.port())).arg(format!("--endpos={end}"));
    let output = command.stdin(Stdio::null()).output().context("start pg_recvlogical")?;
    if !output.status.success() {
        bail!("pg_recvlogical: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Into another PostgreSQL, beside a subscription.
pub(crate) fn catch_up(bench: &Bench) -> Result<Vec<Figure>> {
    let pair = Pair::start(bench, "")?;
    let Pair { source, target, mut tailwater } = pair;
    let mut writer = Session::open(&source, "bench")?;
    let mut sides = Sides::open(&source, &target)?;
    let (mut ours, mut theirs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..bench.rounds {
        let first = 1 + round * bench.rows();
        for (phase, write) in [rows::insert, rows::change].into_iter().enumerate() {
            let marker = 2 * round + u64::from(phase == 1);
            level(&source, &target, &mut tailwater)?;
            writer.run(&write(FLAVOR, first, bench.transactions, marker))?;
            if round % 2 == 0 {
                theirs[phase].push(sides.native(marker)?);
            }
            ours[phase].push(run(&mut tailwater, || seen(&mut sides.ours, marker))?);
            if round % 2 == 1 {
                theirs[phase].push(sides.native(marker)?);
            }
            say(
                round,
                &[("native", theirs[phase].last().copied())],
                (["Tailwater, inserts", "Tailwater, mixed"][phase], ours[phase].last()),
            );
        }
    }
    let name = |what| format!("{FLAVOR} -> {FLAVOR} catch-up, {what}");
    let goals = [Goal::times(1.6, 2.0), Goal::times(1.3, 2.0)];
    let figure = |phase: usize, what| {
        Figure::speed(name(what), &ours[phase], ("native", &theirs[phase]), goals[phase])
    };
    Ok(vec![figure(0, "inserts"), figure(1, "updates and deletes")])
}

/// A source, a target with a database for each side, and ours between them, stopped.
pub(crate) struct Pair {
    pub(crate) source: Server,
    pub(crate) target: Server,
    pub(crate) tailwater: Tailwater,
}

impl Pair {
    /// Starts both sides on empty tables, then stops them; `more` is SQL for source and native
    /// target before that.
    pub(crate) fn start(bench: &Bench, more: &str) -> Result<Pair> {
        let source = source()?;
        let target = Server::start_with(FLAVOR, SETTINGS)?;
        target.create_database_named("native")?;
        target.create_database_named("ours")?;
        source.sql("bench", more)?;
        source.sql("bench", "CREATE PUBLICATION native FOR ALL TABLES;")?;
        target.sql("native", &format!("{}{more}", rows::schema(FLAVOR)))?;
        target.sql(
            "native",
            &format!(
                "CREATE SUBSCRIPTION native CONNECTION \
                 'host=127.0.0.1 port={} user=postgres dbname=bench' \
                 PUBLICATION native WITH (copy_data = false, slot_name = 'native');",
                source.port()
            ),
        )?;
        disable(&target, &source)?;
        let sections = format!(
            "{}[targets.copy]\nconnector = \"postgres\"\nurl = \"{}\"\n\
             [pipelines.bench]\nsource = \"bench\"\ntarget = \"copy\"\n",
            source_section(&source),
            target.url("ours")
        );
        let mut tailwater = bench.tailwater(&sections)?;
        let address = tailwater.admin();
        begin(&mut tailwater, || streaming(&address))?;
        Ok(Pair { source, target, tailwater })
    }
}

/// How far each side is, and how to let the native one run.
pub(crate) struct Sides<'a> {
    source: &'a Server,
    target: &'a Server,
    native: Session,
    pub(crate) ours: Session,
}

impl<'a> Sides<'a> {
    pub(crate) fn open(source: &'a Server, target: &'a Server) -> Result<Sides<'a>> {
        let native = Session::open(target, "native")?;
        Ok(Sides { source, target, native, ours: Session::open(target, "ours")? })
    }

    /// Seconds that native replication takes from its start to `marker`; it is stopped again.
    fn native(&mut self, marker: u64) -> Result<f64> {
        let (target, native) = (self.target, &mut self.native);
        let seconds = time("native replication", || enable(target), || seen(native, marker))?;
        disable(self.target, self.source)?;
        Ok(seconds)
    }
}

/// Lets the subscription run.
pub(crate) fn enable(target: &Server) -> Result<()> {
    target.sql("native", "ALTER SUBSCRIPTION native ENABLE;").map(drop)
}

/// Stops the subscription and waits until its worker has left the source.
pub(crate) fn disable(target: &Server, source: &Server) -> Result<()> {
    target.sql("native", "ALTER SUBSCRIPTION native DISABLE;")?;
    until("the end of the subscription's worker", || {
        let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'native';";
        Ok(source.sql("bench", active)? == "f")
    })
}

/// Lets both sides run until neither slot holds on to WAL of before: a walsender first reads again
/// from `restart_lsn`, which moves only now and then. One side would have more to read, by luck.
fn level(source: &Server, target: &Server, tailwater: &mut Tailwater) -> Result<()> {
    let before = source.sql("bench", "SELECT pg_current_wal_lsn();")?;
    // What lets it move is a checkpoint's note of what is running, and a commit behind that.
    let look = format!(
        "CHECKPOINT; INSERT INTO markers SELECT LEAST(MIN(id), 0) - 1 FROM markers; \
         SELECT bool_and(restart_lsn >= '{before}') FROM pg_replication_slots;"
    );
    enable(target)?;
    begin(tailwater, || Ok(source.sql("bench", &look)? == "t"))?;
    disable(target, source)
}

/// Whether `marker` has arrived.
pub(crate) fn seen(session: &mut Session, marker: u64) -> Result<bool> {
    let count = format!("SELECT COUNT(*) FROM markers WHERE id = {marker};");
    Ok(session.value(&count)? == "1")
}

/// Prints what a round has measured.
pub(crate) fn say(round: u64, theirs: &[(&str, Option<f64>)], (what, ours): (&str, Option<&Run>)) {
    let mut parts: Vec<String> = theirs
        .iter()
        .filter_map(|(name, seconds)| Some(format!("{name} {:.2} s", (*seconds)?)))
        .collect();
    if let Some(ours) = ours {
        parts.push(format!(
            "{what} {:.2} s ({:.2} s CPU, {} MiB)",
            ours.seconds,
            ours.cpu_seconds,
            ours.peak_memory >> 20
        ));
    }
    println!("  round {}: {}", round + 1, parts.join(", "));
}

fn source() -> Result<Server> {
    let source = Server::start_with(FLAVOR, SETTINGS)?;
    source.create_database_named("bench")?;
    source.sql("bench", &rows::schema(FLAVOR))?;
    Ok(source)
}

fn source_section(source: &Server) -> String {
    format!(
        "[sources.bench]\nconnector = \"postgres\"\nurl = \"{}\"\ntables = [\"public.*\"]\n",
        source.url("bench")
    )
}
