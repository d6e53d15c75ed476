//! Producer ids: taken from the controller by the block, given out one by one. What is left of a
//! block when the node stops is never given.

use tailwater_kafka::{BrokerId, ProducerId};
use tokio::sync::Mutex;

use crate::controller::{ControllerAnswer, ControllerRequest, Refusal};
use crate::metadata::BrokerEpoch;
use crate::node::link::ControllerLink;

/// Ids that are this node's to give.
#[derive(Debug, Default)]
pub(crate) struct ProducerIds {
    block: Mutex<Block>,
}

#[derive(Debug, Default)]
struct Block {
    next: i64,
    until: i64,
}

impl ProducerIds {
    /// An id that no producer of the cluster has had.
    ///
    /// # Errors
    /// The controller's refusal.
    pub(crate) async fn allocate(
        &self,
        id: BrokerId,
        epoch: BrokerEpoch,
        link: &ControllerLink,
    ) -> Result<ProducerId, Refusal> {
        let mut block = self.block.lock().await;
        if block.next == block.until {
            let request = ControllerRequest::AllocateProducerIds { id, epoch };
            match link.ask(request).await? {
                ControllerAnswer::ProducerIds { first, count } => {
                    *block = Block { next: first.get(), until: first.get() + count };
                }
                _ => return Err(Refusal::not_controller()),
            }
        }
        block.next += 1;
        Ok(ProducerId::new(block.next - 1))
    }
}
