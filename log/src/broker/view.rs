//! What a request is about: topics as the metadata has them, partitions as this node has them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::wire::{ErrorCode, KafkaString, KafkaUuid};
use tailwater_kafka::{BrokerId, PartitionId, TopicId};
use uuid::Uuid;

use super::Refused;
use crate::controller::{ControllerAnswer, ControllerRequest, NewTopic, Refusal};
use crate::coordinator::{self, NotChanged, Store};
use crate::log::Log;
use crate::metadata::{BrokerEpoch, BrokerState, Image, PartitionState, TopicImage};
use crate::storage::partition::Partition;

/// Partitions of the log's own topics. The number stays for the cluster's life; Kafka's 50 are for
/// clusters of hundreds of brokers.
const INTERNAL_PARTITIONS: i32 = 4;

/// Replicas of the log's own topics, if the cluster is that large.
const INTERNAL_REPLICAS: usize = 3;

/// Small, so that a new coordinator has read them soon.
const INTERNAL_SEGMENT_BYTES: &str = "16777216";

/// How long a request may wait for a coordinator that is just being made, or loads.
const COORDINATOR_PATIENCE: Duration = Duration::from_secs(5);

/// A topic as the metadata has it at the time of a request.
#[derive(Debug, Clone)]
pub(super) struct Topic {
    pub(super) id: TopicId,
    image: Arc<Image>,
}

impl Topic {
    /// The topic itself.
    pub(super) fn state(&self) -> Option<&TopicImage> {
        self.image.topic(self.id)
    }

    /// The brokers there are.
    pub(super) fn brokers(&self) -> &BTreeMap<BrokerId, BrokerState> {
        self.image.brokers()
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.state().map_or("", |topic| &topic.name)
    }

    /// Whether it has a partition of that number.
    pub(super) fn partition(&self, number: i32) -> Result<&PartitionState, Refused> {
        let partition = self.image.partition(self.id, PartitionId::new(number));
        partition.ok_or_else(|| ErrorCode::UnknownTopicOrPartition.into())
    }
}

impl Log {
    /// The metadata as of now.
    pub(super) fn metadata_now(&self) -> Arc<Image> {
        Arc::clone(&self.image.borrow())
    }

    /// A topic by id as newer versions name it, by name in older ones.
    pub(super) fn find_topic(&self, name: &KafkaString, id: KafkaUuid) -> Result<Topic, Refused> {
        let image = self.metadata_now();
        if id.is_nil() {
            let found = image.topic_by_name(name.as_str()).map(|(id, _)| id);
            let id = found.ok_or_else(|| Refused::from(ErrorCode::UnknownTopicOrPartition))?;
            return Ok(Topic { id, image });
        }
        let id = TopicId::new(*id.inner());
        image.topic(id).ok_or_else(|| Refused::from(ErrorCode::UnknownTopicId))?;
        Ok(Topic { id, image })
    }

    /// This node's copy of a partition.
    pub(super) fn find_partition(
        &self,
        topic: &Topic,
        number: i32,
    ) -> Result<Arc<Partition>, Refused> {
        topic.partition(number)?;
        let copy = self.partitions.get((topic.id, PartitionId::new(number)));
        copy.ok_or_else(|| ErrorCode::NotLeaderOrFollower.into())
    }

    /// This node's id and registration.
    pub(super) fn registration(&self) -> Result<(BrokerId, BrokerEpoch), Refused> {
        let epoch = self.standing.borrow().epoch;
        let epoch = epoch.ok_or_else(|| Refused::from(ErrorCode::CoordinatorNotAvailable))?;
        Ok((self.shared.config.node_id, epoch))
    }

    /// The coordinator of `key`, where it is this node; made and waited for if it is about to be.
    ///
    /// # Errors
    /// NOT_COORDINATOR if it is another node.
    pub(super) async fn coordinator_of(
        &self,
        topic: &'static str,
        key: &str,
    ) -> Result<Arc<Store>, Refused> {
        self.make_internal(topic).await?;
        Ok(self
            .patiently(|| {
                let image = self.metadata_now();
                let (_, partitions) = image.topic_by_name(topic).ok_or(NotChanged::Loading)?;
                let partition = coordinator::partition_of(key, partitions.partitions.len());
                self.store_of(topic, partition)
            })
            .await?)
    }

    /// What this node keeps in a partition of one of the log's own topics, once that is read.
    ///
    /// # Errors
    /// If another node has it.
    pub(super) async fn loaded(
        &self,
        topic: &str,
        partition: PartitionId,
    ) -> Result<Arc<Store>, NotChanged> {
        self.patiently(|| self.store_of(topic, partition)).await
    }

    /// Looks for a coordinator again while it loads.
    async fn patiently(
        &self,
        look: impl Fn() -> Result<Arc<Store>, NotChanged>,
    ) -> Result<Arc<Store>, NotChanged> {
        let (mut image, mut coordinators) = (self.image.subscribe(), self.coordinators.watch());
        let looking = async {
            loop {
                image.mark_unchanged();
                coordinators.mark_unchanged();
                match look() {
                    Err(NotChanged::Loading) => {}
                    other => return other,
                }
                // Both senders are this node's own.
                tokio::select! {
                    biased;
                    _ = image.changed() => {}
                    _ = coordinators.changed() => {}
                }
            }
        };
        let found = tokio::time::timeout(COORDINATOR_PATIENCE, looking).await;
        found.unwrap_or(Err(NotChanged::Loading))
    }

    fn store_of(&self, topic: &str, partition: PartitionId) -> Result<Arc<Store>, NotChanged> {
        let image = self.metadata_now();
        let (id, _) = image.topic_by_name(topic).ok_or(NotChanged::Loading)?;
        match self.coordinators.store(topic, partition) {
            // It leads by the metadata, and does not know it yet.
            Err(NotChanged::NotCoordinator)
                if image.partition(id, partition).and_then(|state| state.leader)
                    == Some(self.shared.config.node_id) =>
            {
                Err(NotChanged::Loading)
            }
            other => other,
        }
    }

    /// Makes one of the log's own topics, if it is not there yet.
    pub(super) async fn make_internal(&self, topic: &'static str) -> Result<(), Refused> {
        let image = self.metadata_now();
        if image.topic_by_name(topic).is_some() {
            return Ok(());
        }
        // Of all brokers there are to be, not of those that are live just now: what is made while
        // others start, or are away, would have too few replicas for ever.
        let config = &self.shared.config;
        let expected = match self.controller {
            Some(_) => config.all_controllers().len(),
            // They may be apart from the brokers.
            None => usize::try_from(config.replication_factor).unwrap_or(1),
        };
        let replicas = image.brokers().len().max(expected).clamp(1, INTERNAL_REPLICAS);
        let configs = [("cleanup.policy", "compact"), ("segment.bytes", INTERNAL_SEGMENT_BYTES)];
        let new = NewTopic {
            name: topic.to_owned(),
            id: TopicId::new(Uuid::new_v4()),
            partitions: INTERNAL_PARTITIONS,
            replication_factor: i16::try_from(replicas).unwrap_or(1),
            assignments: Vec::new(),
            configs: configs.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        };
        let request = ControllerRequest::CreateTopics { topics: vec![new], validate_only: false };
        match self.link.ask(request).await.map_err(coordinator_refusal)? {
            ControllerAnswer::Created(mut created) => match created.pop() {
                // Or somebody else just has.
                Some(Err(refusal)) if refusal.code == ErrorCode::InvalidReplicationFactor => {
                    Err(Refused::new(ErrorCode::CoordinatorNotAvailable, refusal.message))
                }
                Some(Err(refusal)) if refusal.code != ErrorCode::TopicAlreadyExists => {
                    Err(refusal.into())
                }
                _ => Ok(()),
            },
            _ => Err(ErrorCode::UnknownServerError.into()),
        }
    }

    /// Waits until this node leads what it is to lead of a topic: whoever made it writes at once.
    pub(super) async fn wait_until_led(&self, id: TopicId) {
        let image = self.metadata_now();
        let Some(topic) = image.topic(id) else { return };
        let all = async {
            self.carried_out(image.index()).await;
            for (number, state) in &topic.partitions {
                if let Some(partition) = self.partitions.get((id, *number)) {
                    partition.leading(state.leader_epoch).await;
                }
            }
        };
        // Whoever asked will find out otherwise.
        drop(tokio::time::timeout(COORDINATOR_PATIENCE, all).await);
    }

    /// Waits until this node knows of a topic that the controller has just made, or no longer knows
    /// of one that it removed.
    pub(super) async fn wait_for_topic(&self, id: TopicId, there: bool) {
        self.wait_until_known(|image| image.topic(id).is_some() == there).await;
    }

    /// Waits until this node has heard of what the controller has just decided, for a while.
    pub(super) async fn wait_until_known(&self, mut known: impl FnMut(&Image) -> bool) {
        let mut image = self.image.subscribe();
        let known = image.wait_for(|image| known(image));
        // Whoever asked will find out otherwise.
        drop(tokio::time::timeout(COORDINATOR_PATIENCE, known).await);
    }
}

/// What the controller decided on each of `count` things; on all of them the same where it has not
/// decided at all.
pub(super) fn decided(
    answer: Result<ControllerAnswer, Refusal>,
    count: usize,
) -> Vec<Result<(), Refused>> {
    match answer {
        Ok(ControllerAnswer::Done(outcomes)) => {
            outcomes.into_iter().map(|outcome| outcome.map_err(Refused::from)).collect()
        }
        Ok(_) => vec![Err(ErrorCode::UnknownServerError.into()); count],
        Err(refusal) => vec![Err(refusal.into()); count],
    }
}

/// To who asks for a coordinator, that there is no controller means that there is none now. So does
/// that this node is registering anew, and has the epoch of its former registration still.
pub(super) fn coordinator_refusal(refusal: Refusal) -> Refused {
    match refusal.code {
        ErrorCode::NotController
        | ErrorCode::StaleBrokerEpoch
        | ErrorCode::BrokerIdNotRegistered => {
            Refused::new(ErrorCode::CoordinatorNotAvailable, refusal.message)
        }
        _ => refusal.into(),
    }
}
