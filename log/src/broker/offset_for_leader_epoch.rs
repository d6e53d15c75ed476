//! OffsetForLeaderEpoch: where an epoch ended. A reader that read past it must go back (KIP-320).

use tailwater_kafka::LeaderEpoch;
use tailwater_kafka::wire::offset_for_leader_epoch_request::{
    OffsetForLeaderEpochRequestData, OffsetForLeaderPartition,
};
use tailwater_kafka::wire::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderEpochResponseData, OffsetForLeaderTopicResult,
};

use super::Refused;
use super::view::Topic;
use crate::log::Log;

impl Log {
    pub(super) fn offset_for_leader_epoch(
        &self,
        request: OffsetForLeaderEpochRequestData,
    ) -> OffsetForLeaderEpochResponseData {
        let topics = request.topics.into_iter().map(|asked| {
            let topic = self.find_topic(&asked.topic, Default::default());
            let partitions = asked.partitions.iter().map(|one| {
                let found = topic.as_ref().map_err(Refused::clone);
                match found.and_then(|topic| self.end_of_epoch(topic, one)) {
                    Ok(found) => found,
                    Err(refused) => EpochEndOffset::default()
                        .with_partition(one.partition)
                        .with_error_code(refused.code()),
                }
            });
            let partitions = partitions.collect();
            OffsetForLeaderTopicResult::default()
                .with_topic(asked.topic)
                .with_partitions(partitions)
        });
        OffsetForLeaderEpochResponseData::default().with_topics(topics.collect())
    }

    fn end_of_epoch(
        &self,
        topic: &Topic,
        asked: &OffsetForLeaderPartition,
    ) -> Result<EpochEndOffset, Refused> {
        let partition = self.find_partition(topic, asked.partition)?;
        partition.check_leader(LeaderEpoch::new(asked.current_leader_epoch))?;
        // For readers, who see what is committed; followers learn it with their fetches.
        let end = partition.offsets()?.high_watermark;
        let found = partition.epochs()?.end_of(LeaderEpoch::new(asked.leader_epoch), end);
        let answer = EpochEndOffset::default().with_partition(asked.partition);
        Ok(match found {
            Some((epoch, end)) => answer.with_leader_epoch(epoch.get()).with_end_offset(end.get()),
            None => answer.with_leader_epoch(-1).with_end_offset(-1),
        })
    }
}
