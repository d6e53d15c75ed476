//! The source against every PostgreSQL that this machine has.

mod check;
mod encryption;
mod position;
mod reader;
mod rest;
mod rows;
mod schema;
mod snapshot;
mod support;
mod types;
