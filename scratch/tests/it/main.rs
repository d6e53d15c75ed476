//! Scratch servers do what tests rely on: every flavor, start to end.

mod dump;
mod kafka;
mod server;
