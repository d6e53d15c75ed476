//! Settings of a topic that change while it is in use, and topics that get more partitions.

use tailwater_kafka::wire::{
    ApiKey, ErrorCode, Response, alter_configs_request as ac, create_partitions_request as cp,
    describe_configs_request as dc, incremental_alter_configs_request as ia,
};
use tailwater_log::Log;

use crate::support::{
    NOBODY, Scratch, ask, commit, create_topic, name, produce, produce_values, read_all, values,
};

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

/// A change of one topic, `(setting, operation, value)`.
fn resource(topic: &str, changes: &[(&str, i8, Option<&str>)]) -> ia::AlterConfigsResource {
    let configs = changes.iter().map(|(setting, operation, value)| {
        ia::AlterableConfig::default()
            .with_name(name(setting))
            .with_config_operation(*operation)
            .with_value(value.map(name))
    });
    ia::AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(name(topic))
        .with_configs(configs.collect())
}

async fn send(
    log: &Log,
    resources: Vec<ia::AlterConfigsResource>,
    validate_only: bool,
) -> Vec<(ErrorCode, String)> {
    let request = ia::IncrementalAlterConfigsRequestData::default()
        .with_resources(resources)
        .with_validate_only(validate_only);
    let Response::IncrementalAlterConfigs(response) =
        ask(log, ApiKey::IncrementalAlterConfigs, 1, request).await
    else {
        panic!("another response");
    };
    let text = |text: &tailwater_kafka::wire::KafkaString| text.as_str().to_owned();
    let outcomes = response.responses.iter();
    outcomes
        .map(|one| {
            (one.error_code.into(), one.error_message.as_ref().map(text).unwrap_or_default())
        })
        .collect()
}

async fn alter(
    log: &Log,
    topic: &str,
    changes: &[(&str, i8, Option<&str>)],
) -> (ErrorCode, String) {
    send(log, vec![resource(topic, changes)], false).await.remove(0)
}

/// The value of a topic's setting, and whether it is the topic's own.
async fn setting(log: &Log, topic: &str, setting: &str) -> (String, bool) {
    let resource = dc::DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(name(topic))
        .with_configuration_keys(Some(vec![name(setting)]));
    let request = dc::DescribeConfigsRequestData::default().with_resources(vec![resource]);
    let Response::DescribeConfigs(response) = ask(log, ApiKey::DescribeConfigs, 4, request).await
    else {
        panic!("another response");
    };
    let found = &response.results[0].configs[0];
    (found.value.as_ref().unwrap().as_str().to_owned(), found.config_source == 1)
}

#[tokio::test]
async fn settings_take_effect_on_a_topic_that_is_in_use() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    create_topic(log, "t", &[]).await;
    let long = "x".repeat(3000);
    produce_values(log, "t", &[&long]).await;

    // Batches may be no larger than that from now on.
    let done = (ErrorCode::None, String::new());
    assert_eq!(alter(log, "t", &[("max.message.bytes", SET, Some("2000"))]).await, done);
    assert_eq!(setting(log, "t", "max.message.bytes").await, ("2000".to_owned(), true));
    let refused = produce(log, "t", values(&[&long], NOBODY)).await;
    assert_eq!(refused, Err(ErrorCode::MessageTooLarge));
    assert_eq!(alter(log, "t", &[("max.message.bytes", DELETE, None)]).await, done);
    assert_eq!(setting(log, "t", "max.message.bytes").await, ("1048588".to_owned(), false));
    produce_values(log, "t", &[&long]).await;

    // Smaller segments, and the size that is kept: what is beyond it goes.
    let changes = [("segment.bytes", SET, Some("4096")), ("retention.bytes", SET, Some("8000"))];
    assert_eq!(alter(log, "t", &changes).await, done);
    for _ in 0..10 {
        produce_values(log, "t", &[&long]).await;
    }
    let before = scratch.status("t");
    assert!(log.enforce_retention().await.unwrap() > 0);
    let after = scratch.status("t");
    assert!(after.start_offset > before.start_offset && after.size_bytes < before.size_bytes);
    assert_eq!(after.end_offset, before.end_offset);

    // And it is kept through a restart.
    let scratch = scratch.restart(|_| {}).await;
    assert_eq!(setting(&scratch.log, "t", "segment.bytes").await, ("4096".to_owned(), true));
    assert_eq!(scratch.status("t").start_offset, after.start_offset);
}

#[tokio::test]
async fn a_topic_that_becomes_compacted_is_compacted_and_opens_again() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    create_topic(log, "t", &[("segment.bytes", "1024")]).await;
    for number in 0..40 {
        let record = [(Some("k"), &*format!("{number:0200}"), 1000)];
        produce(log, "t", crate::support::batch(&record, NOBODY)).await.unwrap();
    }
    assert_eq!(log.compact().await.unwrap(), 0);
    let (code, text) = alter(log, "t", &[("cleanup.policy", APPEND, Some("compact"))]).await;
    assert_eq!(code, ErrorCode::None, "{text}");
    assert_eq!(setting(log, "t", "cleanup.policy").await.0, "delete,compact");
    assert!(log.compact().await.unwrap() > 0);
    // What is newest is read from memory, where it still stands.
    let scratch = scratch.restart(|_| {}).await;
    let log = &scratch.log;
    let left = read_all(log, "t").await;
    assert!(left.len() < 40, "{}", left.len());
    assert_eq!(left.last().unwrap().0, 39);

    // Gaps stay: what was compacted is so for good.
    let (code, text) = alter(log, "t", &[("cleanup.policy", SUBTRACT, Some("compact"))]).await;
    assert_eq!(code, ErrorCode::InvalidConfig);
    assert!(text.contains("gaps"), "{text}");
    let (code, _) = alter(log, "t", &[("cleanup.policy", DELETE, None)]).await;
    assert_eq!(code, ErrorCode::InvalidConfig);
    let scratch = scratch.restart(|_| {}).await;
    assert_eq!(read_all(&scratch.log, "t").await, left);
}

#[tokio::test]
async fn wrong_changes_are_refused_one_by_one_and_change_nothing() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    create_topic(log, "t", &[]).await;
    create_topic(log, "u", &[]).await;
    let (code, text) = alter(log, "t", &[("retention.hours", SET, Some("1"))]).await;
    assert_eq!(code, ErrorCode::InvalidConfig);
    assert!(text.contains("retention.hours") && text.contains("retention.ms"), "{text}");
    let (code, _) = alter(log, "t", &[("retention.hours", DELETE, None)]).await;
    assert_eq!(code, ErrorCode::InvalidConfig);
    for (change, expected) in [
        (("retention.ms", SET, Some("soon")), ErrorCode::InvalidConfig),
        (("retention.ms", APPEND, Some("5")), ErrorCode::InvalidConfig),
        (("cleanup.policy", SUBTRACT, Some("delete")), ErrorCode::InvalidConfig),
        (("retention.ms", SET, None), ErrorCode::InvalidRequest),
        (("retention.ms", 9, Some("5")), ErrorCode::InvalidRequest),
    ] {
        assert_eq!(alter(log, "t", &[change]).await.0, expected, "{change:?}");
    }
    let (code, _) = alter(log, "nowhere", &[("retention.ms", SET, Some("5"))]).await;
    assert_eq!(code, ErrorCode::UnknownTopicOrPartition);

    // Some of a request: each is decided on by itself.
    let good = || resource("u", &[("retention.ms", SET, Some("5000"))]);
    let twice = || resource("t", &[("retention.ms", SET, Some("5000"))]);
    let doubled = [("retention.ms", SET, Some("1")), ("retention.ms", SET, Some("2"))];
    let node = resource("1", &[]).with_resource_type(4);
    let logger = resource("1", &[]).with_resource_type(8);
    let outcomes =
        send(log, vec![twice(), good(), twice(), resource("v", &doubled), node, logger], false)
            .await;
    let codes: Vec<ErrorCode> = outcomes.iter().map(|(code, _)| *code).collect();
    let invalid = ErrorCode::InvalidRequest;
    assert_eq!(codes, [invalid, ErrorCode::None, invalid, invalid, invalid, invalid]);
    assert!(outcomes[4].1.contains("configuration file"), "{}", outcomes[4].1);
    assert_eq!(setting(log, "t", "retention.ms").await, ("604800000".to_owned(), false));
    assert_eq!(setting(log, "u", "retention.ms").await, ("5000".to_owned(), true));

    // Only asked whether it could be.
    let outcome = send(log, vec![twice()], true).await.remove(0);
    assert_eq!(outcome.0, ErrorCode::None);
    let outcome = send(log, vec![resource("t", &[("no.such", SET, Some("1"))])], true).await;
    assert_eq!(outcome[0].0, ErrorCode::InvalidConfig);
    assert_eq!(setting(log, "t", "retention.ms").await, ("604800000".to_owned(), false));
}

#[tokio::test]
async fn the_older_request_replaces_all_settings() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    create_topic(log, "t", &[("retention.ms", "5000"), ("segment.bytes", "4096")]).await;
    let config = ac::AlterableConfig::default()
        .with_name(name("retention.ms"))
        .with_value(Some(name("6000")));
    let resource = ac::AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(name("t"))
        .with_configs(vec![config]);
    let request = ac::AlterConfigsRequestData::default().with_resources(vec![resource]);
    let Response::AlterConfigs(response) = ask(log, ApiKey::AlterConfigs, 2, request).await else {
        panic!("another response");
    };
    assert_eq!(response.responses[0].error_code, 0);
    assert_eq!(setting(log, "t", "retention.ms").await, ("6000".to_owned(), true));
    assert!(!setting(log, "t", "segment.bytes").await.1);
}

#[tokio::test]
async fn the_default_of_min_insync_replicas_is_the_clusters() {
    let scratch = Scratch::with(|config| config.min_insync_replicas = 2).await;
    create_topic(&scratch.log, "t", &[]).await;
    assert_eq!(setting(&scratch.log, "t", "min.insync.replicas").await, ("2".to_owned(), false));
}

async fn grow(log: &Log, topics: &[(&str, i32)], validate_only: bool) -> Vec<(ErrorCode, String)> {
    let topics = topics.iter().map(|(of, count)| {
        cp::CreatePartitionsTopic::default()
            .with_name(name(of))
            .with_count(*count)
            .with_assignments(None)
    });
    let request = cp::CreatePartitionsRequestData::default()
        .with_topics(topics.collect())
        .with_validate_only(validate_only);
    let Response::CreatePartitions(response) = ask(log, ApiKey::CreatePartitions, 3, request).await
    else {
        panic!("another response");
    };
    let text = |text: &tailwater_kafka::wire::KafkaString| text.as_str().to_owned();
    let results = response.results.iter();
    results
        .map(|one| {
            (one.error_code.into(), one.error_message.as_ref().map(text).unwrap_or_default())
        })
        .collect()
}

fn count(log: &Log, topic: &str) -> usize {
    log.partitions().iter().filter(|one| one.topic == topic).count()
}

#[tokio::test]
async fn topics_get_more_partitions_and_can_be_written_at_once() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    for topic in ["t", "u"] {
        create_topic(log, topic, &[]).await;
    }
    assert_eq!(grow(log, &[("t", 3)], true).await[0].0, ErrorCode::None);
    assert_eq!(count(log, "t"), 1);
    let asked = [("t", 3), ("u", 1), ("nowhere", 2), ("u", 0), ("t", 4)];
    let codes: Vec<_> = grow(log, &asked, false).await.into_iter().map(|one| one.0).collect();
    let invalid = ErrorCode::InvalidRequest;
    assert_eq!(codes, [invalid, invalid, ErrorCode::UnknownTopicOrPartition, invalid, invalid]);
    let codes = grow(log, &[("t", 3), ("u", 1)], false).await;
    assert_eq!((codes[0].0, codes[1].0), (ErrorCode::None, ErrorCode::InvalidPartitions));
    assert_eq!(count(log, "t"), 3);
    let answer = crate::support::produce_to(log, "t", 2, values(&["last"], NOBODY), -1).await;
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::None);
}

#[tokio::test]
async fn what_others_rely_on_keeps_its_partitions_and_its_policy() {
    let scratch = Scratch::new().await;
    let log = &scratch.log;
    create_topic(log, "shop", &[]).await;
    create_topic(log, "shop.state", &[("cleanup.policy", "compact")]).await;
    create_topic(log, "_schemas", &[("cleanup.policy", "compact")]).await;
    assert_eq!(commit(log, "g", "shop", 0).await, ErrorCode::None);
    for topic in ["shop", "shop.state", "_schemas", "__consumer_offsets"] {
        let (code, text) = grow(log, &[(topic, 9)], false).await.remove(0);
        assert_eq!(code, ErrorCode::InvalidPartitions, "{topic}");
        assert!(text.contains("keeps its number of partitions"), "{text}");
    }
    for (topic, policy) in [
        ("shop", "compact"),
        ("shop", "delete,compact"),
        ("shop.state", "compact,delete"),
        ("_schemas", "delete"),
        ("__consumer_offsets", "compact,delete"),
    ] {
        let (code, text) = alter(log, topic, &[("cleanup.policy", SET, Some(policy))]).await;
        assert_eq!(code, ErrorCode::InvalidConfig, "{topic} {policy}: {text}");
        assert!(text.contains("cleanup.policy must be"), "{text}");
    }
    // What harms nobody may be changed.
    for (topic, setting, value) in [
        ("shop", "retention.ms", "86400000"),
        ("shop.state", "segment.bytes", "1048576"),
        ("__consumer_offsets", "min.insync.replicas", "2"),
    ] {
        let (code, text) = alter(log, topic, &[(setting, SET, Some(value))]).await;
        assert_eq!(code, ErrorCode::None, "{topic}: {text}");
    }
    let made = create_topic(log, "__transaction_state", &[]).await;
    assert_eq!(made, ErrorCode::InvalidConfig);
}
