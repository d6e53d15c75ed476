//! One node per data folder: a second writer would ruin every file.
//!
//! Everyone who may write holds a share of the lock, flush threads and journals included. So when a
//! node is dropped in the middle of something, the next one waits for that to be over.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use crate::Error;

/// The right to write in a data folder.
#[derive(Debug)]
pub(crate) struct FolderLock(File);

impl FolderLock {
    /// Takes the lock of `data_dir`.
    ///
    /// # Errors
    /// [`Error::Locked`] while somebody else has it.
    pub(crate) fn take(data_dir: &Path) -> Result<Arc<Self>, Error> {
        let path = data_dir.join("lock");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Arc::new(Self(file))),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: data_dir.to_owned() }),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }

    /// Lets go although shares are left: their holders have stopped writing.
    pub(crate) fn release(&self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "data folder not unlocked before the process ends");
        }
    }
}
