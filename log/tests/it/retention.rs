//! What goes, what is held, and what is let go.

use std::sync::Arc;

use tailwater_kafka::wire::{ApiKey, ErrorCode, Response, offset_delete_request as od};
use tailwater_log::{Config, Log, ManualClock};

use crate::support::{
    NOBODY, Scratch, ask, batch, commit, create_topic, fetch, list_offset, name, open, produce,
    read_all,
};

const TOPIC: &str = "t";
const HOUR: i64 = 3_600_000;

/// Forty batches of one record each, some to a segment, with the times 0 to 39 hours.
async fn filled(adjust: impl Fn(&mut Config)) -> (Scratch, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(40 * HOUR));
    let own = Arc::clone(&clock);
    let scratch = Scratch::with(move |config| {
        config.segment_bytes = 1024;
        config.clock = own;
        config.retention = Some(std::time::Duration::from_hours(10));
        config.retention_check = std::time::Duration::from_hours(1000);
        adjust(config);
    })
    .await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    fill(&scratch.log).await;
    (scratch, clock)
}

async fn fill(log: &Log) {
    for hour in 0..40 {
        let value = format!("hour {hour}");
        let records = [(Some("k"), value.as_str(), hour * HOUR)];
        produce(log, TOPIC, batch(&records, NOBODY)).await.unwrap();
    }
}

async fn start(log: &Log) -> i64 {
    list_offset(log, TOPIC, -2).await.1
}

#[tokio::test]
async fn whole_segments_go_when_they_are_too_old() {
    let (scratch, clock) = filled(|_| {}).await;
    let before = scratch.status(TOPIC).size_bytes;
    let freed = scratch.log.enforce_retention().await.unwrap();
    let first = start(&scratch.log).await;
    assert!(first > 0 && first <= 30, "{first}");
    assert_eq!(scratch.status(TOPIC).size_bytes, before - freed);
    let all = read_all(&scratch.log, TOPIC).await;
    assert_eq!(all[0], (first, format!("hour {first}")));
    let gone = fetch(&scratch.log, TOPIC, first - 1).await;
    assert_eq!(ErrorCode::from(gone.error_code), ErrorCode::OffsetOutOfRange);

    // When all of it is too old, the active segment goes as well, and offsets go on.
    clock.set(100 * HOUR);
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!(start(&scratch.log).await, 40);
    let folder = scratch.die();
    let log = open(folder.path(), |config| config.segment_bytes = 1024).await;
    assert_eq!((start(&log).await, list_offset(&log, TOPIC, -1).await.1), (40, 40));
    assert_eq!(produce(&log, TOPIC, batch(&[(None, "x", HOUR)], NOBODY)).await, Ok(40));
}

#[tokio::test]
async fn the_oldest_go_when_a_partition_is_too_large() {
    let (scratch, _clock) = filled(|_| {}).await;
    create_topic(
        &scratch.log,
        "small",
        &[("retention.bytes", "1500"), ("retention.ms", "-1"), ("segment.bytes", "1024")],
    )
    .await;
    for _ in 0..40 {
        produce(&scratch.log, "small", batch(&[(None, "x", 0)], NOBODY)).await.unwrap();
    }
    scratch.log.enforce_retention().await.unwrap();
    let size = scratch.status("small").size_bytes;
    assert!((1500..1500 + 1024).contains(&size), "{size}");
}

#[tokio::test]
async fn a_pipeline_holds_what_it_has_not_applied_until_it_lets_go() {
    let (scratch, clock) = filled(|_| {}).await;
    clock.set(100 * HOUR);
    assert_eq!(commit(&scratch.log, "tailwater.copy", TOPIC, 0).await, ErrorCode::None);
    // Anyone else's group holds nothing.
    assert_eq!(commit(&scratch.log, "console", TOPIC, 0).await, ErrorCode::None);
    assert_eq!(scratch.log.enforce_retention().await.unwrap(), 0);

    assert_eq!(commit(&scratch.log, "tailwater.copy", TOPIC, 20).await, ErrorCode::None);
    scratch.log.enforce_retention().await.unwrap();
    let held = start(&scratch.log).await;
    assert!(held > 0 && held <= 20, "{held}");

    // The hold survives a restart, and detaching ends it.
    let own = Arc::clone(&clock);
    let scratch = scratch
        .restart(move |config| {
            config.segment_bytes = 1024;
            config.clock = own;
            config.retention = Some(std::time::Duration::from_hours(10));
        })
        .await;
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!(start(&scratch.log).await, held);
    assert!(scratch.log.release_group("tailwater.copy").await.unwrap());
    assert!(!scratch.log.release_group("tailwater.copy").await.unwrap());
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!(start(&scratch.log).await, 40);
}

#[tokio::test]
async fn deleting_its_offsets_detaches_a_pipeline() {
    let (scratch, clock) = filled(|_| {}).await;
    clock.set(100 * HOUR);
    commit(&scratch.log, "tailwater.copy", TOPIC, 0).await;
    let partition = od::OffsetDeleteRequestPartition::default().with_partition_index(0);
    let topic = od::OffsetDeleteRequestTopic::default()
        .with_name(name(TOPIC))
        .with_partitions(vec![partition]);
    let request = od::OffsetDeleteRequestData::default()
        .with_group_id(name("tailwater.copy"))
        .with_topics(vec![topic]);
    let Response::OffsetDelete(response) =
        ask(&scratch.log, ApiKey::OffsetDelete, 0, request).await
    else {
        panic!("another response");
    };
    assert_eq!((response.error_code, response.topics[0].partitions[0].error_code), (0, 0));
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!(start(&scratch.log).await, 40);
}

#[tokio::test]
async fn a_full_node_lets_go_of_no_more_than_it_must() {
    let (scratch, clock) = filled(|config| config.retention_limit = Some(2000)).await;
    clock.set(100 * HOUR);
    commit(&scratch.log, "tailwater.copy", TOPIC, 0).await;
    scratch.log.enforce_retention().await.unwrap();
    let size = scratch.status(TOPIC).size_bytes;
    assert!((900..=2000).contains(&size), "{size}");
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!(scratch.status(TOPIC).size_bytes, size);
}

#[tokio::test]
async fn compacted_topics_do_not_age() {
    let (scratch, clock) = filled(|_| {}).await;
    create_topic(&scratch.log, "kept", &[("cleanup.policy", "compact")]).await;
    produce(&scratch.log, "kept", batch(&[(Some("k"), "x", 0)], NOBODY)).await.unwrap();
    clock.set(10_000 * HOUR);
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!(read_all(&scratch.log, "kept").await.len(), 1);
}

#[tokio::test]
async fn a_file_that_cannot_be_removed_is_tried_again() {
    let (scratch, _clock) = filled(|_| {}).await;
    let segment = scratch.partition_folder(TOPIC).join("00000000000000000000.log");
    let size = std::fs::metadata(&segment).unwrap().len();
    // Not a file: it cannot be removed as one, and then it can.
    std::fs::remove_file(&segment).unwrap();
    std::fs::create_dir(&segment).unwrap();
    scratch.log.enforce_retention().await.unwrap();
    assert!(start(&scratch.log).await > 0);
    assert!(segment.exists());
    std::fs::remove_dir(&segment).unwrap();
    std::fs::write(&segment, "").unwrap();
    assert_eq!(scratch.log.enforce_retention().await.unwrap(), size);
    assert!(!segment.exists());
}

#[tokio::test]
async fn a_file_that_cannot_be_removed_costs_no_other_partition_what_is_held() {
    let (scratch, clock) = filled(|config| config.retention_limit = Some(4000)).await;
    create_topic(&scratch.log, "u", &[]).await;
    for hour in 0..40 {
        produce(&scratch.log, "u", batch(&[(Some("k"), "x", hour * HOUR)], NOBODY)).await.unwrap();
    }
    let (t, u) = (scratch.status(TOPIC).size_bytes, scratch.status("u").size_bytes);
    assert!(u < 4000 && t + u > 4000, "{t} + {u}: without the first there is no excess");
    commit(&scratch.log, "tailwater.copy", "u", 0).await;
    clock.set(100 * HOUR);
    let segment = scratch.partition_folder(TOPIC).join("00000000000000000000.log");
    std::fs::remove_file(&segment).unwrap();
    std::fs::create_dir(&segment).unwrap();
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!((start(&scratch.log).await, list_offset(&scratch.log, "u", -2).await.1), (40, 0));
    assert!(segment.exists());
}

#[tokio::test]
async fn records_without_a_time_or_from_the_future_age_from_when_they_were_written() {
    let clock = Arc::new(ManualClock::new(100 * HOUR));
    let own = Arc::clone(&clock);
    let scratch = Scratch::with(move |config| {
        config.clock = own;
        config.retention = Some(std::time::Duration::from_hours(10));
    })
    .await;
    for (topic, time) in [("without", -1), ("ahead", 101 * HOUR)] {
        create_topic(&scratch.log, topic, &[]).await;
        produce(&scratch.log, topic, batch(&[(Some("k"), "x", time)], NOBODY)).await.unwrap();
    }
    clock.set(110 * HOUR);
    scratch.log.enforce_retention().await.unwrap();
    for topic in ["without", "ahead"] {
        assert_eq!(read_all(&scratch.log, topic).await.len(), 1, "{topic}");
    }
    clock.set(110 * HOUR + 1);
    scratch.log.enforce_retention().await.unwrap();
    for topic in ["without", "ahead"] {
        assert_eq!(read_all(&scratch.log, topic).await, [], "{topic}");
    }
}
