//! `/metrics`: what the roles count, in Prometheus' text format.
//!
//! Nothing is counted twice: at each scrape the page is written from the handles of the roles.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use tailwater_apply::LATENCY_BOUNDS_SECONDS;
use tailwater_log::Log;

use crate::admin::lag_seconds;
use crate::app::App;

/// The page.
///
/// # Errors
/// A metric does not encode.
pub(crate) fn encode(app: &Arc<App>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Roles(Arc::clone(app))));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// The page of a process that is a controller and nothing else.
///
/// # Errors
/// A metric does not encode.
pub(crate) fn encode_controller(log: &Arc<Log>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Controller(Arc::clone(log))));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

#[derive(Debug)]
struct Controller(Arc<Log>);

impl Collector for Controller {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        controller(&mut Page { encoder }, &self.0)
    }
}

/// What every node that knows of the cluster says about it.
fn controller(page: &mut Page<'_>, log: &Log) -> fmt::Result {
    let node = || [("node", log.node_id().to_string())];
    page.gauges(
        "tailwater_leaderless_partitions",
        "Partitions of the cluster that nobody leads: no replica that has everything is there",
        std::iter::once((node(), float(log.leaderless_partitions() as u64))),
    )?;
    page.gauges(
        "tailwater_controller_active",
        "1 on the node whose controller decides for the cluster",
        std::iter::once((node(), if log.is_active_controller() { 1.0 } else { 0.0 })),
    )
}

#[derive(Debug)]
struct Roles(Arc<App>);

impl Collector for Roles {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page { encoder };
        self.capture(&mut page)?;
        self.apply(&mut page)?;
        self.log(&mut page)
    }
}

impl Roles {
    fn capture(&self, page: &mut Page<'_>) -> fmt::Result {
        let sources =
            || self.0.sources.iter().map(|(name, role)| ([("source", name.clone())], role));
        page.counters(
            "tailwater_capture_rows",
            "Rows appended to the log since the process started",
            sources().map(|(labels, role)| (labels, role.handle.rows())),
        )?;
        page.counters(
            "tailwater_capture_transactions",
            "Transactions that the log has acknowledged since the process started",
            sources().map(|(labels, role)| (labels, role.handle.transactions())),
        )?;
        page.gauges(
            "tailwater_capture_lag_bytes",
            "Bytes of the source's own log that ours does not cover, as the source says every second",
            sources().filter_map(|(labels, role)| {
                Some((labels, float(role.handle.status().lag_bytes?)))
            }),
        )?;
        page.gauges(
            "tailwater_source_state",
            "1 for the state that the source is in",
            sources().map(|(labels, role)| {
                let [source] = labels;
                ([source, ("state", role.handle.status().state.as_str().to_owned())], 1.0)
            }),
        )
    }

    fn apply(&self, page: &mut Page<'_>) -> fmt::Result {
        let pipelines =
            || self.0.pipelines.iter().map(|(name, role)| ([("pipeline", name.clone())], role));
        page.counters(
            "tailwater_apply_rows",
            "Changes committed on the target since the process started",
            pipelines().map(|(labels, role)| (labels, role.handle.metrics().snapshot().rows)),
        )?;
        page.counters(
            "tailwater_apply_transactions",
            "Source transactions committed on the target since the process started",
            pipelines()
                .map(|(labels, role)| (labels, role.handle.metrics().snapshot().transactions)),
        )?;
        page.counters(
            "tailwater_apply_conflicts",
            "Rows of the target that were not as the source's change expected, and were repaired",
            pipelines().map(|(labels, role)| (labels, role.handle.metrics().snapshot().conflicts)),
        )?;
        page.gauges(
            "tailwater_apply_partitions",
            "Partitions that this process applies on their own: consistency = \"key\"",
            pipelines().map(|(labels, role)| {
                let partitions = role.handle.status().partitions.len();
                (labels, u32::try_from(partitions).map_or(f64::INFINITY, f64::from))
            }),
        )?;
        let now_ms = (self.0.clock)();
        page.gauges(
            "tailwater_apply_lag_seconds",
            "Age of what the target has; 0 while it has all that the source has",
            pipelines().filter_map(|(labels, role)| {
                Some((labels, lag_seconds(role, self.0.sources.get(&role.source), now_ms)?))
            }),
        )?;
        page.gauges(
            "tailwater_pipeline_state",
            "1 for the state that the pipeline is in",
            pipelines().map(|(labels, role)| {
                let [pipeline] = labels;
                ([pipeline, ("state", role.handle.status().state.as_str().to_owned())], 1.0)
            }),
        )?;
        self.latency(page)
    }

    fn latency(&self, page: &mut Page<'_>) -> fmt::Result {
        if self.0.pipelines.is_empty() {
            return Ok(());
        }
        let mut family = page.encoder.encode_descriptor(
            "tailwater_apply_commit_latency_seconds",
            "Time from the source's commit to the target's",
            None,
            MetricType::Histogram,
        )?;
        for (pipeline, role) in &self.0.pipelines {
            let latency = role.handle.metrics().snapshot().latency;
            let bounds = LATENCY_BOUNDS_SECONDS.into_iter().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(latency.counts.iter().copied()).collect();
            let labels = [("pipeline", pipeline.clone())];
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                latency.sum_seconds,
                latency.counts.iter().sum(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn log(&self, page: &mut Page<'_>) -> fmt::Result {
        let Some(log) = &self.0.log else { return Ok(()) };
        let partitions = log.partitions();
        let labels = |p: &tailwater_log::PartitionStatus| {
            [("topic", p.topic.clone()), ("partition", p.partition.to_string())]
        };
        page.gauges(
            "tailwater_log_end_offset",
            "The offset that the next record of the partition gets",
            partitions.iter().map(|p| (labels(p), signed(p.end_offset.get()))),
        )?;
        page.gauges(
            "tailwater_log_start_offset",
            "The first offset that the partition still has",
            partitions.iter().map(|p| (labels(p), signed(p.start_offset.get()))),
        )?;
        page.gauges(
            "tailwater_log_size_bytes",
            "Bytes of the partition's segments",
            partitions.iter().map(|p| (labels(p), float(p.size_bytes))),
        )?;
        page.gauges(
            "tailwater_log_partition_offline",
            "1 where the partition is not served: status and the log file say why",
            partitions.iter().map(|p| (labels(p), if p.offline.is_some() { 1.0 } else { 0.0 })),
        )?;
        page.gauges(
            "tailwater_replica_lag_records",
            "Records that a follower of a partition led here has not flushed yet",
            partitions.iter().flat_map(|one| {
                one.followers.iter().filter_map(|follower| {
                    let lag = one.end_offset.get() - follower.end_offset?.get();
                    let [topic, partition] = labels(one);
                    Some(([topic, partition, ("broker", follower.broker.to_string())], signed(lag)))
                })
            }),
        )?;
        self.cluster(page, log, &partitions)
    }

    fn cluster(
        &self,
        page: &mut Page<'_>,
        log: &tailwater_log::Log,
        partitions: &[tailwater_log::PartitionStatus],
    ) -> fmt::Result {
        let node = || [("node", log.node_id().to_string())];
        let count = |of: fn(&tailwater_log::PartitionStatus) -> bool| {
            float(partitions.iter().filter(|one| of(one)).count() as u64)
        };
        page.gauges(
            "tailwater_under_replicated_partitions",
            "Partitions that this node leads and that have fewer in-sync replicas than replicas",
            std::iter::once((node(), count(|one| one.missing_replicas > 0))),
        )?;
        page.gauges(
            "tailwater_offline_replicas",
            "Copies of partitions that this node has and cannot use",
            std::iter::once((node(), count(|one| one.offline.is_some()))),
        )?;
        page.counters(
            "tailwater_follower_read_bytes",
            "Bytes that clients of this node's rack read here of partitions that another node leads",
            std::iter::once((node(), log.follower_read_bytes())),
        )?;
        page.counters(
            "tailwater_catch_up_bytes",
            "Bytes copied for replicas here that were not in sync, since the process started",
            std::iter::once((node(), log.catch_up_bytes())),
        )?;
        page.gauges(
            "tailwater_leader_partitions",
            "Partitions that this node leads",
            std::iter::once((node(), count(|one| one.leads.is_some()))),
        )?;
        page.gauges(
            "tailwater_node_in_service",
            "1 while the controller relies on this node, 0 while it is fenced",
            std::iter::once((node(), if log.is_in_service() { 1.0 } else { 0.0 })),
        )?;
        controller(page, log)
    }
}

struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([(&'static str, String); N], u64)>,
    ) -> fmt::Result {
        self.family(name, help, values.map(|(labels, value)| (labels, ConstCounter::new(value))))
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([(&'static str, String); N], f64)>,
    ) -> fmt::Result {
        self.family(name, help, values.map(|(labels, value)| (labels, ConstGauge::new(value))))
    }

    fn family<const N: usize, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = ([(&'static str, String); N], M)>,
    ) -> fmt::Result {
        let mut values = values.peekable();
        let Some((_, first)) = values.peek() else { return Ok(()) };
        let kind = first.metric_type();
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            value.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn float(value: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float in Prometheus")]
    {
        value as f64
    }
}

fn signed(value: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float in Prometheus")]
    {
        value as f64
    }
}
