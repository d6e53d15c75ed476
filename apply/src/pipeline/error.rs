//! What a pipeline can fail with, and what happens next.

use tailwater_change::{Disposition, Place, Problem, SchemaId, SchemaTextError, TableId};
use tailwater_kafka::Offset;

use crate::{AssembleError, TargetError};

/// Why a schema could not be had.
#[derive(Debug, thiserror::Error)]
#[error("read schema {id}")]
pub struct SchemaSourceError {
    /// The schema.
    pub id: SchemaId,
    /// Whether it may pass by itself.
    pub passing: bool,
    /// What happened.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Why a pipeline cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target did not do it.
    #[error("target")]
    Target(#[from] TargetError),
    /// The log could not be read.
    #[error("{operation}")]
    Log {
        /// What was being done.
        operation: &'static str,
        /// The client's error.
        #[source]
        source: tailwater_kafka::Error,
    },
    /// The log does not answer.
    #[error("the log has not answered for {} s", .0.as_secs())]
    Silent(std::time::Duration),
    /// Capture has not made the topic yet.
    #[error("topic {0} does not exist yet")]
    NoTopic(String),
    /// The topic has other partitions than those that were read.
    #[error("the topic has {found} partitions, and {read} of it were read so far")]
    Partitions {
        /// How many the progress tells of.
        read: usize,
        /// How many there are.
        found: usize,
    },
    /// The log no longer holds what comes next.
    #[error("the log begins at offset {log_start}, but offset {wanted} comes next")]
    OffsetOutOfRange {
        /// What is needed.
        wanted: Offset,
        /// The first offset the log has.
        log_start: Offset,
    },
    /// What was read does not follow on what is applied.
    #[error("the log goes on at {found}, but nothing in it shows that {applied} came just before")]
    Gap {
        /// What is applied.
        applied: Place,
        /// What the log has.
        found: Place,
    },
    /// Another log than the one that was read before has only what is older.
    #[error(
        "this is not the log that was read before: it ends at {last}, and {applied}, up to which \
         all is applied, is not in it"
    )]
    NotInLog {
        /// What is applied.
        applied: Place,
        /// The last place the log has.
        last: Place,
    },
    /// Another log has the place, but of another server: its positions mean something else.
    #[error(
        "the log has {applied}, up to which all is applied, but as a position of the server \
         {found}; what is applied came from {known}"
    )]
    OtherSource {
        /// What is applied.
        applied: Place,
        /// The server whose changes are applied.
        known: String,
        /// Whose position it is in the log.
        found: String,
    },
    /// A record cannot be read.
    #[error("log")]
    Assemble(#[from] AssembleError),
    /// A schema cannot be had.
    #[error("registry")]
    Schema(#[from] SchemaSourceError),
    /// A schema is not one of ours.
    #[error("schema {id} cannot be read")]
    SchemaText {
        /// The schema.
        id: SchemaId,
        /// Why.
        #[source]
        source: SchemaTextError,
    },
    /// A table changed its definition.
    #[error("{table} changed its definition on the source: {description}")]
    SchemaChange {
        /// The source's table.
        table: TableId,
        /// What changed.
        description: String,
        /// Where in the source's order.
        place: Place,
        /// Where in the log.
        offset: Offset,
    },
    /// A snapshot was given up and the stream goes on without it.
    #[error("the snapshot at {0} never ended, and the stream goes on")]
    SnapshotGivenUp(Place),
    /// The target's table has rows that this pipeline has not written.
    #[error("{0}")]
    Existing(Problem),
    /// The progress row holds what we cannot read.
    #[error("the state in the progress row of pipeline {pipeline} cannot be read")]
    State {
        /// The pipeline.
        pipeline: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// What the pipeline does next.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Target(error) => error.disposition(),
            Self::Log { source, .. } => match source.disposition() {
                tailwater_kafka::Disposition::Retry => Disposition::Retry,
                // Nobody fences a reader: somebody must look at what the broker means.
                tailwater_kafka::Disposition::Operator | tailwater_kafka::Disposition::Fenced => {
                    Disposition::Operator
                }
                tailwater_kafka::Disposition::Bug => Disposition::Bug,
            },
            Self::NoTopic(_) | Self::Silent(_) => Disposition::Retry,
            Self::Schema(error) if error.passing => Disposition::Retry,
            Self::Schema(_)
            | Self::Partitions { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::Gap { .. }
            | Self::NotInLog { .. }
            | Self::OtherSource { .. }
            | Self::Assemble(_)
            | Self::SchemaText { .. }
            | Self::SchemaChange { .. }
            | Self::SnapshotGivenUp(_)
            | Self::Existing(_)
            | Self::State { .. } => Disposition::Operator,
        }
    }

    /// What a person can do about it; empty where waiting is all.
    pub fn remedy(&self) -> String {
        match self {
            Self::Target(TargetError::Refused(problem)) | Self::Existing(problem) => {
                problem.remedy.clone()
            }
            Self::Target(TargetError::Conflict { .. }) => {
                "correct the row on the target and `tailwater resume`, or `tailwater skip` this \
                 transaction"
                    .into()
            }
            Self::Target(TargetError::Bug { .. }) => {
                "report this; `tailwater resume` tries again, `tailwater skip` leaves the \
                 transaction out"
                    .into()
            }
            Self::Target(
                TargetError::Unavailable { .. }
                | TargetError::UnknownOutcome(_)
                | TargetError::Fenced { .. },
            )
            | Self::NoTopic(_)
            | Self::Silent(_) => String::new(),
            Self::Log { source, .. } => match source.disposition() {
                tailwater_kafka::Disposition::Retry => String::new(),
                _ => "repair the log or its permissions, then `tailwater resume`".into(),
            },
            Self::Partitions { .. } => {
                "somebody has changed the topic's partitions, and rows may stand in others than \
                 before: capture the source under another name, or `tailwater detach` the pipeline \
                 and load it anew"
                    .into()
            }
            Self::OffsetOutOfRange { .. }
            | Self::Gap { .. }
            | Self::OtherSource { .. }
            | Self::SnapshotGivenUp(_) => {
                "`tailwater resync` this source: a new snapshot makes the target whole".into()
            }
            Self::NotInLog { .. } => {
                "restore the log and `tailwater resume`; or, if it is lost, `tailwater resync` this \
                 source: a new snapshot makes the target whole. Without one: `tailwater detach` the \
                 pipeline, empty its tables on the target (or set on_existing = \"replace\") and \
                 start it again: it loads anew from this log"
                    .into()
            }
            Self::Assemble(_) | Self::SchemaText { .. } => {
                "the topic holds what capture did not write, or is damaged: restore it, or \
                 `tailwater resync` this source"
                    .into()
            }
            Self::Schema(error) if error.passing => String::new(),
            Self::Schema(_) => "restore the registry's topic, then `tailwater resume`".into(),
            Self::SchemaChange { table, .. } => format!(
                "change the target's table of {table} in the same way, then `tailwater resync` this \
                 source: the pipeline goes on with the new snapshot. Where the source goes on \
                 without one: `tailwater skip` this change"
            ),
            Self::State { .. } => {
                "the row was written by another version, or by hand: restore it, or `tailwater \
                 detach` the pipeline and load it anew"
                    .into()
            }
        }
    }

    /// The error and its causes on one line.
    pub fn reason(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}
