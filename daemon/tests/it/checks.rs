//! What keeps `run` from working is named by `check`, with a remedy that really is one: where it is
//! a statement, it is executed here and the problem is gone.

use std::net::TcpListener;
use std::process::Command;

use tailwater_scratch::{Flavor, Server, Tailwater, free_port};

use crate::operator::{assert_clean, wait_for_source};
use crate::world::binary;

/// A process that is asked what is wrong with one configuration after another.
struct Trial(Tailwater);

/// How the program answered: exit code and everything it printed.
#[derive(Debug)]
struct Answer {
    code: Option<i32>,
    text: String,
}

impl Trial {
    fn new() -> Trial {
        Trial(Tailwater::prepare(binary(), "").unwrap())
    }

    /// `check` of `sections` with a log of its own before them.
    fn check(&self, sections: &str) -> Answer {
        self.check_whole(&format!("{}{sections}", self.log()))
    }

    fn check_whole(&self, text: &str) -> Answer {
        self.0.configure(text).unwrap();
        self.ask("check")
    }

    fn log(&self) -> String {
        let data = self.0.config().with_file_name("log");
        format!("[log]\ndata_dir = \"{}\"\nlisten = \"{}\"\n", data.display(), self.0.brokers())
    }

    /// `run`, which must end by itself.
    fn run(&self) -> Answer {
        self.ask("run")
    }

    fn ask(&self, command: &str) -> Answer {
        let ran = self.0.command(&[command]).unwrap();
        assert_clean(&ran.err);
        Answer { code: ran.code, text: format!("{}\n{}", ran.out, ran.err) }
    }

    /// `check` finds nothing.
    fn assert_good(&self, sections: &str) {
        let answer = self.check(sections);
        assert_eq!((answer.code, answer.text.trim()), (Some(0), "no problem found"));
    }
}

impl Answer {
    fn assert(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{words:?}: {}", self.text);
        for word in words {
            assert!(self.text.contains(word), "{word:?} is missing in: {}", self.text);
        }
    }
}

/// One end of a pipeline.
struct End<'a> {
    connector: &'a str,
    url: &'a str,
}

/// A source with `tables`, a target, and a pipeline between them.
fn sections(source: &End<'_>, tables: &str, target: &End<'_>, route: &str) -> String {
    format!(
        "[sources.shop]\nconnector = \"{}\"\nurl = \"{}\"\ntables = {tables}\n\
         [targets.copy]\nconnector = \"{}\"\nurl = \"{}\"\n\
         [pipelines.shop_to_copy]\nsource = \"shop\"\ntarget = \"copy\"\n{route}\n",
        source.connector, source.url, target.connector, target.url
    )
}

/// The log's sections are in the file; the servers' are not reached.
#[test]
fn a_file_that_cannot_be_run_says_what_to_change() {
    let trial = Trial::new();
    let nowhere = format!("postgres://nobody@127.0.0.1:{}/shop", free_port());
    let end = End { connector: "postgres", url: &nowhere };
    let good = format!("{}{}", trial.log(), sections(&end, "[\"public.*\"]", &end, ""));
    // An unreachable server is a problem of its own.
    trial.check_whole(&good).assert(1, &["source shop: cannot connect to", "start the server"]);
    let pipeline = "source = \"shop\"\n";
    for (from, to, words) in [
        (
            "tables =",
            "partitions = 0\ntables =",
            &["sources.shop.partitions", "set it to 1 or more"][..],
        ),
        (
            pipeline,
            "schema_changes = \"apply\"\nsource = \"shop\"\n",
            &["schema_changes", "\"stop\""],
        ),
        ("target = \"copy\"", "target = \"nowhere\"", &["nowhere", "[targets.nowhere]"]),
        ("[pipelines.shop_to_copy]", "[pipelines.Shop]", &["pipelines.Shop", "lower-case"]),
        ("listen = \"127.0.0.1", "listen = \"0.0.0.0", &["loopback", "insecure = true"]),
        ("tables = [\"public.*\"]", "tables = []", &["tables is empty", "public.*"]),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        trial.check_whole(&text).assert(1, words);
        trial.run().assert(2, words);
    }
    for (from, to, words) in [
        ("tables =", "tabels = []\ntables =", &["tabels", "unknown field", "tables"][..]),
        ("nobody@", "nobody:${env:TAILWATER_NO_SUCH}@", &["${env:TAILWATER_NO_SUCH}", "not set"]),
        ("nobody@", "nobody:${file:/no/such}@", &["${file:/no/such}", "cannot read"]),
        ("connector = \"postgres\"", "connector = \"oracle\"", &["oracle", "postgres", "mysql"]),
        ("[sources.shop]", "[sources.shop", &["tailwater.toml is not valid"]),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from}");
        trial.check_whole(&text).assert(2, words);
        trial.run().assert(2, words);
    }
    let missing = Command::new(binary()).args(["run", "--config", "/no/such.toml"]).output();
    let missing = missing.unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such.toml"));
}

#[test]
fn a_port_in_use_and_a_log_that_is_not_there_are_named() {
    let trial = Trial::new();
    let taken = TcpListener::bind(trial.0.brokers()).unwrap();
    trial.check("").assert(1, &["log.listen", &trial.0.brokers(), "choose another address"]);
    trial.run().assert(2, &["cannot listen on", "[log] listen"]);
    drop(taken);
    let taken = TcpListener::bind(trial.0.admin()).unwrap();
    trial.check("").assert(1, &["admin.listen", "choose another address"]);
    trial.run().assert(2, &["cannot listen on", "[admin] listen"]);
    drop(taken);
    trial.assert_good("");
    let nowhere = format!("[log]\nbrokers = [\"127.0.0.1:{}\"]\n", free_port());
    trial.check_whole(&nowhere).assert(1, &["log.brokers", "start the brokers"]);
    let unwritable = trial.log().replace("data_dir = \"", "data_dir = \"/proc/none");
    trial.check_whole(&unwritable).assert(1, &["log.data_dir", "cannot be written"]);
    trial.run().assert(2, &["/proc/none"]);
    // What answers on the admin address is no Tailwater.
    let ran = trial.0.command(&["status"]).unwrap();
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("is it running?"), "{ran:?}");
}

/// The problem is named, its statement repairs it.
fn repaired(
    trial: &Trial,
    sections: &str,
    server: &Server,
    database: &str,
    cases: &[(&str, &str)],
) {
    for (what, statement) in cases {
        trial.check(sections).assert(1, &[what, statement]);
        server.sql(database, statement).unwrap();
        let after = trial.check(sections);
        assert!(!after.text.contains(what), "{statement} did not help: {}", after.text);
    }
    trial.assert_good(sections);
}

#[test]
fn what_postgres_does_not_allow_is_named_and_the_statement_repairs_it() {
    let trial = Trial::new();
    let server = Server::start(Flavor::Postgres15).unwrap();
    server.create_database_named("shop").unwrap();
    server.create_database_named("copy").unwrap();
    server
        .sql(
            "shop",
            "CREATE TABLE t (id int PRIMARY KEY);
             CREATE TABLE plain (id int);
             CREATE TABLE unlogged (id int PRIMARY KEY);
             ALTER TABLE unlogged SET UNLOGGED;
             CREATE ROLE repl LOGIN PASSWORD 'secret';
             CREATE ROLE app LOGIN;
             REVOKE TEMPORARY ON DATABASE copy FROM PUBLIC;",
        )
        .unwrap();
    let hba = server.sql("shop", "SHOW hba_file").unwrap();
    let rules = std::fs::read_to_string(hba.trim()).unwrap();
    let password = "host all repl 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(hba.trim(), format!("{password}{rules}")).unwrap();
    server.sql("shop", "SELECT pg_reload_conf()").unwrap();

    let at = |user: &str, database: &str| {
        format!("postgres://{user}@127.0.0.1:{}/{database}", server.port())
    };
    let with = |source: &str, tables: &str, target: &str| {
        let (source, target) = (
            End { connector: "postgres", url: source },
            End { connector: "postgres", url: target },
        );
        sections(&source, tables, &target, "")
    };
    let (admin, repl) = (at("postgres", "shop"), at("repl:secret", "shop"));
    let (copy, app) = (at("postgres", "copy"), at("app", "copy"));

    let answer = trial.check(&with(&at("repl:wrongpassword", "shop"), "[\"public.*\"]", &copy));
    answer.assert(1, &["source shop:", "password", "ALTER ROLE \"repl\" PASSWORD"]);
    assert!(!answer.text.contains("wrongpassword"), "{}", answer.text);
    let nowhere = with(&admin, "[\"public.t\"]", &at("postgres", "nowhere"));
    repaired(
        &trial,
        &nowhere,
        &server,
        "shop",
        &[("database \"nowhere\" does not exist", "CREATE DATABASE \"nowhere\"")],
    );
    let nothing = with(&admin, "[\"public.t\", \"public.none*\"]", &copy);
    trial.check(&nothing).assert(1, &["\"public.none*\"", "matches no table", "correct it"]);

    // Tables.
    let whole = with(&admin, "[\"public.*\"]", &copy);
    repaired(
        &trial,
        &whole,
        &server,
        "shop",
        &[
            (
                "public.plain has no primary key",
                "ALTER TABLE \"public\".\"plain\" REPLICA IDENTITY FULL",
            ),
            ("public.unlogged is unlogged", "ALTER TABLE \"public\".\"unlogged\" SET LOGGED"),
        ],
    );
    server.sql("shop", "CREATE TABLE places (id int PRIMARY KEY, at point)").unwrap();
    trial.check(&whole).assert(1, &["column at of public.places has the type point", "`exclude`"]);
    trial.assert_good(&whole.replace("tables =", "exclude = [\"public.places\"]\ntables ="));
    server.sql("shop", "DROP TABLE places").unwrap();

    // Privileges of the source's role.
    let weak = with(&repl, "[\"public.*\"]", &copy);
    // Statements that go together: this one names every table.
    let answer = trial.check(&weak);
    answer.assert(1, &["repl may not publish the tables"]);
    let (_, publish) = answer.text.split_once("run this as a superuser: ").unwrap();
    let (publish, _) = publish.split_once("; (or").unwrap();
    server.sql("shop", publish).unwrap();
    repaired(
        &trial,
        &weak,
        &server,
        "shop",
        &[
            ("the role repl may not replicate", "ALTER ROLE \"repl\" REPLICATION"),
            ("may not read public.t", "GRANT SELECT ON \"public\".\"t\" TO \"repl\""),
            ("may not read public.plain", "GRANT SELECT ON \"public\".\"plain\" TO \"repl\""),
            ("may not read public.unlogged", "GRANT SELECT ON \"public\".\"unlogged\" TO \"repl\""),
        ],
    );
    // Privileges of the target's.
    let weak = with(&admin, "[\"public.t\"]", &app);
    repaired(
        &trial,
        &weak,
        &server,
        "copy",
        &[
            ("may not make temporary tables", "GRANT TEMPORARY ON DATABASE \"copy\" TO \"app\""),
            ("may not create the schema tailwater", "GRANT CREATE ON DATABASE \"copy\" TO \"app\""),
            (
                "may not set session_replication_role",
                "GRANT SET ON PARAMETER session_replication_role TO \"app\"",
            ),
            (
                "public.t is not there and \"app\" may not create it",
                "GRANT USAGE, CREATE ON SCHEMA \"public\" TO \"app\"",
            ),
        ],
    );
}

#[test]
fn a_wal_level_that_is_too_low_is_named_and_stops_the_source() {
    let mut trial = Trial::new();
    let mut server = Server::start_with(Flavor::Postgres15, &[("wal_level", "replica")]).unwrap();
    server.create_database_named("shop").unwrap();
    server.create_database_named("copy").unwrap();
    server.sql("shop", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let (source, target) = (server.url("shop"), server.url("copy"));
    let config = sections(
        &End { connector: "postgres", url: &source },
        "[\"public.*\"]",
        &End { connector: "postgres", url: &target },
        "",
    );
    let remedy = "ALTER SYSTEM SET wal_level = 'logical'";
    trial.check(&config).assert(1, &["wal_level is replica", remedy]);
    trial.0.start_again().unwrap();
    wait_for_source(&trial.0, "stopped", &["wal_level"]).unwrap();
    server.sql("shop", remedy).unwrap();
    server.configure(&[("wal_level", "logical")]).unwrap();
    server.restart().unwrap();
    let resumed = trial.0.command(&["resume", "--source", "shop"]).unwrap();
    assert_eq!(resumed.code, Some(0), "{resumed:?}");
    trial.0.wait_for("shop_to_copy", crate::world::PATIENCE).unwrap();
    trial.0.stop().unwrap();
    trial.assert_good(&config);
}

#[test]
fn what_mariadb_does_not_allow_is_named_and_the_statement_repairs_it() {
    let trial = Trial::new();
    let wrong = [("binlog_format", "MIXED"), ("binlog_row_metadata", "NO_LOG")];
    let server = Server::start_with(Flavor::MariaDb, &wrong).unwrap();
    server.create_database_named("shop").unwrap();
    server.create_database_named("copy").unwrap();
    server
        .sql(
            "shop",
            "CREATE TABLE t (id int PRIMARY KEY);
             CREATE TABLE isam (id int PRIMARY KEY) ENGINE = MyISAM;
             CREATE USER 'repl'@'127.0.0.1' IDENTIFIED BY 'secret';
             CREATE USER 'app'@'%' IDENTIFIED BY 'secret';",
        )
        .unwrap();
    let at = |user: &str, database: &str| {
        format!("mysql://{user}@127.0.0.1:{}/{database}", server.port())
    };
    let with = |source: &str, tables: &str, target: &str| {
        let (source, target) =
            (End { connector: "mysql", url: source }, End { connector: "mysql", url: target });
        sections(&source, tables, &target, "route = { \"shop.*\" = \"copy.*\" }")
    };
    let (root, copy) = (server.url("shop"), server.url("copy"));
    let whole = with(&root, "[\"shop.*\"]", &copy);
    repaired(
        &trial,
        &whole,
        &server,
        "shop",
        &[
            ("binlog_format is \"MIXED\"", "SET GLOBAL binlog_format = 'ROW'"),
            ("binlog_row_metadata is \"NO_LOG\"", "SET GLOBAL binlog_row_metadata = 'FULL'"),
            ("table shop.isam has the engine MyISAM", "ALTER TABLE `shop`.`isam` ENGINE = InnoDB"),
        ],
    );
    server.sql("shop", "CREATE TABLE places (id int PRIMARY KEY, at point)").unwrap();
    trial.check(&whole).assert(1, &["column shop.places.at", "point", "exclude"]);
    server.sql("shop", "DROP TABLE places").unwrap();
    let nothing = with(&root, "[\"shop.t\", \"shop.none*\"]", &copy);
    trial.check(&nothing).assert(1, &["no table matches shop.none*", "correct the pattern"]);

    let answer = trial.check(&with(&at("repl:wrongpassword", ""), "[\"shop.*\"]", &copy));
    answer.assert(1, &["source shop:", "Access denied", "correct user and password"]);
    assert!(!answer.text.contains("wrongpassword"), "{}", answer.text);
    let nowhere = with(&server.url("nowhere"), "[\"shop.*\"]", &copy);
    trial.check(&nowhere).assert(1, &["source shop:", "nowhere", "CREATE DATABASE `nowhere`"]);

    let weak = with(&at("repl:secret", ""), "[\"shop.*\"]", &copy);
    let account = "'repl'@'127.0.0.1'";
    let grant = |privilege: &str| format!("GRANT {privilege} ON *.* TO {account}");
    repaired(
        &trial,
        &weak,
        &server,
        "shop",
        &[
            ("lacks the privilege REPLICATION SLAVE", &grant("REPLICATION SLAVE")),
            ("lacks the privilege BINLOG MONITOR", &grant("BINLOG MONITOR")),
            ("no table matches shop.*", &format!("GRANT SELECT ON `shop`.* TO {account}")),
        ],
    );
    let weak = with(&root, "[\"shop.*\"]", &at("app:secret", "copy"));
    let answer = trial.check(&weak);
    answer.assert(1, &["target copy:", "GRANT"]);
    server.sql("shop", "GRANT ALL ON tailwater.* TO app; GRANT ALL ON copy.* TO app").unwrap();
    trial.assert_good(&weak);
}

#[test]
fn a_server_without_a_binlog_is_named_and_stops_the_source() {
    let mut trial = Trial::new();
    let server = Server::start_with(Flavor::MariaDb, &[("skip_log_bin", "")]).unwrap();
    server.create_database_named("shop").unwrap();
    server.create_database_named("copy").unwrap();
    server.sql("shop", "CREATE TABLE t (id int PRIMARY KEY)").unwrap();
    let (source, target) = (server.url("shop"), server.url("copy"));
    let config = sections(
        &End { connector: "mysql", url: &source },
        "[\"shop.*\"]",
        &End { connector: "mysql", url: &target },
        "route = { \"shop.*\" = \"copy.*\" }",
    );
    trial.check(&config).assert(1, &["log_bin is off", "log_bin = binlog"]);
    trial.0.start_again().unwrap();
    wait_for_source(&trial.0, "stopped", &["binlog", "log_bin"]).unwrap();
    trial.0.stop().unwrap();
    assert_clean(&trial.0.log());
}
