//! What `check` finds: every problem once, with a remedy that repairs it.

use tailwater_change::Problem;
use tailwater_scratch::{Flavor, Server, free_port};

use crate::source::support::{Database, flavors, snapshot, source_at};

fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_source_where_all_is_well_has_no_problems() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql("CREATE TABLE t (id int PRIMARY KEY)");
        let source = database.source();
        assert_eq!(source.check().await, []);
        snapshot(&*source).await;
        assert_eq!(source.check().await, [], "also with slot and publication");
    }
}

#[tokio::test]
async fn tables_that_cannot_be_captured_are_named() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        database.sql(
            "CREATE SCHEMA tailwater; CREATE TABLE tailwater.progress (id int);
             CREATE TABLE nokey (a int);
             CREATE TABLE nothing (a int PRIMARY KEY);
             ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE arrays (a int PRIMARY KEY, tags text[], addr inet);
             CREATE UNLOGGED TABLE scratchpad (a int PRIMARY KEY);
             CREATE TABLE fine (a int PRIMARY KEY);",
        );
        let source = database.source_of(&["public.*", "tailwater.*", "public.typo"]);
        let found = texts(&source.check().await);
        for part in [
            "\"tailwater.*\" in `tables` matches no table",
            "\"public.typo\" in `tables` matches no table",
            "column tags of public.arrays has the type text[]",
            "column addr of public.arrays has the type inet",
            "public.nokey has no primary key",
            "ALTER TABLE \"public\".\"nokey\" REPLICA IDENTITY FULL",
            "public.nothing has the replica identity NOTHING",
            "public.scratchpad is unlogged",
        ] {
            let times = found.iter().filter(|text| text.contains(part)).count();
            assert_eq!(times, 1, "{part} in {found:#?}");
        }
        assert_eq!(found.len(), 7, "{found:#?}");
        assert!(source.tables().await.is_err());
        assert!(source.snapshot().await.is_err());
        // Nothing was published: a table without identity would refuse updates.
        assert_eq!(database.sql("SELECT count(*) FROM pg_publication").trim(), "0");
    }
}

#[tokio::test]
async fn a_role_without_rights_is_told_which_and_can_then_capture() {
    for flavor in flavors() {
        let database = Database::new(flavor);
        let role = format!("repl_{}", database.name);
        database.sql(&format!(
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE ROLE {role} LOGIN"
        ));
        let url = database.server.url(&database.name).replace("postgres@", &format!("{role}@"));
        let source = source_at(&url, &database.name, &["public.*"]);
        let found = source.check().await;
        let text = texts(&found).join("\n");
        assert_eq!(found.len(), 3, "{text}");
        assert!(text.contains("may not replicate") && text.contains("may not read public.t"));
        assert!(text.contains("may not publish the tables: it has no CREATE privilege"), "{text}");
        // The remedies, as they are printed.
        for problem in &found {
            let sql = problem.remedy.split("; (or").next().unwrap();
            database.sql(
                sql.trim_start_matches("as a superuser: ")
                    .trim_start_matches("run this as a superuser: "),
            );
        }
        assert_eq!(source.check().await, []);
        let (found, _) = snapshot(&*source).await;
        assert_eq!(found.rows.len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_is_not_set_up_says_what_to_set() {
    let server = Server::start_with(
        Flavor::Postgres15,
        &[("wal_level", "replica"), ("max_replication_slots", "1"), ("max_wal_senders", "1")],
    )
    .unwrap();
    let name = server.create_database().unwrap();
    server
        .sql(
            &name,
            "CREATE TABLE t (id int PRIMARY KEY); SELECT pg_create_physical_replication_slot('x')",
        )
        .unwrap();
    let found = texts(&source_at(&server.url(&name), &name, &["public.*"]).check().await);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("ALTER SYSTEM SET wal_level = 'logical'"), "{found:#?}");
    assert!(found[1].contains("max_replication_slots = 2"), "{found:#?}");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_says_why() {
    let server = Server::start(Flavor::Postgres15).unwrap();
    let name = server.create_database().unwrap();
    server
        .sql(
            &name,
            "CREATE TABLE t (id int PRIMARY KEY);
             CREATE ROLE scram SUPERUSER LOGIN PASSWORD 'it''s \\ a:secret';
             SET password_encryption TO 'md5';
             CREATE ROLE md5 SUPERUSER LOGIN PASSWORD 'secret';",
        )
        .unwrap();
    let hba = server.sql(&name, "SHOW hba_file").unwrap();
    std::fs::write(
        hba.trim(),
        "host all postgres 127.0.0.1/32 trust\nhost replication postgres 127.0.0.1/32 trust\n\
         host all scram 127.0.0.1/32 scram-sha-256\nhost all md5 127.0.0.1/32 md5\n",
    )
    .unwrap();
    server.sql(&name, "SELECT pg_reload_conf()").unwrap();
    let port = server.port();
    let check = async |url: String| texts(&source_at(&url, &name, &["public.*"]).check().await);
    let at = |user: &str, database: &str| format!("postgres://{user}@127.0.0.1:{port}/{database}");
    for (url, part) in [
        (at("scram:wrong", &name), "ALTER ROLE \"scram\" PASSWORD"),
        (at("scram", &name), "no password"),
        (at("postgres", "nowhere"), "CREATE DATABASE \"nowhere\""),
        (at("nobody", &name), "pg_hba.conf"),
        (format!("postgres://a@127.0.0.1:{}/x", free_port()), "start the server"),
        (format!("{}?sslmode=require", at("postgres", &name)), "ssl = on"),
    ] {
        let found = check(url).await;
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(part) && !found[0].contains("wrong"), "{part}: {found:#?}");
    }
    for user in ["scram:it's%20%5C%20a%3Asecret", "md5:secret"] {
        assert_eq!(check(at(user, &name)).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_slot_of_another_database_is_not_taken() {
    let (one, other) = (Database::new(flavors()[0]), Database::new(flavors()[0]));
    one.sql("CREATE TABLE t (id int PRIMARY KEY)");
    other.sql("CREATE TABLE t (id int PRIMARY KEY)");
    snapshot(&*one.source()).await;
    let source = source_at(&other.server.url(&other.name), &one.name, &["public.*"]);
    let found = texts(&source.check().await);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains(&format!("belongs to database {}", one.name)), "{found:#?}");
    assert!(source.snapshot().await.is_err());
}
