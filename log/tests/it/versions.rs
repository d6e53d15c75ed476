//! Every API in every version that is advertised: the answer can be written, and read back.

use tailwater_kafka::Node;
use tailwater_kafka::wire::{
    ApiKey, KafkaUuid, Request, RequestHeader, Response, alter_configs_request as ac,
    alter_partition_reassignments_request as ar, api_versions_request as av,
    create_partitions_request as cp, create_topics_request as ct, decode_request, decode_response,
    delete_groups_request as dg, delete_topics_request as dt, describe_cluster_request as dcl,
    describe_configs_request as dc, encode_request, encode_response,
    find_coordinator_request as fc, list_groups_request as lg, metadata_request as m,
    offset_delete_request as od, offset_fetch_request as of, offset_for_leader_epoch_request as le,
};
use tailwater_kafka::wire::{
    describe_quorum_request as dq, elect_leaders_request as el, fetch_request as f,
    incremental_alter_configs_request as ia, init_producer_id_request as ip,
    list_offsets_request as lo, list_partition_reassignments_request as lr,
    offset_commit_request as oc, produce_request as p, remove_raft_voter_request as rv,
    unregister_broker_request as ub,
};

use crate::support::{NOBODY, Scratch, ask, commit, create_topic, name, produce_values, values};

const TOPIC: &str = "t";

#[tokio::test]
async fn every_answer_fits_the_version_it_was_asked_in() {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    produce_values(&scratch.log, TOPIC, &["a"]).await;
    commit(&scratch.log, "g", TOPIC, 1).await;
    let id = topic_id(&scratch).await;
    let mut asked = 0;
    for range in scratch.log.supported_apis() {
        for version in range.min..=range.max {
            let header = RequestHeader {
                api: range.api,
                version,
                correlation_id: 7,
                client_id: Some(name("test")),
            };
            let request = request(range.api, version, id);
            // Through the wire, as a stranger's request would come.
            let frame = encode_request(&header, &request).unwrap().concat();
            let decoded = decode_request(bytes::Bytes::from(frame).slice(4..)).unwrap();
            let tailwater_kafka::wire::Decoded::Request(header, request) = decoded else {
                panic!("{:?} version {version} is not understood", range.api);
            };
            let context = tailwater_kafka::RequestContext::IN_PROCESS;
            let response = scratch.log.handle(&context, &header, request).await;
            let what = format!("{:?} version {version}", range.api);
            let frame = encode_response(&header, &response).expect(&what).concat();
            let frame = bytes::Bytes::from(frame).slice(4..);
            decode_response(&header, frame).expect(&what);
            asked += 1;
        }
    }
    assert!(asked > 80, "{asked}");
}

async fn topic_id(scratch: &Scratch) -> KafkaUuid {
    let request = m::MetadataRequestData::default().with_topics(None);
    let Response::Metadata(response) = ask(&scratch.log, ApiKey::Metadata, 12, request).await
    else {
        panic!("another response");
    };
    response.topics[0].topic_id
}

fn request(api: ApiKey, version: i16, id: KafkaUuid) -> Request {
    // A topic is named by its name or, in newer versions of some requests, by its id alone.
    let by_id = |from: i16| {
        if version >= from { (name(""), id) } else { (name(TOPIC), KafkaUuid::ZERO) }
    };
    match api {
        ApiKey::Produce => {
            let (name, id) = by_id(13);
            let data =
                p::PartitionProduceData::default().with_records(Some(values(&["b"], NOBODY)));
            let topic = p::TopicProduceData::default()
                .with_name(name)
                .with_topic_id(id)
                .with_partition_data(vec![data]);
            p::ProduceRequestData::default()
                .with_acks(-1)
                .with_timeout_ms(10_000)
                .with_topic_data(vec![topic])
                .into()
        }
        ApiKey::Fetch => {
            let (name, id) = by_id(13);
            let partition = f::FetchPartition::default().with_partition_max_bytes(1000);
            let topic = f::FetchTopic::default()
                .with_topic(name)
                .with_topic_id(id)
                .with_partitions(vec![partition]);
            f::FetchRequestData::default().with_max_bytes(1000).with_topics(vec![topic]).into()
        }
        ApiKey::ListOffsets => {
            let partition = lo::ListOffsetsPartition::default().with_timestamp(0);
            let topic = lo::ListOffsetsTopic::default()
                .with_name(name(TOPIC))
                .with_partitions(vec![partition]);
            lo::ListOffsetsRequestData::default().with_topics(vec![topic]).into()
        }
        ApiKey::Metadata => {
            let known = m::MetadataRequestTopic::default().with_name(Some(name(TOPIC)));
            let unknown = m::MetadataRequestTopic::default().with_name(Some(name("bad name")));
            m::MetadataRequestData::default()
                .with_allow_auto_topic_creation(true)
                .with_topics(Some(vec![known, unknown]))
                .into()
        }
        ApiKey::OffsetCommit => {
            let (name_, id) = by_id(10);
            let partition = oc::OffsetCommitRequestPartition::default().with_committed_offset(1);
            let topic = oc::OffsetCommitRequestTopic::default()
                .with_name(name_)
                .with_topic_id(id)
                .with_partitions(vec![partition]);
            oc::OffsetCommitRequestData::default()
                .with_group_id(name("g"))
                .with_topics(vec![topic])
                .into()
        }
        ApiKey::OffsetFetch if version >= 8 => {
            let (name_, id) = by_id(10);
            let topic = of::OffsetFetchRequestTopics::default()
                .with_name(name_)
                .with_topic_id(id)
                .with_partition_indexes(vec![0]);
            let group = of::OffsetFetchRequestGroup::default()
                .with_group_id(name("g"))
                .with_topics(Some(vec![topic]));
            of::OffsetFetchRequestData::default().with_groups(vec![group]).into()
        }
        ApiKey::OffsetFetch => {
            let topic = of::OffsetFetchRequestTopic::default()
                .with_name(name(TOPIC))
                .with_partition_indexes(vec![0, 5]);
            of::OffsetFetchRequestData::default()
                .with_group_id(name("g"))
                .with_topics(Some(vec![topic]))
                .into()
        }
        ApiKey::FindCoordinator if version >= 4 => {
            let keys = vec![name("g"), name("h")];
            fc::FindCoordinatorRequestData::default().with_coordinator_keys(keys).into()
        }
        ApiKey::FindCoordinator => {
            fc::FindCoordinatorRequestData::default().with_key(name("g")).into()
        }
        ApiKey::ApiVersions => av::ApiVersionsRequestData::default().into(),
        ApiKey::CreateTopics => {
            let topic = ct::CreatableTopic::default()
                .with_name(name(&format!("made-{version}")))
                .with_num_partitions(1)
                .with_replication_factor(1);
            let bad = topic.clone().with_name(name("bad name"));
            ct::CreateTopicsRequestData::default().with_topics(vec![topic, bad]).into()
        }
        ApiKey::DeleteTopics if version >= 6 => {
            let topic = dt::DeleteTopicState::default().with_name(Some(name("made-6")));
            let bad = dt::DeleteTopicState::default().with_topic_id(KafkaUuid::from_parts(1, 2));
            dt::DeleteTopicsRequestData::default().with_topics(vec![topic, bad]).into()
        }
        ApiKey::DeleteTopics => {
            let names = vec![name(&format!("made-{version}")), name("nowhere")];
            dt::DeleteTopicsRequestData::default().with_topic_names(names).into()
        }
        ApiKey::InitProducerId => ip::InitProducerIdRequestData::default()
            .with_transactional_id(Some(name("role")))
            .with_transaction_timeout_ms(1000)
            .into(),
        ApiKey::OffsetForLeaderEpoch => {
            let partition = le::OffsetForLeaderPartition::default();
            let topic = le::OffsetForLeaderTopic::default()
                .with_topic(name(TOPIC))
                .with_partitions(vec![partition]);
            le::OffsetForLeaderEpochRequestData::default().with_topics(vec![topic]).into()
        }
        ApiKey::DescribeConfigs => {
            let resource = dc::DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(name(TOPIC))
                .with_configuration_keys(None);
            dc::DescribeConfigsRequestData::default().with_resources(vec![resource]).into()
        }
        ApiKey::DeleteGroups => {
            let groups = vec![name("nobody")];
            dg::DeleteGroupsRequestData::default().with_groups_names(groups).into()
        }
        ApiKey::OffsetDelete => {
            let partition = od::OffsetDeleteRequestPartition::default();
            let topic = od::OffsetDeleteRequestTopic::default()
                .with_name(name(TOPIC))
                .with_partitions(vec![partition]);
            od::OffsetDeleteRequestData::default()
                .with_group_id(name("g"))
                .with_topics(vec![topic])
                .into()
        }
        ApiKey::AlterConfigs => {
            let config = ac::AlterableConfig::default()
                .with_name(name("retention.ms"))
                .with_value(Some(name("5000")));
            let resource = ac::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(name(TOPIC))
                .with_configs(vec![config]);
            ac::AlterConfigsRequestData::default().with_resources(vec![resource]).into()
        }
        ApiKey::IncrementalAlterConfigs => {
            let config =
                ia::AlterableConfig::default().with_name(name("no.such")).with_config_operation(1);
            let resource = ia::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(name(TOPIC))
                .with_configs(vec![config]);
            ia::IncrementalAlterConfigsRequestData::default().with_resources(vec![resource]).into()
        }
        ApiKey::CreatePartitions => {
            let topic = |of: &str| {
                cp::CreatePartitionsTopic::default()
                    .with_name(name(of))
                    .with_count(2 + i32::from(version))
                    .with_assignments(None)
            };
            let topics = vec![topic(TOPIC), topic("nowhere")];
            cp::CreatePartitionsRequestData::default().with_topics(topics).into()
        }
        ApiKey::ElectLeaders => {
            let topic = el::TopicPartitions::default()
                .with_topic(name(TOPIC))
                .with_partitions(vec![0, -1, i32::MAX]);
            el::ElectLeadersRequestData::default().with_topic_partitions(Some(vec![topic])).into()
        }
        ApiKey::AlterPartitionReassignments => {
            let partition = ar::ReassignablePartition::default().with_replicas(Some(vec![-1, 1]));
            let topic = ar::ReassignableTopic::default()
                .with_name(name(TOPIC))
                .with_partitions(vec![partition]);
            ar::AlterPartitionReassignmentsRequestData::default().with_topics(vec![topic]).into()
        }
        ApiKey::ListPartitionReassignments => {
            lr::ListPartitionReassignmentsRequestData::default().with_topics(None).into()
        }
        ApiKey::DescribeQuorum => {
            let partition = dq::PartitionData::default();
            let topic = dq::TopicData::default()
                .with_topic_name(name("__cluster_metadata"))
                .with_partitions(vec![partition]);
            dq::DescribeQuorumRequestData::default().with_topics(vec![topic]).into()
        }
        ApiKey::UnregisterBroker => {
            ub::UnregisterBrokerRequestData::default().with_broker_id(-7).into()
        }
        ApiKey::RemoveRaftVoter => {
            rv::RemoveRaftVoterRequestData::default().with_voter_id(-7).into()
        }
        ApiKey::DescribeCluster => dcl::DescribeClusterRequestData::default().into(),
        ApiKey::ListGroups => lg::ListGroupsRequestData::default().into(),
        other => panic!("{other:?} is advertised and not tested here"),
    }
}
