//! Random transactions between every pair of databases: equal at the end, by an independent dump.

use anyhow::Result;
use tailwater_scratch::Flavor;

use crate::world::{PATIENCE, Watcher, World};

/// The pairs that this machine can run. PostgreSQL and MariaDB are always there.
fn run(from: Flavor, to: Flavor, seed: u64) -> Result<()> {
    if from.available().is_err() || to.available().is_err() {
        // The closing line of the test command names what is not there.
        println!("{from} -> {to} left out: not on this machine");
        return Ok(());
    }
    let mut world = World::new(from, to, seed)?;
    world.tailwater.start_again()?;
    world.work(100)?;
    world.compare()?;
    let watcher = Watcher::start(world.to.clone());
    for _round in 0..5 {
        world.work(100)?;
    }
    world.compare()?;
    assert!(watcher.finish()? > 0);

    let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline])?;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    // And `verify` can fail.
    world.to.0.sql(&world.to.1, "UPDATE accounts SET balance = balance + 1 WHERE id = (SELECT m FROM (SELECT MAX(id) AS m FROM accounts) AS t)")?;
    let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline])?;
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(verified.out.contains("unequal"), "{verified:?}");
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    world.tailwater.stop()
}

#[test]
fn postgres_15_to_postgres_15() {
    run(Flavor::Postgres15, Flavor::Postgres15, 1).unwrap();
}

#[test]
fn postgres_15_to_postgres_18() {
    run(Flavor::Postgres15, Flavor::Postgres18, 2).unwrap();
}

#[test]
fn postgres_18_to_postgres_15() {
    run(Flavor::Postgres18, Flavor::Postgres15, 3).unwrap();
}

#[test]
fn mariadb_to_mariadb() {
    run(Flavor::MariaDb, Flavor::MariaDb, 4).unwrap();
}

#[test]
fn mysql_to_mysql() {
    run(Flavor::MySql, Flavor::MySql, 5).unwrap();
}

#[test]
fn postgres_to_mariadb() {
    run(Flavor::Postgres15, Flavor::MariaDb, 6).unwrap();
}

#[test]
fn mariadb_to_postgres() {
    run(Flavor::MariaDb, Flavor::Postgres15, 7).unwrap();
}

#[test]
fn postgres_to_mysql() {
    run(Flavor::Postgres15, Flavor::MySql, 8).unwrap();
}

#[test]
fn mysql_to_postgres() {
    run(Flavor::MySql, Flavor::Postgres15, 9).unwrap();
}

/// Tables are loaded and finished in the order of their names.
fn foreign_keys_to_later_tables(flavor: Flavor, seed: u64) -> Result<()> {
    let mut world = World::new(flavor, flavor, seed)?;
    world.from.0.sql(
        &world.from.1,
        "CREATE TABLE zz_code (id int PRIMARY KEY, code int NOT NULL UNIQUE);
         CREATE TABLE aa_use (id int PRIMARY KEY, code int, FOREIGN KEY (code) REFERENCES zz_code (code));
         INSERT INTO zz_code VALUES (1, 10), (2, 20);
         INSERT INTO aa_use VALUES (1, 20), (2, NULL);",
    )?;
    world.tailwater.start_again()?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    let (target, database) = &world.to;
    assert_eq!(target.sql(database, "SELECT count(*) FROM aa_use")?, "2");
    let refused = target.sql(database, "INSERT INTO aa_use VALUES (3, 30)").unwrap_err();
    assert!(format!("{refused:#}").to_lowercase().contains("foreign key"), "{refused:#}");
    world.tailwater.stop()
}

#[test]
fn a_foreign_key_to_a_later_tables_unique_key_is_made_on_postgres() {
    foreign_keys_to_later_tables(Flavor::Postgres15, 10).unwrap();
}

#[test]
fn a_foreign_key_to_a_later_tables_unique_key_is_made_on_mariadb() {
    foreign_keys_to_later_tables(Flavor::MariaDb, 11).unwrap();
}
