//! `tailwater resync`: whatever a source has stopped at, it goes on with a new snapshot, and the
//! target ends equal: rows that went meanwhile are gone there too.

use std::sync::OnceLock;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_scratch::{Flavor, Server, wait_until};

use crate::operator::{LIMIT, assert_clean, status, wait_for_pipeline, wait_for_source};
use crate::world::{PATIENCE, World, second};

/// A server whose binlog no other test needs.
fn own_mariadb() -> &'static Server {
    static OWN: OnceLock<Server> = OnceLock::new();
    OWN.get_or_init(|| Server::start(Flavor::MariaDb).unwrap())
}

fn start(world: &mut World) {
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    world.work(40).unwrap();
    world.compare().unwrap();
}

fn resync(world: &World) {
    let ran = world.tailwater.command(&["resync", "--source", &world.from.1]).unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}\n{}", world.tailwater.log());
    assert_clean(&ran.err);
}

/// The command as a stop names it.
fn command(world: &World) -> String {
    format!("`tailwater resync --source {}`", world.from.1)
}

/// Business while nobody reads, and rows that only a comparison of whole tables would miss.
fn gap(world: &mut World) {
    world.work(40).unwrap();
    let sql = "DELETE FROM events WHERE kind < 3; \
               DELETE FROM order_lines WHERE product = 'product 1'";
    world.from.0.sql(&world.from.1, sql).unwrap();
}

fn add_column(world: &World, name: &str) {
    let sql = format!(
        "ALTER TABLE accounts ADD COLUMN {name} int; UPDATE accounts SET {name} = 1 WHERE slot > 7;"
    );
    world.from.0.sql(&world.from.1, &sql).unwrap();
}

fn kill(world: &mut World) {
    world.tailwater.kill().unwrap();
    world.tailwater.start_again().unwrap();
}

#[test]
fn a_changed_definition_is_over_with_a_resync_on_postgres() {
    changed_definition(Flavor::Postgres15, 401);
}

#[test]
fn a_changed_definition_is_over_with_a_resync_on_mariadb() {
    changed_definition(Flavor::MariaDb, 402);
}

fn changed_definition(flavor: Flavor, seed: u64) {
    let mut world = World::new(flavor, flavor, seed).unwrap();
    start(&mut world);
    // The source is asked first, and the target lacks the column.
    add_column(&world, "more");
    wait_for_source(&world.tailwater, "stopped", &["accounts", &command(&world)]).unwrap();
    gap(&mut world);
    // A restart stops at the same, and hears the command all the same.
    kill(&mut world);
    wait_for_source(&world.tailwater, "stopped", &["accounts"]).unwrap();
    resync(&world);
    let words = ["has no column more", "run ALTER TABLE", "tailwater resume"];
    let stopped = wait_for_pipeline(&world.tailwater, "stopped", &words).unwrap();
    let error = stopped["error"].as_str().unwrap();
    let (_, alter) = error.split_once("run ALTER").unwrap();
    let (alter, _) = alter.split_once(", then").unwrap();
    world.to.0.sql(&world.to.1, &format!("ALTER{alter}")).unwrap();
    let resume = world.tailwater.command(&["resume", "--pipeline", &world.pipeline]).unwrap();
    assert_eq!(resume.code, Some(0), "{resume:?}");
    world.compare().unwrap();
    world.work(40).unwrap();
    world.compare().unwrap();
    // The target is altered first: one command is all.
    add_column(&world, "again");
    wait_for_source(&world.tailwater, "stopped", &["accounts"]).unwrap();
    gap(&mut world);
    world.to.0.sql(&world.to.1, "ALTER TABLE accounts ADD COLUMN again int").unwrap();
    resync(&world);
    world.compare().unwrap();
    world.work(40).unwrap();
    world.compare().unwrap();
    let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline]).unwrap();
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let none = world.tailwater.command(&["resync", "--source", "none"]).unwrap();
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("there is no source \"none\""), "{none:?}");
    world.tailwater.stop().unwrap();
}

#[test]
fn a_lost_slot_is_made_anew() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 403).unwrap();
    start(&mut world);
    world.tailwater.stop().unwrap();
    let slot = format!("tailwater_{}", world.from.1);
    let drop = format!("SELECT pg_drop_replication_slot('{slot}')");
    world.from.0.sql(&world.from.1, &drop).unwrap();
    gap(&mut world);
    world.tailwater.start_again().unwrap();
    let words = [slot.as_str(), "is gone", &command(&world)];
    wait_for_source(&world.tailwater, "stopped", &words).unwrap();
    resync(&world);
    world.compare().unwrap();
    world.work(40).unwrap();
    world.compare().unwrap();
    world.tailwater.stop().unwrap();
}

#[test]
fn a_purged_binlog_is_no_end() {
    let mut world = World::between(own_mariadb(), second(Flavor::MariaDb), 404).unwrap();
    start(&mut world);
    world.tailwater.stop().unwrap();
    gap(&mut world);
    let on_source = |sql: &str| world.from.0.sql(&world.from.1, sql).unwrap();
    on_source("FLUSH BINARY LOGS");
    // A file that the server still sends somewhere stays, without an error.
    wait_until(LIMIT, "a binlog without its beginning", || {
        let logs = world.from.0.sql(&world.from.1, "SHOW BINARY LOGS")?;
        let last = logs.lines().last().and_then(|line| line.split_whitespace().next()).unwrap();
        world.from.0.sql(&world.from.1, &format!("PURGE BINARY LOGS TO '{last}'"))?;
        Ok((logs.lines().count() == 1).then_some(()))
    })
    .unwrap();
    world.tailwater.start_again().unwrap();
    let words = ["purged", &command(&world).replace('`', "")];
    wait_for_source(&world.tailwater, "stopped", &words).unwrap();
    resync(&world);
    world.compare().unwrap();
    // And a binlog that begins anew, below every position that was read.
    world.tailwater.stop().unwrap();
    world.from.0.sql(&world.from.1, "RESET MASTER").unwrap();
    gap(&mut world);
    world.tailwater.start_again().unwrap();
    wait_for_source(&world.tailwater, "stopped", &[&command(&world).replace('`', "")]).unwrap();
    resync(&world);
    world.compare().unwrap();
    world.work(40).unwrap();
    world.compare().unwrap();
    world.tailwater.stop().unwrap();
}

#[test]
fn killed_while_it_resyncs_postgres_ends_equal() {
    killed(Flavor::Postgres15, 405);
}

#[test]
fn killed_while_it_resyncs_mariadb_ends_equal() {
    killed(Flavor::MariaDb, 406);
}

fn killed(flavor: Flavor, seed: u64) {
    let mut world = World::new(flavor, flavor, seed).unwrap();
    let mut random = SmallRng::seed_from_u64(seed);
    let series = match flavor.is_postgres() {
        true => "SELECT n, 'row ' || n FROM generate_series(1, 30000) n",
        false => "SELECT seq, CONCAT('row ', seq) FROM seq_1_to_30000",
    };
    let sql = format!(
        "CREATE TABLE large (id int PRIMARY KEY, v varchar(20)); INSERT INTO large {series}"
    );
    world.from.0.sql(&world.from.1, &sql).unwrap();
    start(&mut world);
    for round in 0..4 {
        gap(&mut world);
        let sql = format!("DELETE FROM large WHERE id % 7 = {round}");
        world.from.0.sql(&world.from.1, &sql).unwrap();
        resync(&world);
        // Once the answer is there, it is finished whatever happens: at once, or somewhere later.
        let looks = random.random_range(0..8) * round;
        let mut looked = 0;
        wait_until(LIMIT, "a moment to kill at", || {
            looked += 1;
            let state = status(&world.tailwater)?["pipelines"][0]["state"].clone();
            Ok((looked > looks || state == "snapshot").then_some(()))
        })
        .unwrap();
        kill(&mut world);
    }
    world.compare().unwrap();
    world.work(40).unwrap();
    world.compare().unwrap();
    world.tailwater.stop().unwrap();
}

/// Silent loss 15: the log is deleted, and what the source deletes before the new one begins is in
/// neither.
#[test]
fn loss_15_a_deleted_log_takes_no_deleted_row_for_kept() {
    for flavor in [Flavor::Postgres15, Flavor::MariaDb] {
        let mut world = World::new(flavor, flavor, 407).unwrap();
        start(&mut world);
        lose_the_log(&mut world);
        world.tailwater.start_again().unwrap();
        world.compare().unwrap();
        // Where the lost log was in a later epoch than the new one begins with, that is said.
        resync(&world);
        world.compare().unwrap();
        lose_the_log(&mut world);
        world.tailwater.start_again().unwrap();
        let words = ["not the log that was read before", &command(&world)];
        wait_for_pipeline(&world.tailwater, "stopped", &words).unwrap();
        resync(&world);
        world.compare().unwrap();
        world.tailwater.stop().unwrap();
    }
}

fn lose_the_log(world: &mut World) {
    world.tailwater.stop().unwrap();
    std::fs::remove_dir_all(world.tailwater.config().with_file_name("log")).unwrap();
    gap(world);
}
