//! What a running Tailwater says on its admin listener: its status and its metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// It answers from memory; on a loaded machine that may take a while.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The answer to `/api/v1/status`, as far as it is of interest here.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Status {
    pub(crate) sources: Vec<SourceStatus>,
    pub(crate) pipelines: Vec<PipelineStatus>,
}

/// One source.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct SourceStatus {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) error: Option<String>,
}

/// One pipeline.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PipelineStatus {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) state: String,
    pub(crate) lag_seconds: Option<f64>,
    pub(crate) rows_applied: u64,
    pub(crate) error: Option<String>,
}

/// The status of the process that listens at `address`.
///
/// # Errors
/// If it does not answer.
pub(crate) fn status(address: &str) -> Result<Status> {
    let text = get(address, "/api/v1/status")?;
    serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
}

/// A page of metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(String);

/// The metrics of the process that listens at `address`.
///
/// # Errors
/// If it does not answer.
pub(crate) fn metrics(address: &str) -> Result<Metrics> {
    Ok(Metrics(get(address, "/metrics")?))
}

impl Metrics {
    /// The value of `name` with `label` (as `source="shop"`); none if the page has none.
    pub(crate) fn value(&self, name: &str, label: &str) -> Option<f64> {
        self.samples(name, label).next().map(|(_, value)| value)
    }

    /// A histogram's cumulative counts: upper bound and how many were at or below it.
    pub(crate) fn histogram(&self, name: &str, label: &str) -> Vec<(f64, f64)> {
        let bucket = format!("{name}_bucket");
        let bound = |labels: &str| -> Option<f64> {
            let (_, rest) = labels.split_once("le=\"")?;
            let (bound, _) = rest.split_once('"')?;
            if bound == "+Inf" { Some(f64::INFINITY) } else { bound.parse().ok() }
        };
        self.samples(&bucket, label)
            .filter_map(|(labels, value)| Some((bound(labels)?, value)))
            .collect()
    }

    fn samples<'a>(
        &'a self,
        name: &'a str,
        label: &'a str,
    ) -> impl Iterator<Item = (&'a str, f64)> + 'a {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?.strip_prefix('{')?;
            let (labels, value) = rest.rsplit_once("} ")?;
            let value = value.split_whitespace().next()?.parse().ok()?;
            labels.split(',').any(|found| found == label).then_some((labels, value))
        })
    }
}

/// The bound below which the fraction `rank` of what was counted between two looks at a histogram
/// lies; none if nothing was.
pub(crate) fn quantile(before: &[(f64, f64)], after: &[(f64, f64)], rank: f64) -> Option<f64> {
    let earlier = |index: usize| before.get(index).map_or(0.0, |(_, count)| *count);
    let counts: Vec<(f64, f64)> = after
        .iter()
        .enumerate()
        .map(|(index, (bound, count))| (*bound, count - earlier(index)))
        .collect();
    let (_, total) = *counts.last()?;
    if total <= 0.0 {
        return None;
    }
    counts.iter().find(|(_, count)| *count >= total * rank).map(|(bound, _)| *bound)
}

/// A request as of old: the answer ends with the connection.
fn get(address: &str, path: &str) -> Result<String> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("read {address}{path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of head")?;
    let line = head.lines().next().unwrap_or_default();
    if line.split_whitespace().nth(1) != Some("200") {
        bail!("{address}{path} answers {line}: {body}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP x y\n\
        tailwater_apply_rows_total{pipeline=\"a\"} 12\n\
        tailwater_apply_rows_total{pipeline=\"ab\"} 34\n\
        t_seconds_bucket{le=\"0.001\",pipeline=\"a\"} 2\n\
        t_seconds_bucket{le=\"0.01\",pipeline=\"a\"} 8\n\
        t_seconds_bucket{le=\"+Inf\",pipeline=\"a\"} 10\n";

    #[test]
    fn a_value_is_found_by_its_whole_label() {
        let page = Metrics(PAGE.to_owned());
        assert_eq!(page.value("tailwater_apply_rows_total", "pipeline=\"ab\""), Some(34.0));
        assert_eq!(page.value("tailwater_apply_rows", "pipeline=\"a\""), None);
        assert_eq!(page.value("tailwater_apply_rows_total", "pipeline=\"b\""), None);
    }

    #[test]
    fn a_quantile_counts_only_what_came_between_two_looks() {
        let page = Metrics(PAGE.to_owned());
        let after = page.histogram("t_seconds", "pipeline=\"a\"");
        assert_eq!(quantile(&[], &after, 0.5), Some(0.01));
        assert_eq!(quantile(&[], &after, 0.1), Some(0.001));
        assert_eq!(quantile(&[], &after, 0.99), Some(f64::INFINITY));
        let before = [(0.001, 0.0), (0.01, 6.0), (f64::INFINITY, 8.0)];
        assert_eq!(quantile(&before, &after, 1.0), Some(0.001));
        assert_eq!(quantile(&after, &after, 0.5), None);
    }
}
