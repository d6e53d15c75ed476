//! SIGKILL in the middle of the first snapshot of several tables: what was read to its end is not
//! read again, and the target ends equal.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tailwater_scratch::{Flavor, wait_until};

use crate::operator::{get, metric};
use crate::world::{Watcher, World};

const LIMIT: Duration = Duration::from_secs(120);

/// A table that takes its time, and is read last.
const LARGE_POSTGRES: &str = "CREATE TABLE zz_large (id int PRIMARY KEY, v text NOT NULL);
     INSERT INTO zz_large SELECT g, repeat(md5(g::text), 10) FROM generate_series(1, 100000) g;";
const LARGE_MARIADB: &str = "CREATE TABLE zz_large (id int PRIMARY KEY, v text NOT NULL);
     INSERT INTO zz_large SELECT seq, REPEAT(MD5(seq), 10) FROM seq_1_to_100000;";

/// Kills it twice: in the first part, and in the rest.
fn run(flavor: Flavor, seed: u64) -> Result<()> {
    let mut world = World::new(flavor, flavor, seed)?;
    let large = if flavor.is_postgres() { LARGE_POSTGRES } else { LARGE_MARIADB };
    world.from.0.sql(&world.from.1, large)?;
    let count = |table: &str| -> Result<usize> {
        let sql = format!("SELECT count(*) FROM {table}");
        Ok(world.from.0.sql(&world.from.1, &sql)?.trim().parse()?)
    };
    let mut small = 0;
    for table in ["accounts", "orders", "order_lines", "events"] {
        small += count(table)?;
    }
    let accounts = count("accounts")?;
    let mut end = 0.0;
    for _kill in 0..2 {
        world.tailwater.start_again()?;
        end = kill_inside_the_large_table(&mut world, end, small)?;
        world.work(40)?;
    }
    world.tailwater.start_again()?;
    world.work(60)?;
    world.compare()?;
    let watcher = Watcher::start(world.to.clone());
    world.work(40)?;
    world.compare()?;
    ensure!(watcher.finish()? > 0);

    let log = world.tailwater.log();
    ensure!(log.matches("the snapshot that broke off goes on").count() == 2, "{log}");
    let records = log_end(&world)?.context("the topic's end")?.to_string();
    let tail = ["tail", "--source", &world.from.1, "--from", "start", "--limit", &records];
    let topic = world.tailwater.command(&tail)?;
    let marker = |name: &str| topic.out.matches(&format!("\"marker\":\"{name}\"")).count();
    let markers = ["snapshot_begin", "snapshot_cut", "snapshot_rest", "snapshot_end"].map(marker);
    ensure!(markers == [1, 2, 2, 1], "{markers:?} {:.2000}", topic.err);
    let read = |line: &&str| line.contains("\"op\":\"read\"") && line.contains(".accounts\"");
    let read = topic.out.lines().filter(read).count();
    ensure!(read == accounts, "{read} rows of accounts were read, it had {accounts}");
    world.tailwater.stop()
}

/// Kills it when many rows behind the `small` tables are in the log, and not all: what was read
/// before them has long been remembered. Where the log then ends; before, it ended at `from`.
fn kill_inside_the_large_table(world: &mut World, from: f64, small: usize) -> Result<f64> {
    let end = wait_until(LIMIT, "rows of the large table", || {
        let end = log_end(world).ok().flatten();
        Ok(end.filter(|end| *end > from + small as f64 + 20_000.0))
    })?;
    world.tailwater.kill()?;
    Ok(end)
}

/// How many records the source's topic has.
fn log_end(world: &World) -> Result<Option<f64>> {
    let (_, page) = get(&world.tailwater, "/metrics")?;
    let topic = &world.from.1;
    Ok(metric(&page, &format!("tailwater_log_end_offset{{topic=\"{topic}\",partition=\"0\"}}")))
}

#[test]
fn killed_in_the_first_snapshot_between_postgres_and_postgres() {
    run(Flavor::Postgres15, 301).unwrap();
}

#[test]
fn killed_in_the_first_snapshot_between_mariadb_and_mariadb() {
    run(Flavor::MariaDb, 302).unwrap();
}
