//! What others see of a pipeline.

use serde::Serialize;
pub use tailwater_change::RoleState as State;
use tailwater_change::{Epoch, Place};

/// The last error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What happened.
    pub reason: String,
    /// The place of the transaction or schema change that could not be applied: what
    /// `tailwater skip` has to name.
    pub position: Option<String>,
    /// What to do about it; empty where waiting is all.
    pub remedy: String,
    /// A stop ends where the log has a snapshot of a later epoch than this.
    pub epoch: Option<Epoch>,
}

impl Failure {
    /// One that no transaction is to blame for.
    pub(super) fn new(reason: String, remedy: String) -> Self {
        Self { reason, position: None, remedy, epoch: None }
    }
}

/// A pipeline at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// The last place that is applied, inclusive; `None`: nothing yet, or not known yet.
    pub place: Option<Place>,
    /// The first offset that is not applied.
    pub next_offset: Option<i64>,
    /// When the source committed the last transaction that is applied: microseconds since 1970.
    pub committed_at_us: Option<i64>,
    /// Whether everything in the log is applied, as far as we have seen: then the lag is 0.
    pub caught_up: bool,
    /// Which partitions this process applies on their own; empty where it merges all, or none.
    pub partitions: Vec<usize>,
    /// The last error; kept until a commit succeeds.
    pub failure: Option<Failure>,
}

impl Status {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            state: State::Starting,
            place: None,
            next_offset: None,
            committed_at_us: None,
            caught_up: false,
            partitions: Vec::new(),
            failure: None,
        }
    }
}
