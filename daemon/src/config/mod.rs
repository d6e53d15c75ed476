//! `tailwater.toml`: every key, its type, its default.
//!
//! `Default` is the only home of defaults; docs/configuration.md is generated from `reference`.
//! Unknown keys are errors, and [`Config::problems`] reports everything that is wrong at once.

mod problems;
#[cfg(test)]
mod reference;
mod secrets;
mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use tailwater_apply::{Route, RouteRule};
use tailwater_capture::PartitionBy;

pub(crate) use units::{ByteSize, Span};

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) memory_limit: ByteSize,
    pub(crate) log: Option<LogSection>,
    pub(crate) schema_registry: SchemaRegistrySection,
    pub(crate) admin: AdminSection,
    pub(crate) sources: BTreeMap<String, SourceSection>,
    pub(crate) targets: BTreeMap<String, TargetSection>,
    pub(crate) pipelines: BTreeMap<String, PipelineSection>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_limit: ByteSize::mib(256),
            log: None,
            schema_registry: SchemaRegistrySection::default(),
            admin: AdminSection::default(),
            sources: BTreeMap::new(),
            targets: BTreeMap::new(),
            pipelines: BTreeMap::new(),
        }
    }
}

/// `[log]`: a node in this process, or brokers elsewhere.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogSection {
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) advertise: Option<String>,
    pub(crate) node_id: i32,
    pub(crate) controller_listen: Option<SocketAddr>,
    pub(crate) controllers: Vec<ControllerAt>,
    pub(crate) broker: bool,
    pub(crate) rack: Option<String>,
    pub(crate) replication_factor: i16,
    pub(crate) min_insync_replicas: u32,
    pub(crate) replication_throttle: Option<ByteSize>,
    pub(crate) flush: Flush,
    pub(crate) retention: Span,
    pub(crate) retention_limit: ByteSize,
    pub(crate) brokers: Vec<String>,
    pub(crate) insecure: bool,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            data_dir: None,
            listen: None,
            advertise: None,
            node_id: 1,
            controller_listen: None,
            controllers: Vec::new(),
            broker: true,
            rack: None,
            replication_factor: 1,
            min_insync_replicas: 1,
            replication_throttle: None,
            flush: Flush::Always,
            retention: Span::days(7),
            retention_limit: ByteSize::mib(100 << 10),
            brokers: Vec::new(),
            insecure: false,
        }
    }
}

/// A controller of the cluster: `id@host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControllerAt {
    pub(crate) id: i32,
    pub(crate) address: String,
}

impl<'de> Deserialize<'de> for ControllerAt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.split_once('@').and_then(|(id, address)| {
            let (host, port) = address.rsplit_once(':')?;
            port.parse::<u16>().ok()?;
            let id = id.parse().ok().filter(|id| *id >= 0)?;
            (!host.is_empty()).then(|| Self { id, address: address.to_owned() })
        });
        parsed.ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{text:?} is no controller: write \"id@host:port\", as in \"1@10.0.0.1:9093\""
            ))
        })
    }
}

/// When the log flushes: `always`, `never`, or an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    Always,
    Never,
    Interval(Span),
}

impl<'de> Deserialize<'de> for Flush {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            other => Span::parse(other).map(Self::Interval).ok_or_else(|| {
                serde::de::Error::custom(format!(
                    "{text:?} is no flush policy: write \"always\", \"never\" or an interval as \"100ms\""
                ))
            }),
        }
    }
}

/// `[schema_registry]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SchemaRegistrySection {
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) url: Option<String>,
    pub(crate) insecure: bool,
}

/// `[admin]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AdminSection {
    pub(crate) listen: SocketAddr,
    pub(crate) insecure: bool,
}

impl Default for AdminSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), insecure: false }
    }
}

/// Which database a source or target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ConnectorKind {
    Postgres,
    Mysql,
}

/// `[sources.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceSection {
    pub(crate) connector: ConnectorKind,
    pub(crate) url: String,
    pub(crate) tables: Vec<String>,
    #[serde(default)]
    pub(crate) exclude: Vec<String>,
    #[serde(default)]
    pub(crate) snapshot: SnapshotChoice,
    #[serde(default = "one")]
    pub(crate) partitions: usize,
    #[serde(default)]
    pub(crate) partition_by: PartitionBy,
    pub(crate) max_slot_lag: Option<ByteSize>,
    pub(crate) on_max_slot_lag: Option<String>,
}

fn one() -> usize {
    1
}

/// When to snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SnapshotChoice {
    #[default]
    Initial,
    Never,
    Only,
}

/// `[targets.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TargetSection {
    pub(crate) connector: ConnectorKind,
    pub(crate) url: String,
}

/// `[pipelines.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PipelineSection {
    pub(crate) source: String,
    pub(crate) target: String,
    #[serde(default)]
    pub(crate) route: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) consistency: Consistency,
    #[serde(default)]
    pub(crate) schema_changes: SchemaChanges,
    #[serde(default)]
    pub(crate) on_conflict: OnConflict,
    #[serde(default)]
    pub(crate) on_existing: OnExisting,
}

/// What a reader of the target may see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Consistency {
    #[default]
    Transaction,
    Key,
}

/// What DDL on the source does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SchemaChanges {
    Apply,
    Additive,
    Ignore,
    #[default]
    Stop,
}

/// What a conflict on the target does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnConflict {
    #[default]
    Repair,
    Stop,
}

/// What a target table with rows means at the first start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExisting {
    #[default]
    Stop,
    Merge,
    Replace,
}

impl PipelineSection {
    /// Its route.
    pub(crate) fn routes(&self) -> Route {
        let rule =
            |(from, to): (&String, &String)| RouteRule { from: from.clone(), to: to.clone() };
        Route::new(self.route.iter().map(rule).collect())
    }
}

impl Config {
    /// Reads and parses the file; what it means is not yet checked.
    ///
    /// # Errors
    /// It cannot be read, is no TOML, has unknown keys, or a reference that leads nowhere.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not valid", path.display()))
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        // First as text, whose errors point at line and column; then with the secrets in place.
        let _shape: Self = toml::from_str(text)?;
        let mut value: toml::Value = toml::from_str(text)?;
        secrets::expand(&mut value)?;
        Ok(value.try_into()?)
    }
}
