//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::Span;

/// Replicates databases by change data capture.
#[derive(Debug, Parser)]
#[command(name = "tailwater", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the roles that the configuration names, until SIGTERM or SIGINT.
    Run(ConfigFile),
    /// Try everything that `run` needs and print every problem with its remedy; exit 1 if any.
    Check(ConfigFile),
    /// Sources and pipelines: state, position, lag, last error.
    Status {
        #[command(flatten)]
        process: Process,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Wait until all that has committed on the source is committed on the target.
    ///
    /// Exit 0: it is. 1: time-out. 2: it cannot get there.
    Wait {
        #[command(flatten)]
        process: Process,
        /// Which pipeline.
        #[arg(long)]
        pipeline: String,
        /// How long.
        #[arg(long, default_value = "60s", value_parser = span)]
        timeout: Duration,
    },
    /// Compare source and target while both run. Exit 0: equal. 1: different. 2: could not.
    Verify {
        #[command(flatten)]
        process: Process,
        /// Which pipeline.
        #[arg(long)]
        pipeline: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a source's changes as JSON lines.
    Tail {
        #[command(flatten)]
        process: Process,
        /// Which source.
        #[arg(long)]
        source: String,
        /// From which offset of its topic: a number, `start` or `end`.
        #[arg(long, default_value = "end")]
        from: String,
        /// Stop after this many records.
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Stop a source or a pipeline where it is; its position stays.
    Pause(Named),
    /// Go on after a pause or a stop.
    Resume(Named),
    /// Skip the transaction that stopped a pipeline: its changes do not reach the target.
    Skip {
        #[command(flatten)]
        process: Process,
        /// Which pipeline.
        #[arg(long)]
        pipeline: String,
        /// The place of the transaction, as `status` prints it.
        #[arg(long)]
        place: String,
    },
    /// Take a new snapshot of a whole source; it replaces what its pipelines' targets have.
    ///
    /// For a source that cannot go on: a table changed its definition, the replication slot or the
    /// binlog is gone, it is another server. Also after a pause or a stop.
    Resync {
        #[command(flatten)]
        process: Process,
        /// Which source.
        #[arg(long)]
        source: String,
    },
    /// Let go of a pipeline's position: the log keeps nothing for it any more.
    Detach {
        #[command(flatten)]
        process: Process,
        /// Which pipeline.
        #[arg(long)]
        pipeline: String,
    },
    /// The nodes of the log: how they stand, and what is where.
    #[command(subcommand)]
    Cluster(ClusterCommand),
}

/// What to do with the nodes of the log.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Nodes, controllers, and partitions that lack something.
    ///
    /// Exit 0: all is well. 1: something is not. 2: nobody could be asked.
    Status {
        #[command(flatten)]
        log: LogAddress,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give partitions other replicas. Copies first, then lets go.
    ///
    /// Exit 0: done, or begun without --wait. 1: refused in part, or not done in time. 2: could not.
    Reassign(Reassign),
    /// Move everything off a node, take away its vote, and forget it once it is stopped.
    ///
    /// May be interrupted and run again: it goes on where it is. Exit 0: the node is no longer part
    /// of the cluster. 1: not in time. 2: it cannot be, and why.
    Decommission {
        #[command(flatten)]
        log: LogAddress,
        /// Which node, by its id.
        node: i32,
        /// How long to wait for copies, and for the node to be stopped.
        #[arg(long, default_value = "24h", value_parser = span)]
        timeout: Duration,
    },
    /// Give partitions back to their preferred leaders.
    ///
    /// Exit 0: they lead. 1: some could not. 2: could not ask.
    Elect {
        #[command(flatten)]
        log: LogAddress,
        /// Topics, or partitions as TOPIC-NUMBER; all where none is named.
        what: Vec<String>,
        /// Where no complete replica is left, let an incomplete one lead: what it lacks is lost. Only
        /// with partitions that are named, and --accept-lost-records.
        #[arg(long, requires = "what")]
        unclean: bool,
        /// Records that were acknowledged may be lost.
        #[arg(long, requires = "unclean")]
        accept_lost_records: bool,
    },
}

/// Other replicas for partitions.
#[derive(Debug, Args)]
pub(crate) struct Reassign {
    #[command(flatten)]
    pub(crate) log: LogAddress,
    /// Topics, or partitions as TOPIC-NUMBER.
    pub(crate) what: Vec<String>,
    /// Every topic, the log's own and Tailwater's among them.
    #[arg(long, conflicts_with = "what")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) goal: Goal,
    /// Only print what would move.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until everything is copied.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "24h", value_parser = span)]
    pub(crate) timeout: Duration,
}

/// Which replicas.
#[derive(Debug, Args)]
#[group(required = true, multiple = false, id = "goal")]
pub(crate) struct Goal {
    /// To these nodes, the preferred leader first: 1,2,3.
    #[arg(long, value_delimiter = ',')]
    pub(crate) to: Option<Vec<i32>>,
    /// So many replicas for each partition of these topics.
    #[arg(long)]
    pub(crate) replication_factor: Option<usize>,
    /// Replicas and leaders evenly over the nodes and racks; of all topics where none is named.
    #[arg(long)]
    pub(crate) balance: bool,
    /// Take back moves that are not complete.
    #[arg(long)]
    pub(crate) cancel: bool,
}

/// How to find the log.
#[derive(Debug, Args)]
pub(crate) struct LogAddress {
    /// Any of its nodes, `host:port` of the Kafka protocol, separated by commas.
    #[arg(long, value_delimiter = ',', conflicts_with = "config")]
    pub(crate) brokers: Option<Vec<String>>,
    /// The configuration file of a process that carries or uses it.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
}

/// The configuration file.
#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// The configuration file.
    #[arg(long)]
    pub(crate) config: PathBuf,
}

/// How to find the running process.
#[derive(Debug, Args)]
pub(crate) struct Process {
    /// Its admin address.
    #[arg(long, conflicts_with = "config")]
    pub(crate) admin: Option<String>,
    /// Its configuration file, which says its admin address.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
}

/// A source or a pipeline of a running process.
#[derive(Debug, Args)]
#[group(required = true, multiple = false, id = "named")]
pub(crate) struct Role {
    /// Which pipeline.
    #[arg(long)]
    pub(crate) pipeline: Option<String>,
    /// Which source.
    #[arg(long)]
    pub(crate) source: Option<String>,
}

/// An operator's action on a role.
#[derive(Debug, Args)]
pub(crate) struct Named {
    #[command(flatten)]
    pub(crate) process: Process,
    #[command(flatten)]
    pub(crate) role: Role,
}

impl Role {
    /// Its path in the admin API.
    pub(crate) fn path(&self) -> String {
        match (&self.pipeline, &self.source) {
            (Some(pipeline), _) => format!("pipelines/{pipeline}"),
            (None, Some(source)) => format!("sources/{source}"),
            (None, None) => String::new(),
        }
    }
}

fn span(text: &str) -> Result<Duration, String> {
    Span::parse(text)
        .map(Span::get)
        .ok_or_else(|| format!("{text:?} is no duration: write it as 60s, 500ms, 5m"))
}
