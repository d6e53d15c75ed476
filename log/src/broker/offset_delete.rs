//! OffsetDelete: a group forgets partitions. For a pipeline's group this is how it detaches from
//! them, and they are no longer held back from retention.

use tailwater_kafka::wire::offset_delete_request::OffsetDeleteRequestData;
use tailwater_kafka::wire::offset_delete_response::{
    OffsetDeleteResponseData, OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};

use super::{Refused, code, find_partition};
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
                        let partition = find_partition(topic, one.partition_index)?;
                        gone.push((topic.id, partition.name.partition));
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
        match self.groups.forget(request.group_id.as_str(), &gone).await {
            Ok(()) => OffsetDeleteResponseData::default().with_topics(topics),
            Err(error) => {
                OffsetDeleteResponseData::default().with_error_code(Refused::from(error).code())
            }
        }
    }
}
