//! The memory ends: against their contract, and with capture, a log and apply between them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

mod contract;
mod end_to_end;
mod planted;
mod sharing;
