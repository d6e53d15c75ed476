//! What committed entries come to: the image, and the last entries for who follows it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};

use super::log_store::cause;
use super::patience::Patience;
use super::snapshot::SnapshotFile;
use super::types::{
    Entry, LogId, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use crate::metadata::{Image, MetadataIndex, Record};
use crate::storage::partition::lock;

/// Entries that are kept for who follows the image: some minutes of a busy cluster.
const RECENT_ENTRIES: usize = 1024;

/// Records in them, so that entries with thousands do not pile up.
const RECENT_RECORDS: usize = 1 << 16;

/// What follows an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum After {
    /// Too much: the image stands for it.
    Behind {
        /// The newest there is.
        image: Arc<Image>,
    },
    /// These, in order; none if there is nothing new.
    Entries(Vec<(MetadataIndex, Arc<[Record]>)>),
}

/// The image of one member and how it came about. Shared: openraft applies, everyone reads.
#[derive(Debug)]
pub(crate) struct Machine {
    applied: Mutex<Applied>,
    snapshots: SnapshotFile,
}

#[derive(Debug, Default)]
struct Applied {
    image: Arc<Image>,
    last: Option<LogId>,
    membership: StoredMembership,
    recent: VecDeque<(MetadataIndex, Arc<[Record]>)>,
    recent_records: usize,
    /// All entries with records after this one are in `recent`.
    recent_after: MetadataIndex,
}

impl Machine {
    /// A machine that has applied what the snapshot stands for.
    pub(crate) fn new(snapshots: SnapshotFile, found: Option<(SnapshotMeta, Image)>) -> Self {
        let mut applied = Applied::default();
        if let Some((meta, image)) = found {
            applied.restart_at(&meta, Arc::new(image));
        }
        Self { applied: Mutex::new(applied), snapshots }
    }

    /// The newest image.
    pub(crate) fn image(&self) -> Arc<Image> {
        Arc::clone(&lock(&self.applied).image)
    }

    /// The members as of the last applied entry.
    pub(crate) fn membership(&self) -> StoredMembership {
        lock(&self.applied).membership.clone()
    }

    /// What was applied after `index`.
    pub(crate) fn entries_after(&self, index: MetadataIndex) -> After {
        let applied = lock(&self.applied);
        if index < applied.recent_after {
            return After::Behind { image: Arc::clone(&applied.image) };
        }
        let first = applied.recent.partition_point(|(entry, _)| *entry <= index);
        After::Entries(applied.recent.range(first..).cloned().collect())
    }

    fn view(&self) -> (SnapshotMeta, Arc<Image>) {
        let applied = lock(&self.applied);
        let snapshot_id = applied.last.map_or_else(String::new, |last| {
            format!("{}-{}-{}", last.leader_id.term, last.leader_id.node_id, last.index)
        });
        let last_membership = applied.membership.clone();
        let meta = SnapshotMeta { last_log_id: applied.last, last_membership, snapshot_id };
        (meta, Arc::clone(&applied.image))
    }
}

impl Applied {
    fn restart_at(&mut self, meta: &SnapshotMeta, image: Arc<Image>) {
        *self = Self {
            last: meta.last_log_id,
            membership: meta.last_membership.clone(),
            recent_after: image.index(),
            image,
            ..Self::default()
        };
    }

    fn apply(&mut self, entry: Entry) -> MetadataIndex {
        let index = MetadataIndex::new(entry.log_id.index);
        self.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(members) => {
                self.membership = StoredMembership::new(Some(entry.log_id), members);
            }
            EntryPayload::Normal(proposal) if proposal.0.is_empty() => {}
            EntryPayload::Normal(proposal) => {
                Arc::make_mut(&mut self.image).apply(index, &proposal.0);
                self.remember(index, proposal.0);
            }
        }
        index
    }

    fn remember(&mut self, index: MetadataIndex, records: Arc<[Record]>) {
        self.recent_records += records.len();
        self.recent.push_back((index, records));
        while self.recent.len() > RECENT_ENTRIES
            || (self.recent_records > RECENT_RECORDS && self.recent.len() > 1)
        {
            let Some((index, records)) = self.recent.pop_front() else { return };
            self.recent_records -= records.len();
            self.recent_after = index;
        }
    }
}

/// The machine as openraft asks for it, and as the builder of its snapshots.
#[derive(Debug, Clone)]
pub(crate) struct MachineStore {
    machine: Arc<Machine>,
    patience: Patience,
}

impl MachineStore {
    pub(crate) fn new(machine: Arc<Machine>, patience: Patience) -> Self {
        Self { machine, patience }
    }

    async fn store(&self, meta: &SnapshotMeta, image: &Image) -> Result<(), StorageError> {
        let snapshots = &self.machine.snapshots;
        let stored = self.patience.insist(|| snapshots.replace(meta, image)).await;
        stored.map_err(|error| {
            snapshots.fail(&error);
            StorageIOError::write_snapshot(Some(meta.signature()), cause(&error)).into()
        })
    }
}

impl RaftSnapshotBuilder<TypeConfig> for MachineStore {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (meta, image) = self.machine.view();
        self.store(&meta, &image).await?;
        Ok(Snapshot { meta, snapshot: Box::new(image) })
    }
}

impl RaftStateMachine<TypeConfig> for MachineStore {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let applied = lock(&self.machine.applied);
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<MetadataIndex>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = lock(&self.machine.applied);
        Ok(entries.into_iter().map(|entry| applied.apply(entry)).collect())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Arc<Image>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Arc<Image>>,
    ) -> Result<(), StorageError> {
        self.store(meta, &snapshot).await?;
        lock(&self.machine.applied).restart_at(meta, *snapshot);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        match self.machine.snapshots.read() {
            Ok(found) => {
                Ok(found
                    .map(|(meta, image)| Snapshot { meta, snapshot: Box::new(Arc::new(image)) }))
            }
            Err(error) => Err(StorageIOError::read_snapshot(None, cause(&error)).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::super::types::Proposal;
    use super::*;

    fn entry(index: u64, records: usize) -> Entry {
        let records = vec![Record::ProducerIds { next: index.cast_signed() }; records];
        Entry {
            log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(Proposal(records.into())),
        }
    }

    fn machine() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        let disk: Arc<dyn crate::storage::Disk> = Arc::new(crate::storage::FileSystem);
        let (snapshots, found) = SnapshotFile::open(&folder.path().join("none"), &disk).unwrap();
        Machine::new(snapshots, found)
    }

    fn indexes(after: After) -> Option<Vec<u64>> {
        match after {
            After::Behind { .. } => None,
            After::Entries(entries) => Some(entries.iter().map(|(index, _)| index.get()).collect()),
        }
    }

    #[test]
    fn who_follows_gets_what_is_new_or_the_image() {
        let machine = machine();
        let after = |index| indexes(machine.entries_after(MetadataIndex::new(index)));
        assert_eq!(after(0), Some(vec![]));
        // Entry 2 says nothing: a leader began its reign.
        for (index, records) in [(1, 1), (2, 0), (3, 2)] {
            lock(&machine.applied).apply(entry(index, records));
        }
        assert_eq!(after(0), Some(vec![1, 3]));
        assert_eq!(after(2), Some(vec![3]));
        assert_eq!(after(3), Some(vec![]));
        assert_eq!(after(9), Some(vec![]), "the member itself is behind");
        for index in 4..4 + RECENT_ENTRIES as u64 {
            lock(&machine.applied).apply(entry(index, 1));
        }
        assert_eq!(after(2), None);
        assert_eq!(after(3).unwrap().len(), RECENT_ENTRIES);
    }

    #[test]
    fn large_entries_do_not_pile_up() {
        let machine = machine();
        for index in 1..=4 {
            lock(&machine.applied).apply(entry(index, RECENT_RECORDS / 2 + 1));
        }
        let after = |index| indexes(machine.entries_after(MetadataIndex::new(index)));
        assert_eq!(after(2), None);
        assert_eq!(after(3), Some(vec![4]));
    }

    #[test]
    fn a_snapshot_takes_the_place_of_everything() {
        let machine = machine();
        lock(&machine.applied).apply(entry(1, 1));
        let mut image = Image::default();
        image.apply(MetadataIndex::new(7), &[Record::ProducerIds { next: 7000 }]);
        let meta = SnapshotMeta {
            last_log_id: Some(LogId::new(CommittedLeaderId::new(1, 1), 9)),
            ..SnapshotMeta::default()
        };
        lock(&machine.applied).restart_at(&meta, Arc::new(image.clone()));
        assert_eq!(
            machine.entries_after(MetadataIndex::new(1)),
            After::Behind { image: Arc::new(image) }
        );
        // Who took that image is not behind any more.
        let after = |index| indexes(machine.entries_after(MetadataIndex::new(index)));
        assert_eq!(after(7), Some(vec![]));
        lock(&machine.applied).apply(entry(10, 1));
        assert_eq!(after(7), Some(vec![10]));
    }
}
