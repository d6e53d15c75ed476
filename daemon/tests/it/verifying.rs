//! `verify` between real databases: while the source is busy, and on rows larger than what it holds.

use anyhow::{Result, ensure};
use tailwater_scratch::Flavor;

use crate::world::{PATIENCE, World};

const HOT: &str = "CREATE TABLE hot (id int PRIMARY KEY, n bigint NOT NULL, t varchar(20));
    INSERT INTO hot VALUES (1, 0, 'a'), (2, 0, 'b'), (3, 0, NULL);";

/// Many small transactions on few rows, back and forth.
fn busy(rounds: usize) -> String {
    let mut sql = String::new();
    for round in 0..rounds {
        let id = round % 3 + 1;
        sql.push_str(&format!("BEGIN; UPDATE hot SET n = n + 1 WHERE id = {id}; COMMIT;"));
        sql.push_str(&format!("BEGIN; UPDATE hot SET n = n - 1 WHERE id = {id}; COMMIT;"));
        if round % 7 == 0 {
            sql.push_str("BEGIN; DELETE FROM hot WHERE id = 3; COMMIT;");
            sql.push_str("BEGIN; INSERT INTO hot VALUES (3, 0, NULL); COMMIT;");
            sql.push_str("BEGIN; INSERT INTO events VALUES (99, 'now'); COMMIT;");
            sql.push_str("BEGIN; DELETE FROM events WHERE kind = 99; COMMIT;");
        }
    }
    sql
}

fn under_load(from: Flavor, to: Flavor, seed: u64) -> Result<()> {
    let mut world = World::new(from, to, seed)?;
    world.from.0.sql(&world.from.1, HOT)?;
    world.tailwater.start_again()?;
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    let (source, database) = (world.from.0, world.from.1.clone());
    let load = std::thread::spawn(move || {
        let sql = busy(300);
        (0..8).try_for_each(|_| source.sql(&database, &sql).map(drop))
    });
    let mut looks = 0;
    while !load.is_finished() {
        let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline])?;
        ensure!(verified.code == Some(0), "{verified:?}");
        looks += 1;
    }
    load.join().expect("no panic")?;
    println!("{looks} times");
    ensure!(looks > 0, "nobody looked while the source was busy");

    // What is still to be applied would set the row right again.
    world.tailwater.wait_for(&world.pipeline, PATIENCE)?;
    let wrong = "UPDATE hot SET t = 'wrong' WHERE id = 2; INSERT INTO events VALUES (98, 'extra');";
    world.to.0.sql(&world.to.1, wrong)?;
    let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline])?;
    ensure!(verified.code == Some(1), "{verified:?}");
    for part in ["2 different", "id=2", "unequal", "kind=98", "extra"] {
        ensure!(verified.out.contains(part), "{part}: {verified:?}");
    }
    world.tailwater.stop()
}

#[test]
fn a_busy_source_is_no_difference_between_postgres_and_postgres() {
    under_load(Flavor::Postgres15, Flavor::Postgres15, 401).unwrap();
}

#[test]
fn a_busy_source_is_no_difference_between_mariadb_and_mariadb() {
    under_load(Flavor::MariaDb, Flavor::MariaDb, 402).unwrap();
}

#[test]
fn a_busy_source_is_no_difference_between_mariadb_and_postgres() {
    under_load(Flavor::MariaDb, Flavor::Postgres15, 403).unwrap();
}

#[test]
fn a_row_that_stands_on_the_target_twice_is_told() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 404).unwrap();
    world.from.0.sql(&world.from.1, HOT).unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    let twice = "ALTER TABLE hot DROP CONSTRAINT hot_pkey; INSERT INTO hot VALUES (1, 0, 'a');";
    world.to.0.sql(&world.to.1, twice).unwrap();
    let verified = world.tailwater.command(&["verify", "--pipeline", &world.pipeline]).unwrap();
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(verified.out.contains("id=1") && verified.out.contains("repeated"), "{verified:?}");
    world.tailwater.stop().unwrap();
}
