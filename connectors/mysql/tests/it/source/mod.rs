//! The source against real servers: what a table's rows look like, what a stream says, in order.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which say which server they were at"
)]

mod charsets;
mod encryption;
mod faults;
mod rest;
mod support;
mod transactions;
mod types;
