//! The log as its clients meet it: through requests, restarts, broken disks and foreign clients.

mod admin;
mod compaction;
mod crash;
mod disk_failure;
mod fetching;
mod kcat;
mod producing;
mod recovery;
mod retention;
mod support;
mod versions;
