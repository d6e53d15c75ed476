//! A source, a target and a Tailwater between them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use tailwater_scratch::{Flavor, Server, Tailwater};

use crate::workload::{Spelling, TOTAL, Workload};

/// The program under test.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tailwater"))
}

/// How long anything may take on a loaded machine; no test waits for it to pass.
pub(crate) const PATIENCE: &str = "180s";

/// A pipeline between two databases.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) from: (&'static Server, String),
    pub(crate) to: (&'static Server, String),
    pub(crate) tailwater: Tailwater,
    pub(crate) workload: Workload,
    /// Its progress stands on a server that other tests use too: a name of its own.
    pub(crate) pipeline: String,
    /// What else is said of the source.
    pub(crate) source: &'static str,
}

impl World {
    /// The tables and rows of the workload on the source, an empty database on the target, and a
    /// Tailwater that is not yet started.
    pub(crate) fn new(from: Flavor, to: Flavor, seed: u64) -> Result<World> {
        World::between(Server::shared(from), second(to), seed)
    }

    /// As [`World::new`], between these servers.
    pub(crate) fn between(
        source: &'static Server,
        target: &'static Server,
        seed: u64,
    ) -> Result<World> {
        let (from, to) = (source.flavor(), target.flavor());
        println!("{from} -> {to}, seed {seed}");
        let spelling = if from.is_postgres() { Spelling::Postgres } else { Spelling::Mysql };
        // MariaDB executes cascades without logging them: only a target of its kind can repeat them.
        let cascades = from != Flavor::MariaDb || !to.is_postgres();
        let mut workload = Workload::new(spelling, cascades, seed);
        let from_database = source.create_database()?;
        let to_database = target.create_database()?;
        source.sql(&from_database, &workload.schema())?;
        source.sql(&from_database, &workload.load())?;
        let world = World {
            pipeline: format!("pair_{to_database}"),
            source: "",
            tailwater: Tailwater::prepare(binary(), "")?,
            from: (source, from_database),
            to: (target, to_database),
            workload,
        };
        world.tailwater.configure(&world.configuration(&world.tailwater, ""))?;
        Ok(world)
    }

    /// The same, with `source` in the source's section.
    pub(crate) fn with_source(self, source: &'static str) -> Result<World> {
        let world = World { source, ..self };
        world.tailwater.configure(&world.configuration(&world.tailwater, ""))?;
        Ok(world)
    }

    /// The configuration of a process that runs the pair with a log of its own.
    pub(crate) fn configuration(&self, tailwater: &Tailwater, extra: &str) -> String {
        format!("{}{}", own_log(tailwater), self.roles(extra))
    }

    /// Configures this world's process as the log and the capture alone; the configuration of one
    /// that only applies. `extra` belongs to the pipeline.
    pub(crate) fn apart(&self, extra: &str) -> Result<String> {
        let log = own_log(&self.tailwater);
        self.tailwater.configure(&format!("{log}{}", self.source_role()))?;
        let brokers = self.tailwater.brokers();
        Ok(format!("[log]\nbrokers = [\"{brokers}\"]\n{}", self.pipeline_role(extra)))
    }

    /// The source, the target and the pipeline; `extra` belongs to the pipeline.
    pub(crate) fn roles(&self, extra: &str) -> String {
        format!("{}{}", self.source_role(), self.pipeline_role(extra))
    }

    pub(crate) fn source_role(&self) -> String {
        let (server, database) = &self.from;
        let schema = schema_of(server, database);
        format!(
            "[sources.{database}]\nconnector = \"{}\"\nurl = \"{}\"\ntables = [\"{schema}.*\"]\n{}\n",
            connector(server),
            server.url(database),
            self.source,
        )
    }

    pub(crate) fn pipeline_role(&self, extra: &str) -> String {
        let ((from, from_database), (to, to_database)) = (&self.from, &self.to);
        format!(
            "[targets.copy]\nconnector = \"{}\"\nurl = \"{}\"\n\
             [pipelines.{}]\nsource = \"{from_database}\"\ntarget = \"copy\"\n\
             route = {{ \"{}.*\" = \"{}.*\" }}\n{extra}\n",
            connector(to),
            to.url(to_database),
            self.pipeline,
            schema_of(from, from_database),
            schema_of(to, to_database),
        )
    }

    /// Runs `count` transactions on the source.
    pub(crate) fn work(&mut self, count: usize) -> Result<()> {
        let sql = self.workload.transactions(count);
        self.from.0.sql(&self.from.1, &sql).context("the workload is valid").map(drop)
    }

    /// Waits until the target has everything, then compares the two by dumps that know nothing of
    /// Tailwater.
    pub(crate) fn compare(&self) -> Result<()> {
        self.tailwater.wait_for(&self.pipeline, PATIENCE)?;
        same_rows(&self.from, &self.to).with_context(|| {
            let status = self.tailwater.command(&["status"]).map(|ran| ran.out);
            format!("{}\n{}", status.unwrap_or_default(), self.tailwater.log())
        })
    }
}

/// A log of the process's own.
fn own_log(tailwater: &Tailwater) -> String {
    let data = tailwater.config().with_file_name("log");
    format!("[log]\ndata_dir = \"{}\"\nlisten = \"{}\"\n", data.display(), tailwater.brokers())
}

/// Every row of the workload's tables is equal on both sides.
pub(crate) fn same_rows(
    from: &(&'static Server, String),
    to: &(&'static Server, String),
) -> Result<()> {
    if from.0.flavor().is_postgres() == to.0.flavor().is_postgres() {
        let (source, target) = (from.0.dump(&from.1)?, to.0.dump(&to.1)?);
        let rename = |dump: String, database: &str| dump.replace(database, "DATABASE");
        return equal(&rename(source, &from.1), &rename(target, &to.1));
    }
    for select in crate::workload::COMPARABLE {
        let read = |(server, database): &(&'static Server, String)| {
            let character = if server.flavor().is_postgres() { "chr" } else { "char" };
            // PostgreSQL pads char(20), MySQL casts to nothing else.
            let text = if character == "chr" { "varchar(20)" } else { "CHAR(20)" };
            let select = select
                .replace("CHAR(20)", text)
                .replace("CHR_9", &format!("{character}(9)"))
                .replace("CHR_10", &format!("{character}(10)"))
                .replace("LENGTH(", if character == "chr" { "octet_length(" } else { "LENGTH(" });
            let rows = server.sql(database, &select)?;
            let mut rows: Vec<String> = rows.lines().map(trim_fraction).collect();
            rows.sort_unstable();
            anyhow::Ok(rows.join("\n"))
        };
        equal(&read(from)?, &read(to)?)?;
    }
    Ok(())
}

/// `03:04:05.100000` and `03:04:05.1` are one time.
fn trim_fraction(row: &str) -> String {
    match row.rsplit_once('.') {
        Some((head, tail)) if row.contains("03:04:05.") => {
            let tail = tail.trim_end_matches('0');
            if tail.is_empty() { head.to_owned() } else { format!("{head}.{tail}") }
        }
        _ => row.trim_end_matches(".0").to_owned(),
    }
}

fn equal(source: &str, target: &str) -> Result<()> {
    if source == target {
        return Ok(());
    }
    let only = |here: &str, there: &str, side: &str| -> Vec<String> {
        let known: std::collections::HashSet<&str> = there.lines().collect();
        here.lines()
            .filter(|line| !known.contains(line))
            .take(8)
            .map(|line| format!("only on the {side}: {line:.200}"))
            .collect()
    };
    let mut differing = only(source, target, "source");
    differing.extend(only(target, source, "target"));
    anyhow::bail!("the two differ:\n{}", differing.join("\n"))
}

/// A second shared server of the flavor, so that source and target are two.
pub(crate) fn second(flavor: Flavor) -> &'static Server {
    use std::sync::OnceLock;
    static SECOND: [OnceLock<Server>; 4] = [const { OnceLock::new() }; 4];
    SECOND[flavor as usize].get_or_init(|| Server::start(flavor).expect("the target starts"))
}

fn connector(server: &Server) -> &'static str {
    if server.flavor().is_postgres() { "postgres" } else { "mysql" }
}

/// PostgreSQL's tables are in `public`, MySQL's in their database.
pub(crate) fn schema_of(server: &Server, database: &str) -> String {
    if server.flavor().is_postgres() { "public".to_owned() } else { database.to_owned() }
}

/// Looks at the target all the time: the sum of the balances may never be another.
#[derive(Debug)]
pub(crate) struct Watcher {
    stop: std::sync::Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Watcher {
    /// Begins to look; the pipeline must be streaming by now.
    pub(crate) fn start(to: (&'static Server, String)) -> Watcher {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::SeqCst) {
                let sum = to.0.sql(&to.1, "SELECT SUM(balance) FROM accounts")?;
                ensure!(sum == TOTAL.to_string(), "a reader saw half a transaction: {sum}");
                looks += 1;
            }
            Ok(looks)
        });
        Watcher { stop, thread }
    }

    /// How often it looked, if it never saw half a transaction.
    pub(crate) fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("the watcher does not panic")
    }
}
