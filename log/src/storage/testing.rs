//! What this crate's unit tests share.

use std::sync::Arc;

use bytes::BytesMut;
use tailwater_kafka::{BatchBuilder, BatchStamp, LeaderEpoch, Offset, RecordBatch, place};

use crate::Config;
use crate::storage::folder_lock::FolderLock;
use crate::storage::partition::Shared;
use crate::storage::reserve::Reserve;
use crate::storage::{Disk, FileSystem};

/// What a node of its own shares, for a journal under test.
pub(crate) fn shared() -> Shared {
    shared_on(Arc::new(FileSystem))
}

/// As [`shared`], with files on `disk`.
pub(crate) fn shared_on(disk: Arc<dyn Disk>) -> Shared {
    let folder = tempfile::tempdir().unwrap();
    let folder_lock = FolderLock::take(folder.path()).unwrap();
    let reserve = Reserve::open(folder.path(), 0);
    Shared::new(Config { disk, ..Config::new(folder.path()) }, folder_lock, reserve)
}

/// A batch of `count` records at `base`, record `n` with timestamp `1000 * n`.
pub(crate) fn batch_at(base: i64, count: i64) -> RecordBatch {
    stamped(base, count, BatchStamp::default())
}

/// A batch like [`batch_at`]'s, of a producer.
pub(crate) fn stamped(base: i64, count: i64, stamp: BatchStamp) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(256);
    for offset in base..base + count {
        let value = format!("value {offset}");
        builder.append(Some(&offset.to_be_bytes()), Some(&[value.as_bytes()]), 1000 * offset, &[]);
    }
    let mut bytes = BytesMut::from(builder.finish(stamp).unwrap());
    place(&mut bytes, Offset::new(base), LeaderEpoch::new(0)).unwrap();
    RecordBatch::parse(bytes.freeze()).unwrap().unwrap().0
}
