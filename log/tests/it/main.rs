//! The log as its clients meet it: through requests, restarts, broken disks and foreign clients.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail like tests; the lints' own exemption covers only test functions"
)]

mod admin;
mod admin_client;
mod apart;
mod catching_up;
mod cluster;
mod compaction;
mod crash;
mod cut_off;
mod disk_failure;
mod failing_disk;
mod fetching;
mod full_disk;
mod kcat;
mod nearby;
mod offline;
mod operating;
mod our_client;
mod producing;
mod recovery;
mod retention;
mod settings;
mod support;
mod tasks;
mod versions;
