//! What an operator sees and does: the status and its shape, pause, resume, skip and detach, what
//! schema changes and conflicts do, the dashboard, the metrics, and Kafka's own client on the log.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value as Json;
use tailwater_scratch::{Flavor, Tailwater, wait_until};

use crate::world::{PATIENCE, World};

/// How long anything may take on a loaded machine; no test waits for it to pass.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// No panic, no backtrace, in what the program says.
pub(crate) fn assert_clean(text: &str) {
    for word in ["panicked", "backtrace", "BACKTRACE"] {
        assert!(!text.contains(word), "{text}");
    }
}

/// `status --json`.
pub(crate) fn status(tailwater: &Tailwater) -> Result<Json> {
    let ran = tailwater.command(&["status", "--json"])?;
    ensure!(ran.code == Some(0), "{ran:?}");
    serde_json::from_str(&ran.out).context("the status is JSON")
}

/// Waits until the first source is in `state` and its error has all `words`.
pub(crate) fn wait_for_source(tailwater: &Tailwater, state: &str, words: &[&str]) -> Result<Json> {
    wait_for(tailwater, "sources", state, words)
}

/// As [`wait_for_source`], for the first pipeline.
pub(crate) fn wait_for_pipeline(
    tailwater: &Tailwater,
    state: &str,
    words: &[&str],
) -> Result<Json> {
    wait_for(tailwater, "pipelines", state, words)
}

fn wait_for(tailwater: &Tailwater, roles: &str, state: &str, words: &[&str]) -> Result<Json> {
    let mut last = Json::Null;
    wait_until(LIMIT, &format!("{roles} that are {state}, {words:?}"), || {
        last = status(tailwater)?[roles][0].clone();
        let error = last["error"].as_str().unwrap_or_default();
        // Who tries again says why, in whatever words.
        let said = words.iter().all(|word| error.contains(word))
            && (state != "retrying" || !error.is_empty());
        Ok((last["state"] == state && said).then(|| last.clone()))
    })
    .with_context(|| format!("{last}\n{}", tailwater.log()))
}

/// The keys of an object, sorted.
fn keys(object: &Json) -> Vec<&str> {
    object.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect()
}

/// What the admin listener answers: code and body.
pub(crate) fn get(tailwater: &Tailwater, path: &str) -> Result<(u16, String)> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let response = agent.get(format!("http://{}{path}", tailwater.admin())).call()?;
    let code = response.status().as_u16();
    Ok((code, response.into_body().read_to_string()?))
}

/// The value of a series, whose name is all of `series`, in a page of metrics.
pub(crate) fn metric(page: &str, series: &str) -> Option<f64> {
    let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    lines.filter(|(name, _)| *name == series).find_map(|(_, value)| value.parse().ok())
}

#[test]
fn a_metric_is_compared_whole() {
    let page = "# HELP a b.\n# TYPE a gauge\na{b=\"c\"} 10\naa 1\n";
    assert_eq!(metric(page, "a{b=\"c\"}"), Some(10.0));
    assert_eq!(metric(page, "a"), None);
}

/// Runs a command of the program that must succeed.
fn act(world: &World, arguments: &[&str]) {
    let ran = world.tailwater.command(arguments).unwrap();
    assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
    assert_clean(&ran.err);
}

fn wait(world: &World, timeout: &str) -> (Option<i32>, String) {
    let arguments = ["wait", "--pipeline", &world.pipeline, "--timeout", timeout];
    let ran = world.tailwater.command(&arguments).unwrap();
    (ran.code, ran.err)
}

#[test]
fn an_operator_sees_and_steers_postgres() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 301).unwrap();
    start(&mut world);
    shapes(&world);
    pages(&world);
    kafka(&world);
    tail(&world);
    steering(&mut world);
    conflicts(&mut world);
    skipping(&mut world);
    schema_change(&mut world, "make the same change on the targets");
    leaving(&mut world);
}

#[test]
fn an_operator_sees_and_steers_mariadb() {
    let mut world = World::new(Flavor::MariaDb, Flavor::MariaDb, 302).unwrap();
    start(&mut world);
    shapes(&world);
    steering(&mut world);
    conflicts(&mut world);
    skipping(&mut world);
    schema_change(&mut world, "make the same change on the targets");
    leaving(&mut world);
}

fn start(world: &mut World) {
    let table = "CREATE TABLE checked (id int PRIMARY KEY, amount int NOT NULL, note varchar(40))";
    world.from.0.sql(&world.from.1, table).unwrap();
    let rows = "INSERT INTO checked VALUES (1, 10, 'one'), (2, 20, 'two'), (3, 30, 'three')";
    world.from.0.sql(&world.from.1, rows).unwrap();
    world.tailwater.start_again().unwrap();
    world.compare().unwrap();
}

/// The shape that is promised, exactly.
fn shapes(world: &World) {
    let ran = world.tailwater.command(&["status", "--json"]).unwrap();
    let status: Json = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(keys(&status), ["pipelines", "sources"]);
    let (source, pipeline) = (&status["sources"][0], &status["pipelines"][0]);
    assert_eq!(keys(source), ["error", "lag_bytes", "name", "position", "state"]);
    let expected =
        ["error", "lag_seconds", "name", "position", "rows_applied", "source", "state", "target"];
    assert_eq!(keys(pipeline), expected);
    assert_eq!(source["name"], world.from.1.as_str());
    assert_eq!(pipeline["name"], world.pipeline.as_str());
    assert_eq!((&pipeline["source"], &pipeline["target"]), (&source["name"], &"copy".into()));
    assert_eq!((&source["state"], &pipeline["state"]), (&"streaming".into(), &"streaming".into()));
    assert_eq!((&source["error"], &pipeline["error"]), (&Json::Null, &Json::Null));
    assert!(source["lag_bytes"].is_u64() && source["position"].is_string(), "{source}");
    assert!(pipeline["position"].is_string(), "{pipeline}");
    assert!(pipeline["rows_applied"].as_u64() > Some(0), "{pipeline}");
    assert_eq!(pipeline["lag_seconds"].as_f64(), Some(0.0), "an idle pipeline lags");
    let table = world.tailwater.command(&["status"]).unwrap();
    for word in ["STATE", "POSITION", "LAG", "streaming", &world.pipeline, "0.0 s"] {
        assert!(table.out.contains(word), "{word} is missing in {}", table.out);
    }
}

/// Dashboard, health, metrics.
fn pages(world: &World) {
    let tailwater = &world.tailwater;
    assert_eq!(get(tailwater, "/healthz").unwrap().0, 200);
    assert_eq!(get(tailwater, "/readyz").unwrap(), (200, "ready\n".to_owned()));
    let (code, page) = get(tailwater, "/").unwrap();
    assert_eq!(code, 200);
    assert!(page.contains("<html") && page.contains("/api/v1/status"), "{page}");
    assert_eq!(get(tailwater, "/api/v1/pipelines/none/wait").unwrap().0, 405);
    assert_eq!(get(tailwater, "/nowhere").unwrap().0, 404);
    let (code, metrics) = get(tailwater, "/metrics").unwrap();
    assert_eq!(code, 200);
    let (source, pipeline) = (&world.from.1, &world.pipeline);
    let (of_source, of_pipeline) =
        (format!("source=\"{source}\""), format!("pipeline=\"{pipeline}\""));
    let latency = "tailwater_apply_commit_latency_seconds";
    for (series, value) in [
        (format!("tailwater_capture_rows_total{{{of_source}}}"), None),
        (format!("tailwater_capture_lag_bytes{{{of_source}}}"), None),
        (format!("tailwater_apply_rows_total{{{of_pipeline}}}"), None),
        (format!("tailwater_apply_transactions_total{{{of_pipeline}}}"), None),
        (format!("tailwater_apply_lag_seconds{{{of_pipeline}}}"), Some(0.0)),
        (format!("{latency}_bucket{{le=\"+Inf\",{of_pipeline}}}"), None),
        (format!("{latency}_count{{{of_pipeline}}}"), None),
        (format!("tailwater_pipeline_state{{{of_pipeline},state=\"streaming\"}}"), Some(1.0)),
        (format!("tailwater_log_end_offset{{topic=\"{source}\",partition=\"0\"}}"), None),
        ("tailwater_under_replicated_partitions{node=\"1\"}".to_owned(), Some(0.0)),
    ] {
        let found = metric(&metrics, &series);
        assert!(found.is_some(), "{series} is missing in\n{metrics}");
        assert!(value.is_none() || found == value, "{series} is {found:?}");
    }
}

/// Kafka's own client finds the topics of a running process and reads them.
fn kafka(world: &World) {
    let brokers = world.tailwater.brokers();
    let kcat = |arguments: &[&str]| {
        let output = Command::new("kcat").args(["-b", &brokers]).args(arguments).output();
        let output = output.expect("kcat is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed: Json = serde_json::from_str(&kcat(&["-L", "-J"])).unwrap();
    let topics = listed["topics"].as_array().unwrap().clone();
    for name in [world.from.1.clone(), format!("{}.state", world.from.1), "_schemas".into()] {
        assert!(topics.iter().any(|topic| topic["topic"] == name.as_str()), "{name}: {listed}");
    }
    let read =
        kcat(&["-C", "-t", &world.from.1, "-p", "0", "-o", "beginning", "-e", "-f", "%o %S\n"]);
    let lines: Vec<&str> = read.lines().collect();
    assert!(lines.len() > 50, "{read}");
    assert!(lines[0].starts_with("0 "), "{}", lines[0]);
}

/// JSON lines, as many as asked for.
fn tail(world: &World) {
    let source = world.from.1.as_str();
    let tail = |from: &str, limit: &str| {
        let arguments = ["tail", "--source", source, "--from", from, "--limit", limit];
        world.tailwater.command(&arguments).unwrap()
    };
    let ran = tail("start", "30");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<Json> =
        ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 30);
    assert_eq!((&lines[0]["offset"], &lines[0]["marker"]), (&0.into(), &"open".into()));
    let row = lines.iter().find(|line| line["op"] == "read").expect("a row of the snapshot");
    assert!(row["table"].is_string() && row["place"].is_string(), "{row}");
    assert!(row["after"].is_object(), "{row}");
    let third = lines[3]["offset"].to_string();
    let ran = tail(&third, "1");
    assert_eq!(serde_json::from_str::<Json>(&ran.out).unwrap(), lines[3]);
    let wrong = tail("yesterday", "1");
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("yesterday"), "{wrong:?}");
}

/// Pause and resume of both roles, and the three ways in which `wait` ends.
fn steering(world: &mut World) {
    let (source, pipeline) = (world.from.1.clone(), world.pipeline.clone());
    assert_eq!(wait(world, "60s").0, Some(0));
    act(world, &["pause", "--pipeline", &pipeline]);
    let paused = wait_for_pipeline(&world.tailwater, "paused", &[]).unwrap();
    world.work(20).unwrap();
    let (code, why) = wait(world, "60s");
    assert_eq!(code, Some(2), "{why}");
    assert!(why.contains("the pipeline is paused"), "{why}");
    // Nothing went over meanwhile.
    let now = status(&world.tailwater).unwrap()["pipelines"][0].clone();
    for field in ["state", "position", "rows_applied"] {
        assert_eq!(now[field], paused[field], "{field}");
    }
    assert_eq!(get(&world.tailwater, "/readyz").unwrap().0, 200, "a paused pipeline is asked for");
    act(world, &["resume", "--pipeline", &pipeline]);
    world.compare().unwrap();

    act(world, &["pause", "--source", &source]);
    wait_for_source(&world.tailwater, "paused", &[]).unwrap();
    world.work(20).unwrap();
    let (code, why) = wait(world, "60s");
    assert_eq!(code, Some(2), "{why}");
    assert!(why.contains("the source is paused"), "{why}");
    act(world, &["resume", "--source", &source]);
    world.compare().unwrap();

    // The target's rows are locked: it cannot get there in time.
    let lock = Lock::take(world);
    world.work(20).unwrap();
    world.from.0.sql(&world.from.1, "UPDATE checked SET note = 'late' WHERE id = 1").unwrap();
    let (code, why) = wait(world, "1s");
    assert_eq!(code, Some(1), "{why}");
    assert!(why.contains("the source at"), "{why}");
    lock.release();
    world.compare().unwrap();

    let none = world.tailwater.command(&["pause", "--pipeline", "none"]).unwrap();
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("there is no pipeline \"none\""), "{none:?}");
    let none = world.tailwater.command(&["wait", "--pipeline", "none"]).unwrap();
    assert_eq!(none.code, Some(2));
}

/// A session on the target that holds the row 1 of `checked`.
struct Lock {
    world: (&'static tailwater_scratch::Server, String),
    session: std::thread::JoinHandle<()>,
}

impl Lock {
    fn take(world: &World) -> Lock {
        let to = world.to.clone();
        let (server, database) = to.clone();
        let session = std::thread::spawn(move || {
            let sleep = if server.flavor().is_postgres() { "pg_sleep" } else { "SLEEP" };
            let sql = format!(
                "BEGIN; UPDATE checked SET amount = amount WHERE id = 1; SELECT {sleep}(600) /* hold */;"
            );
            // It ends by being killed.
            let _killed = server.sql(&database, &sql);
        });
        let lock = Lock { world: to, session };
        wait_until(LIMIT, "a lock on the target", || Ok(lock.holder())).unwrap();
        lock
    }

    /// The session that sleeps.
    fn holder(&self) -> Option<String> {
        let (server, database) = &self.world;
        let sql = if server.flavor().is_postgres() {
            "SELECT pid FROM pg_stat_activity WHERE query LIKE '%hold%' AND wait_event = 'PgSleep' \
             AND datname = current_database()"
        } else {
            "SELECT id FROM information_schema.processlist WHERE info LIKE '%SLEEP(600)%' \
             AND state = 'User sleep' AND db = DATABASE()"
        };
        let found = server.sql(database, sql).unwrap();
        found.lines().next().map(str::to_owned)
    }

    fn release(self) {
        let (server, database) = &self.world;
        let holder = self.holder().expect("it sleeps still");
        let sql = if server.flavor().is_postgres() {
            format!("SELECT pg_terminate_backend({holder})")
        } else {
            format!("KILL {holder}")
        };
        server.sql(database, &sql).unwrap();
        self.session.join().unwrap();
    }
}

/// A row that somebody deleted on the target comes back by `repair` and stops by `stop`.
fn conflicts(world: &mut World) {
    let delete = "DELETE FROM checked WHERE id = 2";
    world.to.0.sql(&world.to.1, delete).unwrap();
    world.from.0.sql(&world.from.1, "UPDATE checked SET note = 'again' WHERE id = 2").unwrap();
    world.compare().unwrap();
    let (_, metrics) = get(&world.tailwater, "/metrics").unwrap();
    let conflicts = format!("tailwater_apply_conflicts_total{{pipeline=\"{}\"}}", world.pipeline);
    assert_eq!(metric(&metrics, &conflicts), Some(1.0), "{metrics}");

    world.tailwater.stop().unwrap();
    let strict = world.configuration(&world.tailwater, "on_conflict = \"stop\"");
    world.tailwater.configure(&strict).unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    world.to.0.sql(&world.to.1, delete).unwrap();
    world.from.0.sql(&world.from.1, "UPDATE checked SET note = 'stop' WHERE id = 2").unwrap();
    let words = ["conflict on", "checked", "tailwater skip"];
    wait_for_pipeline(&world.tailwater, "stopped", &words).unwrap();
    let (code, why) = wait(world, "60s");
    assert_eq!(code, Some(2), "{why}");
    assert!(why.contains("conflict on"), "{why}");
    assert_eq!(get(&world.tailwater, "/readyz").unwrap().0, 503);
    // A person brings the row back, as the remedy says.
    let back = "INSERT INTO checked VALUES (2, 20, 'again')";
    world.to.0.sql(&world.to.1, back).unwrap();
    act(world, &["resume", "--pipeline", &world.pipeline.clone()]);
    world.compare().unwrap();
}

/// A transaction that the target can never take stops, survives a restart, and is left out when
/// told so: it alone, and whole.
fn skipping(world: &mut World) {
    let to = world.to.clone();
    to.0.sql(&to.1, "ALTER TABLE checked ADD CONSTRAINT small CHECK (amount < 1000)").unwrap();
    let sql = "BEGIN; UPDATE checked SET amount = 5000 WHERE id = 3;
               INSERT INTO checked VALUES (7, 7, 'with it'); COMMIT;
               INSERT INTO checked VALUES (8, 8, 'behind it');";
    world.from.0.sql(&world.from.1, sql).unwrap();
    wait_for_pipeline(&world.tailwater, "stopped", &["small", " (at ", "; "]).unwrap();
    world.tailwater.kill().unwrap();
    world.tailwater.start_again().unwrap();
    let stopped = wait_for_pipeline(&world.tailwater, "stopped", &["small", " (at "]).unwrap();
    let error = stopped["error"].as_str().unwrap();
    let (_, place) = error.split_once(" (at ").unwrap();
    let (place, _) = place.split_once(')').unwrap();
    let pipeline = world.pipeline.clone();
    let skip = |place: &str| {
        world.tailwater.command(&["skip", "--pipeline", &pipeline, "--place", place]).unwrap()
    };
    // Only what the status names is left out.
    let wrong = skip("1@0/1");
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.err.contains(place), "{wrong:?}");
    let ran = skip(place);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    world.tailwater.wait_for(&pipeline, PATIENCE).unwrap();
    let rows = "SELECT id, amount FROM checked WHERE id IN (3, 7, 8) ORDER BY id";
    assert_eq!(to.0.sql(&to.1, rows).unwrap().trim(), "3\t30\n8\t8");
    let verified = world.tailwater.command(&["verify", "--pipeline", &pipeline]).unwrap();
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(verified.out.contains("2 different"), "{verified:?}");
    // It stays left out.
    world.tailwater.kill().unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&pipeline, PATIENCE).unwrap();
    assert_eq!(to.0.sql(&to.1, rows).unwrap().trim(), "3\t30\n8\t8");
    // By hand, equal again.
    to.0.sql(&to.1, "ALTER TABLE checked DROP CONSTRAINT small").unwrap();
    let repair = "UPDATE checked SET amount = 5000 WHERE id = 3; INSERT INTO checked VALUES (7, 7, 'with it');";
    to.0.sql(&to.1, repair).unwrap();
    world.compare().unwrap();
}

/// A definition that changes stops, with what changed and what to do; nothing behind it is lost.
fn schema_change(world: &mut World, remedy: &str) {
    let sql = "ALTER TABLE checked ADD COLUMN more int; UPDATE checked SET more = 1 WHERE id = 1;";
    world.from.0.sql(&world.from.1, sql).unwrap();
    let stopped = wait_for_source(&world.tailwater, "stopped", &["checked", remedy]).unwrap();
    assert_clean(stopped["error"].as_str().unwrap());
    // The marker was in the log before the source said that it stopped.
    wait_for_pipeline(&world.tailwater, "stopped", &["checked", "tailwater skip"]).unwrap();
    let (code, why) = wait(world, "60s");
    assert_eq!(code, Some(2), "{why}");
    assert!(why.contains("is stopped") && why.contains("checked"), "{why}");
    let table = world.tailwater.command(&["status"]).unwrap();
    assert!(table.out.contains(remedy), "{}", table.out);
    assert_eq!(get(&world.tailwater, "/readyz").unwrap().0, 503);
    // Still stopped after a restart: it does not go on with another definition by itself.
    world.tailwater.kill().unwrap();
    world.tailwater.start_again().unwrap();
    wait_for_source(&world.tailwater, "stopped", &["checked"]).unwrap();
}

/// `detach`, and an orderly end.
fn leaving(world: &mut World) {
    let progress =
        format!("SELECT COUNT(*) FROM tailwater.progress WHERE pipeline = '{}'", world.pipeline);
    let count = |world: &World| world.to.0.sql(&world.to.1, &progress).unwrap().trim().to_owned();
    assert_eq!(count(world), "1");
    act(world, &["detach", "--pipeline", &world.pipeline.clone()]);
    assert_eq!(count(world), "0");
    wait_for_pipeline(&world.tailwater, "paused", &[]).unwrap();
    stop_promptly(&mut world.tailwater);
}

/// SIGTERM: it ends in order, which it says last, within seconds.
#[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
fn stop_promptly(tailwater: &mut Tailwater) {
    let begun = std::time::Instant::now();
    tailwater.stop().unwrap();
    let took = begun.elapsed();
    let log = tailwater.log();
    assert!(took < Duration::from_secs(20), "{took:?}: {log}");
    assert!(log.trim_end().ends_with("stopped"), "{log}");
    assert_clean(&log);
}

/// Target tables with rows at the first start: refused, merged, or replaced, as configured.
#[test]
fn rows_that_are_there_already_stop_are_merged_or_replaced() {
    for flavor in [Flavor::Postgres15, Flavor::MariaDb] {
        for choice in ["merge", "replace"] {
            existing(flavor, choice);
        }
    }
}

fn existing(flavor: Flavor, choice: &str) {
    let mut world = World::new(flavor, flavor, 303).unwrap();
    let table = "CREATE TABLE checked (id int PRIMARY KEY, amount int NOT NULL)";
    world.from.0.sql(&world.from.1, table).unwrap();
    world.from.0.sql(&world.from.1, "INSERT INTO checked VALUES (1, 10), (2, 20)").unwrap();
    world.to.0.sql(&world.to.1, table).unwrap();
    world.to.0.sql(&world.to.1, "INSERT INTO checked VALUES (2, 99), (3, 30)").unwrap();
    let words = ["checked", "has rows", "on_existing = \"merge\"", "on_existing = \"replace\""];
    world.tailwater.start_again().unwrap();
    wait_for_pipeline(&world.tailwater, "stopped", &words).unwrap();
    let rows = "SELECT id, amount FROM checked ORDER BY id";
    let read = |world: &World| world.to.0.sql(&world.to.1, rows).unwrap().trim().to_owned();
    assert_eq!(read(&world), "2\t99\n3\t30", "nothing was touched");
    world.tailwater.stop().unwrap();
    let chosen = world.configuration(&world.tailwater, &format!("on_existing = \"{choice}\""));
    world.tailwater.configure(&chosen).unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    let expected = if choice == "merge" { "1\t10\n2\t20\n3\t30" } else { "1\t10\n2\t20" };
    assert_eq!(read(&world), expected, "{flavor} {choice}");
    world.work(20).unwrap();
    world.from.0.sql(&world.from.1, "DELETE FROM checked WHERE id = 2").unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    let expected = if choice == "merge" { "1\t10\n3\t30" } else { "1\t10" };
    assert_eq!(read(&world), expected, "{flavor} {choice}");
    world.tailwater.stop().unwrap();
}

/// SIGTERM while the source is written to and the pipeline works: exit 0, and within seconds.
#[test]
fn it_ends_in_order_under_load() {
    let mut world = World::new(Flavor::Postgres15, Flavor::Postgres15, 304).unwrap();
    world.tailwater.start_again().unwrap();
    world.tailwater.wait_for(&world.pipeline, PATIENCE).unwrap();
    for _round in 0..2 {
        let sql = world.workload.transactions(300);
        let from = world.from.clone();
        let load = std::thread::spawn(move || from.0.sql(&from.1, &sql).map(drop));
        let before = status(&world.tailwater).unwrap()["pipelines"][0]["rows_applied"].clone();
        wait_until(LIMIT, "rows that arrive", || {
            let now = status(&world.tailwater)?["pipelines"][0]["rows_applied"].clone();
            Ok((now != before).then_some(()))
        })
        .unwrap();
        stop_promptly(&mut world.tailwater);
        load.join().unwrap().unwrap();
        world.tailwater.start_again().unwrap();
    }
    world.compare().unwrap();
    assert_clean(&world.tailwater.log());
}
