//! OffsetDelete: a group forgets partitions. For a pipeline's group this is how it detaches from
//! them, and they are no longer held back from retention.

use tailwater_kafka::PartitionId;
use tailwater_kafka::wire::offset_delete_request::OffsetDeleteRequestData;
use tailwater_kafka::wire::offset_delete_response::{
    OffsetDeleteResponseData, OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};

use super::{Refused, code};
use crate::coordinator::OFFSETS_TOPIC;
use crate::coordinator::offsets::{self, OfPartition};
use crate::log::Log;

impl Log {
    pub(super) async fn offset_delete(
        &self,
        request: OffsetDeleteRequestData,
    ) -> OffsetDeleteResponseData {
        let mut gone = Vec::new();
        let mut topics = Vec::with_capacity(request.topics.len());
        for asked in request.topics {
            let topic = self.find_topic(&asked.name, Default::default());
            let partitions = asked
                .partitions
                .iter()
                .map(|one| {
                    let found = topic.as_ref().map_err(Refused::clone).and_then(|topic| {
                        topic.partition(one.partition_index)?;
                        gone.push(OfPartition {
                            topic: topic.name().to_owned(),
                            topic_id: topic.id,
                            partition: PartitionId::new(one.partition_index),
                        });
                        Ok(())
                    });
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(one.partition_index)
                        .with_error_code(code(&found))
                })
                .collect();
            topics.push(
                OffsetDeleteResponseTopic::default()
                    .with_name(asked.name)
                    .with_partitions(partitions),
            );
        }
        match self.forget(request.group_id.as_str(), &gone).await {
            Ok(()) => OffsetDeleteResponseData::default().with_topics(topics),
            Err(refused) => OffsetDeleteResponseData::default().with_error_code(refused.code()),
        }
    }

    async fn forget(&self, group: &str, gone: &[OfPartition]) -> Result<(), Refused> {
        let store = self.coordinator_of(OFFSETS_TOPIC, group).await?;
        Ok(offsets::forget(&store, group, gone).await?)
    }
}
