//! The connector against real servers.

mod contract;
mod source;
mod target;
mod target_replay;
mod target_session;
mod target_steps;
mod target_tables;
mod target_types;
