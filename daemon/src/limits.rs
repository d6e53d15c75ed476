//! What the system lets this process have, and what of it the log gets.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Connections above which more would be somebody's mistake.
const MAX_CONNECTIONS: usize = 4096;

/// Raises the limit of open files as far as it may be raised; returns what it is then. What a shell
/// or a service manager gives by default (1,024) is for programs that use `select`.
pub(crate) fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            limit.current
        }
    };
    files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

/// The log's connections at a time. The other half of the files is for partitions, reads of old
/// segments, databases and listeners: whoever connects a lot must not take the log's own.
pub(crate) fn connections(open_files: usize) -> usize {
    (open_files / 2).min(MAX_CONNECTIONS)
}

/// What the log may hold of each kind (waiting batches, recent batches, large requests), in bytes:
/// an eighth of the memory, within what a node takes.
pub(crate) fn log_bytes(memory: usize) -> usize {
    (memory / 8).clamp(4 << 20, 1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_configured_validly_whatever_the_memory() {
        for memory in [0, 1 << 20, 64 << 20, 8 << 30, 9 << 30, 1 << 40, usize::MAX] {
            let bytes = log_bytes(memory);
            let config = tailwater_log::Config {
                pending_bytes: bytes,
                tail_bytes: bytes,
                request_bytes: bytes,
                ..tailwater_log::Config::new("/tmp/x")
            };
            assert!(config.validate().is_ok(), "{memory} bytes of memory");
        }
    }

    #[test]
    fn connections_leave_files_for_the_log() {
        let files = raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert!(connections(files) <= files / 2);
        assert_eq!(connections(1024), 512);
        assert_eq!(connections(1 << 20), 4096);
    }
}
