//! FindCoordinator: groups and transactional ids hash to partitions of the log's own topics; whoever
//! leads the partition is the coordinator.

use tailwater_kafka::BrokerId;
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::find_coordinator_request::FindCoordinatorRequestData;
use tailwater_kafka::wire::find_coordinator_response::{Coordinator, FindCoordinatorResponseData};

use super::Refused;
use crate::coordinator::{OFFSETS_TOPIC, TRANSACTIONS_TOPIC, partition_of};
use crate::log::Log;

/// From this version on one request asks for many keys.
const BATCHED: i16 = 4;

const GROUP: i8 = 0;
const TRANSACTIONAL_ID: i8 = 1;

/// Where a coordinator is.
struct Found {
    node: i32,
    host: String,
    port: i32,
}

impl Log {
    pub(super) async fn find_coordinator(
        &self,
        request: FindCoordinatorRequestData,
        version: i16,
    ) -> FindCoordinatorResponseData {
        if version < BATCHED {
            let answer = FindCoordinatorResponseData::default();
            return match self.coordinator_at(request.key_type, request.key.as_str()).await {
                Ok(found) => answer
                    .with_node_id(found.node)
                    .with_host(found.host.into())
                    .with_port(found.port),
                Err(refused) => answer
                    .with_error_code(refused.code())
                    .with_error_message(if version >= 1 { refused.text() } else { None })
                    .with_node_id(-1)
                    .with_port(-1),
            };
        }
        let mut coordinators = Vec::with_capacity(request.coordinator_keys.len());
        for key in request.coordinator_keys {
            let found = self.coordinator_at(request.key_type, key.as_str()).await;
            let coordinator = Coordinator::default().with_key(key);
            coordinators.push(match found {
                Ok(found) => coordinator
                    .with_node_id(found.node)
                    .with_host(found.host.into())
                    .with_port(found.port),
                Err(refused) => coordinator
                    .with_error_code(refused.code())
                    .with_error_message(refused.text())
                    .with_node_id(-1)
                    .with_port(-1),
            });
        }
        FindCoordinatorResponseData::default().with_coordinators(coordinators)
    }

    async fn coordinator_at(&self, key_type: i8, key: &str) -> Result<Found, Refused> {
        let topic = match key_type {
            GROUP => OFFSETS_TOPIC,
            TRANSACTIONAL_ID => TRANSACTIONS_TOPIC,
            other => {
                return Err(Refused::new(
                    ErrorCode::InvalidRequest,
                    format!("there are no coordinators of type {other} here"),
                ));
            }
        };
        self.make_internal(topic).await?;
        let (broker, _) = self.coordinator_address(topic, key)?;
        let image = self.metadata_now();
        let state = image.broker(broker);
        let state = state.ok_or_else(|| Refused::from(ErrorCode::CoordinatorNotAvailable))?;
        let (node, port) = (broker.get(), i32::from(state.port));
        Ok(Found { node, host: state.host.clone(), port })
    }

    /// The broker that is the coordinator of `key`, and its address.
    pub(super) fn coordinator_address(
        &self,
        topic: &str,
        key: &str,
    ) -> Result<(BrokerId, String), Refused> {
        let image = self.metadata_now();
        let unavailable = || Refused::from(ErrorCode::CoordinatorNotAvailable);
        let (_, partitions) = image.topic_by_name(topic).ok_or_else(unavailable)?;
        let partition = partition_of(key, partitions.partitions.len());
        let leader = partitions.partitions.get(&partition).and_then(|state| state.leader);
        let leader = leader.ok_or_else(unavailable)?;
        let broker = image.broker(leader).ok_or_else(unavailable)?;
        Ok((leader, broker.address()))
    }
}
