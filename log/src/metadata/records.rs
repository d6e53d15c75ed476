//! What an entry of the metadata log says.
//!
//! An entry is a JSON list of records, each an object with one key, its kind: `{"topic": {…}}`.
//! A kind or field that is not known here is an error, not skipped: it comes from a newer node, and
//! without it this node's image would be another one than the rest of the cluster has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tailwater_kafka::{BrokerId, PartitionId, TopicId};

use super::states::{AclBinding, BrokerState, ClusterState, PartitionState};

/// The newest level of records that this program reads and writes.
///
/// | level | records |
/// |---|---|
/// | 1 | those of [`Record`] |
pub(crate) const LEVEL: u32 = 1;

/// The new state of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Record {
    /// The first record of every metadata log.
    Cluster { state: ClusterState },
    /// A broker registered, was fenced or unfenced, or is stopping.
    Broker { id: BrokerId, state: BrokerState },
    /// A broker is no longer part of the cluster.
    RemoveBroker { id: BrokerId },
    /// A topic was made or its settings changed. Its partitions have records of their own, which
    /// follow in the same entry.
    Topic { id: TopicId, name: String, configs: BTreeMap<String, String> },
    /// A topic is gone, with its partitions.
    RemoveTopic { id: TopicId },
    /// A partition of a topic that there is.
    Partition { topic: TopicId, partition: PartitionId, state: PartitionState },
    /// All producer ids below `next` have been given to brokers.
    ProducerIds { next: i64 },
    /// Something is allowed or denied.
    Acl { binding: AclBinding },
    /// No longer so.
    RemoveAcl { binding: AclBinding },
}

#[cfg(test)]
mod tests {
    use tailwater_kafka::LeaderEpoch;
    use uuid::Uuid;

    use super::*;
    use crate::metadata::{BrokerEpoch, PartitionEpoch};

    fn ids(ids: &[i32]) -> Vec<BrokerId> {
        ids.iter().copied().map(BrokerId::new).collect()
    }

    /// A record is written as `json`, and read from it.
    fn check(record: &Record, json: &str) {
        assert_eq!(serde_json::to_string(record).unwrap(), json);
        assert_eq!(serde_json::from_str::<Record>(json).unwrap(), *record);
    }

    // These texts are on the disks of clusters that run: never change one, add a level.
    #[test]
    fn each_record_has_its_json() {
        let state =
            ClusterState { cluster_id: "4f0b".to_owned(), level: 1, min_insync_replicas: 2 };
        check(
            &Record::Cluster { state },
            r#"{"cluster":{"state":{"cluster_id":"4f0b","level":1,"min_insync_replicas":2}}}"#,
        );

        let state = BrokerState {
            epoch: BrokerEpoch::new(17),
            incarnation: Uuid::from_u128(1),
            directory: Uuid::from_u128(2),
            host: "log-3.example".to_owned(),
            port: 9092,
            rack: Some("eu-1a".to_owned()),
            fenced: true,
            stopping: false,
        };
        check(
            &Record::Broker { id: BrokerId::new(3), state },
            r#"{"broker":{"id":3,"state":{"epoch":17,"incarnation":"00000000-0000-0000-0000-000000000001","directory":"00000000-0000-0000-0000-000000000002","host":"log-3.example","port":9092,"rack":"eu-1a","fenced":true,"stopping":false}}}"#,
        );
        check(&Record::RemoveBroker { id: BrokerId::new(3) }, r#"{"remove_broker":{"id":3}}"#);

        let topic = TopicId::new(Uuid::from_u128(0xabc));
        let configs = BTreeMap::from([("min.insync.replicas".to_owned(), "2".to_owned())]);
        check(
            &Record::Topic { id: topic, name: "shop".to_owned(), configs },
            r#"{"topic":{"id":"00000000-0000-0000-0000-000000000abc","name":"shop","configs":{"min.insync.replicas":"2"}}}"#,
        );
        check(
            &Record::RemoveTopic { id: topic },
            r#"{"remove_topic":{"id":"00000000-0000-0000-0000-000000000abc"}}"#,
        );

        let state = PartitionState {
            replicas: ids(&[4, 1, 2]),
            isr: ids(&[1]),
            elr: ids(&[2]),
            adding: ids(&[4]),
            removing: ids(&[2]),
            offline: Vec::new(),
            leader: Some(BrokerId::new(1)),
            last_known_leader: None,
            leader_epoch: LeaderEpoch::new(5),
            partition_epoch: PartitionEpoch::new(9),
        };
        let partition = PartitionId::new(0);
        check(
            &Record::Partition { topic, partition, state: state.clone() },
            r#"{"partition":{"topic":"00000000-0000-0000-0000-000000000abc","partition":0,"state":{"replicas":[4,1,2],"isr":[1],"elr":[2],"adding":[4],"removing":[2],"leader":1,"last_known_leader":null,"leader_epoch":5,"partition_epoch":9}}}"#,
        );
        let state = PartitionState { offline: ids(&[4]), ..state };
        check(
            &Record::Partition { topic, partition, state },
            r#"{"partition":{"topic":"00000000-0000-0000-0000-000000000abc","partition":0,"state":{"replicas":[4,1,2],"isr":[1],"elr":[2],"adding":[4],"removing":[2],"offline":[4],"leader":1,"last_known_leader":null,"leader_epoch":5,"partition_epoch":9}}}"#,
        );

        check(&Record::ProducerIds { next: 3000 }, r#"{"producer_ids":{"next":3000}}"#);
        let binding = AclBinding {
            resource_type: 2,
            resource_name: "shop".to_owned(),
            pattern_type: 3,
            principal: "User:alice".to_owned(),
            host: "*".to_owned(),
            operation: 3,
            permission_type: 3,
        };
        let fields = r#"{"resource_type":2,"resource_name":"shop","pattern_type":3,"principal":"User:alice","host":"*","operation":3,"permission_type":3}"#;
        check(
            &Record::Acl { binding: binding.clone() },
            &format!(r#"{{"acl":{{"binding":{fields}}}}}"#),
        );
        check(
            &Record::RemoveAcl { binding },
            &format!(r#"{{"remove_acl":{{"binding":{fields}}}}}"#),
        );
    }

    #[test]
    fn what_is_not_known_is_an_error_that_names_it() {
        for (json, named) in [
            (r#"{"quota":{"id":1}}"#, "quota"),
            (r#"{"producer_ids":{"next":1,"reserved":2}}"#, "reserved"),
            (
                r#"{"cluster":{"state":{"cluster_id":"a","level":1,"min_insync_replicas":1,"colour":2}}}"#,
                "colour",
            ),
            (r#"{"producer_ids":{}}"#, "next"),
        ] {
            let error = serde_json::from_str::<Record>(json).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
