//! What can go wrong in the log, and what the caller does next.
//!
//! Requests never see these: a broker answers them with a Kafka error code and its text. They reach
//! the caller of [`Log::open`](crate::Log::open) and [`Log::close`](crate::Log::close), and the
//! status of a partition.

use std::io;
use std::path::{Path, PathBuf};

/// Why an operation of the log failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("could not {operation} {}", path.display())]
    Io {
        /// What was being done: a verb.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no room left; what was being written has been taken back.
    #[error("no space left to {operation} {}: free some and the log goes on by itself", path.display())]
    NoSpace {
        /// What was being done: a verb.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The system is short of open files or memory; nothing has changed.
    #[error(
        "the system is out of files or memory, could not {operation} {}: the log goes on by itself \
         when there are some; raise the process's limit of open files if this comes back",
        path.display()
    )]
    Exhausted {
        /// What was being done: a verb.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Stored bytes are not what was written.
    #[error("{} is damaged at byte {position}: {reason}", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in it the damage begins, in bytes.
        position: u64,
        /// What is wrong, and the remedy where there is one.
        reason: String,
    },
    /// A file was written by a version of Tailwater that this one does not know.
    #[error(
        "{} has format version {found}, this program reads up to {supported}: use a newer one",
        path.display()
    )]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// The version it names.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// Another process uses the data folder.
    #[error("{} is in use by another process: one log node per data folder", path.display())]
    Locked {
        /// The data folder.
        path: PathBuf,
    },
    /// The data folder belongs to another node.
    #[error("{} belongs to node {found}, the configuration says node {configured}", path.display())]
    OtherNode {
        /// The data folder.
        path: PathBuf,
        /// The node that the folder belongs to.
        found: i32,
        /// The node that the configuration names.
        configured: i32,
    },
    /// The configuration cannot work.
    #[error("invalid log configuration: {}", problems.join("; "))]
    Config {
        /// Every problem found.
        problems: Vec<String>,
    },
    /// Another node is needed for it, and does not do it now.
    #[error("could not {operation}: {reason}")]
    Unavailable {
        /// What was being done: a verb.
        operation: &'static str,
        /// Why not.
        reason: String,
    },
    /// The log is closed, or closing.
    #[error("the log is closed")]
    Closed,
    /// A task of the log ended by a panic.
    #[error("a log task ended unexpectedly")]
    TaskFailed,
}

/// What the caller does about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Try again later: it may pass by itself.
    Retry,
    /// Stop and tell a human: the text names the remedy.
    Operator,
    /// Somebody else has taken over.
    Fenced,
    /// A mistake of ours.
    Bug,
}

impl Error {
    /// What to do about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::NoSpace { .. }
            | Self::Exhausted { .. }
            | Self::Unavailable { .. }
            | Self::Closed => Disposition::Retry,
            Self::Io { .. }
            | Self::Corrupt { .. }
            | Self::FormatVersion { .. }
            | Self::OtherNode { .. }
            | Self::Config { .. } => Disposition::Operator,
            Self::Locked { .. } => Disposition::Fenced,
            Self::TaskFailed => Disposition::Bug,
        }
    }

    /// Whether it passes by itself when someone makes room: then nothing has been promised, and
    /// nothing is lost.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Exhausted { .. })
    }

    /// Whether what was read cannot be trusted: wrong bytes, a medium that does not give them, a
    /// file that is gone. Any other failed read (no file descriptor, no memory) says nothing about
    /// what is stored.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } | Self::FormatVersion { .. } => true,
            Self::Io { source, .. } => {
                source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(EIO)
            }
            Self::NoSpace { .. }
            | Self::Exhausted { .. }
            | Self::Locked { .. }
            | Self::OtherNode { .. }
            | Self::Config { .. }
            | Self::Unavailable { .. }
            | Self::Closed
            | Self::TaskFailed => false,
        }
    }

    /// For `map_err`: an IO error with what was being done, a full disk and exhausted files and
    /// memory told apart.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            if is_out_of_space(&source) {
                Self::NoSpace { operation, path, source }
            } else if is_exhausted(&source) {
                Self::Exhausted { operation, path, source }
            } else {
                Self::Io { operation, path, source }
            }
        }
    }

    pub(crate) fn corrupt(path: &Path, position: u64, reason: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), position, reason: reason.into() }
    }

    /// The error and its causes on one line.
    pub(crate) fn full_text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Linux's numbers of errors that the standard library has no kind for.
const EIO: i32 = 5;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// No file descriptor, here or in the whole system, or no memory.
fn is_exhausted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory
        || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// No room on the device, over quota, or over the size limit of a file: all pass when someone
/// makes room, and all are known before anything was promised.
fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
