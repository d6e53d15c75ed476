//! Space that is kept for getting out of a full disk.
//!
//! Letting go of old segments needs some space first: a new description of the partition, perhaps a
//! new segment, and before that the commit of a pipeline's offset, without which nothing may go. So
//! a file of a few megabytes stands in the data folder, full of bytes that mean nothing. Whoever
//! must write for making room, and finds none, takes a step off its end; when there is space again
//! it grows back.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::Error;
use crate::storage::partition::lock;

/// What is given at a time: some blocks of any file system.
const STEP_BYTES: u64 = 64 << 10;

/// Steps for one piece of work: producers may be faster in using up what is given.
const STEPS: usize = 4;

/// The file, and how long it is.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    whole_bytes: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// `None` while there is not even space for its name.
    file: Option<File>,
    bytes: u64,
}

impl Reserve {
    /// Opens the reserve of a data folder, and fills it as far as there is space. A full disk is no
    /// reason not to start.
    pub(crate) fn open(data_dir: &Path, whole_bytes: u64) -> Self {
        let reserve = Self { path: data_dir.join("reserve"), whole_bytes, kept: Mutex::default() };
        reserve.refill();
        reserve
    }

    /// Does `work`; if there is no space for it, again with some of what is kept.
    ///
    /// # Errors
    /// What the work says; [`Error::NoSpace`] if nothing is left to give, or not enough at once.
    pub(crate) fn spend<T>(&self, mut work: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        for _ in 0..STEPS {
            match work() {
                Err(Error::NoSpace { .. }) if self.give() => {}
                outcome => return outcome,
            }
        }
        work()
    }

    /// Grows back as far as there is space.
    pub(crate) fn refill(&self) {
        let mut kept = lock(&self.kept);
        if kept.file.is_some() && kept.bytes >= self.whole_bytes {
            return;
        }
        let outcome = self.grow(&mut kept);
        self.warn_unless_done(outcome);
    }

    fn grow(&self, kept: &mut Kept) -> std::io::Result<()> {
        let file = match &kept.file {
            Some(file) => file,
            None => {
                let mut options = File::options();
                let file = options.write(true).create(true).truncate(false).open(&self.path)?;
                kept.bytes = file.metadata()?.len();
                kept.file.insert(file)
            }
        };
        let step = noise();
        while kept.bytes < self.whole_bytes {
            if file.write_all_at(&step, kept.bytes).is_err() {
                // What was written of the step is of no use to anybody.
                file.set_len(kept.bytes)?;
                break;
            }
            kept.bytes += STEP_BYTES;
        }
        file.sync_data()
    }

    /// Gives a step back to the file system; whether there was one.
    fn give(&self) -> bool {
        let mut kept = lock(&self.kept);
        let Kept { file: Some(file), bytes } = &mut *kept else { return false };
        let Some(less) = bytes.checked_sub(STEP_BYTES) else { return false };
        *bytes = less;
        // Some file systems let others use the space only when that is on the disk.
        let given = file.set_len(less).and_then(|()| file.sync_all());
        self.warn_unless_done(given);
        true
    }

    fn warn_unless_done(&self, outcome: std::io::Result<()>) {
        if let Err(error) = outcome {
            tracing::warn!(%error, path = %self.path.display(), "the reserve of disk space");
        }
    }
}

/// Bytes that no file system makes smaller: a linear congruential generator's high ones.
fn noise() -> Vec<u8> {
    let mut state: u64 = 1;
    let words = (0..STEP_BYTES / 4).flat_map(|_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(state >> 32).unwrap_or(u32::MAX).to_be_bytes()
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_steps_while_there_are_some_and_grows_back() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::open(folder.path(), 6 * STEP_BYTES);
        let length = || std::fs::metadata(folder.path().join("reserve")).unwrap().len();
        assert_eq!(length(), 6 * STEP_BYTES);
        let full = || {
            let source = std::io::ErrorKind::StorageFull.into();
            Error::NoSpace { operation: "write", path: PathBuf::new(), source }
        };
        let mut left = 2;
        let outcome = reserve.spend(|| {
            left -= 1;
            if left < 0 { Ok(()) } else { Err(full()) }
        });
        outcome.unwrap();
        assert_eq!(length(), 4 * STEP_BYTES);
        assert!(reserve.spend(|| Err::<(), _>(full())).is_err());
        assert_eq!(length(), 0);
        assert!(reserve.spend(|| Err::<(), _>(full())).is_err());
        reserve.refill();
        assert_eq!(length(), 6 * STEP_BYTES);
    }
}
