//! Who does the work that blocks: reading, writing and flushing files.
//!
//! In production threads do it: those of [`storage::flusher`](crate::storage::flusher), one per
//! [`journal`](crate::storage::journal), and tokio's for the rest. A simulation has one thread and
//! a clock of its own: there the same work is done in tasks, after a pause that stands for the
//! disk's time, so that one seed always gives one run.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Error;

/// How long a simulated disk takes.
pub trait DiskTime: fmt::Debug + Send + Sync {
    /// Before the next piece of work is done.
    fn next(&self) -> Duration;
}

/// Who does the work that blocks.
#[derive(Debug, Clone, Default)]
pub enum Workers {
    /// Threads.
    #[default]
    Threads,
    /// Tasks of the runtime that the log was opened in, each piece after a pause.
    ///
    /// Several cannot wait for each other: only for a runtime of one thread.
    Tasks(Arc<dyn DiskTime>),
}

impl Workers {
    /// Does `work`, to its end also when the caller goes away meanwhile.
    ///
    /// # Errors
    /// [`Error::TaskFailed`] if it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let done = match self {
            Self::Threads => tokio::task::spawn_blocking(work).await,
            Self::Tasks(time) => {
                let pause = time.next();
                let working = async move {
                    tokio::time::sleep(pause).await;
                    work()
                };
                tokio::spawn(working).await
            }
        };
        done.map_err(|_| Error::TaskFailed)
    }
}
