//! The entry that is being put together, and the image as it will be with it.
//!
//! Each decision writes its records through [`Draft::write`], so that the next decision of the same
//! entry sees them. A decision checks all it has to check before it writes anything: what is
//! refused leaves no trace.

use std::collections::BTreeSet;

use tailwater_kafka::{BrokerId, PartitionId, TopicId};

use super::partitions::{Wanted, settle};
use super::settings::Settings;
use crate::metadata::{Image, PartitionState, Record};

/// Records to be proposed together.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    image: &'a mut Image,
    settings: &'a Settings,
    records: Vec<Record>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(image: &'a mut Image, settings: &'a Settings) -> Self {
        Self { image, settings, records: Vec::new() }
    }

    /// The metadata with the records of this draft; its index is still that of the last entry.
    pub(super) fn image(&self) -> &Image {
        self.image
    }

    pub(super) fn settings(&self) -> &'a Settings {
        self.settings
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        self.records
    }

    pub(super) fn write(&mut self, record: Record) {
        self.image.apply_record(&record);
        self.records.push(record);
    }

    /// Brings a partition as near to `wanted` as the rules allow, and returns what it then is;
    /// `None` if there is no such partition.
    pub(super) fn settle(
        &mut self,
        topic: TopicId,
        partition: PartitionId,
        wanted: impl FnOnce(&PartitionState) -> Wanted,
    ) -> Option<PartitionState> {
        let known = self.image.topic(topic)?;
        let old = known.partitions.get(&partition)?;
        let min_isr = |state: &PartitionState| self.image.min_isr(known, state);
        let Some(state) = settle(old, wanted(old), self.image.brokers(), min_isr) else {
            return Some(old.clone());
        };
        self.write(Record::Partition { topic, partition, state: state.clone() });
        Some(state)
    }

    /// Settles every partition that has a replica on one of `brokers`: something about these has
    /// changed. What they had is `lost` where that says so.
    pub(super) fn resettle(
        &mut self,
        brokers: &BTreeSet<BrokerId>,
        lost: impl Fn(BrokerId, &PartitionState) -> bool,
    ) {
        let concerned: Vec<_> = self
            .image
            .partitions()
            .filter(|(.., state)| state.replicas.iter().any(|id| brokers.contains(id)))
            .map(|(topic, _, partition, _)| (topic, partition))
            .collect();
        for (topic, partition) in concerned {
            self.settle(topic, partition, |state| {
                let lost = brokers.iter().copied().filter(|id| lost(*id, state)).collect();
                Wanted { lost, ..Wanted::as_it_is(state) }
            });
        }
    }

    /// Settles every partition.
    pub(super) fn resettle_all(&mut self) {
        let all: Vec<_> =
            self.image.partitions().map(|(topic, _, number, _)| (topic, number)).collect();
        for (topic, partition) in all {
            self.settle(topic, partition, Wanted::as_it_is);
        }
    }
}
