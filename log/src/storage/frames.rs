//! A file of checksummed frames that grows at its end and is sometimes written anew.
//!
//! After a crash the same judgement as for segments: invalid bytes at the end with nothing valid
//! behind them are an append nobody was told of, and are cut; invalid bytes with a valid frame
//! behind them are damage, and the file is refused. What belongs together goes into one frame, so
//! that it is there whole or not at all.
//!
//! | field | bytes | |
//! |---|---|---|
//! | magic | 4 | says what the file is, once at the front |
//! | version | 2 | of what stands in the frames |
//! | reserved | 2 | 0 |
//! | per frame: checksum | 4 | CRC-32C of the length and what follows it |
//! | length | 4 | bytes of the body, at least 1 |
//! | body | | |
//!
//! All numbers are big-endian.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use crate::Error;
use crate::storage::disk::{self, Disk, DiskFile};

const FILE_HEADER_BYTES: usize = 8;
const FRAME_HEADER_BYTES: usize = 8;

/// What kind of file it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// The first four bytes.
    pub(crate) magic: &'static [u8; 4],
    /// The version that is written, and the only one that is read.
    pub(crate) version: u16,
    /// For people: "not a …".
    pub(crate) name: &'static str,
}

/// A frame that was found, and where it begins in its file, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) position: u64,
    pub(crate) body: Bytes,
}

/// An open file of frames with its one writer.
#[derive(Debug)]
pub(crate) struct FrameFile {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    format: Format,
    file: Arc<dyn DiskFile>,
    /// Bytes that are flushed.
    size: u64,
    /// Set once what is on the disk is unknown.
    broken: Option<String>,
}

impl FrameFile {
    /// Opens the file at `path` with the frames that are in it, or makes an empty one.
    ///
    /// # Errors
    /// The system's, [`Error::Corrupt`] and [`Error::FormatVersion`].
    pub(crate) fn open(
        path: &Path,
        disk: &Arc<dyn Disk>,
        format: Format,
    ) -> Result<(Self, Vec<Frame>), Error> {
        let (file, size, frames) = match disk.open(path) {
            Ok(file) => {
                let (size, frames) = recover(&*file, path, format)?;
                (file, size, frames)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (file, size) = put_whole(path, &**disk, format, &[])?;
                disk::sync_folder(&**disk, folder_of(path))?;
                (file, size, Vec::new())
            }
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        let path = path.to_owned();
        Ok((Self { path, disk: Arc::clone(disk), format, file, size, broken: None }, frames))
    }

    /// Adds a frame, durably.
    ///
    /// # Errors
    /// If it is not there; if [`Error::passes`] it may be tried again. After a failed flush, for
    /// good: it is then unknown whether it is there.
    pub(crate) fn append(&mut self, body: &[u8]) -> Result<(), Error> {
        self.usable()?;
        let frame = encode_frame(body);
        let length = frame.len() as u64;
        if let Err(error) = self.file.write_all_at(&[frame.into()], self.size) {
            if let Err(cut) = self.file.truncate(self.size) {
                self.broken = Some(format!("a failed write could not be taken back: {cut}"));
            }
            return Err(Error::io("write", &self.path)(error));
        }
        if let Err(source) = self.file.sync() {
            self.broken = Some(format!("a flush failed: {source}; restart the node"));
            return Err(Error::Io { operation: "flush", path: self.path.clone(), source });
        }
        self.size += length;
        Ok(())
    }

    /// Puts a file with only these frames in place of this one.
    ///
    /// # Errors
    /// The old file stays in use, unless it is unknown which of the two a power cut would leave:
    /// then nothing more is taken.
    pub(crate) fn replace(&mut self, bodies: &[Vec<u8>]) -> Result<(), Error> {
        self.usable()?;
        (self.file, self.size) = put_whole(&self.path, &*self.disk, self.format, bodies)?;
        disk::sync_folder(&*self.disk, folder_of(&self.path)).inspect_err(|error| {
            let error = error.full_text();
            self.broken = Some(format!("a flush failed: {error}; restart the node"));
        })
    }

    /// Its length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Which file it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn usable(&self) -> Result<(), Error> {
        match &self.broken {
            Some(broken) => Err(Error::corrupt(&self.path, self.size, broken.clone())),
            None => Ok(()),
        }
    }
}

/// Replaces the file at `path` by one with a single frame, durably.
///
/// # Errors
/// The system's; the old file or the new one is there.
pub(crate) fn replace_single(
    path: &Path,
    disk: &dyn Disk,
    format: Format,
    body: Vec<u8>,
) -> Result<(), Error> {
    put_whole(path, disk, format, &[body])?;
    disk::sync_folder(disk, folder_of(path))
}

/// Reads a file that [`replace_single`] wrote; `None` if it is not there.
///
/// # Errors
/// The system's, [`Error::Corrupt`] and [`Error::FormatVersion`].
pub(crate) fn read_single(
    path: &Path,
    disk: &dyn Disk,
    format: Format,
) -> Result<Option<Bytes>, Error> {
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let contents = read_whole(&*file, path)?;
    let (mut frames, whole) = split(path, &contents, format)?;
    match frames.pop() {
        Some(frame) if frames.is_empty() && whole == contents.len() => Ok(Some(frame.body)),
        _ => Err(Error::corrupt(path, whole as u64, format!("not one whole {}", format.name))),
    }
}

/// Cuts what was being written at a crash, and makes the rest survive the next one.
fn recover(file: &dyn DiskFile, path: &Path, format: Format) -> Result<(u64, Vec<Frame>), Error> {
    let contents = read_whole(file, path)?;
    let (frames, whole) = split(path, &contents, format)?;
    if whole < contents.len() {
        file.truncate(whole as u64).map_err(Error::io("cut", path))?;
    }
    // In place, which needs no room: the last frame may be one whose flush failed.
    disk::write_again(file, path, 0, whole as u64)?;
    Ok((whole as u64, frames))
}

fn put_whole(
    path: &Path,
    disk: &dyn Disk,
    format: Format,
    bodies: &[Vec<u8>],
) -> Result<(Arc<dyn DiskFile>, u64), Error> {
    let mut contents = Vec::new();
    contents.put_slice(format.magic);
    contents.put_u16(format.version);
    contents.put_u16(0);
    for body in bodies {
        contents.extend(encode_frame(body));
    }
    let size = contents.len() as u64;
    let file = disk::put_in_place(path, |beside| {
        let file = disk.create(beside)?;
        file.write_all_at(&[contents.into()], 0)?;
        file.sync()?;
        Ok(file)
    })?;
    Ok((file, size))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn read_whole(file: &dyn DiskFile, path: &Path) -> Result<Bytes, Error> {
    let length = file.len().map_err(Error::io("read", path))?;
    let length = usize::try_from(length).map_err(|_| Error::corrupt(path, 0, "too long"))?;
    let mut contents = vec![0; length];
    let read = file.read_at(&mut contents, 0).map_err(Error::io("read", path))?;
    contents.truncate(read);
    Ok(contents.into())
}

fn encode_frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a frame is at most megabytes");
    let mut checked = Vec::with_capacity(4 + body.len());
    checked.put_u32(length);
    checked.put_slice(body);
    let mut frame = Vec::with_capacity(4 + checked.len());
    frame.put_u32(crc32c::crc32c(&checked));
    frame.put_slice(&checked);
    frame
}

/// The frames, and how many bytes of the file are whole frames.
fn split(path: &Path, contents: &Bytes, format: Format) -> Result<(Vec<Frame>, usize), Error> {
    let header = contents
        .get(..FILE_HEADER_BYTES)
        .and_then(|header| header.strip_prefix(format.magic))
        .ok_or_else(|| Error::corrupt(path, 0, format!("not a {}", format.name)))?;
    let version = u16::from_be_bytes([header[0], header[1]]);
    if version != format.version {
        return Err(Error::FormatVersion {
            path: path.to_owned(),
            found: version.into(),
            supported: format.version.into(),
        });
    }
    let mut frames = Vec::new();
    let mut position = FILE_HEADER_BYTES;
    while position < contents.len() {
        let Some(end) = frame_end(&contents[position..]) else {
            let behind = (position + 1..contents.len())
                .find(|behind| frame_end(&contents[*behind..]).is_some());
            return match behind {
                None => Ok((frames, position)),
                Some(behind) => Err(Error::corrupt(
                    path,
                    position as u64,
                    format!("valid bytes stand behind it, at byte {behind}; restore a copy"),
                )),
            };
        };
        let body = contents.slice(position + FRAME_HEADER_BYTES..position + end);
        frames.push(Frame { position: position as u64, body });
        position += end;
    }
    Ok((frames, position))
}

/// Where the frame at the front of `contents` ends, if it is a whole and valid one.
fn frame_end(contents: &[u8]) -> Option<usize> {
    let mut numbers = contents;
    let checksum = numbers.try_get_u32().ok()?;
    let length = usize::try_from(numbers.try_get_u32().ok()?).ok()?;
    let end = FRAME_HEADER_BYTES.checked_add(length)?;
    let checked = contents.get(4..end)?;
    (length > 0 && crc32c::crc32c(checked) == checksum).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::FileSystem;

    const FORMAT: Format = Format { magic: b"TEST", version: 3, name: "test file" };

    fn open(path: &Path) -> Result<(FrameFile, Vec<String>), Error> {
        let disk: Arc<dyn Disk> = Arc::new(FileSystem);
        let (file, frames) = FrameFile::open(path, &disk, FORMAT)?;
        let text = |frame: Frame| String::from_utf8(frame.body.to_vec()).unwrap();
        Ok((file, frames.into_iter().map(text).collect()))
    }

    #[test]
    fn a_torn_last_frame_is_cut_at_every_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames");
        let (mut file, _) = open(&path).unwrap();
        let mut ends = vec![file.size()];
        for body in ["one", "two", "three"] {
            file.append(body.as_bytes()).unwrap();
            ends.push(file.size());
        }
        let whole = std::fs::read(&path).unwrap();
        for length in ends[0]..=ends[3] {
            std::fs::write(&path, &whole[..usize::try_from(length).unwrap()]).unwrap();
            let kept = ends.iter().filter(|end| **end <= length).count() - 1;
            let (mut file, found) = open(&path).unwrap();
            assert_eq!(found, ["one", "two", "three"][..kept], "cut to {length} bytes");
            file.append(b"more").unwrap();
            assert_eq!(open(&path).unwrap().1.last().unwrap(), "more");
        }
    }

    #[test]
    fn damage_before_a_valid_frame_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames");
        let (mut file, _) = open(&path).unwrap();
        file.append(b"first").unwrap();
        let last = usize::try_from(file.size()).unwrap();
        file.append(b"second").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for position in FILE_HEADER_BYTES..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x20;
            std::fs::write(&path, &damaged).unwrap();
            match open(&path) {
                Err(Error::Corrupt { .. }) => assert!(position < last, "byte {position}"),
                Ok((_, found)) => {
                    assert!(position >= last, "byte {position}");
                    assert_eq!(found, ["first"]);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_file_of_another_kind_or_version_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frames");
        std::fs::write(&path, b"ELSE\0\x03\0\0").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("not a test file"));
        std::fs::write(&path, b"TEST\0\x04\0\0").unwrap();
        assert!(matches!(open(&path), Err(Error::FormatVersion { found: 4, supported: 3, .. })));
    }

    #[test]
    fn a_single_frame_is_whole_or_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("single");
        assert_eq!(read_single(&path, &FileSystem, FORMAT).unwrap(), None);
        replace_single(&path, &FileSystem, FORMAT, b"old".to_vec()).unwrap();
        replace_single(&path, &FileSystem, FORMAT, b"new".to_vec()).unwrap();
        assert_eq!(read_single(&path, &FileSystem, FORMAT).unwrap().unwrap(), "new");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = read_single(&path, &FileSystem, FORMAT).unwrap_err();
            assert!(matches!(error, Error::Corrupt { .. }), "cut to {length}: {error}");
        }
    }
}
