//! Standby hosts: two processes that capture one source and two that apply one pipeline, over one
//! log. Whatever becomes of the ones at work (killed, hanging and awake again, gone from the
//! network without a word), the others go on within ten seconds, and never two at once.
//!
//! ```text
//!   source ─► capture 1, capture 2 ─► log ─► apply 1, apply 2 ─► target
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tailwater_scratch::{Flavor, Host, Server, Tailwater, everything, free_port, wait_until};
use tokio::time::Instant;

use crate::operator::{get, metric, status};
use crate::workload::Workload;
use crate::world::{Watcher, World, binary, same_rows};

/// How long anything else may take on a loaded machine; no test waits for it to pass.
const LIMIT: Duration = Duration::from_secs(180);

/// Within which a standby is at work: what docs/operations.md says.
const TAKEOVER: Duration = Duration::from_secs(10);

/// Kills of each role, per pair.
fn kills() -> usize {
    if everything() { 20 } else { 2 }
}

/// What a process of these tests has one of.
#[derive(Debug, Clone, Copy)]
enum Role {
    Source,
    Pipeline,
}

impl Role {
    fn list(self) -> &'static str {
        match self {
            Role::Source => "sources",
            Role::Pipeline => "pipelines",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Pipeline => "pipeline",
        }
    }
}

/// The state of a role, and why.
fn state(tailwater: &Tailwater, role: Role) -> Result<(String, String)> {
    let status = status(tailwater)?;
    let of = &status[role.list()][0];
    let text = |key: &str| of[key].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("error")))
}

fn wait_for(tailwater: &Tailwater, role: Role, wanted: &str, limit: Duration) -> Result<()> {
    let what = format!("a {} that is {wanted}", role.word());
    wait_until(limit, &what, || Ok((state(tailwater, role)?.0 == wanted).then_some(())))
        .with_context(|| tailwater.log())
}

/// How often a process has made itself the one that writes.
fn takeovers(tailwater: &Tailwater) -> usize {
    tailwater.log().matches("took over").count()
}

/// Two processes for one role: which of them is at work.
#[derive(Debug)]
struct Pair {
    role: Role,
    active: Tailwater,
    standby: Tailwater,
}

impl Pair {
    /// Starts the one, and then the other.
    fn start(role: Role, mut active: Tailwater, mut standby: Tailwater) -> Result<Pair> {
        active.start_again()?;
        wait_until(LIMIT, "a role at work", || {
            let (state, _) = state(&active, role)?;
            Ok(["snapshot", "streaming"].contains(&state.as_str()).then_some(()))
        })
        .with_context(|| active.log())?;
        standby.start_again()?;
        wait_for(&standby, role, "standby", LIMIT)?;
        Ok(Pair { role, active, standby })
    }

    /// Waits until the standby is at work, since `failed_at`.
    fn taken_over(&mut self, what: &str, failed_at: Instant) -> Result<()> {
        wait_for(&self.standby, self.role, "streaming", TAKEOVER)?;
        let word = self.role.word();
        println!("{word} {what}: taken over after {:.1} s", failed_at.elapsed().as_secs_f64());
        std::mem::swap(&mut self.active, &mut self.standby);
        Ok(())
    }

    /// SIGKILL.
    fn kill(&mut self) -> Result<()> {
        let failed_at = Instant::now();
        self.active.kill()?;
        self.taken_over("killed", failed_at)?;
        self.standby.start_again()?;
        wait_for(&self.standby, self.role, "standby", LIMIT)
    }

    /// SIGCONT, when another has taken its place: it stands by, and changes nothing.
    fn wake(&self) -> Result<()> {
        let before = (takeovers(&self.active), takeovers(&self.standby));
        self.standby.resume()?;
        wait_for(&self.standby, self.role, "standby", LIMIT)?;
        ensure!((takeovers(&self.active), takeovers(&self.standby)) == before, "it came back");
        ensure!(state(&self.active, self.role)?.0 == "streaming", "{}", self.active.log());
        Ok(())
    }

    /// What is asked of a standby says what it is, and who has the work.
    fn says_so(&self, name: &str) -> Result<()> {
        let (flag, another) = match self.role {
            Role::Source => ("--source", "captures this source: session"),
            Role::Pipeline => ("--pipeline", "applies this pipeline: session"),
        };
        let (_, error) = state(&self.standby, self.role)?;
        ensure!(error.contains(another), "{error}");
        for action in ["pause", "resume"] {
            let ran = self.standby.command(&[action, flag, name])?;
            let said = ran.err.contains("stands by") && ran.err.contains(another);
            ensure!(ran.code != Some(0) && said, "{action}: {ran:?}");
        }
        let (code, _) = get(&self.standby, "/readyz")?;
        ensure!(code == 200, "a standby is ready");
        let (_, page) = get(&self.standby, "/metrics")?;
        let word = self.role.word();
        let series = format!("tailwater_{word}_state{{{word}=\"{name}\",state=\"standby\"}}");
        ensure!(metric(&page, &series) == Some(1.0), "{series}\n{page}");
        Ok(())
    }
}

/// Writes to the source until it is told to stop.
#[derive(Debug)]
struct Writing {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Writing {
    fn start(from: (&'static Server, String), mut workload: Workload) -> Writing {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut transactions = 0;
            while !stopped.load(Ordering::SeqCst) {
                from.0.sql(&from.1, &workload.transactions(10))?;
                transactions += 10;
            }
            Ok(transactions)
        });
        Writing { stop, thread }
    }

    fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the writer does not panic")
    }
}

fn run(flavor: Flavor, seed: u64) -> Result<()> {
    if let Err(why) = flavor.available() {
        println!("{flavor} left out: {why}");
        return Ok(());
    }
    let world = World::new(flavor, flavor, seed)?;
    let log = Tailwater::start(binary(), "")?;
    let head = format!("[log]\nbrokers = [\"{}\"]\n", log.brokers());
    let prepare = |role: String| Tailwater::prepare_whole(binary(), &format!("{head}{role}"));
    let capture = || prepare(world.source_role());
    let apply = || prepare(world.pipeline_role(""));
    let mut captures = Pair::start(Role::Source, capture()?, capture()?)?;
    let mut applies = Pair::start(Role::Pipeline, apply()?, apply()?)?;
    captures.says_so(&world.from.1)?;
    applies.says_so(&world.pipeline)?;
    ensure!(takeovers(&captures.standby) == 0, "{}", captures.standby.log());

    wait_for(&applies.active, Role::Pipeline, "streaming", LIMIT)?;
    let watcher = Watcher::start(world.to.clone());
    let writing = Writing::start(world.from.clone(), world.workload);
    for _kill in 0..kills() {
        captures.kill()?;
        applies.kill()?;
    }

    // Both hang; they wake up when others have taken their places.
    let failed_at = Instant::now();
    captures.active.pause()?;
    applies.active.pause()?;
    captures.taken_over("hangs", failed_at)?;
    applies.taken_over("hangs", failed_at)?;
    captures.wake()?;
    applies.wake()?;
    captures.kill()?;
    applies.kill()?;

    // Whom a person pauses keeps its place.
    pausing(&[(&captures, &world.from.1), (&applies, &world.pipeline)])?;

    let transactions = writing.finish()?;
    println!("{flavor}: {transactions} transactions");
    wait_until(LIMIT, "equal databases", || Ok(same_rows(&world.from, &world.to).ok()))?;
    ensure!(watcher.finish()? > 0);
    captures.active.stop()?;
    applies.active.stop()
}

/// Longer than a lease: pauses outlive it, and nobody takes over.
fn pausing(pairs: &[(&Pair, &str)]) -> Result<()> {
    let before: Vec<usize> = pairs.iter().map(|(pair, _)| takeovers(&pair.standby)).collect();
    let act = |action: &str, becomes: &str| -> Result<()> {
        for (pair, name) in pairs {
            let ran = pair.active.command(&[action, &format!("--{}", pair.role.word()), name])?;
            ensure!(ran.code == Some(0), "{ran:?}");
            wait_for(&pair.active, pair.role, becomes, LIMIT)?;
        }
        Ok(())
    };
    act("pause", "paused")?;
    let until = Instant::now() + Duration::from_secs(7);
    wait_until(LIMIT, "a long pause", || {
        for (pair, _) in pairs {
            ensure!(state(&pair.standby, pair.role)?.0 == "standby", "{}", pair.standby.log());
        }
        Ok((Instant::now() > until).then_some(()))
    })?;
    act("resume", "streaming")?;
    let after: Vec<usize> = pairs.iter().map(|(pair, _)| takeovers(&pair.standby)).collect();
    ensure!(after == before, "a standby took over from one who paused");
    Ok(())
}

#[test]
fn standbys_of_postgres_take_over() {
    run(Flavor::Postgres15, 601).unwrap();
}

#[test]
fn standbys_of_mariadb_take_over() {
    run(Flavor::MariaDb, 602).unwrap();
}

#[test]
fn standbys_of_mysql_take_over() {
    run(Flavor::MySql, 603).unwrap();
}

/// Source and pipeline of one file need not be at work on one host: `wait` and `verify` work where
/// the pipeline is, and a host that has neither says so.
#[test]
fn hosts_may_share_the_work() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 604).unwrap();
    let log = Tailwater::start(binary(), "").unwrap();
    let head = format!("[log]\nbrokers = [\"{}\"]\n", log.brokers());
    let prepare = |roles: String| {
        let mut host = Tailwater::prepare_whole(binary(), &format!("{head}{roles}")).unwrap();
        host.start_again().unwrap();
        host
    };
    let captures = prepare(world.source_role());
    wait_for(&captures, Role::Source, "streaming", LIMIT).unwrap();
    let applies = prepare(world.roles(""));
    wait_for(&applies, Role::Source, "standby", LIMIT).unwrap();
    wait_for(&applies, Role::Pipeline, "streaming", LIMIT).unwrap();
    let waits = prepare(world.roles(""));
    wait_for(&waits, Role::Pipeline, "standby", LIMIT).unwrap();

    world.work(20).unwrap();
    let ask = |host: &Tailwater, command: &[&str]| {
        host.command(&[command, &["--pipeline", &world.pipeline]].concat()).unwrap()
    };
    let ran = ask(&applies, &["wait", "--timeout", "180s"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", applies.log());
    same_rows(&world.from, &world.to).unwrap();
    let ran = ask(&applies, &["verify"]);
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", applies.log());
    let lag = &status(&applies).unwrap()["pipelines"][0]["lag_seconds"];
    assert_eq!(lag.as_f64(), Some(0.0));
    // One that may still take over is waited for.
    for (command, code) in [(&["wait", "--timeout", "1s"][..], 1), (&["verify"], 2)] {
        let ran = ask(&waits, command);
        let said = format!("{}{}", ran.out, ran.err);
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(said.contains("stands by") && said.contains("session"), "{ran:?}");
    }
}

/// A file of PostgreSQL's that lets this machine's own hosts in.
#[derive(Debug)]
struct Admission(PathBuf);

impl Admission {
    fn of(host: &Host) -> Result<Admission> {
        let name = format!("tailwater-{}-hba.conf", std::process::id());
        let path = std::env::temp_dir().join(name);
        let line = |network: &str| format!("host all all {network} trust\n");
        std::fs::write(&path, line("127.0.0.1/32") + &line(&host.network()))?;
        Ok(Admission(path))
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// A process with both roles on a host of its own, and another here that stands by.
#[derive(Debug)]
struct Remote {
    first: Tailwater,
    other: Tailwater,
    _log: Tailwater,
    _admission: Admission,
    from: (&'static Server, String),
    to: (&'static Server, String),
    watcher: Watcher,
    writing: Writing,
}

impl Remote {
    fn start(seed: u64) -> Result<Remote> {
        let host = Host::start()?;
        let admission = Admission::of(&host)?;
        let listen = format!("127.0.0.1,{}", host.address_here());
        let file = admission.0.display().to_string();
        let settings = [("listen_addresses", listen.as_str()), ("hba_file", file.as_str())];
        let server = || -> Result<&'static Server> {
            Ok(Box::leak(Box::new(Server::start_with(Flavor::Postgres15, &settings)?)))
        };
        let world = World::between(server()?, server()?, seed)?;
        let broker = format!("{}:{}", host.other_address_here(), free_port());
        let data = world.tailwater.config().with_file_name("log");
        let data = data.display();
        let mut log = Tailwater::prepare_whole(
            binary(),
            &format!("[log]\ndata_dir = \"{data}\"\nlisten = \"{broker}\"\ninsecure = true\n"),
        )?;
        log.start_again()?;
        let roles = format!("[log]\nbrokers = [\"{broker}\"]\n{}", world.roles(""));
        let there = host.address_here().to_string();
        let from_there = roles.replace(&Ipv4Addr::LOCALHOST.to_string(), &there);
        let mut first = Tailwater::prepare_on(host, binary(), &from_there)?;
        first.start_again()?;
        wait_for(&first, Role::Pipeline, "streaming", LIMIT)?;
        let mut other = Tailwater::prepare_whole(binary(), &roles)?;
        other.start_again()?;
        for role in [Role::Source, Role::Pipeline] {
            wait_for(&other, role, "standby", LIMIT)?;
        }
        let before = applied(&first)?;
        let remote = Remote {
            first,
            other,
            _log: log,
            _admission: admission,
            watcher: Watcher::start(world.to.clone()),
            writing: Writing::start(world.from.clone(), world.workload),
            from: world.from,
            to: world.to,
        };
        wait_until(LIMIT, "a pipeline under load", || {
            Ok((applied(&remote.first)? > before).then_some(()))
        })?;
        Ok(remote)
    }

    fn host(&self) -> &Host {
        self.first.host().expect("it was started on one")
    }

    /// The other is at work: the first changes nothing when it comes back.
    fn comes_back(self, roles: &[Role], back: impl FnOnce(&Host) -> Result<()>) -> Result<()> {
        let before = takeovers(&self.other);
        back(self.host())?;
        for role in roles {
            wait_for(&self.first, *role, "standby", LIMIT)?;
            ensure!(state(&self.other, *role)?.0 == "streaming", "{}", self.other.log());
        }
        ensure!(takeovers(&self.other) == before, "{}", self.other.log());
        self.writing.finish()?;
        wait_until(LIMIT, "equal databases", || Ok(same_rows(&self.from, &self.to).ok()))?;
        ensure!(self.watcher.finish()? > 0);
        for mut host in [self.first, self.other] {
            host.stop()?;
        }
        Ok(())
    }
}

fn applied(tailwater: &Tailwater) -> Result<u64> {
    let status = status(tailwater)?;
    status["pipelines"][0]["rows_applied"].as_u64().context("a number of rows")
}

/// The host at work is cut off without a word: nothing that it said last was a goodbye.
#[test]
fn a_host_that_vanishes_is_replaced() {
    if let Err(why) = Host::available() {
        println!("left out: {why}");
        return;
    }
    vanishing().unwrap();
}

fn vanishing() -> Result<()> {
    let remote = Remote::start(605)?;
    let failed_at = Instant::now();
    remote.host().unplug()?;
    let both = [Role::Source, Role::Pipeline];
    for role in both {
        wait_for(&remote.other, role, "streaming", TAKEOVER)?;
        let seconds = failed_at.elapsed().as_secs_f64();
        println!("{} vanished: taken over after {seconds:.1} s", role.word());
    }
    wait_until(LIMIT, "rows from the other host", || {
        Ok((applied(&remote.other)? > 0).then_some(()))
    })?;
    remote.comes_back(&both, Host::plug)
}

/// Whoever captures and no longer reaches the log leaves the source to another who does. It takes
/// until a request to the log is given up.
#[test]
fn a_host_that_loses_the_log_is_replaced() {
    if !everything() {
        println!("left out: it takes half a minute");
        return;
    }
    if let Err(why) = Host::available() {
        println!("left out: {why}");
        return;
    }
    losing_the_log().unwrap();
}

fn losing_the_log() -> Result<()> {
    let remote = Remote::start(606)?;
    let (log, failed_at) = (remote.host().other_address_here(), Instant::now());
    remote.host().lose(log)?;
    wait_for(&remote.other, Role::Source, "streaming", LIMIT)?;
    println!("source without a log: taken over after {:.1} s", failed_at.elapsed().as_secs_f64());
    remote.comes_back(&[Role::Source], |host| host.find(log))
}
