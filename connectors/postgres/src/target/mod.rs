//! PostgreSQL 14 to 18 as a target.
//!
//! ```text
//!   row messages ─► form, param, copy (encoded)  ─┐
//!   steps        ─► statement (SQL as text)      ─┴► steps (executed, counted)
//!                                                     │ refused
//!                                                     ▼
//!                                                    replay (merge, or one by one) ─► parking (rows in the way)
//! ```
//!
//! A session (`session`) fixes everything that changes how a value is read, and, where it may,
//! sets `session_replication_role = replica`: then no trigger, foreign key or cascade of the target
//! acts, since the source has logged what its own did. A set-based step is accepted only if the
//! server counts exactly its rows; progress is the last statement before COMMIT, and fails the
//! transaction where the fence is another's (`progress`). Tables are made as the source's are, or as
//! near as the mapping (`mapping`) says (`create`, `finish`).

mod connector;
mod copy;
mod create;
mod datetime;
mod described;
mod error;
mod finish;
mod form;
mod mapping;
mod merge;
mod numeric;
mod param;
mod parking;
mod progress;
mod replay;
mod rows;
mod session;
mod statement;
mod steps;
mod unfit;

pub use connector::{PostgresTarget, TargetConfig, connector};
pub use mapping::{Fit, Mapping, mapping};
