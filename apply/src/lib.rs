//! From the log to the target database, exactly once, whole transactions at a time.
//!
//! The life of one change here: the reader brings record batches; [`assemble`](Assembler) reads
//! envelopes out of them and gives whole transactions, or parts of large ones; [`plan`] turns
//! consecutive transactions into set-based steps with the same outcome; the loop executes them on
//! a [`Target`] and commits them with the pipeline's [`Progress`] in one transaction of the target.

mod assemble;
mod error;
mod metrics;
mod pipeline;
mod plan;
mod plan_types;
mod target;

pub use assemble::{
    AssembleError, AssembleProblem, Assembler, Item, Mark, Part, PartBounds, Position, Resume,
    SchemaUse, Writer,
};
pub use error::TargetError;
pub use metrics::{LATENCY_BOUNDS_SECONDS, LatencySnapshot, Metrics, MetricsSnapshot};
pub use pipeline::{
    BatchBounds, ChangeLog, Clock, CommandError, Consistency, Error, Failure, KafkaLog,
    LogIdentity, LogReader, OnExisting, Pipeline, PipelineConfig, PipelineHandle, Route, RouteRule,
    SchemaSource, SchemaSourceError, State, Status, is_loading, needs_order, rows_of_partitions,
};
pub use plan::plan;
pub use plan_types::{Change, RowImage, Step, Stretch, Table};
pub use target::{
    ConflictPolicy, Progress, SESSION_LEASE, StepOutcome, Target, TargetConnector, TargetTable,
};
