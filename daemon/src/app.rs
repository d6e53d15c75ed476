//! What runs in this process, for whoever asks: the admin API, the metrics, `wait` and `verify`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tailwater_apply::{PipelineHandle, Route, TargetConnector};
use tailwater_capture::{CaptureHandle, SourceConnector};
use tailwater_kafka::Client;
use tailwater_log::Log;
use tailwater_registry::Registry;

use crate::config::{ConnectorKind, PipelineSection, SourceSection, TargetSection};

/// The roles of the process.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) client: Client,
    pub(crate) registry: Registry,
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) sources: BTreeMap<String, SourceRole>,
    pub(crate) pipelines: BTreeMap<String, PipelineRole>,
    /// Wall-clock milliseconds since 1970.
    pub(crate) clock: fn() -> i64,
}

/// A source that is captured here.
#[derive(Debug)]
pub(crate) struct SourceRole {
    pub(crate) handle: CaptureHandle,
    pub(crate) connector: Arc<dyn SourceConnector>,
    pub(crate) kind: ConnectorKind,
    pub(crate) url: String,
    /// Bytes of lag from which `status` raises an alarm.
    pub(crate) max_lag: Option<u64>,
}

/// A pipeline that is applied here.
#[derive(Debug)]
pub(crate) struct PipelineRole {
    pub(crate) handle: PipelineHandle,
    pub(crate) connector: Arc<dyn TargetConnector>,
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) route: Route,
    pub(crate) kind: ConnectorKind,
    pub(crate) url: String,
}

impl SourceRole {
    pub(crate) fn new(
        handle: CaptureHandle,
        connector: Arc<dyn SourceConnector>,
        section: &SourceSection,
    ) -> Self {
        let max_lag = section.max_slot_lag.map(crate::config::ByteSize::bytes);
        Self { handle, connector, kind: section.connector, url: section.url.clone(), max_lag }
    }
}

impl PipelineRole {
    pub(crate) fn new(
        handle: PipelineHandle,
        connector: Arc<dyn TargetConnector>,
        section: &PipelineSection,
        target: &TargetSection,
        route: Route,
    ) -> Self {
        Self {
            handle,
            connector,
            source: section.source.clone(),
            target: section.target.clone(),
            route,
            kind: target.connector,
            url: target.url.clone(),
        }
    }
}
