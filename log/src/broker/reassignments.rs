//! AlterPartitionReassignments and ListPartitionReassignments: replicas that move (KIP-455).

use std::collections::BTreeMap;

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::alter_partition_reassignments_request::{
    AlterPartitionReassignmentsRequestData, ReassignablePartition,
};
use tailwater_kafka::wire::alter_partition_reassignments_response::{
    AlterPartitionReassignmentsResponseData, ReassignablePartitionResponse,
    ReassignableTopicResponse,
};
use tailwater_kafka::wire::list_partition_reassignments_request::ListPartitionReassignmentsRequestData;
use tailwater_kafka::wire::list_partition_reassignments_response::{
    ListPartitionReassignmentsResponseData, OngoingPartitionReassignment, OngoingTopicReassignment,
};
use tailwater_kafka::{BrokerId, PartitionId, TopicPartition};

use super::view::decided;
use super::{Refused, code};
use crate::controller::ControllerRequest;
use crate::log::Log;
use crate::metadata::{Image, PartitionState};

impl Log {
    pub(super) async fn alter_partition_reassignments(
        &self,
        request: AlterPartitionReassignmentsRequestData,
    ) -> AlterPartitionReassignmentsResponseData {
        let may_change_count = request.allow_replication_factor_change;
        let image = self.metadata_now();
        let mut asked = Vec::new();
        let mut outcomes: Vec<Vec<Result<(), Refused>>> = Vec::new();
        for topic in &request.topics {
            let of_topic = topic.partitions.iter().map(|partition| {
                let number = PartitionId::new(partition.partition_index);
                let named = TopicPartition::new(topic.name.as_str(), number);
                let target = target(partition);
                if !may_change_count {
                    check_count(&image, &named, target.as_deref())?;
                }
                asked.push((named, target));
                Ok(())
            });
            outcomes.push(of_topic.collect());
        }
        if !asked.is_empty() {
            let count = asked.len();
            let request = ControllerRequest::Reassign { partitions: asked };
            let decisions = decided(self.link.ask(request).await, count);
            let accepted = outcomes.iter_mut().flatten().filter(|outcome| outcome.is_ok());
            for (outcome, decision) in accepted.zip(decisions) {
                *outcome = decision;
            }
        }
        let responses = request.topics.into_iter().zip(outcomes).map(|(topic, outcomes)| {
            let partitions = topic.partitions.iter().zip(outcomes).map(|(partition, outcome)| {
                ReassignablePartitionResponse::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(code(&outcome))
                    .with_error_message(outcome.err().and_then(|refused| refused.text()))
            });
            ReassignableTopicResponse::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions.collect())
        });
        AlterPartitionReassignmentsResponseData::default()
            .with_allow_replication_factor_change(may_change_count)
            .with_responses(responses.collect())
    }

    pub(super) fn list_partition_reassignments(
        &self,
        request: &ListPartitionReassignmentsRequestData,
    ) -> ListPartitionReassignmentsResponseData {
        let image = self.metadata_now();
        let wanted = |name: &str, number: PartitionId| match &request.topics {
            None => true,
            Some(topics) => topics.iter().any(|topic| {
                topic.name.as_str() == name && topic.partition_indexes.contains(&number.get())
            }),
        };
        let mut by_topic: BTreeMap<&str, Vec<OngoingPartitionReassignment>> = BTreeMap::new();
        let moving = image.partitions().filter(|(.., state)| state.is_reassigning());
        for (_, topic, number, state) in moving.filter(|(_, it, at, _)| wanted(&it.name, *at)) {
            by_topic.entry(&topic.name).or_default().push(ongoing(number, state));
        }
        let topics = by_topic.into_iter().map(|(name, partitions)| {
            OngoingTopicReassignment::default()
                .with_name(name.to_owned().into())
                .with_partitions(partitions)
        });
        ListPartitionReassignmentsResponseData::default().with_topics(topics.collect())
    }
}

fn target(partition: &ReassignablePartition) -> Option<Vec<BrokerId>> {
    let ids = partition.replicas.as_ref()?;
    Some(ids.iter().copied().map(BrokerId::new).collect())
}

/// Whether a partition keeps its number of replicas, for who says that it must.
fn check_count(
    image: &Image,
    named: &TopicPartition,
    target: Option<&[BrokerId]>,
) -> Result<(), Refused> {
    let state = image
        .topic_by_name(&named.topic)
        .and_then(|(_, topic)| topic.partitions.get(&named.partition));
    // What is not there, the controller refuses.
    let (Some(state), Some(target)) = (state, target) else { return Ok(()) };
    let present = state.target_replicas().len();
    if target.len() == present {
        return Ok(());
    }
    Err(Refused::new(
        ErrorCode::InvalidReplicationFactor,
        format!(
            "{named} has {present} replicas and would have {}: allow a change of the replication \
             factor, or name as many",
            target.len()
        ),
    ))
}

fn ongoing(number: PartitionId, state: &PartitionState) -> OngoingPartitionReassignment {
    let ids = |brokers: &[BrokerId]| brokers.iter().map(|id| id.get()).collect::<Vec<_>>();
    OngoingPartitionReassignment::default()
        .with_partition_index(number.get())
        .with_replicas(ids(&state.replicas))
        .with_adding_replicas(ids(&state.adding))
        .with_removing_replicas(ids(&state.removing))
}
