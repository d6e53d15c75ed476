//! The schema registry's listener: what Confluent's deserializers ask, in their words.
//!
//! Reading only. Who writes schemas is capture, through the topic; a `POST` to one of these paths is
//! answered 405, and every other path 404.
//! <https://docs.confluent.io/platform/current/schema-registry/develop/api.html>
//!
//! | path | answers |
//! |---|---|
//! | `GET /` | `{}`: clients ask it whether there is a registry |
//! | `GET /subjects` | every subject |
//! | `GET /subjects/S/versions` | its versions |
//! | `GET /subjects/S/versions/V` | `V` a number, `latest` or `-1` |
//! | `GET /subjects/S/versions/V/schema` | the text alone |
//! | `GET /schemas/ids/I`, `…/schema` | by id |
//! | `GET /schemas/types` | `["PROTOBUF"]` |
//! | `GET /config` | `NONE`: an ALTER on the source never blocks capture |
//! | `GET /mode` | `READONLY` |

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve};
use serde_json::{Value as Json, json};
use tailwater_change::SchemaId;
use tailwater_registry::{Error, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `shutdown`.
///
/// # Errors
/// The listener fails.
pub(crate) async fn run(
    listener: TcpListener,
    registry: Registry,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let fixed = |value: Json| get(move || std::future::ready(answer(value.clone())));
    let router = Router::new()
        .route("/", fixed(json!({})))
        .route("/subjects", get(subjects))
        .route("/subjects/{subject}/versions", get(versions))
        .route("/subjects/{subject}/versions/{version}", get(version))
        .route("/subjects/{subject}/versions/{version}/schema", get(version_text))
        .route("/schemas/ids/{id}", get(by_id))
        .route("/schemas/ids/{id}/schema", get(text_by_id))
        .route("/schemas/types", fixed(json!(["PROTOBUF"])))
        .route("/config", fixed(json!({ "compatibilityLevel": "NONE" })))
        .route("/mode", fixed(json!({ "mode": "READONLY" })))
        .with_state(registry);
    serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// A refusal in Confluent's numbers.
enum Refusal {
    Subject(String),
    Version(String),
    InvalidVersion(String),
    Schema,
    Backend(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Unknown(_) => Self::Schema,
            error @ (Error::Log { .. } | Error::Record { .. } | Error::Exhausted) => {
                Self::Backend(error)
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::Subject(subject) => {
                (StatusCode::NOT_FOUND, 40401, format!("Subject '{subject}' not found."))
            }
            Self::Version(version) => {
                (StatusCode::NOT_FOUND, 40402, format!("Version {version} not found."))
            }
            Self::Schema => (StatusCode::NOT_FOUND, 40403, "Schema not found".to_owned()),
            Self::InvalidVersion(version) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                42202,
                format!("The specified version '{version}' is not a valid version id."),
            ),
            Self::Backend(error) => (StatusCode::INTERNAL_SERVER_ERROR, 50001, format!("{error}")),
        };
        (status, answer(json!({ "error_code": code, "message": message }))).into_response()
    }
}

fn answer(value: Json) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/vnd.schemaregistry.v1+json")];
    (kind, value.to_string()).into_response()
}

async fn subjects(State(registry): State<Registry>) -> Result<Response, Refusal> {
    Ok(answer(json!(registry.subjects().await?)))
}

async fn versions(
    State(registry): State<Registry>,
    Path(subject): Path<String>,
) -> Result<Response, Refusal> {
    let versions = registry.versions(&subject).await?;
    if versions.is_empty() {
        return Err(Refusal::Subject(subject));
    }
    Ok(answer(json!(versions.iter().map(|(version, _)| version).collect::<Vec<_>>())))
}

async fn version(
    State(registry): State<Registry>,
    Path((subject, version)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let (version, id) = find(&registry, &subject, &version).await?;
    let schema = registry.schema(id).await?;
    Ok(answer(json!({
        "subject": subject, "version": version, "id": id, "schemaType": "PROTOBUF",
        "schema": &*schema,
    })))
}

async fn version_text(
    State(registry): State<Registry>,
    Path((subject, version)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let (_, id) = find(&registry, &subject, &version).await?;
    Ok(registry.schema(id).await?.to_string().into_response())
}

async fn find(
    registry: &Registry,
    subject: &str,
    version: &str,
) -> Result<(u32, SchemaId), Refusal> {
    let versions = registry.versions(subject).await?;
    let Some(latest) = versions.last() else {
        return Err(Refusal::Subject(subject.to_owned()));
    };
    if matches!(version, "latest" | "-1") {
        return Ok(*latest);
    }
    let number: u32 = version.parse().map_err(|_| Refusal::InvalidVersion(version.to_owned()))?;
    let found = versions.iter().find(|(version, _)| *version == number);
    found.copied().ok_or_else(|| Refusal::Version(version.to_owned()))
}

async fn by_id(State(registry): State<Registry>, Path(id): Path<u32>) -> Result<Response, Refusal> {
    let schema = registry.schema(SchemaId::new(id)).await?;
    Ok(answer(json!({ "schemaType": "PROTOBUF", "schema": &*schema })))
}

async fn text_by_id(
    State(registry): State<Registry>,
    Path(id): Path<u32>,
) -> Result<Response, Refusal> {
    Ok(registry.schema(SchemaId::new(id)).await?.to_string().into_response())
}
