//! The memory promise: a transaction of many rows, and one huge row, pass through in
//! `memory_limit` plus three times the largest event.
//!
//! What a process needs before it holds any data (its code, its threads, its runtime) is not what
//! `memory_limit` speaks of: it is measured here, on an idle process, and allowed for.
//!
//! That this can fail is shown with a pipeline whose bounds are taken away (`unbounded`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use tailwater_scratch::{Flavor, Server, Tailwater, everything, wait_until};

use crate::unbounded::Applier;
use crate::world::{World, binary};

/// Ten million rows take a while on two cores.
const PATIENCE: &str = "3000s";

/// Both engines print numbers alike: equal lines are equal tables.
const MANY_SUM: [&str; 2] = [
    "SELECT count(*), sum(id), sum(a), sum(hashtextextended(id || b || a, 0)::numeric) FROM many",
    "SELECT count(*), sum(id), sum(a), sum(crc32(concat(id, b, a))) FROM many",
];
const HUGE_SUM: [&str; 2] = [
    "SELECT count(*), sum(octet_length(t)), sum(octet_length(b)), sum(id * small), \
     string_agg(coalesce(md5(t), '-') || coalesce(md5(b), '-'), ',' ORDER BY id) FROM huge",
    "SELECT count(*), sum(octet_length(t)), sum(octet_length(b)), sum(id * small), \
     group_concat(coalesce(md5(t), '-'), coalesce(md5(b), '-') ORDER BY id) FROM huge",
];

fn limit_mib() -> u64 {
    if everything() { 256 } else { 64 }
}

fn many_rows() -> u64 {
    if everything() { 10_000_000 } else { 200_000 }
}

fn huge_mib() -> u64 {
    if everything() { 200 } else { 20 }
}

/// A world whose source has one more table, and a process that keeps to the limit.
fn world(flavor: Flavor, seed: u64, table: &str) -> Result<World> {
    let world = World::new(flavor, flavor, seed)?;
    world.from.0.sql(&world.from.1, table)?;
    let configuration = world.configuration(&world.tailwater, "");
    let limit = format!("memory_limit = \"{}MiB\"\n", limit_mib());
    world.tailwater.configure(&format!("{limit}{configuration}"))?;
    Ok(world)
}

/// Peak memory in bytes of a process since the last [`forget_peak`].
fn peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    let kib: u64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib << 10)
}

/// From here on the peak is that of what follows.
fn forget_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("reset VmHWM")
}

fn pid(tailwater: &Tailwater) -> Result<u32> {
    tailwater.pid().context("it runs")
}

/// What a process may hold.
#[derive(Debug, Clone, Copy)]
struct Bound {
    pid: u32,
    /// What it needs to hold nothing at all.
    idle: u64,
    limit: u64,
}

impl Bound {
    /// That of the process that runs `world`.
    fn of(world: &World) -> Result<Bound> {
        let idle = peak(pid(&Tailwater::start(binary(), "")?)?)?;
        Ok(Bound { pid: pid(&world.tailwater)?, idle, limit: limit_mib() << 20 })
    }

    fn ensure(self, phase: &str, event: u64) -> Result<()> {
        let (peak, bound) = (peak(self.pid)?, self.idle + self.limit + 3 * event);
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{phase}: peak {} MiB; bound {} MiB = idle {} + limit {} + 3 x {}",
            mib(peak),
            mib(bound),
            mib(self.idle),
            mib(self.limit),
            mib(event)
        );
        ensure!(peak <= bound, "{phase}: {} MiB is over {} MiB", mib(peak), mib(bound));
        forget_peak(self.pid)
    }
}

fn ensure_same(world: &World, sums: [&str; 2]) -> Result<()> {
    let sum = sums[usize::from(!world.from.0.flavor().is_postgres())];
    let read = |(server, database): &(&'static Server, String)| {
        let session = "SET SESSION group_concat_max_len = 1000000; ";
        let session = if server.flavor().is_postgres() { "" } else { session };
        server.sql(database, &format!("{session}{sum}"))
    };
    let (source, target) = (read(&world.from)?, read(&world.to)?);
    ensure!(source == target, "source: {source}\ntarget: {target}");
    Ok(())
}

/// Counts the rows of `many` on the target over and over.
struct Counter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Counter {
    /// Any count but `before` and `after` is a part of a transaction.
    fn start(to: (&'static Server, String), before: u64, after: u64) -> Counter {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::SeqCst) {
                let count: u64 = to.0.sql(&to.1, "SELECT count(*) FROM many")?.parse()?;
                ensure!(count == before || count == after, "a part was seen: {count} rows");
                looks += 1;
            }
            Ok(looks)
        });
        Counter { stop, thread }
    }

    fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the counter does not panic")
    }
}

/// `INSERT` of the rows from `from` to `to`.
fn insert_many(flavor: Flavor, from: u64, to: u64) -> String {
    if flavor.is_postgres() {
        format!(
            "INSERT INTO many SELECT i, i % 977, md5(i::text) || repeat('x', (i % 100)::int) \
             FROM generate_series({from}, {to}) AS i;"
        )
    } else {
        format!(
            "INSERT INTO many SELECT seq, seq % 977, concat(md5(seq), repeat('x', seq % 100)) \
             FROM seq_{from}_to_{to};"
        )
    }
}

/// Ten million rows, twice, and every server's log of them, take tens of gigabytes of disk.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn many(flavor: Flavor, seed: u64) -> Result<()> {
    let _alone = everything().then(|| ONE_AT_A_TIME.lock());
    let rows = many_rows();
    let table =
        "CREATE TABLE many (id bigint PRIMARY KEY, a int NOT NULL, b varchar(200) NOT NULL);";
    let mut world = world(flavor, seed, &format!("{table}\n{}", insert_many(flavor, 1, rows)))?;
    world.tailwater.start_again()?;
    let bound = Bound::of(&world)?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    bound.ensure("snapshot", 0)?;
    ensure_same(&world, MANY_SUM)?;

    let counter = Counter::start(world.to.clone(), rows, 2 * rows);
    let transaction = format!(
        "BEGIN; {} UPDATE many SET a = a + 1, b = concat(b, 'y') WHERE id % 4 = 0; COMMIT;",
        insert_many(flavor, rows + 1, 2 * rows)
    );
    world.from.0.sql(&world.from.1, &transaction)?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    ensure!(counter.finish()? > 0, "the counter looked");
    bound.ensure("one transaction of inserts and updates", 0)?;
    ensure_same(&world, MANY_SUM)?;

    world.from.0.sql(&world.from.1, "DELETE FROM many WHERE id % 2 = 0;")?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    bound.ensure("one transaction of deletes", 0)?;
    ensure_same(&world, MANY_SUM)?;
    world.tailwater.stop()
}

/// `INSERT` of a row with huge text, and of one with huge bytes.
fn insert_huge(flavor: Flavor, first: u64) -> String {
    // 32 digits each, none like the other: nothing to compress.
    let pieces = (huge_mib() << 20) / 32;
    let second = first + 1;
    if flavor.is_postgres() {
        format!(
            "BEGIN;
             INSERT INTO huge SELECT {first}, 1, string_agg(md5(i::text), '' ORDER BY i), NULL
               FROM generate_series(1, {pieces}) AS i;
             INSERT INTO huge SELECT {second}, 1, NULL, string_agg(decode(md5(i::text) || md5(i::text), 'hex'), '' ORDER BY i)
               FROM generate_series(1, {pieces}) AS i;
             COMMIT;"
        )
    } else {
        format!(
            "SET SESSION group_concat_max_len = 1073741824;
             BEGIN;
             INSERT INTO huge SELECT {first}, 1, group_concat(md5(seq) SEPARATOR ''), NULL FROM seq_1_to_{pieces};
             INSERT INTO huge SELECT {second}, 1, NULL, group_concat(unhex(concat(md5(seq), md5(seq))) SEPARATOR '') FROM seq_1_to_{pieces};
             COMMIT;"
        )
    }
}

fn huge(flavor: Flavor, seed: u64) -> Result<()> {
    // As the source sends it: PostgreSQL writes bytes as hexadecimal digits.
    let event = (huge_mib() << 20) * if flavor.is_postgres() { 2 } else { 1 };
    let (text, bytes) =
        if flavor.is_postgres() { ("text", "bytea") } else { ("longtext", "longblob") };
    let table = format!(
        "CREATE TABLE huge (id bigint PRIMARY KEY, small int NOT NULL, t {text}, b {bytes});\n{}",
        insert_huge(flavor, 1)
    );
    let mut world = world(flavor, seed, &table)?;
    world.tailwater.start_again()?;
    let bound = Bound::of(&world)?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    bound.ensure("snapshot", event)?;
    ensure_same(&world, HUGE_SUM)?;

    world.from.0.sql(&world.from.1, &insert_huge(flavor, 3))?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    bound.ensure("inserts", event)?;
    ensure_same(&world, HUGE_SUM)?;

    world
        .from
        .0
        .sql(&world.from.1, "UPDATE huge SET small = small + 1; DELETE FROM huge WHERE id < 3;")?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    // MariaDB sends the row before and after.
    let event = if flavor.is_postgres() { event } else { 2 * event };
    bound.ensure("an update beside a huge value, and deletes", event)?;
    ensure_same(&world, HUGE_SUM)?;
    world.tailwater.stop()
}

/// Twice the limit in rows of 2 MiB, of which `verify` reads all and holds none.
fn verified(flavor: Flavor, seed: u64) -> Result<()> {
    let event = 2 << 20;
    let (rows, pieces) = (limit_mib(), event / 32);
    let series = if flavor.is_postgres() {
        format!("md5(i::text), {pieces}) FROM generate_series(1, {rows}) AS i")
    } else {
        format!("md5(seq), {pieces}) FROM seq_1_to_{rows}")
    };
    let text = if flavor.is_postgres() { "text" } else { "longtext" };
    let full = if flavor.is_postgres() { "ALTER TABLE keyless REPLICA IDENTITY FULL;" } else { "" };
    let table = format!(
        "CREATE TABLE keyed (id bigint PRIMARY KEY, t {text});
         CREATE TABLE keyless (id bigint, t {text}); {full}
         INSERT INTO keyed SELECT {id}, repeat({series};
         INSERT INTO keyless SELECT {id}, repeat({series};",
        id = if flavor.is_postgres() { "i" } else { "seq" },
    );
    let mut world = world(flavor, seed, &table)?;
    world.tailwater.start_again()?;
    let bound = Bound::of(&world)?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    bound.ensure("snapshot", event)?;
    let verify = || world.tailwater.command(&["verify", "--pipeline", &world.pipeline]);
    let ran = verify()?;
    ensure!(ran.code == Some(0), "{ran:?}");
    bound.ensure("verify", event)?;
    let wrong = "UPDATE keyed SET t = 'x'; DELETE FROM keyless WHERE id = 5;";
    world.to.0.sql(&world.to.1, wrong)?;
    let ran = verify()?;
    ensure!(ran.code == Some(1), "{ran:?}");
    ensure!(ran.out.contains(&format!("{} different", rows + 1)), "{ran:?}");
    bound.ensure("verify what differs", event)?;
    world.tailwater.stop()
}

#[test]
fn verifying_large_rows_between_postgres_and_postgres() {
    verified(Flavor::Postgres15, 306).unwrap();
}

#[test]
fn verifying_large_rows_between_mariadb_and_mariadb() {
    verified(Flavor::MariaDb, 307).unwrap();
}

/// The bound that is planted away, and what the pipeline beside it may hold.
const PLANTED_LIMIT: u64 = 40 << 20;
const PLANTED_ROWS: u64 = 300_000;

#[test]
fn a_pipeline_that_holds_whole_transactions_is_seen() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 305).unwrap();
    let table =
        "CREATE TABLE many (id bigint PRIMARY KEY, a int NOT NULL, b varchar(200) NOT NULL);";
    world.from.0.sql(&world.from.1, table).unwrap();
    // Capture and log; the pipelines are processes of their own.
    let configuration = world.configuration(&world.tailwater, "");
    let capture = configuration.split("[targets.").next().unwrap();
    world.tailwater.configure(capture).unwrap();
    world.tailwater.start_again().unwrap();
    let target = world.to.0;
    let start = |memory| {
        let database = target.create_database().unwrap();
        let applier = Applier::start(&world, &database, memory).unwrap();
        let idle = peak(applier.pid()).unwrap();
        let bound = Bound { pid: applier.pid(), idle, limit: PLANTED_LIMIT };
        (applier, database, bound)
    };
    // As the program: half of the limit is for what a role holds.
    let bounded = start(usize::try_from(PLANTED_LIMIT / 2).ok());
    let unbounded = start(None);

    world.from.0.sql(&world.from.1, &insert_many(Flavor::Postgres15, 1, PLANTED_ROWS)).unwrap();
    for (_, database, _) in [&bounded, &unbounded] {
        wait_until(std::time::Duration::from_secs(180), "all rows", || {
            let count = target.sql(database, "SELECT count(*) FROM many")?;
            Ok((count == PLANTED_ROWS.to_string()).then_some(()))
        })
        .unwrap();
    }
    bounded.2.ensure("with bounds", 0).unwrap();
    let seen = unbounded.2.ensure("without bounds", 0).unwrap_err();
    assert!(seen.to_string().contains("is over"), "{seen:#}");
    world.tailwater.stop().unwrap();
}

#[test]
fn many_rows_in_one_transaction_between_postgres_and_postgres() {
    many(Flavor::Postgres15, 301).unwrap();
}

#[test]
fn many_rows_in_one_transaction_between_mariadb_and_mariadb() {
    many(Flavor::MariaDb, 302).unwrap();
}

#[test]
fn a_huge_row_between_postgres_and_postgres() {
    huge(Flavor::Postgres15, 303).unwrap();
}

#[test]
fn a_huge_row_between_mariadb_and_mariadb() {
    huge(Flavor::MariaDb, 304).unwrap();
}
