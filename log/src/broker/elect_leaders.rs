//! ElectLeaders: preferred leaders again, or, where nobody complete is left, an unclean one.

use std::collections::BTreeMap;

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::elect_leaders_request::ElectLeadersRequestData;
use tailwater_kafka::wire::elect_leaders_response::{
    ElectLeadersResponseData, PartitionResult, ReplicaElectionResult,
};
use tailwater_kafka::{PartitionId, TopicPartition};

use super::{Refused, code};
use crate::controller::{ControllerAnswer, ControllerRequest, ElectionKind};
use crate::log::Log;

impl Log {
    pub(super) async fn elect_leaders(
        &self,
        request: ElectLeadersRequestData,
    ) -> ElectLeadersResponseData {
        let partitions = request.topic_partitions.map(|topics| {
            let named = topics.iter().flat_map(|topic| {
                let name = topic.topic.as_str();
                topic
                    .partitions
                    .iter()
                    .map(move |number| TopicPartition::new(name, PartitionId::new(*number)))
            });
            named.collect::<Vec<_>>()
        });
        let response = ElectLeadersResponseData::default();
        let outcomes = match self.elect(request.election_type, partitions.clone()).await {
            Ok(outcomes) => outcomes,
            // In the versions without a place for it, each partition has the error.
            Err(refused) => {
                let all = partitions.unwrap_or_default().into_iter();
                let outcomes = all.map(|one| (one, Err(refused.clone()))).collect();
                return response
                    .with_error_code(refused.code())
                    .with_replica_election_results(by_topic(outcomes));
            }
        };
        response.with_replica_election_results(by_topic(outcomes))
    }

    async fn elect(
        &self,
        kind: i8,
        partitions: Option<Vec<TopicPartition>>,
    ) -> Result<Vec<(TopicPartition, Result<(), Refused>)>, Refused> {
        let kind = match kind {
            0 => ElectionKind::Preferred,
            1 => ElectionKind::Unclean,
            other => {
                let message = format!("election type {other} is neither preferred nor unclean");
                return Err(Refused::new(ErrorCode::InvalidRequest, message));
            }
        };
        let request = ControllerRequest::ElectLeaders { kind, partitions };
        let ControllerAnswer::Elected(outcomes) = self.link.ask(request).await? else {
            return Err(ErrorCode::UnknownServerError.into());
        };
        let outcomes = outcomes.into_iter();
        Ok(outcomes.map(|(one, outcome)| (one, outcome.map_err(Refused::from))).collect())
    }
}

fn by_topic(outcomes: Vec<(TopicPartition, Result<(), Refused>)>) -> Vec<ReplicaElectionResult> {
    let mut results: BTreeMap<String, Vec<PartitionResult>> = BTreeMap::new();
    for (one, outcome) in outcomes {
        let result = PartitionResult::default()
            .with_partition_id(one.partition.get())
            .with_error_code(code(&outcome))
            .with_error_message(outcome.err().and_then(|refused| refused.text()));
        results.entry(one.topic).or_default().push(result);
    }
    let topic = |(name, partitions): (String, Vec<PartitionResult>)| {
        ReplicaElectionResult::default().with_topic(name.into()).with_partition_result(partitions)
    };
    results.into_iter().map(topic).collect()
}
