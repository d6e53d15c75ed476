//! What sources and targets promise, executed in memory: the reference their contracts are tested
//! against, and the ends of the simulation. It proves no promise of Tailwater by itself.
//!
//! The life of one change here: a [`MemorySource`] gives scripted transactions to capture; on the
//! other side a session of a [`MemoryDatabase`] takes steps and replays with a database's
//! strictness (unique keys checked row by row, refusals, fences, locks that end with the session)
//! and fails where a test has asked it to.

mod cell;
mod database;
mod effect;
mod faults;
mod planted;
mod sample;
mod script;
mod source;
mod table;
mod target;

#[cfg(feature = "test-util")]
pub mod contract;

pub use cell::Cell;
pub use database::{Committed, MemoryDatabase};
pub use faults::{Fault, Faults, Op};
pub use planted::Planted;
pub use sample::{sample_table, sample_tables};
pub use script::{Script, ScriptedChange, ScriptedTransaction};
pub use source::MemorySource;
pub use table::{Definition, MemoryTable, UniqueChecks};
pub use target::MemoryTarget;
