//! What the producer promises when nothing fails, and how it fails when it must.

use std::time::Duration;

use tailwater_kafka::{
    Compression, Disposition, Error, Limits, Offset, ProducerConfig, ReaderConfig, RecordNumber,
    test_util::ProduceFault, wire::ErrorCode,
};

use crate::harness::{at, over_both, read_all, spec};

#[tokio::test]
async fn records_of_several_partitions_are_acknowledged_in_the_order_of_their_numbers() {
    over_both(async |harness| {
        let client = harness.topic("shop", 3).await;
        let config = ProducerConfig { batch_bytes: 500, ..ProducerConfig::default() };
        let mut producer = client.producer(config).await.unwrap();
        let handles = [0, 1, 2].map(|n| producer.register(&at("shop", n)));
        let acknowledged = producer.acknowledged();
        for n in 0..1000_u64 {
            let to = handles[usize::try_from(n % 3).unwrap()];
            let value = n.to_string();
            let number = producer.append(to, Some(b"key"), &[b"n", value.as_bytes()], 1).unwrap();
            assert_eq!(number, RecordNumber::new(n));
            producer.ready().await.unwrap();
        }
        producer.drain().await.unwrap();
        assert_eq!(acknowledged.borrow().below, RecordNumber::new(1000));
        assert_eq!(producer.unacknowledged_bytes(), 0);
        for partition in 0..3 {
            let values = read_all(&client, &at("shop", partition)).await;
            let wanted: Vec<String> =
                (0..1000).filter(|n| n % 3 == partition).map(|n| format!("n{n}")).collect();
            assert_eq!(values, wanted);
        }
        producer.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_linger_sends_without_a_flush() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
        let handle = producer.register(&at("shop", 0));
        producer.append(handle, None, &[b"value"], 1).unwrap();
        let mut acknowledged = producer.acknowledged();
        acknowledged.wait_for(|it| it.below == RecordNumber::new(1)).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_flush_sends_all_partitions_in_one_request() {
    over_both(async |harness| {
        let client = harness.topic("shop", 8).await;
        let linger = Duration::from_secs(3600);
        let mut producer =
            client.producer(ProducerConfig { linger, ..ProducerConfig::default() }).await.unwrap();
        for partition in 0..8 {
            let handle = producer.register(&at("shop", partition));
            producer.append(handle, None, &[b"end marker"], 1).unwrap();
        }
        producer.drain().await.unwrap();
        assert_eq!(harness.node.produce_requests(), 1);
    })
    .await;
}

#[tokio::test]
async fn batches_carry_the_producer_and_every_codec_is_readable() {
    over_both(async |harness| {
        for compression in [
            Compression::None,
            Compression::Gzip,
            Compression::Snappy,
            Compression::Lz4,
            Compression::Zstd,
        ] {
            let topic = format!("shop-{compression:?}");
            let client = harness.topic(&topic, 1).await;
            let config = ProducerConfig {
                compression,
                transactional_id: Some(topic.clone()),
                ..ProducerConfig::default()
            };
            let mut producer = client.producer(config).await.unwrap();
            let handle = producer.register(&at(&topic, 0));
            producer.append(handle, Some(b"key"), &[&[b'v'; 5000]], 77).unwrap();
            producer.append_tombstone(handle, b"key", 78).unwrap();
            producer.drain().await.unwrap();
            let mut reader = client.reader(ReaderConfig::new(at(&topic, 0), Offset::ZERO));
            let batch = reader.next().await.unwrap().remove(0);
            assert_eq!(batch.producer_id(), producer.producer_id());
            assert_eq!(batch.producer_epoch(), producer.producer_epoch());
            assert_eq!(batch.compression(), compression);
            let records: Vec<_> =
                batch.records(Limits::default()).unwrap().map(Result::unwrap).collect();
            assert_eq!(records[0].value.as_deref(), Some(&[b'v'; 5000][..]));
            assert_eq!((records[0].timestamp_ms, records[1].timestamp_ms), (77, 78));
            assert_eq!(records[1].value, None);
        }
    })
    .await;
}

#[tokio::test]
async fn a_newer_producer_fences_the_older() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        let config = ProducerConfig {
            transactional_id: Some("tailwater.shop".to_owned()),
            ..ProducerConfig::default()
        };
        let mut old = client.producer(config.clone()).await.unwrap();
        let handle = old.register(&at("shop", 0));
        old.append(handle, None, &[b"old"], 1).unwrap();
        old.drain().await.unwrap();

        let mut new = client.producer(config).await.unwrap();
        assert_eq!(new.producer_id(), old.producer_id());
        assert!(new.producer_epoch() > old.producer_epoch());
        let to = new.register(&at("shop", 0));
        new.append(to, None, &[b"new"], 1).unwrap();
        new.drain().await.unwrap();

        old.append(handle, None, &[b"zombie"], 1).unwrap();
        let error = old.drain().await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Fenced, "{error}");
        let error = old.append(handle, None, &[b"zombie"], 1).unwrap_err();
        assert_eq!(error.disposition(), Disposition::Fenced);
        let acknowledged = old.acknowledged().borrow().clone();
        assert_eq!(acknowledged.below, RecordNumber::new(1));
        assert!(acknowledged.failed.is_some());
        assert_eq!(read_all(&client, &at("shop", 0)).await, ["old", "new"]);
        new.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_refused_batch_fails_all_that_is_behind_it() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        let config = ProducerConfig { batch_bytes: 200, ..ProducerConfig::default() };
        let mut producer = client.producer(config).await.unwrap();
        let handle = producer.register(&at("shop", 0));
        let mut batch = 0;
        harness.node.fail_produce(Box::new(move |_| {
            batch += 1;
            if batch == 3 {
                ProduceFault::Refuse(ErrorCode::MessageTooLarge)
            } else {
                ProduceFault::None
            }
        }));
        for n in 0..20 {
            let value = format!("{n:0100}");
            if producer.append(handle, None, &[value.as_bytes()], 1).is_err() {
                break;
            }
        }
        let error = producer.drain().await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Operator, "{error}");
        let below = producer.acknowledged().borrow().below;
        let values = read_all(&client, &at("shop", 0)).await;
        assert_eq!(below, RecordNumber::new(2));
        assert_eq!(values, [format!("{:0100}", 0), format!("{:0100}", 1)]);
    })
    .await;
}

#[tokio::test]
async fn what_is_never_acknowledged_fails_at_the_delivery_timeout() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        harness.node.fail_produce(Box::new(|_| ProduceFault::Refuse(ErrorCode::NotEnoughReplicas)));
        let delivery_timeout = Duration::from_millis(200);
        let config = ProducerConfig { delivery_timeout, ..ProducerConfig::default() };
        let mut producer = client.producer(config).await.unwrap();
        let handle = producer.register(&at("shop", 0));
        producer.append(handle, None, &[b"value"], 1).unwrap();
        let error = producer.drain().await.unwrap_err();
        let Error::ProducerFailed(cause) = &error else { panic!("{error}") };
        let Error::DeliveryTimeout { source: Some(source), .. } = &**cause else {
            panic!("{cause}")
        };
        assert!(source.to_string().contains("NotEnoughReplicas"), "{source}");
        assert_eq!(error.disposition(), Disposition::Retry);
    })
    .await;
}

#[tokio::test]
async fn a_record_over_the_limit_is_refused_and_the_producer_goes_on() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        let config = ProducerConfig { batch_bytes: 1000, ..ProducerConfig::default() };
        let mut producer = client.producer(config).await.unwrap();
        let handle = producer.register(&at("shop", 0));
        let error = producer.append(handle, None, &[&[0; 1000]], 1).unwrap_err();
        assert!(matches!(error, Error::RecordTooLarge { limit: 1000, .. }), "{error}");
        let number = producer.append(handle, None, &[b"small"], 1).unwrap();
        assert_eq!(number, RecordNumber::new(0));
        producer.close().await.unwrap();
        assert_eq!(read_all(&client, &at("shop", 0)).await, ["small"]);
    })
    .await;
}

#[tokio::test]
async fn ready_waits_for_room_and_no_longer() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        let config = ProducerConfig {
            in_flight_bytes: 1000,
            batch_bytes: 400,
            linger: Duration::from_secs(3600),
            ..ProducerConfig::default()
        };
        let mut producer = client.producer(config).await.unwrap();
        let handle = producer.register(&at("shop", 0));
        for _ in 0..200 {
            producer.ready().await.unwrap();
            assert!(producer.unacknowledged_bytes() < 1000);
            producer.append(handle, None, &[&[b'x'; 90]], 1).unwrap();
        }
        producer.close().await.unwrap();
        assert_eq!(read_all(&client, &at("shop", 0)).await.len(), 200);
    })
    .await;
}

#[tokio::test]
async fn a_topic_created_anew_is_not_written_on_to() {
    over_both(async |harness| {
        let client = harness.topic("shop", 1).await;
        let mut producer = client.producer(ProducerConfig::default()).await.unwrap();
        let handle = producer.register(&at("shop", 0));
        producer.append(handle, None, &[b"before"], 1).unwrap();
        producer.drain().await.unwrap();
        client.delete_topic("shop").await.unwrap();
        client.create_topic(&spec("shop", 1)).await.unwrap();
        producer.append(handle, None, &[b"after"], 1).unwrap();
        let error = producer.drain().await.unwrap_err();
        let Error::ProducerFailed(cause) = &error else { panic!("{error}") };
        assert!(matches!(**cause, Error::LogShrunk { .. }), "{cause}");
        assert_eq!(error.disposition(), Disposition::Operator);
    })
    .await;
}
