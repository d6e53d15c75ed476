//! Topics, groups and what there is to know about them.

use tailwater_kafka::Node;
use tailwater_kafka::wire::{
    ApiKey, ErrorCode, KafkaUuid, Response, create_topics_request as ct,
    describe_cluster_request as dcl, describe_configs_request as dc,
    find_coordinator_request as fc, metadata_request as m, metadata_response,
    offset_fetch_request as of,
};
use tailwater_kafka::{BrokerId, wire::api_versions_request::ApiVersionsRequestData};
use tailwater_log::{Config, Error, Log};

use crate::support::{
    Scratch, ask, commit, create_topic, create_topic_with, delete_topic, fetch, name,
    produce_values, read_all,
};

async fn metadata(
    log: &Log,
    version: i16,
    names: Option<&[&str]>,
) -> metadata_response::MetadataResponseData {
    let topics = names.map(|names| {
        names
            .iter()
            .map(|topic| m::MetadataRequestTopic::default().with_name(Some(name(topic))))
            .collect()
    });
    let request =
        m::MetadataRequestData::default().with_topics(topics).with_allow_auto_topic_creation(true);
    let Response::Metadata(response) = ask(log, ApiKey::Metadata, version, request).await else {
        panic!("another response");
    };
    response
}

#[tokio::test]
async fn asking_for_a_topic_makes_it_where_that_is_allowed() {
    let scratch = Scratch::with(|config| config.default_partitions = 3).await;
    let made = metadata(&scratch.log, 12, Some(&["new", "bad name"])).await;
    assert_eq!((made.topics[0].error_code, made.topics[0].partitions.len()), (0, 3));
    assert_eq!(made.topics[1].error_code, i16::from(ErrorCode::InvalidTopicException));
    assert_ne!(made.topics[0].topic_id, KafkaUuid::ZERO);
    let partition = &made.topics[0].partitions[0];
    assert_eq!((partition.leader_id, &partition.isr_nodes[..]), (1, &[1][..]));
    assert_eq!(made.brokers[0].port, 9092);

    let scratch = scratch.restart(|config| config.auto_create_topics = false).await;
    let found = metadata(&scratch.log, 12, Some(&["new", "other"])).await;
    assert_eq!(found.topics[0].topic_id, made.topics[0].topic_id, "ids persist");
    assert_eq!(found.topics[1].error_code, i16::from(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(found.cluster_id, made.cluster_id);
    assert_eq!(metadata(&scratch.log, 12, None).await.topics.len(), 1);
    assert_eq!(metadata(&scratch.log, 0, Some(&[])).await.topics.len(), 1, "0 says all so");
    assert_eq!(metadata(&scratch.log, 1, Some(&[])).await.topics.len(), 0);
}

#[tokio::test]
async fn wrong_topics_are_refused_one_by_one() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    assert_eq!(create_topic(log, "t", &[]).await, ErrorCode::None);
    assert_eq!(create_topic(log, "t", &[]).await, ErrorCode::TopicAlreadyExists);
    assert_eq!(create_topic(log, "a/b", &[]).await, ErrorCode::InvalidTopicException);
    assert_eq!(create_topic_with(log, "n", 0, &[]).await, ErrorCode::InvalidPartitions);
    let unknown = [("no.such", "1")];
    assert_eq!(create_topic(log, "n", &unknown).await, ErrorCode::InvalidConfig);

    let good = ct::CreatableTopic::default()
        .with_name(name("good"))
        .with_num_partitions(-1)
        .with_replication_factor(-1);
    let bad = good.clone().with_name(name("bad")).with_replication_factor(3);
    let request = ct::CreateTopicsRequestData::default().with_topics(vec![bad, good.clone()]);
    let Response::CreateTopics(response) = ask(log, ApiKey::CreateTopics, 7, request).await else {
        panic!("another response");
    };
    let codes: Vec<ErrorCode> =
        response.topics.iter().map(|topic| topic.error_code.into()).collect();
    assert_eq!(codes, [ErrorCode::InvalidReplicationFactor, ErrorCode::None]);

    let request = ct::CreateTopicsRequestData::default()
        .with_topics(vec![good.with_name(name("later"))])
        .with_validate_only(true);
    ask(log, ApiKey::CreateTopics, 7, request).await;
    assert!(
        metadata(log, 12, None)
            .await
            .topics
            .iter()
            .all(|topic| { topic.name.as_ref().is_some_and(|name| name.as_str() != "later") })
    );
}

#[tokio::test]
async fn a_topic_made_anew_is_another_one() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    create_topic(log, "t", &[]).await;
    produce_values(log, "t", &["a", "b"]).await;
    commit(log, "g", "t", 2).await;
    let first = metadata(log, 12, Some(&["t"])).await.topics[0].topic_id;
    assert_eq!(delete_topic(log, "t").await, ErrorCode::None);
    assert_eq!(delete_topic(log, "t").await, ErrorCode::UnknownTopicOrPartition);
    let gone = fetch(log, "t", 0).await;
    assert_eq!(ErrorCode::from(gone.error_code), ErrorCode::UnknownTopicOrPartition);

    create_topic(log, "t", &[]).await;
    assert_ne!(metadata(log, 12, Some(&["t"])).await.topics[0].topic_id, first);
    assert_eq!(read_all(log, "t").await.len(), 0);
    assert_eq!(committed(log, "g", "t").await, (-1, String::new()));
    let staging = scratch.folder.path().join("staging");
    assert_eq!(std::fs::read_dir(staging).unwrap().count(), 0, "no files are left");
}

async fn committed(log: &Log, group: &str, topic: &str) -> (i64, String) {
    let topic = of::OffsetFetchRequestTopics::default()
        .with_name(name(topic))
        .with_partition_indexes(vec![0]);
    let group = of::OffsetFetchRequestGroup::default()
        .with_group_id(name(group))
        .with_topics(Some(vec![topic]));
    let request = of::OffsetFetchRequestData::default().with_groups(vec![group]);
    let Response::OffsetFetch(response) = ask(log, ApiKey::OffsetFetch, 8, request).await else {
        panic!("another response");
    };
    assert_eq!(response.groups[0].error_code, 0);
    let found = &response.groups[0].topics[0].partitions[0];
    assert_eq!(found.error_code, 0);
    let metadata = found.metadata.as_ref().map(|text| text.as_str().to_owned());
    (found.committed_offset, metadata.unwrap_or_default())
}

#[tokio::test]
async fn committed_offsets_come_back_in_every_version_and_after_a_crash() {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, "t", &[]).await;
    assert_eq!(committed(&scratch.log, "nobody", "t").await, (-1, String::new()));
    assert_eq!(commit(&scratch.log, "g", "t", 5).await, ErrorCode::None);
    assert_eq!(commit(&scratch.log, "g", "t", 7).await, ErrorCode::None);
    assert_eq!(commit(&scratch.log, "g", "nowhere", 7).await, ErrorCode::UnknownTopicOrPartition);
    let folder = scratch.die();
    let log = crate::support::open(folder.path(), |_| {}).await;
    assert_eq!(committed(&log, "g", "t").await, (7, "note".to_owned()));
    // The older form, for all topics.
    let request = of::OffsetFetchRequestData::default().with_group_id(name("g")).with_topics(None);
    let Response::OffsetFetch(response) = ask(&log, ApiKey::OffsetFetch, 5, request).await else {
        panic!("another response");
    };
    assert_eq!(response.topics[0].name.as_str(), "t");
    assert_eq!(response.topics[0].partitions[0].committed_offset, 7);
}

#[tokio::test]
async fn settings_are_described_with_where_they_come_from() {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, "t", &[("cleanup.policy", "compact")]).await;
    let resource = |kind, of: &str| {
        dc::DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(name(of))
            .with_configuration_keys(None)
    };
    let request = dc::DescribeConfigsRequestData::default().with_resources(vec![
        resource(2, "t"),
        resource(2, "nowhere"),
        resource(4, "1"),
    ]);
    let Response::DescribeConfigs(response) =
        ask(&scratch.log, ApiKey::DescribeConfigs, 4, request).await
    else {
        panic!("another response");
    };
    let setting = |key: &str| {
        let configs = &response.results[0].configs;
        let found = configs.iter().find(|config| config.name.as_str() == key).unwrap();
        (found.value.as_ref().unwrap().as_str().to_owned(), found.config_source)
    };
    assert_eq!(setting("cleanup.policy"), ("compact".to_owned(), 1));
    assert_eq!(setting("retention.ms"), ("604800000".to_owned(), 5));
    let missing = ErrorCode::from(response.results[1].error_code);
    assert_eq!(missing, ErrorCode::UnknownTopicOrPartition);
    assert!(response.results[2].configs.iter().any(|one| one.name.as_str() == "num.partitions"));
}

#[tokio::test]
async fn the_node_says_who_it_is() {
    let scratch = Scratch::with(|config| config.advertised_port = 19092).await;
    let request =
        fc::FindCoordinatorRequestData::default().with_coordinator_keys(vec![name("a"), name("b")]);
    let Response::FindCoordinator(response) =
        ask(&scratch.log, ApiKey::FindCoordinator, 4, request).await
    else {
        panic!("another response");
    };
    assert_eq!(response.coordinators.len(), 2);
    assert!(response.coordinators.iter().all(|found| found.port == 19092 && found.node_id == 1));

    let request = dcl::DescribeClusterRequestData::default().with_endpoint_type(1);
    let Response::DescribeCluster(response) =
        ask(&scratch.log, ApiKey::DescribeCluster, 1, request).await
    else {
        panic!("another response");
    };
    assert_eq!(response.cluster_id.as_str(), scratch.log.cluster_id());

    let request = ApiVersionsRequestData::default();
    let Response::ApiVersions(response) = ask(&scratch.log, ApiKey::ApiVersions, 3, request).await
    else {
        panic!("another response");
    };
    assert_eq!(response.api_keys.len(), scratch.log.supported_apis().len());
}

#[tokio::test]
async fn a_folder_has_one_node() {
    let scratch = Scratch::new().await;
    let second = Log::open(Config::new(scratch.folder.path())).await;
    assert!(matches!(second, Err(Error::Locked { .. })));
    scratch.log.close().await.unwrap();
    let other = Config { node_id: BrokerId::new(2), ..Config::new(scratch.folder.path()) };
    let other = Log::open(other).await;
    assert!(matches!(other, Err(Error::OtherNode { found: 1, configured: 2, .. })));
    Log::open(Config::new(scratch.folder.path())).await.unwrap();
}

#[tokio::test]
async fn a_closed_node_refuses_and_does_not_hang() {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, "t", &[]).await;
    scratch.log.close().await.unwrap();
    let answer = crate::support::produce(
        &scratch.log,
        "t",
        crate::support::values(&["a"], crate::support::NOBODY),
    )
    .await;
    assert_eq!(answer, Err(ErrorCode::NotLeaderOrFollower));
    assert_eq!(commit(&scratch.log, "g", "t", 0).await, ErrorCode::CoordinatorNotAvailable);
}
