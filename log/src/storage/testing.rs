//! What this crate's unit tests share.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use bytes::{Bytes, BytesMut};
use tailwater_kafka::{
    BatchBuilder, BatchStamp, BrokerId, LeaderEpoch, Offset, PartitionId, RecordBatch, TopicId,
    place,
};
use uuid::Uuid;

use crate::Config;
use crate::metadata::{BrokerEpoch, PartitionEpoch};
use crate::replica::{Assignment, Event};
use crate::storage::folder_lock::FolderLock;
use crate::storage::partition::{Partition, PartitionName, Shared};
use crate::storage::read::{Read, ReadBelow, ReadRequest};
use crate::storage::replicate::Answered;
use crate::storage::reserve::Reserve;
use crate::storage::{Disk, DiskFile, FileSystem};
use crate::topic_config::TopicConfig;

/// What a node of its own shares, with files on `disk`.
pub(crate) fn shared_on(disk: Arc<dyn Disk>) -> Shared {
    let folder = tempfile::tempdir().unwrap();
    let folder_lock = FolderLock::take(folder.path()).unwrap();
    let reserve = Reserve::open(folder.path(), 0);
    Shared::new(Config { disk, ..Config::new(folder.path()) }, folder_lock, reserve)
}

/// A partition in `folder` on `disk`, made if it is not there, with segments of a kibibyte.
pub(crate) fn partition(folder: &Path, disk: Arc<dyn Disk>) -> Partition {
    let name = PartitionName {
        topic: "t".to_owned(),
        topic_id: TopicId::new(Uuid::from_u128(7)),
        partition: PartitionId::new(0),
    };
    if !folder.exists() {
        Partition::create(folder, &name).unwrap();
    }
    let shared = shared_on(disk);
    let overrides = [("segment.bytes".to_owned(), "1024".to_owned())].into();
    let topic = TopicConfig::resolve(&shared.config, &overrides).unwrap();
    Partition::open(folder.to_owned(), name, topic, Arc::new(shared))
}

/// As [`partition`], following broker 9 in its epoch 9.
pub(crate) fn following(folder: &Path, disk: Arc<dyn Disk>) -> Partition {
    let partition = partition(folder, disk);
    assert!(!partition.tell(Event::Assigned(assignment(9, 9))));
    partition
}

/// Broker `leader` leads in that epoch, and broker 1 is with it.
pub(crate) fn assignment(leader: i32, leader_epoch: i32) -> Assignment {
    let brokers = [BrokerId::new(leader), BrokerId::new(1)];
    Assignment {
        leader: Some(brokers[0]),
        leader_epoch: LeaderEpoch::new(leader_epoch),
        partition_epoch: PartitionEpoch::new(leader_epoch),
        replicas: brokers.to_vec(),
        isr: brokers.to_vec(),
        live: brokers.iter().map(|id| (*id, BrokerEpoch::new(1))).collect(),
        min_insync: 1,
    }
}

/// What broker 9 answers in its epoch 9.
pub(crate) fn answered(records: Bytes) -> Answered {
    let leadership = (BrokerId::new(9), LeaderEpoch::new(9));
    let (high_watermark, log_start) = (Offset::ZERO, Offset::ZERO);
    Answered { leadership, records, high_watermark, log_start }
}

/// The base offsets of everything that a follower would read.
pub(crate) fn bases(partition: &Partition) -> Vec<i64> {
    let offsets = partition.offsets().unwrap();
    let (mut from, mut bases) = (offsets.start, Vec::new());
    while from < partition.written_end() {
        let request =
            ReadRequest { from, below: ReadBelow::Written, max_bytes: 1 << 20, at_least_one: true };
        let mut rest = match partition.read(request).unwrap() {
            Read::Done(found) => found.batches,
            Read::Cold(cold) => partition.read_cold(cold).unwrap().batches,
        };
        assert!(!rest.is_empty(), "nothing at {from} of {offsets:?}");
        while let Some((batch, after)) = RecordBatch::parse(rest).unwrap() {
            bases.push(batch.base_offset().get());
            from = batch.next_offset();
            rest = after;
        }
    }
    bases
}

/// A batch of `count` records at `base`, record `n` with timestamp `1000 * n`.
pub(crate) fn batch_at(base: i64, count: i64) -> RecordBatch {
    stamped(base, count, BatchStamp::default())
}

/// Batches of two records each from offset `from` to `to`, of leader epoch `epoch`, as a leader
/// sends them.
pub(crate) fn replicated(from: i64, to: i64, epoch: i32) -> Bytes {
    let mut bytes = BytesMut::new();
    for base in (from..to).step_by(2) {
        let mut batch = BytesMut::from(&batch_at(base, 2).bytes()[..]);
        place(&mut batch, Offset::new(base), LeaderEpoch::new(epoch)).unwrap();
        bytes.extend_from_slice(&batch);
    }
    bytes.freeze()
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

/// The file system, until it is told to fail.
#[derive(Debug, Clone)]
pub(crate) struct Failing(Arc<Faults>);

#[derive(Debug)]
struct Faults {
    operations_left: AtomicI64,
    is_full: AtomicBool,
    flushes_fail: AtomicBool,
}

impl Default for Failing {
    fn default() -> Self {
        Self(Arc::new(Faults {
            operations_left: AtomicI64::new(i64::MAX),
            is_full: AtomicBool::new(false),
            flushes_fail: AtomicBool::new(false),
        }))
    }
}

#[derive(Debug)]
struct FailingFile(Arc<dyn DiskFile>, Failing);

impl Failing {
    /// Breaks off after `operations` more.
    pub(crate) fn fail_after(&self, operations: i64) {
        self.0.operations_left.store(operations, Ordering::SeqCst);
    }

    /// Whether there is no room.
    pub(crate) fn fill(&self, is_full: bool) {
        self.0.is_full.store(is_full, Ordering::SeqCst);
    }

    /// Whether no flush succeeds.
    pub(crate) fn fail_flushes(&self, fail: bool) {
        self.0.flushes_fail.store(fail, Ordering::SeqCst);
    }

    fn spend(&self) -> io::Result<()> {
        if self.0.operations_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        Err(io::Error::other("broke off"))
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FailingFile(file, self.clone()))
    }
}

impl Disk for Failing {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.spend()?;
        FileSystem.create(path).map(|file| self.file(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.spend()?;
        FileSystem.open(path).map(|file| self.file(file))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.spend()?;
        FileSystem.sync_folder(path)
    }
}

impl DiskFile for FailingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buffer, position)
    }

    fn write_all_at(&self, parts: &[Bytes], position: u64) -> io::Result<()> {
        if self.1.0.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A process that dies in a write may have written all of it.
        let spent = self.1.spend();
        self.0.write_all_at(parts, position)?;
        spent
    }

    fn sync(&self) -> io::Result<()> {
        self.1.spend()?;
        if self.1.0.flushes_fail.load(Ordering::SeqCst) {
            return Err(io::Error::other("the medium failed"));
        }
        self.0.sync()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.1.spend()?;
        self.0.truncate(length)
    }
}
