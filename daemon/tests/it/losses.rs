//! Silent losses that pass ordinary tests, each brought about on real servers.
//!
//! docs/promises.md lists them all and says which are tried elsewhere.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use tailwater_scratch::{Flavor, Server, Tailwater};

use crate::operator::wait_for_source;
use crate::workload::{Spelling, Workload};
use crate::world::{PATIENCE, World, binary};

/// Two servers whose sessions are in different time zones unless somebody says otherwise.
fn mariadb_source() -> &'static Server {
    static SOURCE: OnceLock<Server> = OnceLock::new();
    SOURCE.get_or_init(|| {
        Server::start_with(Flavor::MariaDb, &[("default_time_zone", "+05:00")]).unwrap()
    })
}

fn mariadb_target() -> &'static Server {
    static TARGET: OnceLock<Server> = OnceLock::new();
    TARGET.get_or_init(|| {
        Server::start_with(Flavor::MariaDb, &[("default_time_zone", "-03:00")]).unwrap()
    })
}

/// A pipeline for the tables that `sql` makes on the source; not started.
fn pair(from: &'static Server, to: &'static Server, sql: &str) -> Result<World> {
    let (from_database, to_database) = (from.create_database()?, to.create_database()?);
    from.sql(&from_database, sql)?;
    let world = World {
        pipeline: format!("loss_{to_database}"),
        tailwater: Tailwater::prepare(binary(), "")?,
        from: (from, from_database),
        to: (to, to_database),
        workload: Workload::new(Spelling::Mysql, false, 0),
        source: "",
    };
    world.tailwater.configure(&world.configuration(&world.tailwater, ""))?;
    Ok(world)
}

impl World {
    fn run(&mut self) -> Result<()> {
        self.tailwater.start_again()?;
        self.arrive()
    }

    fn arrive(&self) -> Result<()> {
        self.tailwater.wait_for(&self.pipeline, PATIENCE)
    }

    fn on_source(&self, sql: &str) -> Result<String> {
        self.from.0.sql(&self.from.1, sql)
    }

    fn on_target(&self, sql: &str) -> Result<String> {
        self.to.0.sql(&self.to.1, sql)
    }

    /// Both sides answer `select` alike.
    fn same(&self, select: &str) -> Result<()> {
        let (source, target) = (self.on_source(select)?, self.on_target(select)?);
        ensure!(source == target, "{select}\nsource:\n{source}\ntarget:\n{target}");
        Ok(())
    }

    /// What `wait` says where the pipeline cannot get there.
    fn stops(&self) -> Result<String> {
        let ran = self.tailwater.command(&[
            "wait",
            "--pipeline",
            &self.pipeline,
            "--timeout",
            PATIENCE,
        ])?;
        ensure!(ran.code == Some(2), "{ran:?}\n{}", self.tailwater.log());
        Ok(format!("{}\n{}", ran.out, ran.err))
    }
}

/// 2: a row in chunks of which only some are in the log when the writer dies.
#[test]
fn loss_2_a_large_row_cut_off_by_a_kill_comes_whole() {
    let sql = "CREATE TABLE large (id INT PRIMARY KEY, v LONGTEXT NOT NULL)";
    let mut world = pair(mariadb_source(), mariadb_target(), sql).unwrap();
    world.run().unwrap();
    for round in 0..3 {
        let first = round * 10;
        let rows: Vec<String> = (first..first + 4)
            .map(|id| format!("({id}, REPEAT(MD5({id}), {}))", 100_000 + 1_000 * id))
            .collect();
        let sql = format!("INSERT INTO large VALUES {}", rows.join(", "));
        world.on_source(&sql).unwrap();
        // It is being read, written or applied: all of it takes longer than this.
        world.tailwater.kill().unwrap();
        world.tailwater.start_again().unwrap();
    }
    world.arrive().unwrap();
    world.same("SELECT id, LENGTH(v), MD5(v) FROM large ORDER BY id").unwrap();
    assert_eq!(world.on_target("SELECT COUNT(*) FROM large").unwrap().trim(), "12");
}

/// 7: `LOAD DATA LOCAL` passes over rows whose key is there, without an error.
#[test]
fn loss_7_rows_that_are_there_already_are_repaired_or_stop() {
    let sql = "CREATE TABLE d (id INT PRIMARY KEY, v VARCHAR(10))";
    let mut world = pair(mariadb_source(), mariadb_target(), sql).unwrap();
    world.run().unwrap();
    world.on_target("INSERT INTO d VALUES (5, 'theirs'), (400, 'theirs')").unwrap();
    world.on_source("INSERT INTO d SELECT seq, 'ours' FROM seq_1_to_500").unwrap();
    world.arrive().unwrap();
    world.same("SELECT * FROM d ORDER BY id").unwrap();
    world.tailwater.stop().unwrap();

    let stop = world.configuration(&world.tailwater, "on_conflict = \"stop\"");
    world.tailwater.configure(&stop).unwrap();
    world.tailwater.start_again().unwrap();
    world.arrive().unwrap();
    world.on_target("INSERT INTO d VALUES (1005, 'theirs')").unwrap();
    world.on_source("INSERT INTO d SELECT seq, 'ours' FROM seq_1001_to_1500").unwrap();
    let said = world.stops().unwrap();
    assert!(said.contains(".d"), "{said}");
    // And nothing of the transaction is there.
    assert_eq!(world.on_target("SELECT COUNT(*) FROM d").unwrap().trim(), "501");
}

/// 8: MySQL numbers a 0, moves a clock and reads a time in the session's zone.
#[test]
fn loss_8_numbers_clocks_and_zones_arrive_as_they_are() {
    let zero = "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO';";
    let table = |name: &str| {
        format!(
            "CREATE TABLE {name} (id INT AUTO_INCREMENT PRIMARY KEY, v INT, \
             changed TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP, \
             at TIMESTAMP(6) NULL, wall DATETIME NULL);"
        )
    };
    let rows = |name: &str| {
        format!(
            "INSERT INTO {name} VALUES \
             (0, 1, '2001-02-03 04:05:06', '2020-06-01 12:00:00.5', '2020-06-01 12:00:00'), \
             (7, 2, '2011-02-03 04:05:06', NULL, NULL);"
        )
    };
    let sql = format!("{zero}{}{}{}", table("t"), table("u"), rows("t"));
    let mut world = pair(mariadb_source(), mariadb_target(), &sql).unwrap();
    world.run().unwrap();
    let look = |name: &str| {
        format!(
            "SELECT id, v, UNIX_TIMESTAMP(changed), UNIX_TIMESTAMP(at), wall FROM {name} ORDER BY id"
        )
    };
    world.same(&look("t")).unwrap();
    world.on_source(&format!("{zero}{}", rows("u"))).unwrap();
    // The clock of `t` is told to stay where it is.
    world.on_source("UPDATE t SET v = v + 10, changed = changed").unwrap();
    world.on_source("UPDATE u SET v = v + 10 WHERE id = 7").unwrap();
    world.arrive().unwrap();
    world.same(&look("t")).unwrap();
    world.same(&look("u")).unwrap();
    assert_eq!(world.on_target("SELECT MIN(id) FROM u").unwrap().trim(), "0");
}

/// 9: cascades that MariaDB does not log must happen on the target too, or rows stay there.
#[test]
fn loss_9_a_table_without_the_hidden_cascade_stops_before_it_streams() {
    let sql = "CREATE TABLE p (id INT PRIMARY KEY);
         CREATE TABLE t (id INT PRIMARY KEY, p INT,
             FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE);
         INSERT INTO p VALUES (1), (2); INSERT INTO t VALUES (1, 1), (2, 2)";
    let mut world = pair(mariadb_source(), mariadb_target(), sql).unwrap();
    world.on_target("CREATE TABLE t (id INT PRIMARY KEY, p INT)").unwrap();
    world.tailwater.start_again().unwrap();
    let said = world.stops().unwrap();
    assert!(said.contains("without logging") && said.contains("create the same"), "{said}");
    world
        .on_target("ALTER TABLE t ADD FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE")
        .unwrap();
    let resumed = world.tailwater.command(&["resume", "--pipeline", &world.pipeline]).unwrap();
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    world.on_source("DELETE FROM p WHERE id = 1").unwrap();
    world.arrive().unwrap();
    world.same("SELECT id FROM t").unwrap();
    world.tailwater.stop().unwrap();
}

/// 9 and 10: a source that executes cascades without logging them, and a parent that is deleted
/// and inserted again in one transaction: as one update, it would keep its children.
#[test]
fn loss_10_a_parent_that_comes_back_has_lost_its_children() {
    let sql = "CREATE TABLE p (id INT PRIMARY KEY, v INT);
               CREATE TABLE c (id INT PRIMARY KEY, p INT NOT NULL,
                 FOREIGN KEY (p) REFERENCES p (id) ON DELETE CASCADE);
               INSERT INTO p VALUES (1, 1), (2, 1); INSERT INTO c VALUES (1, 1), (2, 1), (3, 2);";
    let mut world = pair(mariadb_source(), mariadb_target(), sql).unwrap();
    world.run().unwrap();
    world
        .on_source("BEGIN; DELETE FROM p WHERE id = 1; INSERT INTO p VALUES (1, 2); COMMIT;")
        .unwrap();
    world.arrive().unwrap();
    world.same("SELECT * FROM p ORDER BY id").unwrap();
    world.same("SELECT * FROM c ORDER BY id").unwrap();
    assert_eq!(world.on_target("SELECT COUNT(*) FROM c").unwrap().trim(), "1");
}

/// 13: a filter that changes between two runs, in the middle of what the log holds.
#[test]
fn loss_13_a_changed_filter_shifts_nothing() {
    let sql =
        "CREATE TABLE a (id INT PRIMARY KEY, v INT); CREATE TABLE b (id INT PRIMARY KEY, v INT);";
    let mut world = pair(mariadb_source(), mariadb_target(), sql).unwrap();
    world.run().unwrap();
    let work = |first: u32| {
        (first..first + 30)
            .map(|id| {
                format!(
                    "BEGIN; INSERT INTO b VALUES ({id}, 1); INSERT INTO a VALUES ({id}, 1); \
                     UPDATE b SET v = v + 1; UPDATE a SET v = v + 1; COMMIT;"
                )
            })
            .collect::<String>()
    };
    let all = world.configuration(&world.tailwater, "");
    let tables = format!("tables = [\"{}.*\"]", world.from.1);
    let less = all.replace(&tables, &format!("{tables}\nexclude = [\"{}.b\"]", world.from.1));
    assert_ne!(all, less);
    for (round, configuration) in (0..).zip([&less, &all, &less]) {
        world.on_source(&work(round * 30)).unwrap();
        world.tailwater.kill().unwrap();
        world.tailwater.configure(configuration).unwrap();
        world.tailwater.start_again().unwrap();
        if configuration == &all {
            // A table that was left out and comes back lacks what happened meanwhile: it does not go
            // on with what happens to it next, and says so.
            world.on_source("UPDATE b SET v = v + 1 WHERE id = 0").unwrap();
            wait_for_source(&world.tailwater, "stopped", &[".b", "never read", "exclude"]).unwrap();
        } else {
            world.arrive().unwrap();
        }
    }
    world.same("SELECT COUNT(*), SUM(id), SUM(v) FROM a").unwrap();
    assert_eq!(world.on_target("SELECT COUNT(*) FROM a").unwrap().trim(), "90");
}

/// 16: arrays and composites carry the source's type numbers in binary form.
#[test]
fn loss_16_arrays_and_composites_are_refused_by_name() {
    let source = Server::shared(Flavor::Postgres15);
    let sql = "CREATE TYPE pair AS (a int, b text);
               CREATE TABLE t (id int PRIMARY KEY, some_pair pair, many_numbers int[]);";
    let world = pair(source, mariadb_target(), sql).unwrap();
    let ran = world.tailwater.command(&["check"]).unwrap();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let said = format!("{}{}", ran.out, ran.err);
    assert!(said.contains("some_pair") && said.contains("many_numbers"), "{said}");
}
