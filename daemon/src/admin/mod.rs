//! The admin listener: dashboard, metrics, health, and `/api/v1` for the command line.
//!
//! | path | answers |
//! |---|---|
//! | `GET /` | the dashboard |
//! | `GET /metrics` | Prometheus |
//! | `GET /healthz` | 200 while the process lives |
//! | `GET /readyz` | 200 once every role runs, else 503 and which does not |
//! | `GET /api/v1/status` | the status as `status --json` prints it |
//! | `POST /api/v1/pipelines/P/wait?timeout_ms=N` | `{"exit": 0 or 1 or 2, "message"}` |
//! | `POST /api/v1/pipelines/P/verify` | `{"exit", "message", "verdict"}` |
//! | `POST /api/v1/{pipelines,sources}/NAME/{pause,resume}` | 200 |
//! | `POST /api/v1/sources/S/resync` | 200 once it has begun for good, or 409 and why not |
//! | `POST /api/v1/pipelines/P/skip?place=…`, `…/detach` | 200, or 409 and why not |
//! | `GET /api/v1/sources/S/tail?from=…` | JSON lines, without an end |

mod status;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, serve};
use serde::Deserialize;
use serde_json::json;
use tailwater_apply::rows_of_partitions;
use tailwater_change::RoleState;
use tailwater_log::Log;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::app::{App, SourceRole};
use crate::tail::Tail;
use crate::wait::{Waited, elsewhere, standby, wait};
use crate::{metrics, verify};

pub(crate) use status::{Status, lag_seconds, status};

/// Serves until `shutdown`.
///
/// # Errors
/// The listener fails.
pub(crate) async fn run(
    listener: TcpListener,
    app: Arc<App>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/", get(dashboard))
        .route("/metrics", get(metrics_page))
        .route("/healthz", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(readyz))
        .route("/api/v1/status", get(status_json))
        .route("/api/v1/pipelines/{name}/wait", post(wait_for))
        .route("/api/v1/pipelines/{name}/verify", post(verify_now))
        .route("/api/v1/pipelines/{name}/{action}", post(pipeline_action))
        .route("/api/v1/sources/{name}/tail", get(tail))
        .route("/api/v1/sources/{name}/{action}", post(source_action))
        .with_state(app);
    serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// As [`run`], in a process that is a controller and nothing else: metrics and health.
///
/// # Errors
/// The listener fails.
pub(crate) async fn run_controller(
    listener: TcpListener,
    node: Arc<Log>,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(controller_metrics))
        .route("/healthz", get(|| std::future::ready("ok\n")))
        // It answers once its controller has joined.
        .route("/readyz", get(|| std::future::ready("ready\n")))
        .with_state(node);
    serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn controller_metrics(State(node): State<Arc<Log>>) -> Response {
    page(metrics::encode_controller(&node))
}

async fn dashboard() -> Html<&'static str> {
    Html(include_str!("dashboard.html"))
}

async fn metrics_page(State(app): State<Arc<App>>) -> Response {
    page(metrics::encode(&app))
}

fn page(encoded: Result<String, std::fmt::Error>) -> Response {
    match encoded {
        Ok(text) => (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    let waiting = status(&app).not_running();
    if waiting.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not running: {}\n", waiting.join(", ")))
        .into_response()
}

async fn status_json(State(app): State<Arc<App>>) -> Json<Status> {
    Json(status(&app))
}

#[derive(Deserialize)]
struct WaitQuery {
    timeout_ms: u64,
}

async fn wait_for(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Json<serde_json::Value> {
    let (exit, message) = match wait(&app, &name, Duration::from_millis(query.timeout_ms)).await {
        Waited::Reached => (0, String::new()),
        Waited::TimedOut(why) => (1, why),
        Waited::Cannot(why) => (2, why),
    };
    Json(json!({ "exit": exit, "message": message }))
}

async fn verify_now(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Json<serde_json::Value> {
    Json(match verify::verify(&app, &name).await {
        Ok(verdict) => {
            let exit = i32::from(verdict.different > 0);
            json!({ "exit": exit, "message": "", "verdict": verdict })
        }
        Err(error) => json!({ "exit": 2, "message": format!("{error:#}") }),
    })
}

#[derive(Deserialize)]
struct ActionQuery {
    place: Option<String>,
}

async fn pipeline_action(
    State(app): State<Arc<App>>,
    Path((name, action)): Path<(String, String)>,
    Query(query): Query<ActionQuery>,
) -> Response {
    let Some(role) = app.pipelines.get(&name) else { return unknown("pipeline", &name) };
    if let Some(why) = standby(&role.handle.status()) {
        return refused(&why);
    }
    let done = match action.as_str() {
        "pause" => role.handle.pause().await,
        "resume" => role.handle.resume().await,
        "skip" => role.handle.skip(query.place.unwrap_or_default()).await,
        "detach" => return detach(&app, &name).await,
        _ => return unknown("action", &action),
    };
    match done {
        Ok(()) => "ok\n".into_response(),
        Err(error) => refused(&error.to_string()),
    }
}

/// Pauses the pipeline and lets the log and the target forget its position.
async fn detach(app: &App, name: &str) -> Response {
    let Some(role) = app.pipelines.get(name) else { return unknown("pipeline", name) };
    if let Err(error) = role.handle.pause().await {
        return refused(&error.to_string());
    }
    let topic = match app.client.topic(&role.source).await {
        Ok(topic) => topic,
        Err(error) => return refused(&format!("the log does not say what it has: {error}")),
    };
    if let Some(log) = &app.log
        && let Err(error) = log.release_group(&format!("tailwater.{name}")).await
    {
        return refused(&format!("the log keeps its position: {error}"));
    }
    let partitions = topic.map_or(0, |topic| usize::try_from(topic.partitions).unwrap_or_default());
    // The pipeline's own row first: without it the others mean nothing.
    let rows = [name.to_owned()].into_iter().chain(rows_of_partitions(name, partitions));
    for row in rows {
        if let Err(error) = role.connector.forget(&row).await {
            return refused(&format!("the target keeps its progress row: {error}"));
        }
    }
    "ok\n".into_response()
}

async fn source_action(
    State(app): State<Arc<App>>,
    Path((name, action)): Path<(String, String)>,
) -> Response {
    let Some(role) = app.sources.get(&name) else { return unknown("source", &name) };
    let status = role.handle.status();
    if status.state == RoleState::Standby {
        return refused(&elsewhere("source", &name, status.error));
    }
    match action.as_str() {
        "pause" => role.handle.pause(),
        "resume" => role.handle.resume(),
        "resync" => return resync(&app, &name, role).await,
        _ => return unknown("action", &action),
    }
    "ok\n".into_response()
}

/// How long a resync may take to begin; after that it will not.
const RESYNC_PATIENCE: Duration = Duration::from_secs(20);

/// Begins a new snapshot, above whatever the source's pipelines here have applied: of another log
/// that may be a later epoch than this log has seen.
async fn resync(app: &App, name: &str, source: &SourceRole) -> Response {
    let pipelines = app.pipelines.values().filter(|role| role.source == name);
    let applied = pipelines.filter_map(|role| role.handle.status().place);
    let above = applied.map(|place| place.epoch).max().unwrap_or_default();
    match source.handle.resync(above, RESYNC_PATIENCE).await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => refused(&error.to_string()),
    }
}

#[derive(Deserialize)]
struct TailQuery {
    from: String,
}

/// Lines that wait for a slow reader: he holds back the log's reader, not our memory.
const TAIL_LINES: usize = 64;

async fn tail(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<TailQuery>,
) -> Response {
    let mut tail = match Tail::open(&app, &name, &query.from).await {
        Ok(tail) => tail,
        Err(error) => return refused(&format!("{error:#}")),
    };
    let (send, receive) = mpsc::channel::<Result<Bytes, std::io::Error>>(TAIL_LINES);
    let body = Body::from_stream(tokio_stream(receive, async move {
        loop {
            match tail.next().await {
                Ok(lines) => {
                    for line in lines {
                        if send.send(Ok(Bytes::from(line + "\n"))).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let text = json!({ "error": format!("{error:#}") }).to_string() + "\n";
                    let _closed = send.send(Ok(Bytes::from(text))).await;
                    return;
                }
            }
        }
    }));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// What `work` sends, as a stream that drives it: when the reader goes, so does the work.
fn tokio_stream<T>(
    receive: mpsc::Receiver<T>,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl futures_util::Stream<Item = T> {
    futures_util::stream::unfold((receive, Box::pin(work), false), step)
}

async fn step<T, W: Future<Output = ()> + Unpin>(
    (mut receive, mut work, mut done): (mpsc::Receiver<T>, W, bool),
) -> Option<(T, (mpsc::Receiver<T>, W, bool))> {
    loop {
        tokio::select! {
            biased;
            item = receive.recv() => return item.map(|item| (item, (receive, work, done))),
            () = &mut work, if !done => done = true,
        }
    }
}

fn unknown(what: &str, name: &str) -> Response {
    (StatusCode::NOT_FOUND, format!("there is no {what} {name:?} in this process\n"))
        .into_response()
}

fn refused(why: &str) -> Response {
    (StatusCode::CONFLICT, format!("{why}\n")).into_response()
}
