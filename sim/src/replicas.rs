//! Whether the replicas of every partition have the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tailwater_log::PartitionStatus;

use crate::dice::ms;
use crate::machine::Machine;

/// How long a cluster may take to be in sync once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// A partition by its topic's name and its number.
type Key = (String, i32);

/// Waits until all machines are in sync, and compares what is in their files.
pub(crate) async fn check(machines: &[Arc<Machine>]) -> Result<(), String> {
    let in_sync = async {
        while problem(machines).is_some() {
            tokio::time::sleep(ms(50)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, in_sync).await.is_err()
        && let Some(problem) = problem(machines)
    {
        return Err(format!("the cluster does not heal: {problem}"));
    }
    compare(machines)
}

/// Why not every machine has everything, as a replica in sync; `None` if they all have.
pub(crate) fn problem(machines: &[Arc<Machine>]) -> Option<String> {
    let mut replicas: BTreeMap<Key, Vec<PartitionStatus>> = BTreeMap::new();
    for machine in machines {
        let Some((log, _)) = machine.running() else {
            return Some(format!("{} does not run", machine.name()));
        };
        if !log.is_in_service() {
            return Some(format!("{} is not in service", machine.name()));
        }
        for status in log.partitions() {
            let key = (status.topic.clone(), status.partition.get());
            replicas.entry(key).or_default().push(status);
        }
    }
    replicas.into_iter().find_map(|((topic, partition), replicas)| {
        let mut leaders = replicas.iter().filter(|one| one.leads.is_some());
        let (leader, second) = (leaders.next(), leaders.next());
        let end = leader.map(|leader| leader.end_offset);
        let is_well = replicas.len() == machines.len()
            && second.is_none()
            && leader.is_some_and(|leader| leader.missing_replicas == 0)
            && replicas
                .iter()
                .all(|one| Some(one.end_offset) == end && Some(one.high_watermark) == end);
        (!is_well).then(|| format!("{topic}-{partition} is {replicas:?}"))
    })
}

/// Compares the files of partitions in sync.
fn compare(machines: &[Arc<Machine>]) -> Result<(), String> {
    let mut first: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    for (number, machine) in machines.iter().enumerate() {
        let Some((_, root)) = machine.running() else {
            return Err(format!("{} does not run", machine.name()));
        };
        let found = partitions(&root.join("topics")).map_err(|error| error.to_string())?;
        if number == 0 {
            first = found;
            continue;
        }
        if !found.keys().eq(first.keys()) {
            return Err(format!("{} has other partitions than the first", machine.name()));
        }
        for (partition, bytes) in &found {
            let other = first.get(partition).map_or(&[][..], Vec::as_slice);
            if bytes != other {
                let equal = bytes.iter().zip(other).take_while(|(one, other)| one == other);
                return Err(format!(
                    "{} of {} differs from the first machine's behind byte {}",
                    partition.display(),
                    machine.name(),
                    equal.count()
                ));
            }
        }
    }
    Ok(())
}

/// The batches of each partition in `folder`, as they are on the disk. Not those of compacted topics:
/// every node compacts its own.
fn partitions(folder: &Path) -> std::io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for topic in fs::read_dir(folder)? {
        let topic = topic?;
        let name = topic.file_name().to_string_lossy().into_owned();
        if name.starts_with('_') || name.ends_with(".state") {
            continue;
        }
        for partition in fs::read_dir(topic.path())? {
            let partition = partition?.path();
            let mut segments = Vec::new();
            for file in fs::read_dir(&partition)? {
                segments.push(file?.path());
            }
            segments.retain(|path| path.extension().is_some_and(|it| it == "log"));
            segments.sort();
            let mut bytes = Vec::new();
            for segment in segments {
                bytes.extend(fs::read(segment)?);
            }
            found.insert(partition.strip_prefix(folder).unwrap_or(&partition).to_owned(), bytes);
        }
    }
    Ok(found)
}
