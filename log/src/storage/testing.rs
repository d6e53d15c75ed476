//! What this crate's unit tests share.

use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tailwater_kafka::{
    BatchBuilder, BatchStamp, BrokerId, LeaderEpoch, Offset, PartitionId, RecordBatch, TopicId,
    place,
};
use uuid::Uuid;

use crate::Config;
use crate::metadata::{BrokerEpoch, PartitionEpoch};
use crate::replica::{Assignment, Event};
use crate::storage::Disk;
use crate::storage::folder_lock::FolderLock;
use crate::storage::partition::{Partition, PartitionName, Shared};
use crate::storage::read::{Read, ReadBelow, ReadRequest};
use crate::storage::replicate::Answered;
use crate::storage::reserve::Reserve;
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
