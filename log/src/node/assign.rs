//! Makes each replica of this node what the metadata says that it is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tailwater_kafka::BrokerId;

use crate::Error;
use crate::controller::CopyReport;
use crate::metadata::{Image, PartitionState, Record, TopicImage};
use crate::partitions::{PartitionKey, Partitions};
use crate::replica::{Assignment, Event};
use crate::storage::flusher::Flusher;
use crate::storage::partition::{Partition, PartitionName, Shared};
use crate::topic_config::TopicConfig;

/// How many copies a heartbeat tells of: a few hundred kilobytes. The others come with the next one.
const COPIES_PER_HEARTBEAT: usize = 2_000;

/// What new metadata may have changed for the partitions of a node.
#[derive(Debug)]
pub(crate) enum Changed {
    Everything,
    These(BTreeSet<PartitionKey>),
}

impl Changed {
    pub(crate) fn none() -> Self {
        Self::These(BTreeSet::new())
    }

    /// Notes what an entry changes.
    pub(crate) fn note(&mut self, records: &[Record]) {
        let Self::These(keys) = self else { return };
        for record in records {
            match record {
                Record::Partition { topic, partition, .. } => {
                    keys.insert((*topic, *partition));
                }
                Record::ProducerIds { .. } | Record::Acl { .. } | Record::RemoveAcl { .. } => {}
                // A broker may be a replica of anything, a topic's settings hold for all of it.
                Record::Cluster { .. }
                | Record::Broker { .. }
                | Record::RemoveBroker { .. }
                | Record::Topic { .. }
                | Record::RemoveTopic { .. } => {
                    *self = Self::Everything;
                    return;
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Assigner {
    pub(crate) me: BrokerId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) flusher: Arc<Flusher>,
    /// The folder's partitions are open.
    opened: bool,
    /// Something came that could not be assigned at its time.
    behind: bool,
    /// Copied anew since the node started. What is damaged a second time stays as it is: the disk is
    /// not sound.
    copied_anew: BTreeSet<PartitionKey>,
}

impl Assigner {
    pub(crate) fn new(
        me: BrokerId,
        shared: Arc<Shared>,
        partitions: Arc<Partitions>,
        flusher: Arc<Flusher>,
    ) -> Self {
        let copied_anew = BTreeSet::new();
        Self { me, shared, partitions, flusher, opened: false, behind: false, copied_anew }
    }

    /// Metadata came that is not for this registration: the next assignment looks at everything.
    pub(crate) fn keep_for_later(&mut self) {
        self.behind = true;
    }

    /// Whether something could not be carried out, or a partition has not heard of it.
    pub(crate) fn is_behind(&mut self) -> bool {
        self.behind |= self.shared.opened_late.swap(false, Ordering::Relaxed);
        self.behind
    }

    /// Carries out what `image` says about this node.
    pub(crate) async fn assign(&mut self, image: &Arc<Image>, changed: Changed) {
        if !self.opened {
            self.behind = true;
            if let Err(error) = self.open(image).await {
                tracing::error!(error = %error.full_text(), "the data folder cannot be opened");
                return;
            }
            self.opened = true;
        }
        match changed {
            Changed::These(keys) if !self.is_behind() => {
                for key in keys {
                    self.assign_one(image, key).await;
                }
            }
            Changed::These(_) | Changed::Everything => self.assign_all(image).await,
        }
    }

    /// Of the copies here, which `image` was carried out for, those that it has otherwise than they
    /// are: usable, or not. So many at most as one heartbeat tells.
    pub(crate) fn copies_to_report(&self, image: &Image) -> Vec<CopyReport> {
        let mine = image.partitions().filter(|(.., state)| state.replicas.contains(&self.me));
        let reports = mine.filter_map(|(topic, _, partition, state)| {
            // One that could not be made is no use either.
            let copy = self.partitions.get((topic, partition));
            let offline = copy.is_none_or(|copy| copy.is_offline());
            let is_news = offline != state.offline.contains(&self.me);
            is_news.then_some(CopyReport { topic, partition, offline })
        });
        reports.take(COPIES_PER_HEARTBEAT).collect()
    }

    async fn open(&self, image: &Arc<Image>) -> Result<(), Error> {
        let (partitions, image, me) = (Arc::clone(&self.partitions), Arc::clone(image), self.me);
        self.shared.config.workers.run(move || partitions.open_all(&image, me)).await?
    }

    async fn assign_all(&mut self, image: &Arc<Image>) {
        self.behind = false;
        let here: BTreeSet<PartitionKey> =
            self.partitions.all().iter().map(|partition| partition.name.key()).collect();
        let assigned = image
            .partitions()
            .filter(|(_, _, _, state)| state.replicas.contains(&self.me))
            .map(|(topic, _, partition, _)| (topic, partition));
        let keys: BTreeSet<PartitionKey> = here.into_iter().chain(assigned).collect();
        for key in keys {
            self.assign_one(image, key).await;
        }
    }

    async fn assign_one(&mut self, image: &Arc<Image>, key: PartitionKey) {
        let known =
            image.topic(key.0).and_then(|topic| Some((topic, topic.partitions.get(&key.1)?)));
        let mine = known.filter(|(_, state)| state.replicas.contains(&self.me));
        let outcome = match (mine, self.partitions.get(key)) {
            (Some((topic, state)), Some(partition))
                if self.is_to_be_made_anew(state, &partition) =>
            {
                match self.set_aside(&partition).await {
                    Ok(()) => self.create(image, key, topic, state).await,
                    Err(error) => Err(error),
                }
            }
            (Some((topic, state)), Some(partition)) => {
                self.configure(&partition, topic);
                self.tell(&partition, assignment(image, topic, state));
                Ok(())
            }
            (Some((topic, state)), None) => self.create(image, key, topic, state).await,
            (None, Some(partition)) => self.remove(&partition).await,
            (None, None) => Ok(()),
        };
        if let Err(error) = outcome {
            // Looked at again with the next heartbeat.
            self.behind = true;
            tracing::error!(
                topic = %key.0,
                partition = %key.1,
                error = %error.full_text(),
                "an assignment cannot be carried out"
            );
        }
    }

    fn configure(&self, partition: &Partition, topic: &TopicImage) {
        match TopicConfig::resolve(&self.shared.config, &topic.configs) {
            Ok(config) => partition.configure(config),
            // The controller checks what it is asked; it may be of another version.
            Err(problem) => tracing::error!(
                topic = %topic.name,
                partition = %partition.name.partition,
                problem,
                "the topic's new settings are not understood: the former ones stay"
            ),
        }
    }

    fn tell(&self, partition: &Arc<Partition>, assignment: Assignment) {
        if partition.tell(Event::Assigned(assignment)) {
            self.flusher.schedule(partition);
        }
    }

    async fn create(
        &self,
        image: &Image,
        key: PartitionKey,
        topic: &TopicImage,
        state: &PartitionState,
    ) -> Result<(), Error> {
        let name = PartitionName { topic: topic.name.clone(), topic_id: key.0, partition: key.1 };
        let (partitions, configs) = (Arc::clone(&self.partitions), topic.configs.clone());
        let create = move || partitions.create(name, &configs);
        let partition = self.shared.config.workers.run(create).await??;
        self.tell(&partition, assignment(image, topic, state));
        Ok(())
    }

    /// Whether `partition` is damaged, and everything that was committed is elsewhere.
    ///
    /// The controller knows that this copy is offline, so until it hears otherwise it takes no word of
    /// it for a place in the ISR; and does not count it as complete, so nobody will look for
    /// anything here. When it hears otherwise, the leader epoch rises: what was said of the
    /// damaged copy counts for nothing then.
    fn is_to_be_made_anew(&self, state: &PartitionState, partition: &Partition) -> bool {
        partition.is_damaged()
            && state.offline.contains(&self.me)
            && !state.is_complete_on(self.me)
            && state.leader.is_some_and(|leader| leader != self.me)
            && !self.copied_anew.contains(&partition.name.key())
    }

    async fn set_aside(&mut self, damaged: &Arc<Partition>) -> Result<(), Error> {
        self.copied_anew.insert(damaged.name.key());
        let (partitions, damaged) = (Arc::clone(&self.partitions), Arc::clone(damaged));
        let set_aside = move || partitions.set_damaged_aside(&damaged);
        self.shared.config.workers.run(set_aside).await?
    }

    async fn remove(&self, partition: &Arc<Partition>) -> Result<(), Error> {
        partition.tell(Event::Unassigned);
        tracing::info!(topic = %partition.name.topic, partition = %partition.name.partition, "removed");
        let (partitions, gone) = (Arc::clone(&self.partitions), Arc::clone(partition));
        self.shared.config.workers.run(move || partitions.remove(&gone)).await?
    }
}

fn assignment(image: &Image, topic: &TopicImage, state: &PartitionState) -> Assignment {
    Assignment::of(state, image.brokers(), image.min_isr(topic, state))
}
