//! The commands that ask a running process.

use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::admin::Status;
use crate::cli::Process;
use crate::config::Config;
use crate::text::{columns, complain, say};

/// A running process, by its admin address.
#[derive(Debug)]
pub(crate) struct Remote {
    base: String,
    agent: ureq::Agent,
}

/// Beyond the time that the server itself takes for an answer.
const SLACK: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Answer {
    exit: u8,
    message: String,
    verdict: Option<Json>,
}

impl Remote {
    /// The process that `--admin` or `--config` names; by default the one on the default address.
    ///
    /// # Errors
    /// The configuration cannot be read.
    pub(crate) fn find(process: &Process) -> anyhow::Result<Self> {
        let base = match (&process.admin, &process.config) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(path)) => format!("http://{}", Config::load(path)?.admin.listen),
            (None, None) => format!("http://{}", Config::default().admin.listen),
        };
        let base = if base.contains("://") { base } else { format!("http://{base}") };
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        Ok(Self { base, agent })
    }

    pub(crate) fn status(&self, json: bool) -> anyhow::Result<ExitCode> {
        let text = self.text(self.agent.get(self.url("status")).call())?;
        let status: Status = serde_json::from_str(&text).context("the status does not parse")?;
        if json {
            say(&serde_json::to_string(&status)?);
        } else {
            say(&table(&status));
        }
        Ok(ExitCode::SUCCESS)
    }

    pub(crate) fn wait(&self, pipeline: &str, timeout: Duration) -> anyhow::Result<ExitCode> {
        let url = format!(
            "{}?timeout_ms={}",
            self.url(&format!("pipelines/{pipeline}/wait")),
            timeout.as_millis()
        );
        let call = self
            .agent
            .post(url)
            .config()
            .timeout_global(Some(timeout.saturating_add(SLACK)))
            .build()
            .send_empty();
        let answer: Answer = serde_json::from_str(&self.text(call)?)?;
        if !answer.message.is_empty() {
            complain(&answer.message);
        }
        Ok(ExitCode::from(answer.exit))
    }

    pub(crate) fn verify(&self, pipeline: &str, json: bool) -> anyhow::Result<ExitCode> {
        let call = self.agent.post(self.url(&format!("pipelines/{pipeline}/verify"))).send_empty();
        let text = self.text(call)?;
        let answer: Answer = serde_json::from_str(&text)?;
        if json {
            say(&text);
        } else if let Some(verdict) = &answer.verdict {
            say(&verdict_text(verdict));
        }
        if !answer.message.is_empty() {
            complain(&answer.message);
        }
        Ok(ExitCode::from(answer.exit))
    }

    /// Lines until the reader of our output goes, or `limit`.
    pub(crate) fn tail(
        &self,
        source: &str,
        from: &str,
        limit: Option<u64>,
    ) -> anyhow::Result<ExitCode> {
        let call = self.agent.get(self.url(&format!("sources/{source}/tail?from={from}"))).call();
        let response = self.reached(call)?;
        if !response.status().is_success() {
            bail!("{}", response.into_body().read_to_string()?.trim());
        }
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        let mut out = std::io::stdout().lock();
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        for line in lines.take(limit) {
            writeln!(out, "{}", line.context("the process went away")?)?;
            out.flush()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// An operator's action.
    pub(crate) fn act(&self, path: &str) -> anyhow::Result<ExitCode> {
        let response = self.reached(self.agent.post(self.url(path)).send_empty())?;
        if response.status().is_success() {
            return Ok(ExitCode::SUCCESS);
        }
        bail!("{}", response.into_body().read_to_string()?.trim());
    }

    fn url(&self, path: &str) -> String {
        format!("{}/api/v1/{path}", self.base)
    }

    fn text(&self, call: Called) -> anyhow::Result<String> {
        let response = self.reached(call)?;
        let good = response.status().is_success();
        let text = response.into_body().read_to_string()?;
        if good { Ok(text) } else { Err(anyhow!("{}", text.trim())) }
    }

    fn reached(&self, call: Called) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
        call.with_context(|| {
            format!(
                "no process answers on {}: is it running? (--admin URL or --config FILE says where)",
                self.base
            )
        })
    }
}

type Called = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

fn table(status: &Status) -> String {
    let mut rows = vec![["", "STATE", "POSITION", "LAG", "ROWS", "ERROR"].map(str::to_owned)];
    for source in &status.sources {
        rows.push([
            format!("source {}", source.name),
            source.state.clone(),
            source.position.clone().unwrap_or_default(),
            source.lag_bytes.map(|lag| format!("{lag} bytes")).unwrap_or_default(),
            String::new(),
            source.error.clone().unwrap_or_default(),
        ]);
    }
    for pipeline in &status.pipelines {
        rows.push([
            format!("pipeline {} ({} -> {})", pipeline.name, pipeline.source, pipeline.target),
            pipeline.state.clone(),
            pipeline.position.clone().unwrap_or_default(),
            pipeline.lag_seconds.map(|lag| format!("{lag:.1} s")).unwrap_or_default(),
            pipeline.rows_applied.to_string(),
            pipeline.error.clone().unwrap_or_default(),
        ]);
    }
    columns(&rows)
}

fn verdict_text(verdict: &Json) -> String {
    let different = verdict["different"].as_u64().unwrap_or(0);
    let mut text = format!(
        "{} rows of {} tables compared, {}",
        verdict["rows"],
        verdict["tables"],
        if different == 0 { "all equal".to_owned() } else { format!("{different} different") }
    );
    for difference in verdict["differences"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "\n{} {}: {} on the target",
            difference["table"].as_str().unwrap_or_default(),
            difference["key"].as_str().unwrap_or_default(),
            difference["target"].as_str().unwrap_or_default(),
        ));
    }
    text
}
