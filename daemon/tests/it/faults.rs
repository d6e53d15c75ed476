//! What is cut off, falls silent, refuses, dies or runs full. What lasts until it is mended shows: the
//! role that it concerns is `retrying` and says why. However it was, the roles go on by themselves,
//! no error stays in the status, and the target ends equal, with every change once: among the tables
//! is one without a key, where a second time would be a second row.

use anyhow::{Context, Result};
use tailwater_scratch::{Cut, Flavor, Proxy, Server, SmallDisk, Tailwater, wait_until};

use crate::operator::{LIMIT, assert_clean, status, wait_for_pipeline, wait_for_source};
use crate::workload::{Spelling, Workload};
use crate::world::{PATIENCE, binary};

/// The database on both servers, and the source's name.
const SHOP: &str = "shop";
const PIPELINE: &str = "shop_to_copy";

/// Two servers of their own with a network between them and Tailwater that fails on demand.
struct Pair {
    from: Server,
    to: Server,
    to_source: Proxy,
    to_target: Proxy,
    tailwater: Tailwater,
    workload: Workload,
}

impl Pair {
    fn new(from: Server, to: Server, seed: u64) -> Result<Pair> {
        println!("{} -> {}, seed {seed}", from.flavor(), to.flavor());
        let postgres = from.flavor().is_postgres();
        let spelling = if postgres { Spelling::Postgres } else { Spelling::Mysql };
        let mut workload = Workload::new(spelling, true, seed);
        for server in [&from, &to] {
            server.create_database_named(SHOP)?;
        }
        from.sql(SHOP, &workload.schema())?;
        from.sql(SHOP, &workload.load())?;
        let (to_source, to_target) = (Proxy::start(from.port())?, Proxy::start(to.port())?);
        let tailwater = Tailwater::prepare(binary(), "")?;
        let pair = Pair { from, to, to_source, to_target, tailwater, workload };
        let data = pair.tailwater.config().with_file_name("log");
        pair.tailwater.configure(&format!(
            "[log]\ndata_dir = \"{}\"\nlisten = \"{}\"\n{}",
            data.display(),
            pair.tailwater.brokers(),
            pair.roles()
        ))?;
        Ok(pair)
    }

    fn roles(&self) -> String {
        let postgres = self.from.flavor().is_postgres();
        let (connector, schema) = if postgres { ("postgres", "public") } else { ("mysql", SHOP) };
        format!(
            "[sources.{SHOP}]\nconnector = \"{connector}\"\nurl = \"{}\"\ntables = [\"{schema}.*\"]\n\
             [targets.copy]\nconnector = \"{connector}\"\nurl = \"{}\"\n\
             [pipelines.{PIPELINE}]\nsource = \"{SHOP}\"\ntarget = \"copy\"\n",
            self.from.url_through(&self.to_source, SHOP),
            self.to.url_through(&self.to_target, SHOP),
        )
    }

    fn work(&mut self, count: usize) -> Result<()> {
        let sql = self.workload.transactions(count);
        self.from.sql(SHOP, &sql).map(drop)
    }

    /// The target gets equal, by itself.
    fn compare(&self) -> Result<()> {
        self.tailwater.wait_for(PIPELINE, PATIENCE)?;
        let (source, target) = (self.from.dump(SHOP)?, self.to.dump(SHOP)?);
        anyhow::ensure!(source == target, "the two differ\n{}", self.tailwater.log());
        Ok(())
    }

    /// Both roles stream, without an error.
    fn wait_until_healthy(&self) -> Result<()> {
        for role in [
            wait_for_source(&self.tailwater, "streaming", &[])?,
            wait_for_pipeline(&self.tailwater, "streaming", &[])?,
        ] {
            anyhow::ensure!(role["error"].is_null(), "an error that has passed stays: {role}");
        }
        Ok(())
    }

    /// Ends the sessions of Tailwater on the target while it works there.
    fn end_sessions_on_target(&self) -> Result<usize> {
        if self.to.flavor().is_postgres() {
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
            return Ok(self.to.sql(SHOP, sql)?.lines().count());
        }
        let sql = "SELECT id FROM information_schema.processlist \
                   WHERE id <> CONNECTION_ID() AND command <> 'Daemon' AND user = 'root'";
        let ids = self.to.sql(SHOP, sql)?;
        // It may be gone already.
        Ok(ids.lines().filter(|id| self.to.sql(SHOP, &format!("KILL {id}")).is_ok()).count())
    }
}

/// Everything that a network and a crash do to source and target of one pair.
fn network_and_crashes(flavor: Flavor, seed: u64) -> Result<()> {
    let mut pair = Pair::new(Server::start(flavor)?, Server::start(flavor)?, seed)?;
    // Neither is there at the start.
    pair.to_source.refuse();
    pair.to_target.refuse();
    pair.tailwater.start_again()?;
    wait_for_source(&pair.tailwater, "retrying", &["connect"])?;
    pair.to_source.flow();
    wait_for_pipeline(&pair.tailwater, "retrying", &["connect"])?;
    pair.to_target.flow();
    pair.compare()?;
    pair.wait_until_healthy()?;
    println!("started without them");

    source_faults(&mut pair)?;
    target_faults(&mut pair)?;
    commits(&mut pair, seed)?;

    // Crashes.
    pair.work(30)?;
    pair.from.kill()?;
    wait_for_source(&pair.tailwater, "retrying", &["connect"])?;
    pair.from.start_again()?;
    pair.work(30)?;
    pair.to.kill()?;
    wait_for_pipeline(&pair.tailwater, "retrying", &["connect"])?;
    pair.work(30)?;
    pair.to.start_again()?;
    pair.compare()?;
    pair.wait_until_healthy()?;
    pair.tailwater.stop()?;
    assert_clean(&pair.tailwater.log());
    Ok(())
}

fn source_faults(pair: &mut Pair) -> Result<()> {
    pair.to_source.cut();
    pair.work(20)?;
    pair.compare().context("the source's connections were cut")?;
    pair.to_source.refuse();
    pair.work(20)?;
    wait_for_source(&pair.tailwater, "retrying", &["connect"])?;
    // `wait` does not give up what passes by itself.
    let waited = pair.tailwater.command(&["wait", "--pipeline", PIPELINE, "--timeout", "1s"])?;
    assert_eq!(waited.code, Some(1), "{waited:?}");
    pair.to_source.flow();
    pair.compare().context("the source refused")?;
    pair.to_source.stall();
    pair.work(20)?;
    pair.to_source.flow();
    pair.compare().context("the source was silent")?;
    println!("source done");
    pair.wait_until_healthy()
}

fn target_faults(pair: &mut Pair) -> Result<()> {
    pair.to_target.cut();
    pair.work(20)?;
    pair.compare().context("the target's connections were cut")?;
    pair.to_target.refuse();
    pair.work(20)?;
    wait_for_pipeline(&pair.tailwater, "retrying", &["connect"])?;
    pair.to_target.flow();
    pair.compare().context("the target refused")?;
    pair.to_target.stall();
    pair.work(20)?;
    pair.to_target.flow();
    pair.compare().context("the target was silent")?;
    // Sessions end in the middle of the load.
    let sql = pair.workload.transactions(300);
    let mut ended = 0;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| pair.from.sql(SHOP, &sql).map(drop));
        while !load.is_finished() {
            ended += pair.end_sessions_on_target()?;
        }
        load.join().expect("the load does not panic")
    })?;
    assert!(ended > 0, "no session was there to end");
    pair.compare().context("sessions were ended on the target")?;
    println!("target done, {ended} sessions ended");
    pair.wait_until_healthy()
}

/// A connection that breaks just before COMMIT arrives, or just before its answer does: each change
/// once, which a table without a key shows.
fn commits(pair: &mut Pair, seed: u64) -> Result<()> {
    pair.from.sql(SHOP, "DELETE FROM events")?;
    for (number, before) in [(1, true), (2, false), (3, true), (4, false)] {
        pair.compare()?;
        let commit = b"COMMIT".to_vec();
        pair.to_target.cut_on(if before { Cut::Before(commit) } else { Cut::After(commit) });
        pair.from.sql(SHOP, &format!("INSERT INTO events VALUES ({number}, '{seed}')"))?;
        pair.to_target.wait_for_cut(LIMIT).context("the target's COMMIT was not seen")?;
        pair.compare()?;
        let count =
            pair.to.sql(SHOP, &format!("SELECT COUNT(*) FROM events WHERE kind = {number}"))?;
        assert_eq!(count.trim(), "1", "cut {} COMMIT", if before { "before" } else { "after" });
    }
    println!("commits done");
    Ok(())
}

#[test]
fn postgres_goes_on_through_a_failing_network_and_crashes() {
    network_and_crashes(Flavor::Postgres15, 401).unwrap();
}

#[test]
fn mariadb_goes_on_through_a_failing_network_and_crashes() {
    network_and_crashes(Flavor::MariaDb, 402).unwrap();
}

/// The target's disk runs full under load and gets room again.
fn full_target(flavor: Flavor, seed: u64) -> Result<()> {
    let bytes = if flavor.is_postgres() { 400 << 20 } else { 500 << 20 };
    let to = Server::start_on_small_disk(flavor, bytes, &[])?;
    let mut pair = Pair::new(Server::start(flavor)?, to, seed)?;
    let big = "CREATE TABLE big (id int PRIMARY KEY, payload varchar(4000))";
    pair.from.sql(SHOP, big)?;
    pair.tailwater.start_again()?;
    pair.compare()?;
    pair.to.fill_disk()?;
    let mut id = 0;
    let failed = wait_until(LIMIT, "a disk that is full for the pipeline", || {
        let values: Vec<String> = (0..2_000)
            .map(|row| format!("({}, REPEAT('{}', 1000))", id + row, (id + row) % 10))
            .collect();
        id += 2_000;
        pair.from.sql(SHOP, &format!("INSERT INTO big VALUES {}", values.join(", ")))?;
        let pipeline = status(&pair.tailwater)?["pipelines"][0].clone();
        // The server may fail otherwise first: a person must come to see the disk in the end.
        let reason = pipeline["error"].as_str().unwrap_or_default().to_lowercase();
        let named = ["no space", "disk", "full"].iter().any(|word| reason.contains(word));
        Ok((pipeline["state"] == "retrying" && named).then_some(pipeline))
    })?;
    println!("{failed} after {id} rows");
    pair.to.free_disk()?;
    pair.work(20)?;
    pair.compare()?;
    pair.wait_until_healthy()?;
    pair.tailwater.stop()?;
    assert_clean(&pair.tailwater.log());
    Ok(())
}

#[test]
fn a_full_disk_of_a_postgres_target_passes() {
    if let Err(why) = SmallDisk::available() {
        println!("left out: {why}");
        return;
    }
    full_target(Flavor::Postgres15, 403).unwrap();
}

#[test]
fn a_full_disk_of_a_mariadb_target_passes() {
    if let Err(why) = SmallDisk::available() {
        println!("left out: {why}");
        return;
    }
    full_target(Flavor::MariaDb, 404).unwrap();
}

/// The log in a process of its own, cut off, silent, killed; capture and apply go on with it.
#[test]
fn roles_go_on_when_the_log_they_reach_by_tcp_comes_back() {
    let flavor = Flavor::Postgres15;
    let mut pair =
        Pair::new(Server::start(flavor).unwrap(), Server::start(flavor).unwrap(), 405).unwrap();
    let mut log = Tailwater::prepare(binary(), "").unwrap();
    let port = log.brokers().rsplit_once(':').unwrap().1.parse().unwrap();
    let network = Proxy::start(port).unwrap();
    // Clients are told the proxy's address, or they would go past it.
    let data = log.config().with_file_name("log");
    log.configure(&format!(
        "[log]\ndata_dir = \"{}\"\nlisten = \"{}\"\nadvertise = \"127.0.0.1:{}\"\n",
        data.display(),
        log.brokers(),
        network.port()
    ))
    .unwrap();
    log.start_again().unwrap();
    let brokers = format!("[log]\nbrokers = [\"127.0.0.1:{}\"]\n", network.port());
    pair.tailwater.configure(&format!("{brokers}{}", pair.roles())).unwrap();
    pair.tailwater.start_again().unwrap();
    pair.compare().unwrap();

    network.cut();
    pair.work(30).unwrap();
    pair.compare().unwrap();
    network.refuse();
    pair.work(30).unwrap();
    wait_for_source(&pair.tailwater, "retrying", &[]).unwrap();
    network.flow();
    pair.compare().unwrap();
    network.stall();
    pair.work(30).unwrap();
    network.flow();
    pair.compare().unwrap();
    for _crash in 0..3 {
        pair.work(50).unwrap();
        log.kill().unwrap();
        pair.work(30).unwrap();
        log.start_again().unwrap();
        pair.compare().unwrap();
    }
    pair.wait_until_healthy().unwrap();
    pair.tailwater.stop().unwrap();
    log.stop().unwrap();
    assert_clean(&pair.tailwater.log());
    assert_clean(&log.log());
}

/// The log's own disk runs full: capture waits for room, and nothing is lost.
#[test]
fn a_full_disk_of_the_log_passes() {
    if let Err(why) = SmallDisk::available() {
        println!("left out: {why}");
        return;
    }
    let flavor = Flavor::Postgres15;
    let mut pair =
        Pair::new(Server::start(flavor).unwrap(), Server::start(flavor).unwrap(), 406).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("log");
    std::fs::create_dir(&data).unwrap();
    let disk = SmallDisk::new(&data, 200 << 20);
    let script = folder.path().join("tailwater");
    std::fs::write(&script, on_disk(&disk)).unwrap();
    make_executable(&script);
    let text = std::fs::read_to_string(pair.tailwater.config()).unwrap();
    let own = pair.tailwater.config().with_file_name("log").display().to_string();
    let (text, _admin) = text.split_once("[admin]").unwrap();
    let text = text.replace(&own, &data.display().to_string());
    pair.tailwater = Tailwater::prepare(&script, "").unwrap();
    let listen = format!("listen = \"{}\"", pair.tailwater.brokers());
    let lines = text.lines().map(|line| if line.starts_with("listen") { &listen } else { line });
    pair.tailwater.configure(&lines.collect::<Vec<_>>().join("\n")).unwrap();
    pair.tailwater.start_again().unwrap();
    pair.compare().unwrap();

    let pid = pair.tailwater.pid().unwrap();
    disk.fill(pid).unwrap();
    pair.work(300).unwrap();
    wait_for_source(&pair.tailwater, "retrying", &[]).unwrap();
    disk.free(pid).unwrap();
    pair.work(30).unwrap();
    pair.compare().unwrap();
    pair.wait_until_healthy().unwrap();
    pair.tailwater.stop().unwrap();
    assert_clean(&pair.tailwater.log());
}

/// A program that is ours, with its log's folder on `disk` when it runs the roles.
fn on_disk(disk: &SmallDisk) -> String {
    let wrapped = disk.wrap(&std::process::Command::new(binary()));
    let words: Vec<String> = std::iter::once(wrapped.get_program())
        .chain(wrapped.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
        .collect();
    format!(
        "#!/bin/sh\nif [ \"$1\" = run ]; then exec {} \"$@\"; fi\nexec '{}' \"$@\"\n",
        words.join(" "),
        binary().display()
    )
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
