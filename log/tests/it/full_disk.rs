//! A disk without a free byte: the log gets out of that by itself, when pipelines let it.

use std::path::Path;
use std::process::Command;

use tailwater_kafka::wire::ErrorCode;
use tailwater_log::{Config, Log};
use tailwater_scratch::SmallDisk;

use crate::support::{NOBODY, commit, create_topic, produce, produce_values, values};

const TOPIC: &str = "t";
const GROUP: &str = "tailwater.copy";
const FOLDER: &str = "TAILWATER_LOG_TEST_FULL_DISK";
/// What the child says at its end.
const TRIED: &str = "TRIED a full disk";
const DISK_BYTES: u64 = 12 << 20;
const RESERVE_BYTES: u64 = 1 << 20;

#[test]
fn a_full_disk_frees_itself_when_the_pipelines_have_applied() {
    if let Err(why) = SmallDisk::available() {
        println!("left out: {why}");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("log");
    std::fs::create_dir(&folder).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "full_disk::child_on_a_full_disk", "--ignored", "--nocapture"]);
    child.env(FOLDER, &folder);
    let ran = SmallDisk::new(&folder, DISK_BYTES).wrap(&child).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    // A child that found nothing to do passes, too.
    assert!(said.lines().any(|line| line.ends_with(TRIED)), "{said}");
}

#[tokio::test]
#[ignore = "the child process of the test above; alone it does nothing"]
async fn child_on_a_full_disk() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let config =
        Config { segment_bytes: 256 << 10, reserve_bytes: RESERVE_BYTES, ..Config::new(folder) };
    let log = Log::open(config).await.unwrap();
    create_topic(&log, TOPIC, &[("retention.bytes", "524288")]).await;
    assert_eq!(commit(&log, GROUP, TOPIC, 0).await, ErrorCode::None);
    let large = "x".repeat(32 << 10);
    let mut end = 0;
    while let Ok(offset) = produce(&log, TOPIC, values(&[&large], NOBODY)).await {
        end = offset + 1;
    }
    // Whatever is left, others take.
    let mut other = std::fs::File::create(folder.join("other")).unwrap();
    while std::io::Write::write_all(&mut other, &[1; 512]).is_ok() {}
    assert!(std::fs::write(folder.join("more"), "x").is_err(), "the disk is full");

    assert_eq!(log.enforce_retention().await.unwrap(), 0, "held back");
    // More than what is left of the journal's last page.
    for offset in (0..end).chain(std::iter::repeat_n(end, 200)) {
        assert_eq!(commit(&log, GROUP, TOPIC, offset).await, ErrorCode::None, "{offset}");
    }
    assert!(log.enforce_retention().await.unwrap() > 1 << 20);
    produce_values(&log, TOPIC, &[&large]).await;
    assert_eq!(std::fs::metadata(folder.join("reserve")).unwrap().len(), RESERVE_BYTES);
    assert_eq!(log.partitions().remove(0).offline, None);
    log.close().await.unwrap();
    println!("{TRIED}");
}
