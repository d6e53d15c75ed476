//! What a crash leaves, at every byte, and what is refused.

use std::path::Path;

use tailwater_kafka::HEADER_BYTES;
use tailwater_kafka::wire::ErrorCode;

use crate::support::{
    NOBODY, Scratch, Writer, copy_folder, create_topic, fetch, init_producer, open,
    partition_folder, produce, produce_values, read_all, values,
};

const TOPIC: &str = "t";
const FIRST_SEGMENT: &str = "00000000000000000000.log";

/// A folder whose node died after three acknowledged batches, and the segment's length after each.
async fn three_batches() -> (tempfile::TempDir, Vec<u64>) {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let segment = scratch.partition_folder(TOPIC).join(FIRST_SEGMENT);
    let mut lengths = vec![0];
    for text in ["one", "two", "three"] {
        produce_values(&scratch.log, TOPIC, &[text, text]).await;
        lengths.push(std::fs::metadata(&segment).unwrap().len());
    }
    (scratch.die(), lengths)
}

/// As if a power cut had left the flush mark where it was written to the disk last.
fn set_flushed_through(data_dir: &Path, batches: usize) {
    let path = partition_folder(data_dir, TOPIC).join("flushed");
    let contents = std::fs::read(&path).unwrap();
    let mut mark = contents[..8].to_vec();
    mark.extend(i64::try_from(2 * batches).unwrap().to_be_bytes());
    mark.extend(crc32c(&mark).to_be_bytes());
    std::fs::write(&path, mark).unwrap();
}

/// CRC-32C, bit by bit: independent of the crate that the log uses.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
        crc
    })
}

fn expected(batches: usize) -> Vec<(i64, String)> {
    ["one", "one", "two", "two", "three", "three"][..2 * batches]
        .iter()
        .enumerate()
        .map(|(offset, text)| (i64::try_from(offset).unwrap(), (*text).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_back_to_whole_batches() {
    let (folder, lengths) = three_batches().await;
    for length in 0..=lengths[3] {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), copy.path());
        set_flushed_through(copy.path(), 0);
        let segment = partition_folder(copy.path(), TOPIC).join(FIRST_SEGMENT);
        let bytes = std::fs::read(&segment).unwrap();
        std::fs::write(&segment, &bytes[..usize::try_from(length).unwrap()]).unwrap();

        let log = open(copy.path(), |_| {}).await;
        let whole = lengths.iter().filter(|end| **end <= length).count() - 1;
        assert_eq!(read_all(&log, TOPIC).await, expected(whole), "cut to {length} bytes");
        assert_eq!(std::fs::metadata(&segment).unwrap().len(), lengths[whole]);
        // And it goes on from there.
        let next = i64::try_from(2 * whole).unwrap();
        assert_eq!(produce_values(&log, TOPIC, &["more"]).await, next);
        log.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_tail_cut_below_what_was_flushed_is_refused_at_any_byte() {
    let (folder, lengths) = three_batches().await;
    for length in 0..lengths[3] {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), copy.path());
        let segment = partition_folder(copy.path(), TOPIC).join(FIRST_SEGMENT);
        let bytes = std::fs::read(&segment).unwrap();
        std::fs::write(&segment, &bytes[..usize::try_from(length).unwrap()]).unwrap();

        let log = open(copy.path(), |_| {}).await;
        let status = log.partitions().remove(0);
        let reason = status.offline.expect("offline");
        assert!(reason.contains(FIRST_SEGMENT), "{reason}");
        assert!(reason.contains("flushed through offset 6"), "{reason}");
        let answer = produce(&log, TOPIC, values(&["x"], NOBODY)).await;
        assert_eq!(answer, Err(ErrorCode::KafkaStorageError));
        let answer = fetch(&log, TOPIC, 0).await;
        assert_eq!(ErrorCode::from(answer.error_code), ErrorCode::KafkaStorageError);
        log.close().await.unwrap();
        assert_eq!(std::fs::metadata(&segment).unwrap().len(), length, "left as it is");
    }
}

#[tokio::test]
async fn a_changed_byte_is_found_wherever_it_is_and_never_cut_off_if_acknowledged() {
    let (folder, lengths) = three_batches().await;
    for position in 0..lengths[3] {
        // The leader epoch is outside the checksum, and any value of it is a value.
        let in_batch = position - lengths.iter().rev().find(|end| **end <= position).unwrap();
        if (12..16).contains(&in_batch) {
            continue;
        }
        for flushed in [3, 0] {
            let copy = tempfile::tempdir().unwrap();
            copy_folder(folder.path(), copy.path());
            set_flushed_through(copy.path(), flushed);
            let segment = partition_folder(copy.path(), TOPIC).join(FIRST_SEGMENT);
            let mut bytes = std::fs::read(&segment).unwrap();
            bytes[usize::try_from(position).unwrap()] ^= 0x04;
            std::fs::write(&segment, &bytes).unwrap();

            let log = open(copy.path(), |_| {}).await;
            let status = log.partitions().remove(0);
            let what = format!("byte {position}, flushed {flushed}");
            if flushed == 0 && position >= lengths[2] && in_batch < 8 && status.offline.is_some() {
                // A whole batch at a later offset: no crash leaves that, so it is a hole.
                assert!(status.offline.is_some_and(|reason| reason.contains("a hole")), "{what}");
            } else if flushed == 0 && position >= lengths[2] {
                assert_eq!(status.offline, None, "{what}");
                assert_eq!(read_all(&log, TOPIC).await, expected(2), "{what}");
            } else {
                let batch = lengths.iter().rev().find(|end| **end <= position).unwrap();
                let reason = status.offline.expect(&what);
                assert!(reason.contains(&format!("at byte {batch}")), "{what}: {reason}");
                assert_eq!(std::fs::read(&segment).unwrap(), bytes, "{what}: left as it is");
            }
            log.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn rubbish_behind_the_last_batch_is_cut_off() {
    let (folder, lengths) = three_batches().await;
    let segment = partition_folder(folder.path(), TOPIC).join(FIRST_SEGMENT);
    let whole = std::fs::read(&segment).unwrap();
    for rubbish in [vec![0; 1], vec![0; 5000], vec![0xff; 61], whole[..HEADER_BYTES].to_vec()] {
        let mut bytes = whole.clone();
        bytes.extend(&rubbish);
        std::fs::write(&segment, &bytes).unwrap();
        let log = open(folder.path(), |_| {}).await;
        assert_eq!(read_all(&log, TOPIC).await, expected(3));
        assert_eq!(std::fs::metadata(&segment).unwrap().len(), lengths[3]);
        drop(log);
    }
}

#[tokio::test]
async fn a_hole_in_the_middle_is_refused() {
    let (folder, lengths) = three_batches().await;
    set_flushed_through(folder.path(), 0);
    let segment = partition_folder(folder.path(), TOPIC).join(FIRST_SEGMENT);
    let bytes = std::fs::read(&segment).unwrap();
    let (second, third) =
        (usize::try_from(lengths[1]).unwrap(), usize::try_from(lengths[2]).unwrap());
    for hole in [
        // Zeroes where the second batch was, less than a page of them.
        [&bytes[..second], &vec![0; third - second], &bytes[third..]].concat(),
        // The second batch is missing altogether.
        [&bytes[..second], &bytes[third..]].concat(),
        // Its header is there, and then the third.
        [&bytes[..second + 70], &bytes[third..]].concat(),
    ] {
        std::fs::write(&segment, &hole).unwrap();
        let log = open(folder.path(), |_| {}).await;
        let reason = log.partitions().remove(0).offline.expect("offline");
        assert!(reason.contains("a hole"), "{reason}");
        log.close().await.unwrap();
        assert_eq!(std::fs::read(&segment).unwrap(), hole, "left as it is");
    }
}

/// Three batches of 10,000 bytes and more, the flush mark at `flushed`, and one range of zeroes.
async fn large_batches_with_zeroes(
    flushed: usize,
    zeroes: impl Fn(&[u64]) -> std::ops::Range<u64>,
) -> (Option<String>, usize) {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let segment = scratch.partition_folder(TOPIC).join(FIRST_SEGMENT);
    let large = "x".repeat(5000);
    let mut ends = vec![0];
    for _ in 0..3 {
        produce_values(&scratch.log, TOPIC, &[&large, &large]).await;
        ends.push(std::fs::metadata(&segment).unwrap().len());
    }
    let folder = scratch.die();
    set_flushed_through(folder.path(), flushed);
    let range = zeroes(&ends);
    let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[range].fill(0);
    std::fs::write(&segment, bytes).unwrap();
    let log = open(folder.path(), |_| {}).await;
    let offline = log.partitions().remove(0).offline;
    let left = if offline.is_none() { read_all(&log, TOPIC).await.len() } else { 0 };
    (offline, left)
}

#[tokio::test]
async fn pages_that_a_power_cut_kept_from_the_disk_are_cut_off_with_all_behind_them() {
    let page = |position: u64| position / 4096 * 4096;
    // From where the second batch begins, and its last page.
    for flushed in [0, 1] {
        let cut = large_batches_with_zeroes(flushed, |ends| ends[1]..page(ends[1]) + 4096).await;
        assert_eq!(cut, (None, 2));
        let cut = large_batches_with_zeroes(flushed, |ends| ends[1]..ends[2]).await;
        assert_eq!(cut, (None, 2));
        let cut =
            large_batches_with_zeroes(flushed, |ends| page(ends[2])..page(ends[2]) + 4096).await;
        assert_eq!(cut, (None, 2));
    }
    // What was flushed is damaged, zeroes or not.
    let (offline, _) = large_batches_with_zeroes(2, |ends| ends[1]..ends[2]).await;
    assert!(offline.unwrap().contains("flushed through offset 4"));
    // Less than a page is no page that is missing.
    let (offline, _) = large_batches_with_zeroes(0, |ends| ends[1]..ends[1] + 100).await;
    assert!(offline.unwrap().contains("a hole"));
    let (offline, _) = large_batches_with_zeroes(0, |ends| ends[1] + 200..ends[1] + 300).await;
    assert!(offline.unwrap().contains("a hole"));
}

/// What the refusal says, and what was done to the file.
type Damage<'a> = (&'a str, &'a dyn Fn(&Path));

#[tokio::test]
async fn sealed_segments_must_be_there_and_whole() {
    let scratch = Scratch::with(|config| config.segment_bytes = 1024).await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    for number in 0..40 {
        produce_values(&scratch.log, TOPIC, &[&format!("value {number}")]).await;
    }
    let all = read_all(&scratch.log, TOPIC).await;
    let folder = scratch.restart(|config| config.segment_bytes = 1024).await.die();
    let names = segment_names(folder.path());
    assert!(names.len() >= 4, "{names:?}");

    let damage: [Damage<'_>; 3] = [
        ("restore", &|path| std::fs::remove_file(path).unwrap()),
        ("cut off", &|path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("ends with offset", &|path| std::fs::write(path, b"").unwrap()),
    ];
    for (expected, damage) in damage {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(folder.path(), copy.path());
        damage(&partition_folder(copy.path(), TOPIC).join(&names[1]));
        let log = open(copy.path(), |_| {}).await;
        let reason = log.partitions().remove(0).offline.expect("offline");
        assert!(reason.contains(expected), "{reason}");
        log.close().await.unwrap();
    }

    // Indexes and snapshots are caches.
    for entry in std::fs::read_dir(partition_folder(folder.path(), TOPIC)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "index" || end == "producers") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let log = open(folder.path(), |config| config.segment_bytes = 1024).await;
    assert_eq!(read_all(&log, TOPIC).await, all);
}

#[tokio::test]
async fn damage_in_a_sealed_segment_is_found_when_it_is_read() {
    let scratch = Scratch::with(|config| config.segment_bytes = 1024).await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    for number in 0..40 {
        produce_values(&scratch.log, TOPIC, &[&format!("value {number}")]).await;
    }
    let scratch = scratch.restart(|config| config.segment_bytes = 1024).await;
    let names = segment_names(scratch.folder.path());
    let path = scratch.partition_folder(TOPIC).join(&names[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 3] ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let good = fetch(&scratch.log, TOPIC, 0).await;
    assert_eq!(good.error_code, 0);
    let offset: i64 = names[1].trim_end_matches(".log").parse().unwrap();
    let bad = fetch(&scratch.log, TOPIC, offset).await;
    assert_eq!(ErrorCode::from(bad.error_code), ErrorCode::KafkaStorageError);
    let reason = scratch.status(TOPIC).offline.expect("offline");
    assert!(reason.contains(&names[1]) && reason.contains("checksum"), "{reason}");
}

fn segment_names(data_dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(partition_folder(data_dir, TOPIC))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "log"))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn producers_are_remembered_after_a_crash_and_after_a_stop() {
    let mut scratch = Scratch::with(|config| config.segment_bytes = 1024).await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let writer = init_producer(&scratch.log, Some("role")).await;
    let mut sequence = 0;
    for round in 0..3 {
        for _ in 0..20 {
            let next = values(&["a", "b"], Writer { sequence, ..writer });
            assert_eq!(produce(&scratch.log, TOPIC, next).await, Ok(i64::from(sequence)));
            sequence += 2;
        }
        scratch = if round == 1 {
            scratch.restart(|config| config.segment_bytes = 1024).await
        } else {
            let folder = scratch.die();
            let log = open(folder.path(), |config| config.segment_bytes = 1024).await;
            Scratch { folder, log }
        };
        let repeated = Writer { sequence: sequence - 4, ..writer };
        let answer = produce(&scratch.log, TOPIC, values(&["a", "b"], repeated)).await;
        assert_eq!(answer, Ok(i64::from(sequence - 4)), "a repetition gets its first offset");
        let gap = Writer { sequence: sequence + 2, ..writer };
        let answer = produce(&scratch.log, TOPIC, values(&["a", "b"], gap)).await;
        assert_eq!(answer, Err(ErrorCode::OutOfOrderSequenceNumber));
    }
}

#[tokio::test]
async fn leader_epochs_rise_with_each_start() {
    use tailwater_kafka::wire::{ApiKey, Response, metadata_request as m};
    let epoch = async |log: &tailwater_log::Log| {
        let request = m::MetadataRequestData::default().with_topics(None);
        let Response::Metadata(response) =
            crate::support::ask(log, ApiKey::Metadata, 9, request).await
        else {
            panic!("another response");
        };
        let mut topics = response.topics.iter();
        let topic = topics.find(|topic| topic.name.as_ref().unwrap().as_str() == TOPIC);
        topic.unwrap().partitions[0].leader_epoch
    };
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    produce_values(&scratch.log, TOPIC, &["a"]).await;
    let first = epoch(&scratch.log).await;
    let scratch = scratch.restart(|_| {}).await;
    let second = epoch(&scratch.log).await;
    assert!(second > first);
    let folder = scratch.die();
    let log = open(folder.path(), |_| {}).await;
    assert!(epoch(&log).await > second);
    assert_eq!(read_all(&log, TOPIC).await, [(0, "a".to_owned())]);
}

#[tokio::test]
async fn what_is_kept_for_clients_is_there_after_a_crash() {
    let scratch = Scratch::new().await;
    create_topic(&scratch.log, TOPIC, &[]).await;
    let role = init_producer(&scratch.log, Some("role")).await;
    assert_eq!(produce(&scratch.log, TOPIC, values(&["of role"], role)).await, Ok(0));
    let folder = scratch.die();
    let log = open(folder.path(), |_| {}).await;
    let next = init_producer(&log, Some("role")).await;
    assert_eq!((next.id, next.epoch), (role.id, role.epoch + 1));
    assert_eq!(produce(&log, TOPIC, values(&["of the next"], next)).await, Ok(1));
    let other = init_producer(&log, None).await;
    assert_ne!(other.id, role.id);
    let all = read_all(&log, TOPIC).await;
    assert_eq!(all, [(0, "of role".to_owned()), (1, "of the next".to_owned())]);
}

#[tokio::test]
async fn a_folder_of_another_format_is_not_opened() {
    let folder = three_batches().await.0;
    let node = folder.path().join("node.json");
    let text = std::fs::read_to_string(&node).unwrap();
    std::fs::write(&node, text.replace("\"version\": 2", "\"version\": 3")).unwrap();
    let refused = loop {
        match tailwater_log::Log::open(tailwater_log::Config::new(folder.path())).await {
            // The node before lets go of its folder when its last task has seen that.
            Err(tailwater_log::Error::Locked { .. }) => tokio::task::yield_now().await,
            other => break other,
        }
    };
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("version 3") && text.contains("newer"), "{text}");
}
