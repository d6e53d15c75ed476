//! DescribeCluster: the brokers, and the cluster's id.

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::wire::describe_cluster_request::DescribeClusterRequestData;
use tailwater_kafka::wire::describe_cluster_response::{
    DescribeClusterBroker, DescribeClusterResponseData,
};

use crate::log::Log;

/// Asking for brokers, not for controllers.
const BROKERS: i8 = 1;

impl Log {
    pub(super) fn describe_cluster(
        &self,
        request: DescribeClusterRequestData,
    ) -> DescribeClusterResponseData {
        let image = self.metadata_now();
        let described = DescribeClusterResponseData::default()
            .with_cluster_id(self.cluster_id().into())
            // Any broker brings what is asked of the controller there.
            .with_controller_id(self.shared.config.node_id.get())
            .with_endpoint_type(BROKERS);
        if request.endpoint_type != BROKERS {
            return described
                .with_error_code(ErrorCode::MismatchedEndpointType.into())
                .with_error_message(Some("this listener is a broker's".to_owned().into()));
        }
        let wanted = |fenced: bool| !fenced || request.include_fenced_brokers;
        let brokers = image.brokers().iter().filter(|(_, broker)| wanted(broker.fenced));
        let brokers = brokers.map(|(id, broker)| {
            let described = DescribeClusterBroker::default()
                .with_broker_id(id.get())
                .with_host(broker.host.clone().into())
                .with_port(i32::from(broker.port))
                .with_rack(broker.rack.clone().map(Into::into));
            // Known from version 2 on.
            if broker.fenced { described.with_is_fenced(true) } else { described }
        });
        described.with_brokers(brokers.collect())
    }
}
