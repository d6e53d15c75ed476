//! The few file operations that carry a promise, behind a trait that tests can make fail.
//!
//! Only segment files and journals go through it, with the folders that name them: they are where a
//! full disk, a failed flush or a torn write decides between kept and lost. Small files
//! (checkpoints, topic descriptions) are replaced whole by [`replace_file`], which either happened
//! or did not.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use bytes::Bytes;

use crate::Error;

/// Opens segment files and journals.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes an empty file, replacing one of that name.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and appending.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes the names in a folder survive a power cut.
    ///
    /// # Errors
    /// What the system says; it is then unknown which of them would.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

/// An open segment file. One writer at a time, any number of readers.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// The length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is nothing in it.
    ///
    /// # Errors
    /// What the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads at `position`; fewer bytes than asked for only at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;

    /// Writes all parts one after the other from `position` on.
    ///
    /// # Errors
    /// What the system says; some of the bytes may have been written.
    fn write_all_at(&self, parts: &[Bytes], position: u64) -> io::Result<()>;

    /// Makes everything written so far survive a power cut.
    ///
    /// # Errors
    /// What the system says; it is then unknown what is on the disk.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to `length` bytes.
    ///
    /// # Errors
    /// What the system says.
    fn truncate(&self, length: u64) -> io::Result<()>;
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem;

impl Disk for FileSystem {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(SystemFile(file)))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

#[derive(Debug)]
struct SystemFile(File);

impl DiskFile for SystemFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, mut buffer: &mut [u8], mut position: u64) -> io::Result<usize> {
        let mut total = 0;
        while !buffer.is_empty() {
            match self.0.read_at(buffer, position) {
                Ok(0) => break,
                Ok(count) => {
                    total += count;
                    position += count as u64;
                    buffer = &mut buffer[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn write_all_at(&self, parts: &[Bytes], position: u64) -> io::Result<()> {
        // The cursor belongs to the one writer; readers use positioned reads.
        let mut file = &self.0;
        file.seek(SeekFrom::Start(position))?;
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            // The system takes at most 1,024 slices at once (IOV_MAX).
            let at_once = rest.len().min(1024);
            match file.write_vectored(&rest[..at_once]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}

/// When a file was written last, ms since 1970; the end of time where the file system does not know.
pub(crate) fn modified_ms(metadata: &fs::Metadata) -> i64 {
    let since = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(i64::MAX)
}

/// Puts the bytes from `from` to `to` on the disk, where they may or may not be: what survived a
/// crash is served from now on, so it must survive the next one as well.
///
/// A flush alone does not do that. After one that failed the system keeps the bytes in memory, is
/// certain that they are written, and has nothing left to flush; only what is written is flushed.
pub(crate) fn write_again(
    file: &dyn DiskFile,
    path: &Path,
    from: u64,
    to: u64,
) -> Result<(), Error> {
    /// Read and written at a time.
    const STEP_BYTES: u64 = 1 << 20;
    let mut position = from;
    while position < to {
        let step = usize::try_from(STEP_BYTES.min(to - position)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; step];
        let read = file.read_at(&mut bytes, position).map_err(Error::io("read", path))?;
        if read < step {
            return Err(Error::corrupt(path, position, "the file became shorter"));
        }
        file.write_all_at(&[bytes.into()], position).map_err(Error::io("write again", path))?;
        position += step as u64;
    }
    file.sync().map_err(Error::io("flush", path))
}

/// As [`Disk::sync_folder`], with what was being done in the error.
pub(crate) fn sync_folder(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    disk.sync_folder(path).map_err(Error::io("flush folder", path))
}

/// Replaces a file by `contents`, durably: after a crash it is the old one or the new one.
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> Result<(), Error> {
    put_in_place(path, |beside| {
        let mut file = File::create(beside)?;
        file.write_all(contents)?;
        file.sync_all()
    })?;
    sync_folder(&FileSystem, path.parent().unwrap_or(Path::new(".")))
}

/// Replaces a file that can be made again from others: no flush, a checksum in it must tell.
pub(crate) fn replace_cache_file(path: &Path, contents: &[u8]) -> Result<(), Error> {
    put_in_place(path, |beside| fs::write(beside, contents))
}

/// Lets `write` make a file beside the one at `path`, which then takes its place. Whatever fails
/// before that, the old one stands; the folder is not flushed.
pub(crate) fn put_in_place<T>(
    path: &Path,
    write: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<T, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let beside = Path::new(&name);
    let replace = || fs::rename(beside, path).map_err(Error::io("replace", path));
    let written = write(beside).map_err(Error::io("write", beside));
    let written = written.and_then(|written| replace().map(|()| written));
    if written.is_err() {
        // A half-written file takes space that a full disk needs; it is made anew each time.
        drop(fs::remove_file(beside));
    }
    written
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Reads a file whole; `None` if it is not there.
pub(crate) fn read_if_exists(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}
