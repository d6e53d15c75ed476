//! Controllers over TCP.
//!
//! One connection to each peer carries any number of calls, answered in any order.
//!
//! | field | bytes | |
//! |---|---|---|
//! | length | 4 | big-endian, of what follows: at most 64 MiB |
//! | body | | JSON: `{"id": number, "body": request}`, and for its answer the same id |
//!
//! Requests and answers are those of [`super::messages`]. A length that is too great, or a body that
//! is not understood, ends the connection: nothing after it can be trusted.

mod client;
mod frame;
mod server;

pub(crate) use client::TcpNetwork;
pub(crate) use server::serve;

#[cfg(test)]
mod tests;
