//! What readers see, and when.

use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::wire::{ApiKey, ErrorCode, Response, offset_for_leader_epoch_request as ofle};

use crate::support::{
    NOBODY, Scratch, ask, batch, batches, create_topic, fetch, fetch_request, list_offset, name,
    open, produce, produce_values, read_all, send_fetch, texts, values,
};

const TOPIC: &str = "t";

async fn scratch() -> Scratch {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    scratch
}

#[tokio::test]
async fn a_reader_inside_a_batch_gets_all_of_it() {
    let scratch = scratch().await;
    produce_values(&scratch.log, TOPIC, &["a", "b", "c"]).await;
    produce_values(&scratch.log, TOPIC, &["d"]).await;
    let offsets = |data: tailwater_kafka::wire::fetch_response::PartitionData| {
        texts(data.records).into_iter().map(|(offset, _)| offset).collect::<Vec<_>>()
    };
    assert_eq!(offsets(fetch(&scratch.log, TOPIC, 2).await), [0, 1, 2, 3]);
    assert_eq!(offsets(fetch(&scratch.log, TOPIC, 3).await), [3]);
    assert_eq!(offsets(fetch(&scratch.log, TOPIC, 4).await), [0; 0]);
    // The same from the segment.
    let scratch = scratch.restart(|_| {}).await;
    assert_eq!(offsets(fetch(&scratch.log, TOPIC, 2).await), [0, 1, 2, 3]);
    assert_eq!(offsets(fetch(&scratch.log, TOPIC, 3).await), [3]);
}

#[tokio::test]
async fn an_offset_that_never_was_is_out_of_range() {
    let scratch = scratch().await;
    produce_values(&scratch.log, TOPIC, &["a"]).await;
    for offset in [-1, 2, 100] {
        let data = fetch(&scratch.log, TOPIC, offset).await;
        assert_eq!(ErrorCode::from(data.error_code), ErrorCode::OffsetOutOfRange, "{offset}");
    }
    assert_eq!(fetch(&scratch.log, TOPIC, 1).await.error_code, 0);
}

#[tokio::test]
async fn the_first_batch_comes_whatever_its_size_and_the_bounds_hold_for_the_rest() {
    let scratch = scratch().await;
    for _ in 0..4 {
        produce_values(&scratch.log, TOPIC, &["abc"]).await;
    }
    let one = values(&["abc"], NOBODY).len();
    for restarted in [false, true] {
        let scratch_log = if restarted {
            scratch.log.close().await.unwrap();
            open(scratch.folder.path(), |_| {}).await
        } else {
            Arc::clone(&scratch.log)
        };
        for (limit, expected) in [(1, 1), (one, 1), (2 * one - 1, 1), (2 * one, 2), (9999, 4)] {
            let limit = i32::try_from(limit).unwrap();
            let mut request = fetch_request(TOPIC, 0);
            request.topics[0].partitions[0].partition_max_bytes = limit;
            let found = batches(send_fetch(&scratch_log, request).await.records).len();
            assert_eq!(found, expected, "partition limit {limit}, restarted {restarted}");
            let request = fetch_request(TOPIC, 0).with_max_bytes(limit);
            let found = batches(send_fetch(&scratch_log, request).await.records).len();
            assert_eq!(found, expected, "limit {limit}, restarted {restarted}");
        }
    }
}

#[tokio::test]
async fn a_fetch_at_the_end_waits_for_the_next_batch() {
    let scratch = scratch().await;
    let log = Arc::clone(&scratch.log);
    let waiting = tokio::spawn(async move {
        send_fetch(&log, fetch_request(TOPIC, 0).with_max_wait_ms(60_000)).await
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    produce_values(&scratch.log, TOPIC, &["a"]).await;
    let data = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(texts(data.records), [(0, "a".to_owned())]);
}

#[tokio::test]
async fn a_fetch_waits_for_as_many_bytes_as_it_asked_for_or_for_its_time() {
    let scratch = scratch().await;
    produce_values(&scratch.log, TOPIC, &["a"]).await;
    let enough = i32::try_from(2 * values(&["a"], NOBODY).len()).unwrap();
    let request = fetch_request(TOPIC, 0).with_max_wait_ms(60_000).with_min_bytes(enough);
    let log = Arc::clone(&scratch.log);
    let waiting = tokio::spawn(async move { send_fetch(&log, request).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    produce_values(&scratch.log, TOPIC, &["b"]).await;
    let data = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(texts(data.records).len(), 2);

    let request = fetch_request(TOPIC, 2).with_max_wait_ms(20);
    let data = send_fetch(&scratch.log, request).await;
    assert_eq!((data.error_code, texts(data.records).len()), (0, 0));
}

#[tokio::test]
async fn a_waiting_fetch_learns_that_its_topic_is_gone() {
    use tailwater_kafka::wire::delete_topics_request as dt;
    let scratch = scratch().await;
    let log = Arc::clone(&scratch.log);
    let waiting = tokio::spawn(async move {
        send_fetch(&log, fetch_request(TOPIC, 0).with_max_wait_ms(60_000)).await
    });
    tokio::task::yield_now().await;
    let request = dt::DeleteTopicsRequestData::default().with_topic_names(vec![name(TOPIC)]);
    ask(&scratch.log, ApiKey::DeleteTopics, 5, request).await;
    let data = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(ErrorCode::from(data.error_code), ErrorCode::UnknownTopicOrPartition);
}

#[tokio::test]
async fn reading_across_segments_and_memory_gives_everything_once() {
    let adjust = |config: &mut tailwater_log::Config| {
        config.segment_bytes = 2048;
        config.tail_bytes = 1024;
    };
    let scratch = Scratch::with(adjust).await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    for number in 0..200 {
        produce_values(&scratch.log, TOPIC, &[&number.to_string()]).await;
    }
    let expected: Vec<_> = (0..200).map(|number| (number, number.to_string())).collect();
    assert_eq!(read_all(&scratch.log, TOPIC).await, expected);
    let scratch = scratch.restart(adjust).await;
    assert_eq!(read_all(&scratch.log, TOPIC).await, expected);
    for offset in 0..200 {
        let data = fetch(&scratch.log, TOPIC, offset).await;
        assert_eq!(texts(data.records)[0].0, offset);
    }
}

#[tokio::test]
async fn offsets_are_found_by_time() {
    let adjust = |config: &mut tailwater_log::Config| config.segment_bytes = 1024;
    let scratch = Scratch::with(adjust).await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    assert_eq!(list_offset(&scratch.log, TOPIC, 0).await, (ErrorCode::None, -1, -1));
    // Two records a batch; every fifth batch is late: its times lie behind those before it.
    let mut times = Vec::new();
    for number in 0..60_i64 {
        let late = if number % 5 == 4 { 700 } else { 0 };
        let pair = [1000 + 100 * number - late, 1050 + 100 * number - late];
        let records = [(Some("k"), "a", pair[0]), (Some("k"), "b", pair[1])];
        produce(&scratch.log, TOPIC, batch(&records, NOBODY)).await.unwrap();
        times.extend(pair);
    }
    let check = async |log: &tailwater_log::Log| {
        for time in (0..7200).step_by(25) {
            let expected = times.iter().position(|at| *at >= time);
            let found = list_offset(log, TOPIC, time).await;
            match expected {
                Some(offset) => assert_eq!(
                    found,
                    (ErrorCode::None, i64::try_from(offset).unwrap(), times[offset]),
                    "time {time}"
                ),
                None => assert_eq!(found, (ErrorCode::None, -1, -1), "time {time}"),
            }
        }
        let greatest = *times.iter().max().unwrap();
        let at = times.iter().position(|at| *at == greatest).unwrap();
        let found = list_offset(log, TOPIC, -3).await;
        assert_eq!(found, (ErrorCode::None, i64::try_from(at).unwrap(), greatest));
        assert_eq!(list_offset(log, TOPIC, -2).await.1, 0);
        assert_eq!(list_offset(log, TOPIC, -1).await.1, 120);
    };
    check(&scratch.log).await;
    let scratch = scratch.restart(adjust).await;
    check(&scratch.log).await;
    let folder = scratch.die();
    let log = open(folder.path(), adjust).await;
    check(&log).await;
}

#[tokio::test]
async fn leader_epochs_are_checked_and_their_ends_known() {
    let scratch = scratch().await;
    produce_values(&scratch.log, TOPIC, &["a", "b"]).await;
    let folder = scratch.die();
    let log = open(folder.path(), |_| {}).await;
    produce_values(&log, TOPIC, &["c"]).await;

    // The crash cost the broker its leadership, and it was elected again: two epochs.
    let mut request = fetch_request(TOPIC, 0);
    for (epoch, expected) in [
        (0, ErrorCode::FencedLeaderEpoch),
        (2, ErrorCode::None),
        (3, ErrorCode::UnknownLeaderEpoch),
    ] {
        request.topics[0].partitions[0].current_leader_epoch = epoch;
        let data = send_fetch(&log, request.clone()).await;
        assert_eq!(ErrorCode::from(data.error_code), expected);
    }
    for (epoch, expected) in [(0, (0, 2)), (1, (0, 2)), (2, (2, 3)), (5, (-1, -1))] {
        let partition = ofle::OffsetForLeaderPartition::default()
            .with_current_leader_epoch(-1)
            .with_leader_epoch(epoch);
        let topic = ofle::OffsetForLeaderTopic::default()
            .with_topic(name(TOPIC))
            .with_partitions(vec![partition]);
        let request = ofle::OffsetForLeaderEpochRequestData::default().with_topics(vec![topic]);
        let Response::OffsetForLeaderEpoch(response) =
            ask(&log, ApiKey::OffsetForLeaderEpoch, 4, request).await
        else {
            panic!("another response");
        };
        let found = &response.topics[0].partitions[0];
        assert_eq!((found.leader_epoch, found.end_offset), expected, "epoch {epoch}");
    }
    // A reader that read past the end of its epoch is sent back.
    let mut request = fetch_request(TOPIC, 3);
    request.topics[0].partitions[0].last_fetched_epoch = 0;
    let data = send_fetch(&log, request).await;
    assert_eq!((data.diverging_epoch.epoch, data.diverging_epoch.end_offset), (0, 2));
}
