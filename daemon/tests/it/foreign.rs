//! Capture and apply over a Kafka that is not ours: the same promises, kept by the protocol alone.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_scratch::{Flavor, Kafka, Tailwater, everything, wait_until};

use crate::world::{PATIENCE, Watcher, World, binary, same_rows};

const LIMIT: Duration = Duration::from_secs(180);

/// Kills of Tailwater before, and again after, Kafka's restart.
fn kills() -> usize {
    if everything() { 20 } else { 2 }
}

/// `None`, and a line that says so, where this machine has no Kafka.
fn kafka() -> Result<Option<Kafka>> {
    if let Err(why) = Kafka::available() {
        println!("over Apache Kafka: left out: {why}");
        return Ok(None);
    }
    Kafka::start().map(Some)
}

/// The roles of `world`, over `kafka`.
fn over(kafka: &Kafka, world: &World) -> String {
    format!("[log]\nbrokers = [\"{}\"]\n{}", kafka.bootstrap(), world.roles(""))
}

/// Writes to the source while Tailwater is killed a few times.
fn kill_under_load(world: &mut World, random: &mut SmallRng) -> Result<()> {
    for _kill in 0..kills() {
        world.work(random.random_range(20..80))?;
        let (log, looks) = (world.tailwater.log().len(), random.random_range(0..60));
        let mut looked = 0;
        wait_until(LIMIT, "a moment to kill at", || {
            looked += 1;
            Ok((looked > looks || world.tailwater.log().len() > log + 4_000).then_some(()))
        })?;
        world.tailwater.kill()?;
        world.tailwater.start_again()?;
    }
    Ok(())
}

fn run(flavor: Flavor, seed: u64) -> Result<()> {
    let Some(mut kafka) = kafka()? else { return Ok(()) };
    let mut world = World::new(flavor, flavor, seed)?;
    let mut random = SmallRng::seed_from_u64(seed);
    world.tailwater.configure(&over(&kafka, &world))?;
    world.tailwater.start_again()?;
    // Anywhere in the take-over and the snapshot.
    kill_under_load(&mut world, &mut random)?;
    world.compare()?;
    let watcher = Watcher::start(world.to.clone());
    world.work(50)?;
    kafka.restart()?;
    world.work(50)?;
    world.compare()?;
    kill_under_load(&mut world, &mut random)?;
    // A crash of the log and of both roles at once.
    world.work(50)?;
    kafka.kill()?;
    world.tailwater.kill()?;
    kafka.start_again()?;
    world.tailwater.start_again()?;
    world.work(50)?;
    world.compare()?;
    ensure!(watcher.finish()? > 0, "the watcher looked");
    let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline])?;
    ensure!(verified.code == Some(0), "{verified:?}");
    kcat_reads(&kafka, &world.from.1)?;
    world.tailwater.stop()
}

/// Another vendor's consumer reads the topic from its beginning to its end.
fn kcat_reads(kafka: &Kafka, topic: &str) -> Result<()> {
    let output = Command::new("kcat")
        .args(["-b", &kafka.bootstrap(), "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e"])
        .args(["-q", "-f", "%o %K %S\\n"])
        .output()
        .context("run kcat (apt-get install kcat)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    // 200 accounts are in it to begin with.
    ensure!(text.lines().count() > 200, "kcat saw {} records", text.lines().count());
    ensure!(
        text.lines().all(|line| line.split(' ').count() == 3 && !line.ends_with(" -1")),
        "a record without a value"
    );
    Ok(())
}

#[test]
fn over_kafka_between_postgres_and_postgres() {
    run(Flavor::Postgres15, 201).unwrap();
}

#[test]
fn over_kafka_between_mariadb_and_mariadb() {
    run(Flavor::MariaDb, 202).unwrap();
}

/// A capture that hangs while another takes its place fences itself when it wakes: Kafka refuses
/// what it still had to say, or every reader drops it.
#[test]
fn over_kafka_a_capture_that_was_replaced_changes_nothing() {
    replaced(203).unwrap();
}

fn replaced(seed: u64) -> Result<()> {
    let Some(kafka) = kafka()? else { return Ok(()) };
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, seed)?;
    let brokers = format!("[log]\nbrokers = [\"{}\"]\n", kafka.bootstrap());
    // The pipeline has a process of its own: it goes on while the captures change.
    let pipeline = format!("{brokers}{}", world.pipeline_role(""));
    let source = format!("{brokers}{}", world.source_role());
    let mut first = Tailwater::prepare_whole(binary(), &source)?;
    first.start_again()?;
    world.tailwater.configure(&pipeline)?;
    world.tailwater.start_again()?;
    equal(&world)?;
    let watcher = Watcher::start(world.to.clone());
    world.work(100)?;
    // It has something to say and no time to say it.
    first.pause()?;
    world.work(100)?;
    let (server, database) = &world.from;
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE backend_type IN ('client backend', 'walsender') AND pid <> pg_backend_pid() \
               AND datname = current_database()";
    server.sql(database, sql)?;
    let mut second = Tailwater::prepare_whole(binary(), &source)?;
    second.start_again()?;
    equal(&world)?;
    first.resume()?;
    world.work(100)?;
    wait_until(LIMIT, "a capture that knows it was replaced", || {
        let status = first.command(&["status", "--json"])?;
        Ok(status.out.contains("\"state\":\"standby\"").then_some(()))
    })
    .with_context(|| first.log())?;
    world.work(50)?;
    equal(&world)?;
    // And the other way round: the first takes over from the second when that ends.
    second.kill()?;
    world.work(50)?;
    equal(&world)?;
    ensure!(watcher.finish()? > 0, "the watcher looked");
    first.stop()
}

/// Waits for equality itself: no process here runs both the source and the pipeline.
fn equal(world: &World) -> Result<()> {
    wait_until(LIMIT, "equal databases", || Ok(same_rows(&world.from, &world.to).ok()))
        .with_context(|| format!("{PATIENCE}: {}", world.tailwater.log()))
}
