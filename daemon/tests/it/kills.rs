//! SIGKILL at random moments under load, standbys, and a process that was paused: the target ends
//! equal, and no reader of it ever sees half a transaction.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_scratch::{Flavor, Tailwater, everything, wait_until};

use crate::world::{PATIENCE, Watcher, World, binary, same_rows};

const LIMIT: Duration = Duration::from_secs(180);

/// Kills per pair in a run of CI, five pairs: thirty in all.
const KILLS: usize = 6;

fn kills() -> usize {
    if everything() { KILLS * 10 } else { KILLS }
}

/// Kills Tailwater again and again while the source is written to; what moment it hits decides
/// how many rows have arrived by then.
fn run(from: Flavor, to: Flavor, seed: u64) -> Result<()> {
    if from.available().is_err() || to.available().is_err() {
        println!("{from} -> {to} left out: not on this machine");
        return Ok(());
    }
    kill(World::new(from, to, seed)?, seed)
}

fn kill(mut world: World, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    world.tailwater.start_again()?;
    // The first kill is anywhere in start and snapshot.
    kill_at_progress(&mut world, &mut random)?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    let watcher = Watcher::start(world.to.clone());
    for _kill in 1..kills() {
        world.work(random.random_range(20..80))?;
        kill_at_progress(&mut world, &mut random)?;
    }
    world.work(50)?;
    world.compare()?;
    assert!(watcher.finish()? > 0);
    let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline])?;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    world.tailwater.stop()
}

/// Lets it come a random way, kills it, starts it again.
fn kill_at_progress(world: &mut World, random: &mut SmallRng) -> Result<()> {
    let log = world.tailwater.log().len();
    let looks = random.random_range(0..60);
    let mut looked = 0;
    wait_until(LIMIT, "a moment to kill at", || {
        looked += 1;
        Ok((looked > looks || world.tailwater.log().len() > log + 4_000).then_some(()))
    })?;
    world.tailwater.kill()?;
    world.tailwater.start_again()
}

#[test]
fn killed_between_postgres_and_postgres() {
    run(Flavor::Postgres15, Flavor::Postgres15, 101).unwrap();
}

#[test]
fn killed_between_mariadb_and_mariadb() {
    run(Flavor::MariaDb, Flavor::MariaDb, 102).unwrap();
}

#[test]
fn killed_between_postgres_and_mariadb() {
    run(Flavor::Postgres15, Flavor::MariaDb, 103).unwrap();
}

#[test]
fn killed_between_mariadb_and_postgres() {
    run(Flavor::MariaDb, Flavor::Postgres15, 104).unwrap();
}

/// Rows of one transaction stand in three partitions, of which the log has more or less when the
/// process dies: a reader of the target sees whole ones all the same.
#[test]
fn killed_with_three_partitions() {
    let world = World::new(Flavor::Postgres15, Flavor::Postgres15, 108).unwrap();
    kill(world.with_source("partitions = 3").unwrap(), 108).unwrap();
}

#[test]
fn killed_between_mysql_and_mysql() {
    run(Flavor::MySql, Flavor::MySql, 105).unwrap();
}

/// Two processes with the same pipeline over one log: one applies, one waits, and takes over when
/// the first is killed.
#[test]
fn a_standby_takes_over_when_the_first_is_killed() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 106).unwrap();
    let apply = world.apart("").unwrap();
    world.tailwater.start_again().unwrap();
    let mut first = Tailwater::prepare_whole(binary(), &apply).unwrap();
    first.start_again().unwrap();
    wait_for_state(&first, "streaming").unwrap();
    let mut second = Tailwater::prepare_whole(binary(), &apply).unwrap();
    second.start_again().unwrap();
    wait_for_state(&second, "standby").unwrap();
    let watcher = Watcher::start(world.to.clone());
    world.work(200).unwrap();
    first.kill().unwrap();
    world.work(100).unwrap();
    wait_for_state(&second, "streaming").unwrap();
    wait_until(LIMIT, "equal databases", || Ok(same_rows(&world.from, &world.to).ok())).unwrap();
    // The first comes back and waits its turn.
    first.start_again().unwrap();
    wait_for_state(&first, "standby").unwrap();
    watcher.finish().unwrap();
    second.stop().unwrap();
    wait_for_state(&first, "streaming").unwrap();
    world.work(50).unwrap();
    wait_until(LIMIT, "equal databases", || Ok(same_rows(&world.from, &world.to).ok())).unwrap();
}

/// A process that hangs while another takes its place, and then wakes up, changes nothing.
#[test]
fn a_paused_process_that_wakes_up_changes_nothing() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 107).unwrap();
    let log = Tailwater::start(binary(), "").unwrap();
    let roles = format!("[log]\nbrokers = [\"{}\"]\n{}", log.brokers(), world.roles(""));
    world.tailwater.configure(&roles).unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    world.work(50).unwrap();
    // Paused in the middle of its work; its sessions go as after a network that was cut.
    world.tailwater.pause().unwrap();
    world.work(50).unwrap();
    for (server, database) in [&world.from, &world.to] {
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid() \
                   AND datname = current_database()";
        server.sql(database, sql).unwrap();
    }
    let mut second = Tailwater::prepare_whole(binary(), &roles).unwrap();
    second.start_again().unwrap();
    wait_for_state(&second, "streaming").unwrap();
    second.wait_for(&world.pipeline, PATIENCE).unwrap();
    let watcher = Watcher::start(world.to.clone());
    world.tailwater.resume().unwrap();
    world.work(100).unwrap();
    wait_for_state(&world.tailwater, "standby").unwrap();
    second.wait_for(&world.pipeline, PATIENCE).unwrap();
    same_rows(&world.from, &world.to).unwrap();
    watcher.finish().unwrap();
    second.stop().unwrap();
}

/// Waits until the (only) pipeline is in `state`.
fn wait_for_state(tailwater: &Tailwater, state: &str) -> Result<()> {
    wait_until(LIMIT, &format!("a pipeline that is {state}"), || {
        let status = tailwater.command(&["status", "--json"])?;
        let wanted = format!("\"target\":\"copy\",\"state\":\"{state}\"");
        Ok(status.out.contains(&wanted).then_some(()))
    })
    .with_context(|| tailwater.log())
}
