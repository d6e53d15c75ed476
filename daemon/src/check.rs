//! `tailwater check`: tries everything that `run` needs and prints every problem at once.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tailwater_apply::{Route, TargetConnector, TargetTable, needs_order};
use tailwater_capture::SourceConnector;
use tailwater_change::{Problem, TableId, TableSchema};

use crate::config::{Config, Consistency, PipelineSection};
use crate::connectors;
use crate::text::say;

/// # Errors
/// The configuration cannot be read.
pub(crate) fn check(path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let (problems, notes) = runtime.block_on(problems(&config));
    for note in notes {
        say(&note);
    }
    for problem in &problems {
        say(&format!("{}\n    {}", problem.what, problem.remedy));
    }
    if problems.is_empty() {
        say("no problem found");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}

/// What has to be changed, and what is to be known.
async fn problems(config: &Config) -> (Vec<Problem>, Vec<String>) {
    let (mut found, mut notes) = (config.problems(), Vec::new());
    check_log(config, &mut found).await;
    for (name, section) in &config.sources {
        match connectors::source(name, section) {
            Ok(source) => {
                let problems = source.check().await;
                found.extend(problems.into_iter().map(|p| of(&format!("source {name}"), p)));
            }
            Err(problem) => found.push(of(&format!("source {name}"), problem)),
        }
    }
    for (name, section) in &config.targets {
        match connectors::target(name, section) {
            Ok(target) => {
                let problems = target.check().await;
                found.extend(problems.into_iter().map(|p| of(&format!("target {name}"), p)));
            }
            Err(problem) => found.push(of(&format!("target {name}"), problem)),
        }
    }
    if found.is_empty() {
        for name in config.pipelines.keys() {
            check_pipeline(config, name, &mut found).await;
            check_order(config, name, &mut found, &mut notes).await;
        }
    }
    (found, notes)
}

fn of(role: &str, problem: Problem) -> Problem {
    Problem { what: format!("{role}: {}", problem.what), ..problem }
}

/// Addresses that are taken, folders that cannot be written, brokers that do not answer.
async fn check_log(config: &Config, found: &mut Vec<Problem>) {
    let mut listeners = vec![("admin", Some(config.admin.listen))];
    listeners.push(("schema_registry", config.schema_registry.listen));
    if let Some(log) = &config.log {
        listeners.push(("log", log.listen));
        if let Some(data_dir) = &log.data_dir
            && let Err(error) = writable(data_dir)
        {
            found.push(Problem::new(
                format!("log.data_dir {} cannot be written: {error}", data_dir.display()),
                "create it and give this user the right to write there",
            ));
        }
        if log.data_dir.is_none()
            && !log.brokers.is_empty()
            && let Err(error) = crate::run::connect(log, None).await
        {
            found.push(Problem::new(
                format!("log.brokers: {error:#}"),
                "correct the addresses, or start the brokers",
            ));
        }
    }
    for (section, at) in listeners {
        let Some(at) = at else { continue };
        if let Err(error) = tokio::net::TcpListener::bind(at).await {
            found.push(Problem::new(
                format!("{section}.listen = \"{at}\" cannot be used: {error}"),
                "choose another address, or stop what uses it (Tailwater itself, if it runs)",
            ));
        }
    }
}

fn writable(data_dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(data_dir)?;
    let probe = data_dir.join(".tailwater-check");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

/// Every captured table, as the pipeline's target would have it.
async fn check_pipeline(config: &Config, name: &str, found: &mut Vec<Problem>) {
    let Some((source, target, route)) = ends(config, name) else { return };
    let tables = match source.tables().await {
        Ok(tables) => tables,
        Err(error) => {
            found.push(Problem::new(
                format!("pipeline {name}: the source's tables cannot be read: {error}"),
                "see the source's own problems",
            ));
            return;
        }
    };
    for schema in tables {
        let Some(to) = route.target(&schema.table) else { continue };
        let problems = target.check_table(&schema, &to).await;
        found.extend(problems.into_iter().map(|p| of(&format!("pipeline {name}"), p)));
    }
}

/// Tables of a pipeline with `consistency = "key"` that keep its partitions together.
async fn check_order(
    config: &Config,
    name: &str,
    found: &mut Vec<Problem>,
    notes: &mut Vec<String>,
) {
    let is_key = |section: &PipelineSection| section.consistency == Consistency::Key;
    if !config.pipelines.get(name).is_some_and(is_key) {
        return;
    }
    let Some((source, target, route)) = ends(config, name) else { return };
    // Why either cannot be asked is said elsewhere.
    let Ok(tables) = source.tables().await else { return };
    let Ok(mut session) = target.connect().await else { return };
    for schema in tables {
        let Some(to) = route.target(&schema.table) else { continue };
        let described = match session.describe(&schema, &to).await {
            Ok(described) => described.unwrap_or_else(|| to_be_made(&schema, &to)),
            Err(error) => {
                found.push(Problem::new(
                    format!("pipeline {name}: table {to} cannot be described: {error}"),
                    "see the target's own problems",
                ));
                return;
            }
        };
        if let Some(why) = needs_order(&schema, &described) {
            notes.push(format!(
                "pipeline {name}: consistency = \"key\": table {to} needs the source's order, since \
                 {why}: one process applies all partitions together, as with \"transaction\"\n    \
                 leave it to a pipeline of its own (route), or remove what it depends on, for \
                 several to share them"
            ));
        }
    }
}

/// A table as it will be once its pipeline has made it.
fn to_be_made(schema: &TableSchema, to: &TableId) -> TargetTable {
    let unique = schema.indexes.iter().filter(|index| index.unique && !index.primary);
    TargetTable {
        name: to.clone(),
        identity_is_bytes: true,
        unique_keys: unique.map(|_| Vec::new()).collect(),
        fires: false,
    }
}

/// A pipeline's two ends and the way between them.
type Ends = (Arc<dyn SourceConnector>, Arc<dyn TargetConnector>, Route);

/// A pipeline's ends, where both are in this configuration.
fn ends(config: &Config, name: &str) -> Option<Ends> {
    let pipeline = config.pipelines.get(name)?;
    let source = config.sources.get(&pipeline.source)?;
    let target = config.targets.get(&pipeline.target)?;
    Some((
        connectors::source(&pipeline.source, source).ok()?,
        connectors::target(&pipeline.target, target).ok()?,
        pipeline.routes(),
    ))
}
