//! `tailwater cluster`: what the nodes of the log have, and moving it.
//!
//! It speaks Kafka's protocol to any node, so it works wherever the log can be reached, also where
//! only `brokers` is configured. Nothing is kept between two runs: each looks at what there is and
//! goes on from there, so a command that was interrupted is simply given again.
//!
//! ```text
//! view ── what is ──► status
//!   │
//!   └──► tailwater_log::Layout ── what should be ──► reassign, decommission ──► requests ──► view …
//! ```

mod admin;
mod decommission;
mod elect;
mod reassign;
mod selection;
mod status;
mod view;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tailwater_kafka::TopicPartition;

use self::admin::{Admin, Refused};
use crate::cli::{ClusterCommand, LogAddress};
use crate::config::Config;
use crate::text::complain;

/// The exit code where something is not as it should be, or not yet.
const NOT_WELL: u8 = 1;

/// Between looks at a cluster that is at work.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where a log listens that nobody said anything about: Kafka's port.
const DEFAULT_ADDRESS: &str = "127.0.0.1:9092";

/// Does it.
///
/// # Errors
/// What was asked cannot be done, or nobody could be asked.
pub(crate) fn run(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(execute(command))
}

async fn execute(command: ClusterCommand) -> anyhow::Result<ExitCode> {
    match command {
        ClusterCommand::Status { log, json } => status::status(&connect(&log).await?, json).await,
        ClusterCommand::Reassign(asked) => {
            reassign::reassign(&connect(&asked.log).await?, &asked).await
        }
        ClusterCommand::Decommission { log, node, timeout } => {
            decommission::decommission(&connect(&log).await?, node, timeout).await
        }
        ClusterCommand::Elect { log, what, unclean, accept_lost_records } => {
            let admin = connect(&log).await?;
            if unclean {
                elect::unclean(&admin, &what, accept_lost_records).await
            } else {
                elect::preferred(&admin, &what).await
            }
        }
    }
}

async fn connect(log: &LogAddress) -> anyhow::Result<Admin> {
    let addresses = match (&log.brokers, &log.config) {
        (Some(brokers), _) => brokers.clone(),
        (None, Some(path)) => configured(&Config::load(path)?)
            .with_context(|| format!("{} does not say where the log is", path.display()))?,
        (None, None) => vec![DEFAULT_ADDRESS.to_owned()],
    };
    Admin::connect(addresses.clone()).await.with_context(|| {
        format!(
            "no node of the log answers on {}: is it running? (--brokers HOST:PORT or --config FILE \
             says where)",
            addresses.join(", ")
        )
    })
}

/// Where a configuration says that the log is.
fn configured(config: &Config) -> Option<Vec<String>> {
    let section = config.log.as_ref()?;
    if !section.brokers.is_empty() {
        return Some(section.brokers.clone());
    }
    let mut listen = section.listen?;
    if listen.ip().is_unspecified() {
        listen.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    Some(vec![listen.to_string()])
}

/// "3 partitions", "1 partition".
fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// What was refused, and why.
fn complain_about(refused: &[(TopicPartition, Refused)]) {
    for (one, why) in refused {
        complain(&format!("{one}: {}", why.message));
    }
}

/// "1, 2, 3".
fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_where_the_configuration_says() {
        let at = |text: &str| configured(&Config::parse(text).unwrap());
        assert_eq!(at("[log]\nbrokers = [\"a:1\", \"b:2\"]").unwrap(), ["a:1", "b:2"]);
        assert_eq!(
            at("[log]\ndata_dir = \"d\"\nlisten = \"0.0.0.0:9192\"").unwrap(),
            ["127.0.0.1:9192"]
        );
        assert_eq!(at("[log]\ndata_dir = \"d\""), None);
    }
}
