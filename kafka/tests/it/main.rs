//! The crate against a broker in memory, over both transports, with and without failures.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]
#![expect(clippy::print_stdout, reason = "seeds and transports, shown where a test fails")]

mod client;
mod faults;
mod harness;
mod kcat;
mod producer;
mod reader;
mod security;
mod server;
mod simulated;
mod wire;
