//! PostgreSQL as source and target, against real servers.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what was not tested"
)]

mod contract;
mod source;
mod target;
mod target_conflicts;
mod target_steps;
mod target_tables;
mod target_values;
