//! DescribeCluster: one node, and the cluster's id.

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
        let config = &self.shared.config;
        let described = DescribeClusterResponseData::default()
            .with_cluster_id(self.cluster_id.clone().into())
            .with_controller_id(config.node_id.get())
            .with_endpoint_type(BROKERS);
        if request.endpoint_type != BROKERS {
            return described
                .with_error_code(ErrorCode::MismatchedEndpointType.into())
                .with_error_message(Some("this listener is a broker's".to_owned().into()));
        }
        described.with_brokers(vec![
            DescribeClusterBroker::default()
                .with_broker_id(config.node_id.get())
                .with_host(config.advertised_host.clone().into())
                .with_port(i32::from(config.advertised_port)),
        ])
    }
}
