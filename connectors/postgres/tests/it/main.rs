//! PostgreSQL as source and target, against real servers.

mod source;
mod target;
mod target_steps;
mod target_values;
mod target_conflicts;
mod target_tables;
