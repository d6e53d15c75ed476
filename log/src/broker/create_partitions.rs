//! CreatePartitions: brought to the controller, which decides on each topic by itself.

use std::collections::BTreeMap;

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::create_partitions_request::{
    CreatePartitionsRequestData, CreatePartitionsTopic,
};
use tailwater_kafka::wire::create_partitions_response::{
    CreatePartitionsResponseData, CreatePartitionsTopicResult,
};

use super::Refused;
use super::view::decided;
use crate::controller::{ControllerRequest, MorePartitions};
use crate::log::Log;

impl Log {
    pub(super) async fn create_partitions(
        &self,
        request: CreatePartitionsRequestData,
    ) -> CreatePartitionsResponseData {
        let CreatePartitionsRequestData { topics, validate_only, .. } = request;
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for topic in &topics {
            *times.entry(topic.name.as_str()).or_default() += 1;
        }
        let once = |topic: &&CreatePartitionsTopic| times.get(topic.name.as_str()) == Some(&1);
        let asked: Vec<MorePartitions> = topics.iter().filter(once).map(more).collect();
        let request = ControllerRequest::CreatePartitions { topics: asked.clone(), validate_only };
        let mut outcomes = decided(self.link.ask(request).await, asked.len()).into_iter();
        let mut results = Vec::with_capacity(topics.len());
        for topic in &topics {
            let outcome = if once(&topic) {
                outcomes.next().unwrap_or_else(|| Err(ErrorCode::UnknownServerError.into()))
            } else {
                Err(Refused::new(ErrorCode::InvalidRequest, "the topic is named twice"))
            };
            if outcome.is_ok() && !validate_only {
                self.wait_for_partitions(topic.name.as_str(), topic.count).await;
            }
            results.push(
                CreatePartitionsTopicResult::default()
                    .with_name(topic.name.clone())
                    .with_error_code(super::code(&outcome))
                    .with_error_message(outcome.err().and_then(|refused| refused.text())),
            );
        }
        CreatePartitionsResponseData::default().with_results(results)
    }

    /// Waits until this node knows of the partitions, and leads those that it is to lead.
    async fn wait_for_partitions(&self, topic: &str, count: i32) {
        let count = usize::try_from(count).unwrap_or_default();
        self.wait_until_known(|image| {
            image.topic_by_name(topic).is_none_or(|(_, topic)| topic.partitions.len() >= count)
        })
        .await;
        let found = self.metadata_now().topic_by_name(topic).map(|(id, _)| id);
        if let Some(id) = found {
            self.wait_until_led(id).await;
        }
    }
}

fn more(topic: &CreatePartitionsTopic) -> MorePartitions {
    let assignments = topic.assignments.iter().flatten();
    let brokers = |ids: &[i32]| ids.iter().copied().map(BrokerId::new).collect();
    MorePartitions {
        name: topic.name.as_str().to_owned(),
        count: topic.count,
        assignments: assignments.map(|one| brokers(&one.broker_ids)).collect(),
    }
}
