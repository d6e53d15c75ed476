//! The two small files beside a partition's segments.
//!
//! **`partition.json`** says what the partition is: topic id, number, first offset, leader epochs.
//! It is replaced whole and durably, rarely.
//!
//! **`flushed`** says through where the segments are known to be on the disk. It is overwritten in
//! place after every flush and *before* what was flushed is acknowledged, without a flush of its
//! own (the log does that about once a second). So after a crash of the process it is exact, and
//! after a power cut it is a lower bound, at most some seconds old. Recovery never truncates below
//! it: that is how a damaged acknowledged batch at the very end is told from a torn one.
//!
//! | field of `flushed` | bytes | |
//! |---|---|---|
//! | magic | 4 | `TWFL` |
//! | version | 2 | 1 |
//! | reserved | 2 | 0 |
//! | flushed through | 8 | first offset that is not known to be on the disk |
//! | checksum | 4 | CRC-32C of the 16 bytes before |

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use serde::{Deserialize, Serialize};
use tailwater_kafka::{LeaderEpoch, Offset, TopicId};
use uuid::Uuid;

use crate::Error;
use crate::storage::disk;
use crate::storage::epochs::EpochHistory;

const PARTITION_VERSION: u32 = 1;

/// What a partition is, as `partition.json` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionDescription {
    pub(crate) topic_id: TopicId,
    pub(crate) partition: i32,
    /// First offset that is kept.
    pub(crate) start: Offset,
    pub(crate) epochs: EpochHistory,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredDescription {
    version: u32,
    topic_id: String,
    partition: i32,
    start_offset: i64,
    leader_epochs: Vec<StoredEpoch>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredEpoch {
    epoch: i32,
    start_offset: i64,
}

impl PartitionDescription {
    pub(crate) fn read(folder: &Path) -> Result<Self, Error> {
        let path = Self::path(folder);
        let contents = disk::read_if_exists(&path)?
            .ok_or_else(|| Error::corrupt(&path, 0, "the file is missing"))?;
        let stored: StoredDescription = decode_json(&path, &contents, PARTITION_VERSION)?;
        let epochs = stored
            .leader_epochs
            .iter()
            .map(|entry| (LeaderEpoch::new(entry.epoch), Offset::new(entry.start_offset)));
        Ok(Self {
            topic_id: parse_topic_id(&path, &stored.topic_id)?,
            partition: stored.partition,
            start: Offset::new(stored.start_offset),
            epochs: EpochHistory::from_entries(epochs)
                .ok_or_else(|| Error::corrupt(&path, 0, "leader epochs do not rise"))?,
        })
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let stored = StoredDescription {
            version: PARTITION_VERSION,
            topic_id: self.topic_id.to_string(),
            partition: self.partition,
            start_offset: self.start.get(),
            leader_epochs: self
                .epochs
                .entries()
                .map(|(epoch, start)| StoredEpoch { epoch: epoch.get(), start_offset: start.get() })
                .collect(),
        };
        disk::replace_file(&Self::path(folder), &encode_json(&stored))
    }

    fn path(folder: &Path) -> PathBuf {
        folder.join("partition.json")
    }
}

/// Reads a topic id as it is written in description files.
pub(crate) fn parse_topic_id(path: &Path, text: &str) -> Result<TopicId, Error> {
    Uuid::parse_str(text)
        .map(TopicId::new)
        .map_err(|error| Error::corrupt(path, 0, format!("topic id {text:?}: {error}")))
}

/// Encodes a small description file.
pub(crate) fn encode_json(value: &impl Serialize) -> Vec<u8> {
    let mut contents = serde_json::to_vec_pretty(value).expect("plain structs encode as JSON");
    contents.push(b'\n');
    contents
}

/// The `version` of a small description file.
///
/// # Errors
/// If it is no such file, or says none.
pub(crate) fn json_version(path: &Path, contents: &[u8]) -> Result<u32, Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let unreadable = |error: serde_json::Error| Error::corrupt(path, 0, error.to_string());
    Ok(serde_json::from_slice::<Versioned>(contents).map_err(unreadable)?.version)
}

/// Decodes a small description file whose `version` must be at most `supported`.
pub(crate) fn decode_json<T: for<'de> Deserialize<'de>>(
    path: &Path,
    contents: &[u8],
    supported: u32,
) -> Result<T, Error> {
    let version = json_version(path, contents)?;
    if version == 0 || version > supported {
        return Err(Error::FormatVersion { path: path.to_owned(), found: version, supported });
    }
    serde_json::from_slice(contents).map_err(|error| Error::corrupt(path, 0, error.to_string()))
}

const MAGIC: &[u8; 4] = b"TWFL";
const VERSION: u16 = 1;
const FLUSHED_BYTES: usize = 20;

/// The open `flushed` file of a partition.
#[derive(Debug)]
pub(crate) struct FlushedFile {
    path: PathBuf,
    file: File,
    /// Written since the last [`FlushedFile::sync`].
    dirty: bool,
}

impl FlushedFile {
    /// Opens the file and reads what it says; a torn or missing one says nothing (offset 0).
    pub(crate) fn open(folder: &Path) -> Result<(Self, Offset), Error> {
        let path = folder.join("flushed");
        let through = disk::read_if_exists(&path)?.as_deref().and_then(decode_flushed);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        Ok((Self { path, file, dirty: false }, through.unwrap_or(Offset::ZERO)))
    }

    /// Says that everything below `through` is on the disk.
    pub(crate) fn write(&mut self, through: Offset) -> Result<(), Error> {
        self.file
            .write_all_at(&encode_flushed(through), 0)
            .map_err(Error::io("write", &self.path))?;
        self.dirty = true;
        Ok(())
    }

    /// Makes the file itself survive a power cut, if it changed.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        if self.dirty {
            self.file.sync_data().map_err(Error::io("flush", &self.path))?;
            self.dirty = false;
        }
        Ok(())
    }
}

fn encode_flushed(through: Offset) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FLUSHED_BYTES);
    bytes.put_slice(MAGIC);
    bytes.put_u16(VERSION);
    bytes.put_u16(0);
    bytes.put_i64(through.get());
    let checksum = crc32c::crc32c(&bytes);
    bytes.put_u32(checksum);
    bytes
}

fn decode_flushed(contents: &[u8]) -> Option<Offset> {
    let contents = contents.first_chunk::<FLUSHED_BYTES>()?;
    let (checked, mut checksum) = contents.split_at(16);
    let mut fields = checked.strip_prefix(MAGIC)?;
    if crc32c::crc32c(checked) != checksum.get_u32() || fields.get_u16() != VERSION {
        return None;
    }
    fields.advance(2);
    Some(Offset::new(fields.get_i64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushed_round_trips_and_damage_says_nothing() {
        let whole = encode_flushed(Offset::new(1 << 40));
        assert_eq!(decode_flushed(&whole), Some(Offset::new(1 << 40)));
        for length in 0..whole.len() {
            assert_eq!(decode_flushed(&whole[..length]), None);
        }
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x40;
            assert_eq!(decode_flushed(&damaged), None);
        }
    }

    #[test]
    fn flushed_is_read_back_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, through) = FlushedFile::open(folder.path()).unwrap();
        assert_eq!(through, Offset::ZERO);
        file.write(Offset::new(5)).unwrap();
        file.write(Offset::new(9)).unwrap();
        file.sync().unwrap();
        assert_eq!(FlushedFile::open(folder.path()).unwrap().1, Offset::new(9));
    }

    #[test]
    fn description_round_trips_and_names_a_newer_version() {
        let folder = tempfile::tempdir().unwrap();
        let mut epochs = EpochHistory::default();
        epochs.begin(LeaderEpoch::new(0), Offset::ZERO).unwrap();
        epochs.begin(LeaderEpoch::new(1), Offset::new(7)).unwrap();
        let description = PartitionDescription {
            topic_id: TopicId::new(Uuid::from_u128(9)),
            partition: 3,
            start: Offset::new(4),
            epochs,
        };
        description.write(folder.path()).unwrap();
        assert_eq!(PartitionDescription::read(folder.path()).unwrap(), description);

        let path = folder.path().join("partition.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert!(matches!(
            PartitionDescription::read(folder.path()),
            Err(Error::FormatVersion { found: 2, supported: 1, .. })
        ));
    }
}
