//! What the reader promises.

use std::time::Duration;

use tailwater_kafka::{Client, Disposition, Error, Offset, Producer, ProducerConfig, ReaderConfig};

use crate::harness::{Harness, at, over_both, read};

/// A topic with batches of five records, valued by their offsets.
async fn filled(harness: &Harness, records: i64) -> (Client, Producer) {
    let client = harness.topic("shop", 1).await;
    let linger = Duration::from_secs(3600);
    let config = ProducerConfig { linger, ..ProducerConfig::default() };
    let mut producer = client.producer(config).await.unwrap();
    let handle = producer.register(&at("shop", 0));
    for n in 0..records {
        producer.append(handle, None, &[n.to_string().as_bytes()], n).unwrap();
        if n % 5 == 4 {
            producer.drain().await.unwrap();
        }
    }
    producer.drain().await.unwrap();
    (client, producer)
}

fn values(range: std::ops::Range<i64>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn starts_at_its_offset_also_inside_a_batch() {
    over_both(async |harness| {
        let (client, _producer) = filled(harness, 50).await;
        for from in [0, 5, 17, 49] {
            let mut reader = client.reader(ReaderConfig::new(at("shop", 0), Offset::new(from)));
            assert_eq!(reader.position(), Offset::new(from));
            let left = usize::try_from(50 - from).unwrap();
            assert_eq!(read(&mut reader, left).await.unwrap(), values(from..50));
            assert_eq!(reader.position(), Offset::new(50));
            assert_eq!(reader.high_watermark(), Some(Offset::new(50)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_small_bound_still_reads_everything() {
    over_both(async |harness| {
        let (client, _producer) = filled(harness, 500).await;
        let mut config = ReaderConfig::new(at("shop", 0), Offset::ZERO);
        config.max_bytes = 1;
        let mut reader = client.reader(config);
        assert_eq!(reader.next().await.unwrap().len(), 1);
        assert_eq!(read(&mut reader, 495).await.unwrap(), values(5..500));
    })
    .await;
}

#[tokio::test]
async fn waits_at_the_end_for_what_comes() {
    over_both(async |harness| {
        let (client, mut producer) = filled(harness, 5).await;
        let mut reader = client.reader(ReaderConfig::new(at("shop", 0), Offset::new(5)));
        {
            // Dropped half way: nothing is lost.
            let next = reader.next();
            tokio::pin!(next);
            let waited = tokio::time::timeout(Duration::from_millis(20), &mut next).await;
            assert!(waited.is_err());
        }
        let handle = producer.register(&at("shop", 0));
        producer.append(handle, None, &[b"5"], 1).unwrap();
        producer.flush();
        assert_eq!(read(&mut reader, 1).await.unwrap(), ["5"]);
    })
    .await;
}

#[tokio::test]
async fn an_offset_that_is_gone_is_for_the_operator() {
    over_both(async |harness| {
        let (client, _producer) = filled(harness, 20).await;
        harness.node.expire(&at("shop", 0), Offset::new(10));
        for from in [3, 21] {
            let mut reader = client.reader(ReaderConfig::new(at("shop", 0), Offset::new(from)));
            let error = reader.next().await.unwrap_err();
            assert_eq!(error.disposition(), Disposition::Operator);
            let Error::OffsetOutOfRange { offset, log_start, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((offset.get(), log_start.get()), (from, 10));
            assert!(matches!(reader.next().await, Err(Error::Closed)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_never_comes_is_an_error_after_the_retry_timeout() {
    over_both(async |harness| {
        let client = harness.client().await;
        let mut config = ReaderConfig::new(at("missing", 0), Offset::ZERO);
        config.retry_timeout = Duration::from_millis(100);
        let error = client.reader(config).next().await.unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
        assert_eq!(error.disposition(), Disposition::Retry);
    })
    .await;
}

#[tokio::test]
async fn fetches_one_ahead_and_no_more() {
    over_both(async |harness| {
        let (client, _producer) = filled(harness, 500).await;
        let mut config = ReaderConfig::new(at("shop", 0), Offset::ZERO);
        config.max_bytes = 1;
        let mut reader = client.reader(config);
        for taken in 1..=20_u64 {
            reader.next().await.unwrap();
            // The next one is fetched while we work; then nothing until we take it.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            let fetches = harness.node.fetch_requests();
            assert!((taken..=taken + 1).contains(&fetches), "{fetches} fetches for {taken} taken");
        }
    })
    .await;
}

#[tokio::test]
async fn a_topic_created_anew_is_not_read_on() {
    over_both(async |harness| {
        let (client, _producer) = filled(harness, 5).await;
        let mut reader = client.reader(ReaderConfig::new(at("shop", 0), Offset::ZERO));
        assert_eq!(read(&mut reader, 5).await.unwrap(), values(0..5));
        client.delete_topic("shop").await.unwrap();
        // The reader finds the topic gone before it is there again.
        let lookups = harness.node.metadata_requests();
        while harness.node.metadata_requests() == lookups {
            tokio::task::yield_now().await;
        }
        drop(filled(harness, 50).await);
        let error = reader.next().await.unwrap_err();
        assert!(matches!(error, Error::TopicRecreated { .. }), "{error}");
        assert_eq!(error.disposition(), Disposition::Operator);
    })
    .await;
}
