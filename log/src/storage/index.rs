//! Finding a record in a segment by its offset or by its time, without reading the segment.
//!
//! One sparse index serves both: an entry at least every [`INDEX_INTERVAL_BYTES`] of log, holding
//! where a batch begins and the greatest timestamp *before* it. That timestamp never falls from
//! entry to entry although record timestamps may, so both columns can be searched by halves, and a
//! search by time may begin at the last entry before which everything is older.
//!
//! While a segment is being written its index lives in memory. When the segment is sealed (by a
//! roll, or by a clean shutdown) the index is written beside it, and its header doubles as the
//! **seal**: it names the segment's length and end offset, so a segment whose length is not the
//! sealed one is known to have changed and is scanned again. An index is a cache, and one that
//! fails its checksum is made anew from the segment.
//!
//! | field | bytes | |
//! |---|---|---|
//! | magic | 4 | `TWIX` |
//! | version | 2 | 1 |
//! | reserved | 2 | 0 |
//! | checksum | 4 | CRC-32C of all that follows |
//! | entry count | 4 | |
//! | log size | 8 | bytes of the segment when it was sealed |
//! | end offset | 8 | first offset after the segment's last batch |
//! | max timestamp | 8 | greatest record timestamp in the segment, ms; -1 with none |
//! | entries | 16 each | relative base offset u32, position u32, max timestamp before i64 |
//!
//! All numbers are big-endian.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{Buf, BufMut};
use tailwater_kafka::Offset;

use crate::Error;
use crate::storage::disk;

/// An entry for at least every so many bytes of log: Kafka's `log.index.interval.bytes`. A search
/// reads at most this much (and one batch) too many, and an index is 1/256 of its segment.
pub(crate) const INDEX_INTERVAL_BYTES: u64 = 4096;

const MAGIC: &[u8; 4] = b"TWIX";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 40;
const ENTRY_BYTES: usize = 16;
/// Where the bytes under the checksum begin.
const CHECKED_FROM: usize = 12;

/// The timestamp of "no record yet".
pub(crate) const NO_TIMESTAMP: i64 = -1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    relative_offset: u32,
    position: u32,
    /// The greatest timestamp of the batches before `position` in this segment.
    max_timestamp_before: i64,
}

impl Entry {
    /// Decodes exactly [`ENTRY_BYTES`] bytes.
    fn decode(mut bytes: &[u8]) -> Self {
        Self {
            relative_offset: bytes.get_u32(),
            position: bytes.get_u32(),
            max_timestamp_before: bytes.get_i64(),
        }
    }
}

/// What a sealed segment's index says about the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal {
    /// Length of the segment in bytes.
    pub(crate) size: u64,
    /// First offset after the segment.
    pub(crate) end: Offset,
    /// Greatest record timestamp, or [`NO_TIMESTAMP`].
    pub(crate) max_timestamp: i64,
}

/// The index of a segment that is being written.
#[derive(Debug, Clone)]
pub(crate) struct SegmentIndex {
    base: Offset,
    entries: Vec<Entry>,
    max_timestamp: i64,
}

impl SegmentIndex {
    pub(crate) fn new(base: Offset) -> Self {
        Self { base, entries: Vec::new(), max_timestamp: NO_TIMESTAMP }
    }

    /// Notes a batch that begins at `position`. In order, without gaps.
    pub(crate) fn note(&mut self, base_offset: Offset, position: u64, max_timestamp: i64) {
        let due = self
            .entries
            .last()
            .is_none_or(|last| position - u64::from(last.position) >= INDEX_INTERVAL_BYTES);
        // Rolling keeps both below 2^32; an entry that would not fit is only a slower search.
        if due
            && let Ok(relative_offset) = u32::try_from(base_offset.get() - self.base.get())
            && let Ok(position) = u32::try_from(position)
        {
            self.entries.push(Entry {
                relative_offset,
                position,
                max_timestamp_before: self.max_timestamp,
            });
        }
        self.max_timestamp = self.max_timestamp.max(max_timestamp);
    }

    pub(crate) fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// A position at or before the batch that holds `offset`.
    pub(crate) fn position_of_offset(&self, offset: Offset) -> u64 {
        let relative = relative_offset(self.base, offset);
        before(&self.entries, |entry| u64::from(entry.relative_offset) <= relative)
    }

    /// A position at or before the first batch with a record at or after `timestamp_ms`.
    pub(crate) fn position_of_time(&self, timestamp_ms: i64) -> u64 {
        before(&self.entries, |entry| entry.max_timestamp_before < timestamp_ms)
    }

    /// Reads the index of a sealed segment into memory, to go on writing the segment; `None` if
    /// there is none that can be believed.
    ///
    /// # Errors
    /// The system's, other than that the file is not there.
    pub(crate) fn read(path: &Path, base: Offset) -> Result<Option<(Self, Seal)>, Error> {
        let Some(contents) = disk::read_if_exists(path)? else { return Ok(None) };
        let Some(seal) = decode_seal(&contents) else { return Ok(None) };
        let entries = contents[HEADER_BYTES..].chunks_exact(ENTRY_BYTES).map(Entry::decode);
        let index = Self { base, entries: entries.collect(), max_timestamp: seal.max_timestamp };
        Ok(Some((index, seal)))
    }

    /// Writes the index beside its sealed segment.
    ///
    /// # Errors
    /// The system's; the segment is whole without it.
    pub(crate) fn write(&self, path: &Path, size: u64, end: Offset) -> Result<(), Error> {
        disk::replace_cache_file(path, &self.encode(size, end))
    }

    fn encode(&self, size: u64, end: Offset) -> Vec<u8> {
        let mut checked = Vec::with_capacity(HEADER_BYTES + self.entries.len() * ENTRY_BYTES);
        // An index has an entry per 4 KiB of a segment below 4 GiB.
        checked.put_u32(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
        checked.put_u64(size);
        checked.put_i64(end.get());
        checked.put_i64(self.max_timestamp);
        for entry in &self.entries {
            checked.put_u32(entry.relative_offset);
            checked.put_u32(entry.position);
            checked.put_i64(entry.max_timestamp_before);
        }
        let mut file = Vec::with_capacity(CHECKED_FROM + checked.len());
        file.put_slice(MAGIC);
        file.put_u16(VERSION);
        file.put_u16(0);
        file.put_u32(crc32c::crc32c(&checked));
        file.put_slice(&checked);
        file
    }
}

/// Reads the seal of a segment; `None` if there is none that can be believed.
///
/// # Errors
/// The system's, other than that the file is not there.
pub(crate) fn read_seal(path: &Path) -> Result<Option<Seal>, Error> {
    Ok(disk::read_if_exists(path)?.and_then(|contents| decode_seal(&contents)))
}

fn decode_seal(contents: &[u8]) -> Option<Seal> {
    let (head, checked) = contents.split_at_checked(CHECKED_FROM)?;
    let (mut numbers, mut body) = (head.strip_prefix(MAGIC)?, checked);
    let (version, _reserved) = (numbers.get_u16(), numbers.get_u16());
    let checksum = numbers.get_u32();
    if version != VERSION || crc32c::crc32c(checked) != checksum || contents.len() < HEADER_BYTES {
        return None;
    }
    let count = usize::try_from(body.get_u32()).ok()?;
    let (size, end, max_timestamp) = (body.get_u64(), body.get_i64(), body.get_i64());
    (body.len() == count.checked_mul(ENTRY_BYTES)?).then(|| Seal {
        size,
        end: Offset::new(end),
        max_timestamp,
    })
}

/// Searches the index file of a sealed segment, a few small reads instead of the whole.
#[derive(Debug)]
pub(crate) struct IndexFile {
    file: File,
    entry_count: u64,
}

impl IndexFile {
    /// Opens an index whose seal has been read before.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open index", path))?;
        let size = file.metadata().map_err(Error::io("open index", path))?.len();
        let entry_count = size.saturating_sub(HEADER_BYTES as u64) / ENTRY_BYTES as u64;
        Ok(Self { file, entry_count })
    }

    pub(crate) fn position_of_offset(&self, base: Offset, offset: Offset) -> std::io::Result<u64> {
        let relative = relative_offset(base, offset);
        self.before(|entry| u64::from(entry.relative_offset) <= relative)
    }

    pub(crate) fn position_of_time(&self, timestamp_ms: i64) -> std::io::Result<u64> {
        self.before(|entry| entry.max_timestamp_before < timestamp_ms)
    }

    /// The position of the last entry for which `is_before` holds: it must hold for a prefix.
    fn before(&self, is_before: impl Fn(&Entry) -> bool) -> std::io::Result<u64> {
        let (mut low, mut high) = (0, self.entry_count);
        let mut position = 0;
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle)?;
            if is_before(&entry) {
                position = u64::from(entry.position);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(position)
    }

    fn entry(&self, number: u64) -> std::io::Result<Entry> {
        let mut bytes = [0; ENTRY_BYTES];
        self.file.read_exact_at(&mut bytes, HEADER_BYTES as u64 + number * ENTRY_BYTES as u64)?;
        Ok(Entry::decode(&bytes))
    }
}

fn relative_offset(base: Offset, offset: Offset) -> u64 {
    u64::try_from(offset.get().saturating_sub(base.get())).unwrap_or(0)
}

/// The position of the last entry for which `is_before` holds; 0 if it holds for none.
fn before(entries: &[Entry], is_before: impl Fn(&Entry) -> bool) -> u64 {
    let count = entries.partition_point(is_before);
    count.checked_sub(1).map_or(0, |last| u64::from(entries[last].position))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentIndex {
        let mut index = SegmentIndex::new(Offset::new(100));
        // Batches of ten records and 4 KiB; the third has an older timestamp than the second.
        for (number, timestamp) in [1000, 3000, 2000, 4000].into_iter().enumerate() {
            let number = i64::try_from(number).unwrap();
            index.note(
                Offset::new(100 + 10 * number),
                4096 * u64::try_from(number).unwrap(),
                timestamp,
            );
        }
        index
    }

    #[test]
    fn finds_the_batch_at_or_before_an_offset() {
        let index = sample();
        for (offset, position) in [(100, 0), (109, 0), (110, 4096), (125, 8192), (900, 12288)] {
            assert_eq!(index.position_of_offset(Offset::new(offset)), position, "offset {offset}");
        }
    }

    #[test]
    fn starts_a_search_by_time_where_everything_before_is_older() {
        let index = sample();
        for (time, position) in [(0, 0), (1000, 0), (1001, 4096), (3000, 4096), (3001, 12288)] {
            assert_eq!(index.position_of_time(time), position, "time {time}");
        }
    }

    #[test]
    fn file_answers_like_memory_and_seals_the_segment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let index = sample();
        index.write(&path, 16384, Offset::new(140)).unwrap();
        assert_eq!(
            read_seal(&path).unwrap(),
            Some(Seal { size: 16384, end: Offset::new(140), max_timestamp: 4000 })
        );
        let file = IndexFile::open(&path).unwrap();
        for number in 90..150 {
            let offset = Offset::new(number);
            assert_eq!(
                file.position_of_offset(Offset::new(100), offset).unwrap(),
                index.position_of_offset(offset)
            );
            assert_eq!(
                file.position_of_time(number * 30).unwrap(),
                index.position_of_time(number * 30)
            );
        }
    }

    #[test]
    fn a_damaged_index_is_no_seal() {
        let whole = sample().encode(16384, Offset::new(140));
        assert!(decode_seal(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(decode_seal(&whole[..length]), None, "cut to {length} bytes");
        }
        for position in (0..6).chain(8..whole.len()) {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x10;
            assert_eq!(decode_seal(&damaged), None, "byte {position} changed");
        }
    }
}
