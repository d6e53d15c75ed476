//! Scratch servers do what tests rely on: every flavor, start to end.

mod server;
