//! The topics of the node: their names, identities and settings, and making and deleting them.
//!
//! A topic is a folder, and both making and deleting one is a rename: a topic is put together in
//! `staging/` and moved to `topics/<name>` when it is whole, and moved back there before its files
//! are removed. What a crash leaves in `staging/` is swept out at the next start.
//!
//! `topic.json` holds version, id, name, partition count and the settings the topic was given.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tailwater_kafka::{PartitionId, ProducerEpoch, ProducerId, TopicId};
use uuid::Uuid;

use crate::Error;
use crate::storage::checkpoint::{decode_json, encode_json, parse_topic_id};
use crate::storage::disk;
use crate::storage::partition::{Partition, PartitionName, Shared};
use crate::topic_config::{Overrides, TopicConfig};

const TOPIC_VERSION: u32 = 1;

/// Kafka's longest topic name.
const MAX_NAME_BYTES: usize = 249;

/// A topic and its partitions.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) id: TopicId,
    /// The settings it was given.
    pub(crate) overrides: Overrides,
    /// All its settings.
    pub(crate) config: TopicConfig,
    /// By number, from 0.
    pub(crate) partitions: Vec<Arc<Partition>>,
}

impl Topic {
    /// The partition of that number, if there is one.
    pub(crate) fn partition(&self, number: i32) -> Option<&Arc<Partition>> {
        usize::try_from(number).ok().and_then(|number| self.partitions.get(number))
    }
}

/// How a partition is opened: one that was there before stays, offline if need be.
type Open = fn(PathBuf, PartitionName, TopicConfig, Arc<Shared>) -> Result<Partition, Error>;

/// A topic to be made.
#[derive(Debug, Clone)]
pub(crate) struct NewTopic {
    pub(crate) name: String,
    pub(crate) partitions: i32,
    /// Found valid.
    pub(crate) overrides: Overrides,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTopic {
    version: u32,
    topic_id: String,
    name: String,
    partitions: i32,
    configs: Overrides,
}

/// What [`is_valid_name`] asks for, for people.
pub(crate) const NAME_RULE: &str = "a topic name has 1 to 249 of the characters a-z, A-Z, 0-9, \
    '.', '_' and '-', and is neither '.' nor '..'";

/// Whether a topic may have this name: Kafka's rule.
pub(crate) fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The topics of the node.
#[derive(Debug)]
pub(crate) struct Topics {
    live: PathBuf,
    staging: PathBuf,
    shared: Arc<Shared>,
    by_name: RwLock<HashMap<String, Arc<Topic>>>,
    by_id: RwLock<HashMap<TopicId, Arc<Topic>>>,
    /// One change of the list at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Topics {
    /// Opens every topic below `data_dir`. Blocks.
    ///
    /// # Errors
    /// If a topic's folder cannot be understood. A partition that cannot be opened is offline.
    pub(crate) fn open(data_dir: &Path, shared: Arc<Shared>) -> Result<Self, Error> {
        let topics = Self {
            live: data_dir.join("topics"),
            staging: data_dir.join("staging"),
            shared,
            by_name: RwLock::default(),
            by_id: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
        };
        if topics.staging.exists() {
            fs::remove_dir_all(&topics.staging).map_err(Error::io("remove", &topics.staging))?;
        }
        for folder in [&topics.live, &topics.staging] {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        disk::sync_folder(&*topics.shared.config.disk, data_dir)?;
        for folder in list_folders(&topics.live)? {
            let topic = topics.open_topic(&folder, |folder, name, config, shared| {
                Ok(Partition::open(folder, name, config, shared))
            })?;
            topics.insert(topic);
        }
        Ok(topics)
    }

    /// The topic of that name.
    pub(crate) fn by_name(&self, name: &str) -> Option<Arc<Topic>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The topic of that id.
    pub(crate) fn by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Every topic, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        let mut topics: Vec<_> = by_name.values().cloned().collect();
        topics.sort_by(|one, other| one.name.cmp(&other.name));
        topics
    }

    /// Every producer that a partition remembers, with its greatest epoch.
    pub(crate) fn producer_epochs(&self) -> HashMap<ProducerId, ProducerEpoch> {
        let mut greatest = HashMap::new();
        for topic in self.all() {
            for (producer, epoch) in topic.partitions.iter().flat_map(|one| one.producer_epochs()) {
                let known = greatest.entry(producer).or_insert(epoch);
                *known = epoch.max(*known);
            }
        }
        greatest
    }

    /// Makes a topic. Blocks; the caller holds [`Topics::changing`] and knows that there is none of
    /// that name.
    ///
    /// # Errors
    /// The system's; then there is no topic.
    pub(crate) fn create(&self, new: &NewTopic) -> Result<Arc<Topic>, Error> {
        let id = TopicId::new(Uuid::new_v4());
        let staged = self.staging.join(id.to_string());
        let made = self.stage(&staged, id, new).and_then(|()| {
            let folder = self.live.join(&new.name);
            fs::rename(&staged, &folder).map_err(Error::io("create", &folder))?;
            disk::sync_folder(&*self.shared.config.disk, &self.live)
                .and_then(|()| self.open_topic(&folder, Partition::open_new))
                .inspect_err(|_| {
                    // Failing that, the next start finds an empty topic.
                    drop(fs::rename(&folder, &staged));
                })
        });
        if made.is_err() && staged.exists() {
            // Only room is at stake: the next start sweeps it out.
            drop(fs::remove_dir_all(&staged));
        }
        made.map(|topic| self.insert(topic))
    }

    /// Deletes a topic. Blocks; the caller holds [`Topics::changing`].
    ///
    /// # Errors
    /// The system's. Whether the topic is still there then shows at the next start.
    pub(crate) fn delete(&self, topic: &Topic) -> Result<(), Error> {
        let folder = self.live.join(&topic.name);
        let staged = self.staging.join(topic.id.to_string());
        for partition in &topic.partitions {
            partition.abandon();
        }
        fs::rename(&folder, &staged).map_err(Error::io("delete", &folder))?;
        self.by_name.write().unwrap_or_else(PoisonError::into_inner).remove(&topic.name);
        self.by_id.write().unwrap_or_else(PoisonError::into_inner).remove(&topic.id);
        self.shared.partition_count.fetch_sub(topic.partitions.len(), Ordering::Relaxed);
        disk::sync_folder(&*self.shared.config.disk, &self.live)?;
        fs::remove_dir_all(&staged).map_err(Error::io("remove", &staged))
    }

    fn stage(&self, staged: &Path, id: TopicId, new: &NewTopic) -> Result<(), Error> {
        fs::create_dir_all(staged).map_err(Error::io("create", staged))?;
        for number in 0..new.partitions {
            let partition = PartitionId::new(number);
            let name = PartitionName { topic: new.name.clone(), topic_id: id, partition };
            Partition::create(&staged.join(number.to_string()), &name)?;
        }
        let stored = StoredTopic {
            version: TOPIC_VERSION,
            topic_id: id.to_string(),
            name: new.name.clone(),
            partitions: new.partitions,
            configs: new.overrides.clone(),
        };
        disk::replace_file(&staged.join("topic.json"), &encode_json(&stored))
    }

    fn open_topic(&self, folder: &Path, open: Open) -> Result<Topic, Error> {
        let path = folder.join("topic.json");
        let contents = disk::read_if_exists(&path)?
            .ok_or_else(|| Error::corrupt(&path, 0, "the file is missing"))?;
        let stored: StoredTopic = decode_json(&path, &contents, TOPIC_VERSION)?;
        let config = TopicConfig::resolve(&self.shared.config, &stored.configs)
            .map_err(|problem| Error::corrupt(&path, 0, problem))?;
        if folder.file_name().is_none_or(|name| name != stored.name.as_str()) {
            let reason = format!("it describes topic {:?}, not its folder's", stored.name);
            return Err(Error::corrupt(&path, 0, reason));
        }
        let id = parse_topic_id(&path, &stored.topic_id)?;
        let partitions = (0..stored.partitions)
            .map(|number| {
                let name = PartitionName {
                    topic: stored.name.clone(),
                    topic_id: id,
                    partition: PartitionId::new(number),
                };
                let folder = folder.join(number.to_string());
                open(folder, name, config.clone(), Arc::clone(&self.shared)).map(Arc::new)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Topic { name: stored.name, id, overrides: stored.configs, config, partitions })
    }

    fn insert(&self, topic: Topic) -> Arc<Topic> {
        let topic = Arc::new(topic);
        self.shared.partition_count.fetch_add(topic.partitions.len(), Ordering::Relaxed);
        self.by_id
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(topic.id, Arc::clone(&topic));
        self.by_name
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(topic.name.clone(), Arc::clone(&topic));
        topic
    }
}

/// What lies in `folder`, by name: the same order at every start.
fn list_folders(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>();
    let mut paths: Vec<PathBuf> = paths.map_err(Error::io("list", folder))?;
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_kafkas_rule() {
        for name in ["a", "shop.state", "A_b-9", &"x".repeat(249)] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "ä", "a b", &"x".repeat(250)] {
            assert!(!is_valid_name(name), "{name}");
        }
    }
}
