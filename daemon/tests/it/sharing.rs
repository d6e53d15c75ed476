//! Two apply hosts share the partitions of one pipeline (`consistency = "key"`) between real
//! servers: killed under load, through the first snapshot, a TRUNCATE and a changed definition, the
//! target ends equal; what a killed host had, the other has within ten seconds.

#![expect(clippy::disallowed_methods, reason = "how long a take-over takes is measured")]

use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_scratch::{Flavor, Server, Tailwater, wait_until};

use crate::operator::{status, wait_for_source};
use crate::workload::{Spelling, Workload};
use crate::world::{World, binary, same_rows, second};

const LIMIT: Duration = Duration::from_secs(180);

const PARTITIONS: usize = 4;

/// Tables whose rows do not depend on each other but through their keys: else the partitions would
/// stay together.
const SCHEMA: &str = "CREATE TABLE items (id int PRIMARY KEY, amount int, label text);
    CREATE TABLE parts (id int PRIMARY KEY, item int, label text);
    CREATE TABLE bag (kind int, label text);
    ALTER TABLE bag REPLICA IDENTITY FULL;
    INSERT INTO items SELECT g, g, repeat('x', 50) FROM generate_series(1, 3000) g;
    INSERT INTO parts SELECT g, g % 3000, 'part' FROM generate_series(1, 3000) g;
    INSERT INTO bag SELECT g % 7, 'thing ' || g FROM generate_series(1, 200) g;";

/// Business: rows come, change, move to other keys and go, in every partition.
fn business(random: &mut SmallRng, transactions: usize) -> String {
    let mut sql = String::new();
    for _ in 0..transactions {
        let (low, new) = (random.random_range(1..3000), random.random_range(10_000..1_000_000));
        sql.push_str(&format!(
            "BEGIN;
             INSERT INTO items SELECT g, {low}, 'new' FROM generate_series({new}, {new} + 5) g
                 ON CONFLICT (id) DO UPDATE SET amount = items.amount + 1;
             UPDATE items SET amount = amount + 1, label = label || 'y'
                 WHERE id BETWEEN {low} AND {low} + 20;
             UPDATE parts SET id = -id WHERE id BETWEEN {low} AND {low} + 3
                 AND NOT EXISTS (SELECT FROM parts other WHERE other.id = -parts.id);
             DELETE FROM items WHERE id BETWEEN {low} + 30 AND {low} + 31;
             INSERT INTO bag VALUES ({low} % 7, 'again {new}');
             DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE kind = {low} % 7);
             COMMIT;\n"
        ));
    }
    sql
}

/// How many partitions a host applies on its own.
fn partitions(host: &Tailwater) -> usize {
    let Ok(status) = status(host) else { return 0 };
    status["pipelines"][0]["partitions"].as_array().map_or(0, Vec::len)
}

fn wait_for_partitions(host: &Tailwater, count: usize) {
    let what = format!("a host with {count} partitions");
    wait_until(LIMIT, &what, || Ok((partitions(host) == count).then_some(())))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", host.log()));
}

struct Shared {
    world: World,
    hosts: [Tailwater; 2],
    random: SmallRng,
}

impl Shared {
    fn start(seed: u64) -> Self {
        println!("seed {seed}");
        let from = Server::shared(Flavor::Postgres15);
        let to = second(Flavor::Postgres15);
        let from_database = from.create_database().unwrap();
        let to_database = to.create_database().unwrap();
        from.sql(&from_database, SCHEMA).unwrap();
        let world = World {
            pipeline: format!("shared_{to_database}"),
            source: "partitions = 4",
            tailwater: Tailwater::prepare(binary(), "").unwrap(),
            from: (from, from_database),
            to: (to, to_database),
            workload: Workload::new(Spelling::Postgres, true, seed),
        };
        let apply = world.apart("consistency = \"key\"\non_conflict = \"stop\"").unwrap();
        let host = || Tailwater::prepare_whole(binary(), &apply).unwrap();
        let mut shared =
            Self { hosts: [host(), host()], world, random: SmallRng::seed_from_u64(seed) };
        shared.world.tailwater.start_again().unwrap();
        for host in &mut shared.hosts {
            host.start_again().unwrap();
        }
        shared
    }

    fn work(&mut self, transactions: usize) {
        let sql = business(&mut self.random, transactions);
        self.source(&sql);
    }

    fn source(&self, sql: &str) {
        let (server, database) = &self.world.from;
        server.sql(database, sql).unwrap();
    }

    fn equal(&self) {
        let (from, to) = (&self.world.from, &self.world.to);
        let equal = wait_until(LIMIT, "equal databases", || Ok(same_rows(from, to).ok()));
        if let Err(error) = equal {
            let differ = same_rows(from, to);
            let logs = self.hosts.each_ref().map(Tailwater::log).join("\n----\n");
            panic!("{error:#}\n{differ:?}\n{logs}");
        }
    }

    /// Both have their share.
    fn apart(&self) {
        for host in &self.hosts {
            wait_for_partitions(host, PARTITIONS / 2);
        }
    }
}

#[test]
fn two_hosts_share_the_partitions_and_are_killed() {
    let mut shared = Shared::start(501);
    // In the first snapshot, or about it.
    shared.work(5);
    shared.hosts[0].kill().unwrap();
    shared.hosts[0].start_again().unwrap();
    shared.work(5);
    shared.apart();
    for round in 0..4 {
        shared.work(10);
        let (killed, left) = (round % 2, 1 - round % 2);
        shared.hosts[killed].kill().unwrap();
        let since = Instant::now();
        shared.work(5);
        wait_for_partitions(&shared.hosts[left], PARTITIONS);
        let taken = since.elapsed();
        println!("taken over after {taken:?}");
        assert!(taken < Duration::from_secs(10), "taken over after {taken:?}");
        if round == 1 {
            shared.source("TRUNCATE items; INSERT INTO items VALUES (1, 1, 'after')");
        }
        shared.work(5);
        shared.hosts[killed].start_again().unwrap();
        shared.apart();
        shared.equal();
    }
    // A changed definition stops the source; a new snapshot replaces what was there.
    shared.source("ALTER TABLE items ADD COLUMN more int; UPDATE items SET more = id");
    wait_for_source(&shared.world.tailwater, "stopped", &["items"]).unwrap();
    let (to, database) = &shared.world.to;
    to.sql(database, "ALTER TABLE items ADD COLUMN more int").unwrap();
    shared.work(5);
    let source = shared.world.from.1.clone();
    let ran = shared.world.tailwater.command(&["resync", "--source", &source]).unwrap();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    shared.hosts[0].kill().unwrap();
    shared.hosts[0].start_again().unwrap();
    shared.work(5);
    shared.equal();
    shared.apart();
    shared.work(10);
    shared.equal();
    for host in &mut shared.hosts {
        host.stop().unwrap();
    }
}
