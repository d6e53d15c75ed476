//! A disk that fails when told to.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use tailwater_log::{Disk, DiskFile, FileSystem};

/// Linux: this process has too many open files.
pub(crate) const EMFILE: i32 = 24;

/// Fails when told to, and knows what a power cut would take.
#[derive(Debug, Default)]
pub(crate) struct FailingDisk {
    /// Segment bytes that still fit.
    pub(crate) room: AtomicU64,
    pub(crate) full: AtomicBool,
    /// Writes that did not fit.
    pub(crate) refusals: AtomicU64,
    pub(crate) flush_fails: AtomicBool,
    /// Whatever fails, fails for partitions only.
    pub(crate) spares_metadata: AtomicBool,
    pub(crate) flush_panics: AtomicBool,
    pub(crate) cut_fails: AtomicBool,
    pub(crate) flushes: AtomicU64,
    /// The system's error number at every opening of a segment; 0: none.
    pub(crate) open_error: AtomicI32,
    pub(crate) folder_flush_fails: AtomicBool,
    /// While set, a flush does not end.
    held: Mutex<bool>,
    released: Condvar,
    unflushed: Mutex<HashMap<PathBuf, Unflushed>>,
}

/// The bytes of a file that are in memory only.
#[derive(Debug, Default)]
struct Unflushed {
    /// The next flush writes them.
    dirty: BTreeSet<u64>,
    /// A flush of them failed: the system believes them written, and flushes them no more.
    given_up: BTreeSet<u64>,
}

impl FailingDisk {
    pub(crate) fn set(flag: &AtomicBool, value: bool) {
        flag.store(value, Ordering::SeqCst);
    }

    pub(crate) fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }

    /// Takes from every file what was in memory only.
    pub(crate) fn cut_power(&self) {
        for (path, unflushed) in self.unflushed.lock().unwrap().drain() {
            let Ok(file) = std::fs::File::options().write(true).open(path) else { continue };
            let length = file.metadata().unwrap().len();
            for position in unflushed.dirty.iter().chain(&unflushed.given_up) {
                if *position < length {
                    file.write_all_at(&[0], *position).unwrap();
                }
            }
        }
    }

    fn check_open(&self, path: &Path) -> io::Result<()> {
        match self.open_error.load(Ordering::SeqCst) {
            number if number != 0 && is_segment(path) => Err(io::Error::from_raw_os_error(number)),
            _ => Ok(()),
        }
    }

    fn file(self: &Arc<Self>, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FailingFile { disk: Arc::clone(self), path: path.to_owned(), file })
    }
}

#[derive(Debug)]
pub(crate) struct Handle(pub(crate) Arc<FailingDisk>);

#[derive(Debug)]
struct FailingFile {
    disk: Arc<FailingDisk>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
}

impl Disk for Handle {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.check_open(path)?;
        Ok(self.0.file(path, FileSystem.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.0.check_open(path)?;
        Ok(self.0.file(path, FileSystem.open(path)?))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        if self.0.folder_flush_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the folder is gone"));
        }
        FileSystem.sync_folder(path)
    }
}

impl FailingFile {
    fn write(&self, parts: &[Bytes], position: u64) -> io::Result<()> {
        let length: usize = parts.iter().map(Bytes::len).sum();
        let mut unflushed = self.disk.unflushed.lock().unwrap();
        let unflushed = unflushed.entry(self.path.clone()).or_default();
        for written in position..position + length as u64 {
            unflushed.dirty.insert(written);
            unflushed.given_up.remove(&written);
        }
        self.file.write_all_at(parts, position)
    }
}

impl DiskFile for FailingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buffer, position)
    }

    fn write_all_at(&self, parts: &[Bytes], position: u64) -> io::Result<()> {
        if !self.disk.full.load(Ordering::SeqCst) {
            return self.write(parts, position);
        }
        // As much as fits is written, then it is full: as real disks do.
        let joined = parts.concat();
        let room = usize::try_from(self.disk.room.load(Ordering::SeqCst)).unwrap();
        let fits = Bytes::copy_from_slice(&joined[..room.min(joined.len())]);
        self.write(&[fits], position)?;
        if room < joined.len() {
            self.disk.refusals.fetch_add(1, Ordering::SeqCst);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.flushes.fetch_add(1, Ordering::SeqCst);
        let held = self.disk.held.lock().unwrap();
        drop(self.disk.released.wait_while(held, |held| *held).unwrap());
        assert!(!self.disk.flush_panics.load(Ordering::SeqCst), "told to panic");
        let mut unflushed = self.disk.unflushed.lock().unwrap();
        let unflushed = unflushed.entry(self.path.clone()).or_default();
        let dirty = std::mem::take(&mut unflushed.dirty);
        let spared = self.disk.spares_metadata.load(Ordering::SeqCst) && !is_segment(&self.path);
        if self.disk.flush_fails.load(Ordering::SeqCst) && !spared {
            unflushed.given_up.extend(dirty);
            return Err(io::Error::other("the disk is gone"));
        }
        self.file.sync()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        if self.disk.cut_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("no cutting either"));
        }
        self.file.truncate(length)
    }
}

/// Of a partition, not of the metadata.
fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "log")
        && path.components().any(|part| part.as_os_str() == "topics")
}
