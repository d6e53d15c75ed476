//! Apply, tried against the memory target and logs written by hand.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod another_log;
mod assembling;
mod batching;
mod commanding;
mod cut;
mod exactly_once;
mod loading;
mod merging;
mod partitioned;
mod pinned;
mod planning;
mod resync;
mod rig;
mod support;
