//! What is taken, what is refused, and who may write.

use bytes::{Bytes, BytesMut};
use tailwater_kafka::wire::{ApiKey, ErrorCode, RequestHeader, Response, produce_request as p};
use tailwater_kafka::{BatchBuilder, BatchStamp, Compression, HEADER_BYTES, Node, RequestContext};

use crate::support::{
    NOBODY, Scratch, Writer, batch, create_topic, create_topic_with, fetch, init_producer,
    list_offset, name, produce, produce_raw, produce_to, produce_values, read_all, values,
};

const TOPIC: &str = "t";

async fn scratch() -> Scratch {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    scratch
}

#[tokio::test]
async fn batches_get_consecutive_offsets_and_come_back_byte_for_byte() {
    let scratch = scratch().await;
    let sent = values(&["a", "b", "c"], NOBODY);
    assert_eq!(produce(&scratch.log, TOPIC, sent.clone()).await, Ok(0));
    assert_eq!(produce(&scratch.log, TOPIC, sent.clone()).await, Ok(3));
    let data = fetch(&scratch.log, TOPIC, 3).await;
    let records = data.records.unwrap();
    assert_eq!(records[16..], sent[16..], "all but base offset and leader epoch");
    assert_eq!((data.high_watermark, data.log_start_offset), (6, 0));
}

#[tokio::test]
async fn damaged_and_impossible_batches_are_refused() {
    let scratch = scratch().await;
    let good = values(&["a"], NOBODY);
    let changed = |position: usize, value: u8| {
        let mut bytes = BytesMut::from(&good[..]);
        bytes[position] = value;
        bytes.freeze()
    };
    let two = [&good[..], &good[..]].concat();
    for (what, bytes, code) in [
        ("nothing", Bytes::new(), ErrorCode::CorruptMessage),
        ("cut off", good.slice(..good.len() - 1), ErrorCode::CorruptMessage),
        ("old format", changed(16, 1), ErrorCode::UnsupportedForMessageFormat),
        ("changed", changed(good.len() - 1, 0xff), ErrorCode::CorruptMessage),
        ("no such codec", changed(22, 7), ErrorCode::UnsupportedCompressionType),
        ("two batches", two.into(), ErrorCode::InvalidRecord),
    ] {
        assert_eq!(produce(&scratch.log, TOPIC, bytes).await, Err(code), "{what}");
    }
    for (what, stamp, code) in [
        (
            "control",
            BatchStamp { control: true, ..BatchStamp::default() },
            ErrorCode::InvalidRecord,
        ),
        (
            "transactional",
            BatchStamp { transactional: true, ..BatchStamp::default() },
            ErrorCode::InvalidTxnState,
        ),
    ] {
        let mut builder = BatchBuilder::with_capacity(64);
        builder.append(None, Some(&[b"a"]), 0, &[]);
        let bytes = builder.finish(stamp).unwrap();
        assert_eq!(produce(&scratch.log, TOPIC, bytes).await, Err(code), "{what}");
    }
    assert_eq!(list_offset(&scratch.log, TOPIC, -1).await.1, 0, "nothing was taken");
}

#[tokio::test]
async fn a_batch_larger_than_the_topic_allows_is_refused() {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[("max.message.bytes", "200")]).await;
    let large = "x".repeat(200);
    let answer = produce(&scratch.log, TOPIC, values(&[&large], NOBODY)).await;
    assert_eq!(answer, Err(ErrorCode::MessageTooLarge));
    produce_values(&scratch.log, TOPIC, &["small"]).await;
}

#[tokio::test]
async fn unknown_places_and_acks_are_refused() {
    let scratch = scratch().await;
    let answer = produce(&scratch.log, "nowhere", values(&["a"], NOBODY)).await;
    assert_eq!(answer, Err(ErrorCode::UnknownTopicOrPartition));
    let answer = produce_to(&scratch.log, TOPIC, 7, values(&["a"], NOBODY), -1).await;
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::UnknownTopicOrPartition);
    let answer = produce_to(&scratch.log, TOPIC, 0, values(&["a"], NOBODY), 2).await;
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::InvalidRequiredAcks);
}

#[tokio::test]
async fn a_repetition_gets_the_first_offset_and_a_gap_is_refused() {
    let scratch = scratch().await;
    let writer = init_producer(&scratch.log, None).await;
    let next = |sequence| values(&["a", "b"], Writer { sequence, ..writer });
    assert_eq!(produce(&scratch.log, TOPIC, next(0)).await, Ok(0));
    assert_eq!(produce(&scratch.log, TOPIC, next(2)).await, Ok(2));
    assert_eq!(produce(&scratch.log, TOPIC, next(0)).await, Ok(0));
    let answer = produce(&scratch.log, TOPIC, next(6)).await;
    assert_eq!(answer, Err(ErrorCode::OutOfOrderSequenceNumber));
    assert_eq!(produce(&scratch.log, TOPIC, next(4)).await, Ok(4));
    assert_eq!(read_all(&scratch.log, TOPIC).await.len(), 6);
}

#[tokio::test]
async fn a_newer_producer_fences_the_older_one_where_it_writes_and_through_restarts() {
    let scratch = Scratch::new().await;
    create_topic_with(&scratch.log, TOPIC, 2, &[]).await;
    let older = init_producer(&scratch.log, Some("tailwater.shop")).await;
    let send = async |log: &tailwater_log::Log, partition, writer| {
        let answer = produce_to(log, TOPIC, partition, values(&["a"], writer), -1).await;
        ErrorCode::from(answer.error_code)
    };
    assert_eq!(send(&scratch.log, 0, older).await, ErrorCode::None);
    let newer = init_producer(&scratch.log, Some("tailwater.shop")).await;
    assert_eq!((newer.id, newer.epoch), (older.id, older.epoch + 1));
    // From its first batch in a partition on, whatever the sequence.
    for partition in [0, 1] {
        assert_eq!(send(&scratch.log, partition, newer).await, ErrorCode::None);
        let stale = Writer { sequence: 1, ..older };
        assert_eq!(send(&scratch.log, partition, stale).await, ErrorCode::InvalidProducerEpoch);
        assert_eq!(send(&scratch.log, partition, older).await, ErrorCode::InvalidProducerEpoch);
    }
    let scratch = scratch.restart(|_| {}).await;
    assert_eq!(send(&scratch.log, 1, older).await, ErrorCode::InvalidProducerEpoch);
    let next = Writer { sequence: 1, ..newer };
    assert_eq!(send(&scratch.log, 1, next).await, ErrorCode::None);
    assert_eq!(send(&scratch.log, 0, next).await, ErrorCode::None);
    let newest = init_producer(&scratch.log, Some("tailwater.shop")).await;
    assert_eq!((newest.id, newest.epoch), (older.id, older.epoch + 2));
    assert_eq!(send(&scratch.log, 0, newest).await, ErrorCode::None);
    assert_eq!(send(&scratch.log, 0, newer).await, ErrorCode::InvalidProducerEpoch);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_older_producer_is_taken_after_the_newer_one_has_written() {
    let scratch = scratch().await;
    for _ in 0..20 {
        let older = init_producer(&scratch.log, Some("role")).await;
        let log = std::sync::Arc::clone(&scratch.log);
        let writing = tokio::spawn(async move {
            let mut sequence = 0;
            loop {
                let next = values(&["old"], Writer { sequence, ..older });
                match produce(&log, TOPIC, next).await {
                    Ok(_) => sequence += 1,
                    Err(code) => return code,
                }
            }
        });
        while list_offset(&scratch.log, TOPIC, -1).await.1 == 0 {
            tokio::task::yield_now().await;
        }
        let newer = init_producer(&scratch.log, Some("role")).await;
        let marker = produce(&scratch.log, TOPIC, values(&["marker"], newer)).await.unwrap();
        assert_eq!(writing.await.unwrap(), ErrorCode::InvalidProducerEpoch);
        let end = list_offset(&scratch.log, TOPIC, -1).await.1;
        assert_eq!(end, marker + 1, "the marker is the last");
    }
}

#[tokio::test]
async fn a_compacted_topic_takes_only_keys() {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[("cleanup.policy", "compact")]).await;
    let mixed = batch(&[(Some("k"), "a", 1), (None, "b", 1), (None, "c", 1)], NOBODY);
    let answer = produce_raw(&scratch.log, TOPIC, mixed).await;
    assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::InvalidRecord);
    let records: Vec<_> = answer.record_errors.iter().map(|error| error.batch_index).collect();
    assert_eq!(records, [1, 2]);
    produce_values(&scratch.log, TOPIC, &["a"]).await;
}

#[tokio::test]
async fn every_codec_is_kept_as_it_came() {
    let scratch = scratch().await;
    let text = "the same again and again ".repeat(40);
    for (number, compression) in
        [Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd]
            .into_iter()
            .enumerate()
    {
        let mut builder = BatchBuilder::with_capacity(64);
        builder.append(Some(b"k"), Some(&[text.as_bytes()]), 7, &[]);
        let bytes = builder.finish(BatchStamp { compression, ..BatchStamp::default() }).unwrap();
        assert!(bytes.len() < text.len());
        produce(&scratch.log, TOPIC, bytes.clone()).await.unwrap();
        let data = fetch(&scratch.log, TOPIC, i64::try_from(number).unwrap()).await;
        assert_eq!(data.records.unwrap()[16..], bytes[16..]);
    }
    assert!(read_all(&scratch.log, TOPIC).await.iter().all(|(_, value)| *value == text));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_producers_share_flushes_and_lose_nothing() {
    let scratch = scratch().await;
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let log = std::sync::Arc::clone(&scratch.log);
        writing.spawn(async move {
            for number in 0..50 {
                produce_values(&log, TOPIC, &[&format!("{writer} {number}")]).await;
            }
        });
    }
    while let Some(done) = writing.join_next().await {
        done.unwrap();
    }
    let all = read_all(&scratch.log, TOPIC).await;
    assert!(all.iter().map(|(offset, _)| *offset).eq(0..800));
    for writer in 0..16 {
        let prefix = format!("{writer} ");
        let own: Vec<usize> =
            all.iter().filter_map(|(_, text)| text.strip_prefix(&prefix)?.parse().ok()).collect();
        assert!(own.into_iter().eq(0..50), "writer {writer} in order");
    }
}

#[tokio::test]
async fn writing_waits_for_room_and_goes_on() {
    let scratch = Scratch::with(|config| {
        config.pending_bytes = 2048;
        config.max_message_bytes = 2048;
    })
    .await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let text = "x".repeat(900);
    let mut writing = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (log, text) = (std::sync::Arc::clone(&scratch.log), text.clone());
        writing.spawn(async move { produce_values(&log, TOPIC, &[&text]).await });
    }
    while let Some(done) = writing.join_next().await {
        done.unwrap();
    }
    assert_eq!(read_all(&scratch.log, TOPIC).await.len(), 30);
}

#[tokio::test]
async fn records_from_the_future_are_refused() {
    let clock = std::sync::Arc::new(tailwater_log::ManualClock::new(1_000_000));
    let scratch = Scratch::with(move |config| config.clock = clock).await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let hour = 3_600_000;
    let at = |time| batch(&[(Some("k"), "x", time)], NOBODY);
    assert_eq!(produce(&scratch.log, TOPIC, at(1_000_000 + hour)).await, Ok(0));
    for time in [1_000_001 + hour, i64::MAX] {
        let refused = produce(&scratch.log, TOPIC, at(time)).await;
        assert_eq!(refused, Err(ErrorCode::InvalidTimestamp), "{time}");
    }
    assert_eq!(produce(&scratch.log, TOPIC, at(-1)).await, Ok(1));
}

/// Two records, the second numbered as the first.
fn numbered_twice() -> Bytes {
    let mut bytes = BytesMut::from(&values(&["a", "b"], NOBODY)[..]);
    // Length, attributes, time and number of the record behind the first, a byte each.
    let second = HEADER_BYTES + 1 + usize::from(bytes[HEADER_BYTES] / 2);
    assert_eq!(bytes[second + 3], 2, "number 1 as a zigzag varint");
    bytes[second + 3] = 0;
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    bytes.freeze()
}

#[tokio::test]
async fn records_that_are_not_numbered_one_by_one_are_refused() {
    let scratch = scratch().await;
    create_topic(&scratch.log, "compacted", &[("cleanup.policy", "compact")]).await;
    let refused = Err(ErrorCode::InvalidRecord);
    assert_eq!(produce(&scratch.log, "compacted", numbered_twice()).await, refused);

    // On other topics what comes from outside of the process is looked through.
    let context = RequestContext { peer: Some(([127, 0, 0, 1], 9).into()) };
    let header =
        RequestHeader { api: ApiKey::Produce, version: 9, correlation_id: 1, client_id: None };
    for (records, expected) in [
        (numbered_twice(), ErrorCode::InvalidRecord),
        (values(&["a", "b"], NOBODY), ErrorCode::None),
    ] {
        let data = p::PartitionProduceData::default().with_records(Some(records));
        let topic =
            p::TopicProduceData::default().with_name(name(TOPIC)).with_partition_data(vec![data]);
        let request = p::ProduceRequestData::default()
            .with_acks(-1)
            .with_timeout_ms(30_000)
            .with_topic_data(vec![topic]);
        let Response::Produce(response) =
            scratch.log.handle(&context, &header, request.into()).await
        else {
            panic!("another response");
        };
        let code = response.responses[0].partition_responses[0].error_code;
        assert_eq!(ErrorCode::from(code), expected);
    }
}

#[tokio::test]
async fn silent_producers_are_forgotten_also_where_no_segment_ends() {
    let clock = std::sync::Arc::new(tailwater_log::ManualClock::new(1_000_000));
    let own = std::sync::Arc::clone(&clock);
    let scratch = Scratch::with(move |config| config.clock = own).await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let writer = init_producer(&scratch.log, None).await;
    let at = |sequence| values(&["a"], Writer { sequence, ..writer });
    assert_eq!(produce(&scratch.log, TOPIC, at(0)).await, Ok(0));
    let gap = produce(&scratch.log, TOPIC, at(5)).await;
    assert_eq!(gap, Err(ErrorCode::OutOfOrderSequenceNumber));
    clock.set(1_000_000 + 25 * 3_600_000);
    scratch.log.enforce_retention().await.unwrap();
    assert_eq!(produce(&scratch.log, TOPIC, at(5)).await, Ok(1));
}
