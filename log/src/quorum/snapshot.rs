//! The newest snapshot of the image on disk: what stands for all entries before it.
//!
//! The file is `snapshot`, one frame ([`crate::storage::frames`], magic `TWMS`, version 1), replaced
//! whole. Its body is a JSON object: `meta`, openraft's `SnapshotMeta` (the last entry, the members,
//! an id), and `image`, the [`Image`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::types::{LogId, SnapshotMeta};
use crate::Error;
use crate::metadata::Image;
use crate::storage::Disk;
use crate::storage::frames::{self, Format};
use crate::storage::partition::lock;

const FORMAT: Format = Format { magic: b"TWMS", version: 1, name: "snapshot of metadata" };

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored<I> {
    meta: SnapshotMeta,
    image: I,
}

/// What entries the file stands for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Durable {
    /// The last of them.
    pub(crate) last: Option<LogId>,
    /// Why no newer snapshot can come.
    pub(crate) failed: Option<String>,
}

/// The file with its one writer at a time.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    durable: watch::Sender<Durable>,
    /// Held while the file is replaced: a snapshot that is made here and one that comes from the
    /// leader may meet.
    writing: Mutex<()>,
}

impl SnapshotFile {
    /// Opens the file at `path`, with what is in it, if it is there.
    ///
    /// # Errors
    /// The system's, [`Error::Corrupt`] and [`Error::FormatVersion`].
    pub(crate) fn open(
        path: &Path,
        disk: &Arc<dyn Disk>,
    ) -> Result<(Self, Option<(SnapshotMeta, Image)>), Error> {
        let found = read(path, &**disk)?;
        let last = found.as_ref().and_then(|(meta, _)| meta.last_log_id);
        let file = Self {
            path: path.to_owned(),
            disk: Arc::clone(disk),
            durable: watch::Sender::new(Durable { last, failed: None }),
            writing: Mutex::new(()),
        };
        Ok((file, found))
    }

    /// What is in the file.
    ///
    /// # Errors
    /// As [`SnapshotFile::open`].
    pub(crate) fn read(&self) -> Result<Option<(SnapshotMeta, Image)>, Error> {
        let _writing = lock(&self.writing);
        read(&self.path, &*self.disk)
    }

    /// Puts a snapshot in place of the one that is there, durably, unless that is newer.
    ///
    /// # Errors
    /// The system's; then the old one is still there.
    pub(crate) fn replace(&self, meta: &SnapshotMeta, image: &Image) -> Result<(), Error> {
        let _writing = lock(&self.writing);
        if self.durable.borrow().last > meta.last_log_id {
            return Ok(());
        }
        let stored = Stored { meta: meta.clone(), image };
        let body = serde_json::to_vec(&stored).expect("an image is made of maps with plain keys");
        frames::replace_single(&self.path, &*self.disk, FORMAT, body)?;
        self.durable.send_modify(|durable| durable.last = meta.last_log_id);
        Ok(())
    }

    /// Tells who waits that no newer snapshot comes.
    pub(crate) fn fail(&self, reason: &Error) {
        self.durable.send_modify(|durable| durable.failed = Some(reason.full_text()));
    }

    /// Which entries the file stands for, as that changes.
    pub(crate) fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.subscribe()
    }
}

fn read(path: &Path, disk: &dyn Disk) -> Result<Option<(SnapshotMeta, Image)>, Error> {
    let Some(body) = frames::read_single(path, disk, FORMAT)? else { return Ok(None) };
    let stored: Stored<Image> = serde_json::from_slice(&body)
        .map_err(|error| Error::corrupt(path, 0, format!("not a snapshot: {error}")))?;
    Ok(Some((stored.meta, stored.image)))
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;
    use crate::metadata::{MetadataIndex, Record};
    use crate::storage::FileSystem;

    fn snapshot(index: u64) -> (SnapshotMeta, Image) {
        let mut image = Image::default();
        image.apply(MetadataIndex::new(index), &[Record::ProducerIds { next: 1000 }]);
        let meta = SnapshotMeta {
            last_log_id: Some(LogId::new(CommittedLeaderId::new(1, 1), index)),
            snapshot_id: format!("1-1-{index}"),
            ..SnapshotMeta::default()
        };
        (meta, image)
    }

    #[test]
    fn the_newest_snapshot_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot");
        let disk: Arc<dyn Disk> = Arc::new(FileSystem);
        let (file, found) = SnapshotFile::open(&path, &disk).unwrap();
        assert!(found.is_none());
        for index in [4, 9, 7] {
            let (meta, image) = snapshot(index);
            file.replace(&meta, &image).unwrap();
        }
        assert_eq!(file.read().unwrap(), Some(snapshot(9)));
        let (file, found) = SnapshotFile::open(&path, &disk).unwrap();
        assert_eq!(found, Some(snapshot(9)));
        assert_eq!(file.durable().borrow().last, snapshot(9).0.last_log_id);
    }
}
