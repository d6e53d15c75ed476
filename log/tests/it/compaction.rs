//! Compacted topics: the last record of every key is there, at its offset, and nothing is torn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BatchBuilder, BatchStamp, Compression, Limits};
use tailwater_log::{Config, Log};

use crate::support::{
    Scratch, Writer, batch, batches, create_topic, fetch, init_producer, list_offset, open,
    produce, read_all,
};

const TOPIC: &str = "t";

fn small(config: &mut Config) {
    config.segment_bytes = 2048;
    config.tail_bytes = 0;
}

async fn scratch() -> Scratch {
    let scratch = Scratch::with(small).await;
    let settings = [("cleanup.policy", "compact"), ("min.cleanable.dirty.ratio", "0")];
    create_topic(&scratch.log, TOPIC, &settings).await;
    scratch
}

/// Every record there is: offset, key, value, time.
async fn records(log: &Log) -> Vec<(i64, String, Option<String>, i64)> {
    let mut all = Vec::new();
    let mut offset = list_offset(log, TOPIC, -2).await.1;
    loop {
        let data = fetch(log, TOPIC, offset).await;
        assert_eq!(ErrorCode::from(data.error_code), ErrorCode::None);
        let batches = batches(data.records);
        let Some(last) = batches.last() else { return all };
        for batch in &batches {
            for record in batch.records(Limits::default()).unwrap() {
                let record = record.unwrap();
                let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                all.push((
                    record.offset.get(),
                    text(record.key.unwrap()),
                    record.value.map(text),
                    record.timestamp_ms,
                ));
            }
        }
        offset = last.next_offset().get();
    }
}

/// Batches of three records over fourteen keys, in turn compressed and not, some tombstones.
fn sample(number: i64, stamp: BatchStamp) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(256);
    for offset in 3 * number..3 * number + 3 {
        let key = format!("key {}", (offset * offset) % 23);
        let value = format!("value {offset}");
        let value = [value.as_bytes()];
        let value = (offset % 7 != 0).then_some(&value[..]);
        builder.append(Some(key.as_bytes()), value, 1000 + offset, &[("h", b"x")]);
    }
    let compression = if number % 2 == 0 { Compression::None } else { Compression::Lz4 };
    builder.finish(BatchStamp { compression, ..stamp }).unwrap()
}

#[tokio::test]
async fn the_last_record_of_every_key_stays_where_it_was() {
    let scratch = scratch().await;
    for number in 0..100 {
        produce(&scratch.log, TOPIC, sample(number, BatchStamp::default())).await.unwrap();
    }
    let before = records(&scratch.log).await;
    assert_eq!(before.len(), 300);
    let last: BTreeMap<_, _> = before.iter().map(|record| (record.1.clone(), record)).collect();

    let size = scratch.status(TOPIC).size_bytes;
    let freed = scratch.log.compact().await.unwrap();
    assert!(freed > size / 2, "{freed} of {size}");
    assert_eq!(scratch.status(TOPIC).size_bytes, size - freed);

    let check = async |log: &Log| {
        let after = records(log).await;
        assert!(after.len() < 100, "{}", after.len());
        assert!(after.iter().all(|record| before.contains(record)), "nothing is changed");
        assert!(after.is_sorted(), "in order");
        for record in last.values() {
            assert!(after.contains(record), "{record:?} is the last of its key");
        }
        // A reader at an offset that is gone gets the next one that is left.
        for offset in 0..300 {
            let next = after.iter().find(|record| record.0 >= offset).unwrap();
            let data = fetch(log, TOPIC, offset).await;
            let found = batches(data.records);
            assert!(found[0].last_offset().get() >= offset);
            assert!(found[0].base_offset().get() <= next.0);
            let by_time = list_offset(log, TOPIC, 1000 + offset).await;
            assert_eq!(by_time, (ErrorCode::None, next.0, next.3));
        }
        assert_eq!(list_offset(log, TOPIC, -1).await.1, 300);
    };
    check(&scratch.log).await;
    assert_eq!(scratch.log.compact().await.unwrap(), 0, "nothing new, nothing to do");
    let scratch = scratch.restart(small).await;
    check(&scratch.log).await;
    scratch.log.compact().await.unwrap();
    check(&scratch.log).await;

    // After a crash, and with the indexes gone.
    let path = scratch.partition_folder(TOPIC);
    let folder = scratch.die();
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|end| end == "index" || end == "producers") {
            std::fs::remove_file(file).unwrap();
        }
    }
    std::fs::write(path.join("00000000000000000000.cleaned"), b"half").unwrap();
    let log = open(folder.path(), small).await;
    check(&log).await;
    assert!(!path.join("00000000000000000000.cleaned").exists());
}

#[tokio::test]
async fn a_producer_goes_on_after_its_records_were_superseded() {
    let scratch = scratch().await;
    let writer = init_producer(&scratch.log, Some("role")).await;
    let one = |key: &str, writer| batch(&[(Some(key), "x", 1), (Some(key), "y", 2)], writer);
    for sequence in [0, 2, 4] {
        produce(&scratch.log, TOPIC, one("k", Writer { sequence, ..writer })).await.unwrap();
    }
    for _ in 0..100 {
        produce(&scratch.log, TOPIC, one("k", crate::support::NOBODY)).await.unwrap();
    }
    assert!(scratch.log.compact().await.unwrap() > 0);
    // No snapshots: what is known of the producer comes from the batches that are left.
    let path = scratch.partition_folder(TOPIC);
    let folder = scratch.die();
    for entry in std::fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|end| end == "producers") {
            std::fs::remove_file(file).unwrap();
        }
    }
    let log = open(folder.path(), small).await;
    let repeated = one("k", Writer { sequence: 4, ..writer });
    assert_eq!(produce(&log, TOPIC, repeated).await, Ok(4));
    let gap = one("k", Writer { sequence: 8, ..writer });
    assert_eq!(produce(&log, TOPIC, gap).await, Err(ErrorCode::OutOfOrderSequenceNumber));
    let next = one("k", Writer { sequence: 6, ..writer });
    assert_eq!(produce(&log, TOPIC, next).await, Ok(206));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_no_half_exchanged_file() {
    let scratch = scratch().await;
    let done = Arc::new(AtomicBool::new(false));
    let reading = {
        let (log, done) = (Arc::clone(&scratch.log), Arc::clone(&done));
        tokio::spawn(async move {
            let mut passes = 0;
            while !done.load(Ordering::SeqCst) || passes == 0 {
                let offsets: Vec<_> =
                    read_all(&log, TOPIC).await.into_iter().map(|(offset, _)| offset).collect();
                assert!(offsets.is_sorted());
                passes += 1;
            }
        })
    };
    for number in 0..200 {
        produce(&scratch.log, TOPIC, sample(number, BatchStamp::default())).await.unwrap();
        if number % 10 == 9 {
            scratch.log.compact().await.unwrap();
        }
    }
    done.store(true, Ordering::SeqCst);
    reading.await.unwrap();
    assert_eq!(scratch.status(TOPIC).offline, None);
    let all = records(&scratch.log).await;
    let mut last = BTreeMap::new();
    for offset in 0..600_i64 {
        last.insert(format!("key {}", (offset * offset) % 23), offset);
    }
    for (key, offset) in last {
        assert!(all.iter().any(|record| record.0 == offset && record.1 == key));
    }
}
