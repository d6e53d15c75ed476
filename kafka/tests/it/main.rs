//! The crate against a broker in memory, over both transports, with and without failures.

mod client;
mod faults;
mod harness;
mod producer;
mod reader;
mod server;
mod wire;
