//! FindCoordinator: groups and transactional ids are all looked after here.

use tailwater_kafka::wire::find_coordinator_request::FindCoordinatorRequestData;
use tailwater_kafka::wire::find_coordinator_response::{Coordinator, FindCoordinatorResponseData};

use crate::log::Log;

/// From this version on one request asks for many keys.
const BATCHED: i16 = 4;

impl Log {
    pub(super) fn find_coordinator(
        &self,
        request: FindCoordinatorRequestData,
        version: i16,
    ) -> FindCoordinatorResponseData {
        let config = &self.shared.config;
        let host = config.advertised_host.clone();
        let port = i32::from(config.advertised_port);
        let node = config.node_id.get();
        if version < BATCHED {
            return FindCoordinatorResponseData::default()
                .with_node_id(node)
                .with_host(host.into())
                .with_port(port);
        }
        let coordinators = request
            .coordinator_keys
            .into_iter()
            .map(|key| {
                Coordinator::default()
                    .with_key(key)
                    .with_node_id(node)
                    .with_host(host.clone().into())
                    .with_port(port)
            })
            .collect();
        FindCoordinatorResponseData::default().with_coordinators(coordinators)
    }
}
