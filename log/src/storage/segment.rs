//! The files of a partition: a run of segments, each named by the offset it begins with.
//!
//! Only the last segment is written, all others are sealed and whole on the disk: a segment is
//! flushed before the next one is made, whatever the flush policy.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tailwater_kafka::Offset;

use crate::Error;
use crate::storage::disk::DiskFile;
use crate::storage::index::SegmentIndex;

/// A segment that is no longer written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedSegment {
    /// The offset in its name: at or before its first record.
    pub(crate) base: Offset,
    /// First offset after it.
    pub(crate) end: Offset,
    /// Its length in bytes.
    pub(crate) size: u64,
    /// Greatest record timestamp in ms; -1 with none.
    pub(crate) max_timestamp: i64,
    /// When its last batch was written, ms: by the node's clock, after a restart by the file's.
    pub(crate) written_ms: i64,
}

/// The segment that is written.
#[derive(Debug, Clone)]
pub(crate) struct ActiveSegment {
    pub(crate) base: Offset,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Bytes written, by whole batches; the file may be longer for a moment after a failed write.
    pub(crate) size: u64,
    pub(crate) index: SegmentIndex,
    /// When its first batch was written by the node's clock, ms; `None` while it is empty.
    pub(crate) began_ms: Option<i64>,
    /// When its last batch was written, ms: by the node's clock, after a restart by the file's.
    pub(crate) written_ms: i64,
}

/// The kinds of files that come per segment or per offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Record batches.
    Log,
    /// Offset and time index, and the seal.
    Index,
    /// State of the producers below the offset in its name.
    Producers,
}

impl Kind {
    fn extension(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Index => "index",
            Self::Producers => "producers",
        }
    }
}

/// The path of a file of `kind` for `offset`: twenty digits, so that names sort by offset.
pub(crate) fn path(folder: &Path, offset: Offset, kind: Kind) -> PathBuf {
    folder.join(format!("{:020}.{}", offset.get(), kind.extension()))
}

/// The offsets for which `folder` has a file of `kind`, rising.
pub(crate) fn list(folder: &Path, kind: Kind) -> Result<Vec<Offset>, Error> {
    let mut offsets = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.extension().is_some_and(|extension| extension == kind.extension())
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            && stem.len() == 20
            && let Ok(offset) = stem.parse::<i64>()
        {
            offsets.push(Offset::new(offset));
        }
    }
    offsets.sort_unstable();
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_offset_and_strangers_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for offset in [100, 9, i64::MAX, 0] {
            fs::write(path(folder.path(), Offset::new(offset), Kind::Log), b"").unwrap();
        }
        for stranger in ["partition.json", "7.log", "0000000000000000000x.log", "flushed"] {
            fs::write(folder.path().join(stranger), b"").unwrap();
        }
        let offsets: Vec<_> =
            list(folder.path(), Kind::Log).unwrap().into_iter().map(Offset::get).collect();
        assert_eq!(offsets, [0, 9, 100, i64::MAX]);
        assert!(list(folder.path(), Kind::Index).unwrap().is_empty());
    }
}
