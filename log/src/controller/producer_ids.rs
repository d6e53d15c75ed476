//! Blocks of producer ids: each id is given to one broker, once, whatever fails.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, ProducerId};

use super::draft::Draft;
use super::requests::{ControllerAnswer, Refusal};
use crate::metadata::{BrokerEpoch, Record};

/// Ids in a block: Kafka's number. A lost answer loses a block, which is one of 2^53.
const BLOCK: i64 = 1000;

pub(super) fn allocate(
    draft: &mut Draft<'_>,
    id: BrokerId,
    epoch: BrokerEpoch,
) -> Result<ControllerAnswer, Refusal> {
    super::brokers::check_epoch(draft.image(), id, epoch)?;
    let first = draft.image().next_producer_id();
    let Some(next) = first.checked_add(BLOCK) else {
        return Err(Refusal::new(ErrorCode::UnknownServerError, "all producer ids are used up"));
    };
    draft.write(Record::ProducerIds { next });
    Ok(ControllerAnswer::ProducerIds { first: ProducerId::new(first), count: BLOCK })
}
