//! Running the roles: wired bottom up, ended top down.
//!
//! Start: the log, its client, the registry, captures and pipelines, the admin listener. End:
//! captures stop reading and make durable what they read; pipelines commit what is whole; the log
//! flushes; each within a deadline. A role's task that ends unasked ends the process.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tailwater_apply::{KafkaLog, Pipeline, PipelineConfig, Route};
use tailwater_capture::{Capture, SnapshotMode};
use tailwater_kafka::{BrokerId, Client, ClientConfig, Transport};
use tailwater_log::Log;
use tailwater_registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::app::{App, PipelineRole, SourceRole};
use crate::config::{
    ByteSize, Config, Consistency, Flush, LogSection, OnConflict, OnExisting, PipelineSection,
    SnapshotChoice,
};
use crate::{admin, connectors, limits, schema_api};

/// How long each phase of the shutdown may take.
const PHASE_DEADLINE: Duration = Duration::from_secs(20);

/// `tailwater run`.
///
/// # Errors
/// The configuration is not valid, a listener is taken, or a role ended unasked.
pub(crate) fn run(path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    let problems = config.problems();
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("{} cannot be run:\n  {}", path.display(), list.join("\n  "));
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::builder()
                .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
                .with_env_var("TAILWATER_LOG")
                .from_env_lossy()
                // What concerns anybody, the quorum says in words of its own.
                .add_directive("openraft=off".parse().context("set up the log")?),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(serve(config))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    if config.log.as_ref().is_some_and(|log| !log.broker) {
        return serve_controller(config).await;
    }
    let admin = listen(config.admin.listen, "admin").await?;
    let schemas = match config.schema_registry.listen {
        Some(at) => Some(listen(at, "schema_registry").await?),
        None => None,
    };
    let log = start_log(&config).await?;
    let Some(section) = config.log.as_ref() else { bail!("there is no [log] section") };
    let client = connect(section, log.node.clone()).await?;
    let registry = Registry::open(
        client.clone(),
        tailwater_registry::Config {
            topic: "_schemas".into(),
            replication_factor: section.replication_factor,
            clock: now_ms,
        },
    )
    .await
    .context("open the schema registry")?;

    let capture = CancellationToken::new();
    let apply = CancellationToken::new();
    let mut roles = Roles { captures: JoinSet::new(), pipelines: JoinSet::new() };
    let app = Arc::new(App {
        client: client.clone(),
        registry: registry.clone(),
        log: log.node.clone(),
        sources: start_sources(&config, &client, &registry, &capture, &mut roles.captures)?,
        pipelines: start_pipelines(&config, &client, &registry, &apply, &mut roles.pipelines)?,
        clock: now_ms,
    });
    let admin_stop = CancellationToken::new();
    let mut admin_task = JoinSet::new();
    admin_task.spawn(admin::run(admin, app, admin_stop.clone()));
    if let Some(listener) = schemas {
        admin_task.spawn(schema_api::run(listener, registry, admin_stop.clone()));
    }
    tracing::info!(admin = %config.admin.listen, "running");

    let unasked = until_end(&mut roles, &mut admin_task, log.node.as_deref()).await?;
    tracing::info!("stopping");
    capture.cancel();
    finish("capture", roles.captures).await;
    apply.cancel();
    finish("apply", roles.pipelines).await;
    admin_stop.cancel();
    admin_task.abort_all();
    drop(client);
    log.stop().await?;
    tracing::info!("stopped");
    match unasked {
        Some(what) => bail!("{what}"),
        None => Ok(()),
    }
}

/// A process that is a controller of the log's cluster and nothing else.
async fn serve_controller(config: Config) -> anyhow::Result<()> {
    let admin = listen(config.admin.listen, "admin").await?;
    let log = start_log(&config).await?;
    let Some(node) = log.node.clone() else { bail!("[log] has no data_dir") };
    let admin_stop = CancellationToken::new();
    let mut admin_task = JoinSet::new();
    admin_task.spawn(admin::run_controller(admin, node, admin_stop.clone()));
    tracing::info!(admin = %config.admin.listen, "running as a controller");
    let mut roles = Roles { captures: JoinSet::new(), pipelines: JoinSet::new() };
    let unasked = until_end(&mut roles, &mut admin_task, log.node.as_deref()).await?;
    tracing::info!("stopping");
    admin_stop.cancel();
    admin_task.abort_all();
    log.stop().await?;
    tracing::info!("stopped");
    match unasked {
        Some(what) => bail!("{what}"),
        None => Ok(()),
    }
}

struct Roles {
    captures: JoinSet<()>,
    pipelines: JoinSet<()>,
}

/// Waits for a signal, or for a role to die; which, and why.
async fn until_end(
    roles: &mut Roles,
    admin: &mut JoinSet<std::io::Result<()>>,
    log: Option<&Log>,
) -> anyhow::Result<Option<String>> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(tokio::select! {
        _signal = terminate.recv() => None,
        _signal = interrupt.recv() => None,
        Some(_ended) = roles.captures.join_next() => Some(unasked("a capture")),
        Some(_ended) = roles.pipelines.join_next() => Some(unasked("a pipeline")),
        Some(_ended) = admin.join_next() => Some(unasked("the admin or schema registry listener")),
        reason = stopped(log) => Some(format!(
            "the controller of this node has stopped: {reason}; start the process again, and if that \
             does not help, see to the disk of [log] data_dir"
        )),
    })
}

fn unasked(role: &str) -> String {
    format!("{role} ended unasked")
}

/// Why the log's controller does nothing any more, once that is so.
async fn stopped(log: Option<&Log>) -> String {
    match log {
        Some(log) => log.stopped().await,
        None => std::future::pending().await,
    }
}

async fn finish(what: &str, mut tasks: JoinSet<()>) {
    let joined = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(PHASE_DEADLINE, joined).await.is_err() {
        tracing::warn!(what, "not finished within the deadline: the next start takes over there");
    }
}

/// The log of this process, if it carries one, and its listener.
struct LocalLog {
    node: Option<Arc<Log>>,
    stop: CancellationToken,
    listener: JoinSet<()>,
}

impl LocalLog {
    async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(node) = &self.node {
            node.leave().await;
        }
        self.stop.cancel();
        while self.listener.join_next().await.is_some() {}
        if let Some(node) = self.node {
            node.close().await.context("close the log")?;
        }
        Ok(())
    }
}

async fn start_log(config: &Config) -> anyhow::Result<LocalLog> {
    let mut local =
        LocalLog { node: None, stop: CancellationToken::new(), listener: JoinSet::new() };
    let Some(section) = &config.log else { return Ok(local) };
    let Some(data_dir) = &section.data_dir else { return Ok(local) };
    let listener = match section.listen {
        Some(at) => Some(listen(at, "log").await?),
        None => None,
    };
    let (advertised_host, advertised_port) = advertised(section)?;
    let bytes = limits::log_bytes(config.memory_limit.in_memory());
    let controller_listener = match section.controller_listen {
        Some(at) => Some(listen(at, "log").await?),
        None => None,
    };
    let log = Log::open(tailwater_log::Config {
        node_id: BrokerId::new(section.node_id),
        controllers: section
            .controllers
            .iter()
            .map(|controller| (BrokerId::new(controller.id), controller.address.clone()))
            .collect(),
        broker: section.broker,
        rack: section.rack.clone(),
        replication_factor: section.replication_factor,
        min_insync_replicas: section.min_insync_replicas,
        replication_throttle: section.replication_throttle.map(ByteSize::bytes),
        advertised_host,
        advertised_port,
        flush: match section.flush {
            Flush::Always => tailwater_log::FlushPolicy::Always,
            Flush::Never => tailwater_log::FlushPolicy::Never,
            Flush::Interval(every) => tailwater_log::FlushPolicy::Interval(every.get()),
        },
        retention: Some(section.retention.get()),
        retention_limit: Some(section.retention_limit.bytes()),
        pending_bytes: bytes,
        tail_bytes: bytes,
        request_bytes: bytes,
        max_connections: limits::connections(limits::raise_open_files()),
        ..tailwater_log::Config::new(data_dir.clone())
    })
    .await
    .with_context(|| format!("open the log in {}", data_dir.display()))?;
    if let Some(listener) = listener {
        let (log, stop) = (Arc::clone(&log), local.stop.clone());
        local.listener.spawn(async move { log.serve(listener, stop).await });
    }
    if let Some(listener) = controller_listener {
        let (log, stop) = (Arc::clone(&log), local.stop.clone());
        local.listener.spawn(async move { log.serve_controller(listener, stop).await });
    }
    if !section.controllers.is_empty() {
        tracing::info!("waiting for the cluster");
        log.until_serving().await.context("join the cluster")?;
    }
    local.node = Some(log);
    Ok(local)
}

/// The address that clients are told.
fn advertised(section: &LogSection) -> anyhow::Result<(String, u16)> {
    let text = match (&section.advertise, section.listen) {
        (Some(text), _) => text.clone(),
        (None, Some(at)) => at.to_string(),
        (None, None) => "127.0.0.1:0".to_owned(),
    };
    let (host, port) = text
        .rsplit_once(':')
        .with_context(|| format!("log.advertise = {text:?} is not host:port"))?;
    let port = port.parse().with_context(|| format!("log.advertise = {text:?} has no port"))?;
    Ok((host.to_owned(), port))
}

async fn listen(at: std::net::SocketAddr, section: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(at).await.with_context(|| {
        format!("cannot listen on {at}: choose another address in [{section}] listen, or stop what uses it")
    })
}

/// The client of whatever log the configuration names.
///
/// # Errors
/// No broker answers.
pub(crate) async fn connect(
    section: &LogSection,
    node: Option<Arc<Log>>,
) -> anyhow::Result<Client> {
    let transport = match node {
        Some(node) => Transport::in_process(node),
        None => Transport::tcp(section.brokers.clone()),
    };
    let config = ClientConfig { rack: section.rack.clone(), ..ClientConfig::default() };
    Client::connect(config, transport).await.context("reach the log")
}

fn start_sources(
    config: &Config,
    client: &Client,
    registry: &Registry,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<std::collections::BTreeMap<String, SourceRole>> {
    let share = share(config);
    let replication_factor = config.log.as_ref().map_or(1, |log| log.replication_factor);
    let mut sources = std::collections::BTreeMap::new();
    for (name, section) in &config.sources {
        let connector = connectors::source(name, section)
            .map_err(|problem| anyhow::anyhow!("sources.{name}: {problem}"))?;
        let settings = tailwater_capture::Config {
            source: name.clone(),
            snapshot: match section.snapshot {
                SnapshotChoice::Initial => SnapshotMode::Initial,
                SnapshotChoice::Never => SnapshotMode::Never,
                SnapshotChoice::Only => SnapshotMode::Only,
            },
            partitions: section.partitions,
            partition_by: section.partition_by,
            replication_factor,
            max_record_bytes: MAX_RECORD_BYTES,
            in_flight_bytes: (share / 2).clamp(1 << 20, 32 << 20),
            decode_bytes: (share / 16).clamp(64 << 10, 1 << 20),
            filter: format!("{:?} {:?}", section.tables, section.exclude),
            clock: now_ms,
        };
        let (capture, handle) =
            Capture::new(settings, client.clone(), registry.clone(), Arc::clone(&connector));
        tasks.spawn(capture.run(shutdown.clone()));
        sources.insert(name.clone(), SourceRole::new(handle, connector, section));
    }
    Ok(sources)
}

/// What a record may have in one piece: Kafka's default `max.message.bytes`, which is what the
/// topic has that we create.
const MAX_RECORD_BYTES: usize = 1 << 20;

fn start_pipelines(
    config: &Config,
    client: &Client,
    registry: &Registry,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<std::collections::BTreeMap<String, PipelineRole>> {
    let mut pipelines = std::collections::BTreeMap::new();
    for (name, section) in &config.pipelines {
        let Some(target) = config.targets.get(&section.target) else {
            bail!("pipelines.{name}.target: there is no target {:?}", section.target);
        };
        let problem = |problem| anyhow::anyhow!("pipelines.{name}: {problem}");
        let connector = connectors::target(&section.target, target).map_err(problem)?;
        let route = section.routes();
        let settings = pipeline_config(name, section, route.clone(), share(config));
        let (pipeline, handle) = Pipeline::new(
            settings,
            Arc::new(KafkaLog::new(client.clone(), section.source.clone())),
            Arc::new(registry.clone()),
            Arc::clone(&connector),
        )
        .map_err(|problems| {
            let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("pipelines.{name}: {}", list.join("; "))
        })?;
        tasks.spawn(pipeline.run(shutdown.clone()));
        let role = PipelineRole::new(handle, connector, section, target, route);
        pipelines.insert(name.clone(), role);
    }
    Ok(pipelines)
}

fn pipeline_config(
    name: &str,
    section: &PipelineSection,
    route: Route,
    share: usize,
) -> PipelineConfig {
    PipelineConfig {
        consistency: match section.consistency {
            Consistency::Transaction => tailwater_apply::Consistency::Transaction,
            Consistency::Key => tailwater_apply::Consistency::Key,
        },
        on_conflict: match section.on_conflict {
            OnConflict::Repair => tailwater_apply::ConflictPolicy::Repair,
            OnConflict::Stop => tailwater_apply::ConflictPolicy::Stop,
        },
        on_existing: match section.on_existing {
            OnExisting::Stop => tailwater_apply::OnExisting::Stop,
            OnExisting::Merge => tailwater_apply::OnExisting::Merge,
            OnExisting::Replace => tailwater_apply::OnExisting::Replace,
        },
        memory_bytes: share,
        source: section.source.clone(),
        route,
        ..PipelineConfig::new(name, now_us)
    }
}

/// What one role may hold in flight: half of the limit is for the roles, the other half for the
/// log's caches, the drivers' buffers and the allocator.
fn share(config: &Config) -> usize {
    let roles = (config.sources.len() + config.pipelines.len()).max(1);
    config.memory_limit.in_memory() / 2 / roles
}

/// Wall-clock milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    now_us() / 1_000
}

/// Wall-clock microseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one clock that everything is given")]
fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_micros()).ok()).unwrap_or_default()
}
