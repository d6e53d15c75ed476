//! The loop from the log to the target.
//!
//! ```text
//!            ┌────────────────────────── run ──────────────────────────┐
//!   starting ─► standby ─► session: take over ─► snapshot | streaming ─► stop | pause | retry
//!                             │  read ─► assemble ─► batch ─► plan ─► execute ─► commit
//! ```
//!
//! [`run`] owns what outlives a connection: which state the pipeline is in, what happens after an
//! error, what the operator wants. A session ([`session`]) owns a connection and everything that
//! dies with it; each of its transactions carries the progress, so dropping it at any await loses
//! nothing. [`intake`] reads ahead meanwhile, [`batch`] executes, [`commit`] commits and
//! knows what is flushed, [`first_load`] answers a snapshot's markers, [`tables`] finds out what rows are written to. [`start`] says where a session
//! begins to read, [`trial`] what earlier ones have left for it; [`lookout`] sees the snapshot that
//! ends a stop.
//!
//! With `consistency = "key"` the partitions are applied each on its own: [`parts`] says when and from
//! where, [`crew`] shares them out among hosts, [`apart`] is what sessions do differently then.

mod apart;
mod batch;
mod commands;
mod commit;
mod config;
mod crew;
mod error;
mod first_load;
mod group;
mod hold;
mod intake;
mod log;
mod lookout;
mod parts;
mod route;
mod run;
mod schemas;
mod session;
mod start;
mod state;
mod status;
mod tables;
mod trial;

pub use commands::{CommandError, PipelineHandle};
pub use config::{BatchBounds, Clock, Consistency, OnExisting, PipelineConfig};
pub use crew::rows_of_partitions;
pub use error::{Error, SchemaSourceError};
pub use log::{ChangeLog, KafkaLog, LogIdentity, LogReader};
pub use parts::needs_order;
pub use route::{Route, RouteRule};
pub use run::Pipeline;
pub use schemas::SchemaSource;
pub use state::is_loading;
pub use status::{Failure, State, Status};
