//! One-word commands for people and CI.
fn main() {}
