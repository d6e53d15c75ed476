//! The partitions that this node has a copy of: their folders, and making and removing them.
//!
//! Which ones those should be, the metadata says; this is what there is. Making and removing one is
//! a rename: it is put together in `staging/` and moved to `topics/<name>/<number>` when it is
//! whole, and moved back there before its files are removed. What a crash leaves in `staging/` is
//! swept out at the next start.
//!
//! A folder that metadata knows nothing of is moved to `stray/` and kept: it may be of a topic that
//! was deleted while this node was away, or of a cluster whose metadata was lost. Only a person can
//! tell. So is a copy that is damaged, before it is copied anew: it may be wanted yet.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use tailwater_kafka::{BrokerId, PartitionId, TopicId};

use crate::Error;
use crate::metadata::Image;
use crate::storage::checkpoint::PartitionDescription;
use crate::storage::disk;
use crate::storage::partition::{Partition, PartitionName, Shared};
use crate::topic_config::{Overrides, TopicConfig};

/// Why a copy is set aside.
const UNKNOWN: &str = "the cluster knows nothing of it";
const DAMAGED: &str = "it is damaged, and copied anew from another replica";

/// A partition by its topic's identity.
pub(crate) type PartitionKey = (TopicId, PartitionId);

/// The partitions of this node.
#[derive(Debug)]
pub(crate) struct Partitions {
    live: PathBuf,
    staging: PathBuf,
    stray: PathBuf,
    shared: Arc<Shared>,
    by_key: RwLock<HashMap<PartitionKey, Arc<Partition>>>,
}

impl Partitions {
    /// Makes the folders below `data_dir` and opens nothing yet. Blocks.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new(data_dir: &Path, shared: Arc<Shared>) -> Result<Self, Error> {
        let partitions = Self {
            live: data_dir.join("topics"),
            staging: data_dir.join("staging"),
            stray: data_dir.join("stray"),
            shared,
            by_key: RwLock::default(),
        };
        let staging = &partitions.staging;
        if staging.exists() {
            fs::remove_dir_all(staging).map_err(Error::io("remove", staging))?;
        }
        for folder in [&partitions.live, staging] {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        disk::sync_folder(&*partitions.shared.config.disk, data_dir)?;
        Ok(partitions)
    }

    /// Opens what there is and `node` is to have, and sets aside what nobody knows of. A partition
    /// that cannot be opened is offline. Blocks.
    ///
    /// # Errors
    /// If a folder cannot be understood.
    pub(crate) fn open_all(&self, image: &Image, node: BrokerId) -> Result<(), Error> {
        for topic in sorted_folders(&self.live)? {
            for folder in sorted_folders(&topic)? {
                self.open_one(&topic, folder, image, node)?;
            }
        }
        Ok(())
    }

    fn open_one(
        &self,
        topic: &Path,
        folder: PathBuf,
        image: &Image,
        node: BrokerId,
    ) -> Result<(), Error> {
        let Some(name) = topic.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
        let number = folder.file_name().and_then(|name| name.to_str()).and_then(|n| n.parse().ok());
        let Some(partition) = number.map(PartitionId::new) else {
            return Err(Error::corrupt(&folder, 0, "the name is not a partition's number"));
        };
        let known = image.topic_by_name(name).filter(|(_, topic)| {
            topic.partitions.get(&partition).is_some_and(|state| state.replicas.contains(&node))
        });
        let Some((topic_id, topic)) = known else {
            return self.set_aside(&folder, name, partition, UNKNOWN);
        };
        // A description that cannot be read takes the partition offline, and says why, below.
        let other = PartitionDescription::read(&folder)
            .is_ok_and(|description| description.topic_id != topic_id);
        if other {
            return self.set_aside(&folder, name, partition, UNKNOWN);
        }
        let config = TopicConfig::resolve(&self.shared.config, &topic.configs)
            .map_err(|problem| Error::corrupt(&folder, 0, problem))?;
        let name = PartitionName { topic: name.to_owned(), topic_id, partition };
        let opened = Partition::open(folder, name, config, Arc::clone(&self.shared));
        self.insert(opened);
        Ok(())
    }

    /// Sets a damaged copy aside, so that it can be made anew. Blocks.
    ///
    /// # Errors
    /// The system's. Then it is where it was, and out of use all the same.
    pub(crate) fn set_damaged_aside(&self, partition: &Partition) -> Result<(), Error> {
        let name = &partition.name;
        partition.abandon();
        self.forget(name.key());
        let folder = self.live.join(&name.topic).join(name.partition.to_string());
        self.set_aside(&folder, &name.topic, name.partition, DAMAGED)
    }

    fn forget(&self, key: PartitionKey) {
        if self.by_key.write().unwrap_or_else(PoisonError::into_inner).remove(&key).is_some() {
            self.shared.partition_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn set_aside(
        &self,
        folder: &Path,
        topic: &str,
        partition: PartitionId,
        reason: &str,
    ) -> Result<(), Error> {
        fs::create_dir_all(&self.stray).map_err(Error::io("create", &self.stray))?;
        let place = (0..)
            .map(|number| self.stray.join(format!("{topic}-{partition}.{number}")))
            .find(|place| !place.exists())
            .expect("there are fewer than 2^31 folders");
        tracing::warn!(
            topic,
            partition = %partition,
            folder = %place.display(),
            reason,
            "a copy is set aside; remove the folder if nobody misses it"
        );
        fs::rename(folder, &place).map_err(Error::io("set aside", folder))?;
        disk::sync_folder(&*self.shared.config.disk, &self.stray)?;
        disk::sync_folder(&*self.shared.config.disk, folder.parent().unwrap_or(&self.live))
    }

    /// The copy of that partition.
    pub(crate) fn get(&self, key: PartitionKey) -> Option<Arc<Partition>> {
        self.by_key.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// Every copy, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Partition>> {
        let by_key = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let mut partitions: Vec<_> = by_key.values().cloned().collect();
        partitions.sort_by(|one, other| {
            let key = |it: &Partition| (it.name.topic.clone(), it.name.partition);
            key(one).cmp(&key(other))
        });
        partitions
    }

    /// Makes an empty partition. Blocks.
    ///
    /// # Errors
    /// The system's; then there is none.
    pub(crate) fn create(
        &self,
        name: PartitionName,
        overrides: &Overrides,
    ) -> Result<Arc<Partition>, Error> {
        let staged = self.staged(&name);
        let topic = self.live.join(&name.topic);
        let folder = topic.join(name.partition.to_string());
        let config = TopicConfig::resolve(&self.shared.config, overrides)
            .map_err(|problem| Error::corrupt(&folder, 0, problem))?;
        let disk = &*self.shared.config.disk;
        let made = Partition::create(&staged, &name).and_then(|()| {
            if !topic.exists() {
                fs::create_dir(&topic).map_err(Error::io("create", &topic))?;
                disk::sync_folder(disk, &self.live)?;
            }
            if folder.exists() {
                // Of a topic of the same name that was deleted meanwhile.
                self.set_aside(&folder, &name.topic, name.partition, UNKNOWN)?;
            }
            fs::rename(&staged, &folder).map_err(Error::io("create", &folder))?;
            disk::sync_folder(disk, &topic)
                .and_then(|()| {
                    Partition::open_new(folder.clone(), name, config, Arc::clone(&self.shared))
                })
                .inspect_err(|_| {
                    // Failing that, the next start finds an empty partition.
                    drop(fs::rename(&folder, &staged));
                })
        });
        if made.is_err() && staged.exists() {
            // Only room is at stake: the next start sweeps it out.
            drop(fs::remove_dir_all(&staged));
        }
        made.map(|partition| self.insert(partition))
    }

    /// Removes a copy for good. Blocks.
    ///
    /// # Errors
    /// The system's. Whether it is still there then shows at the next start.
    pub(crate) fn remove(&self, partition: &Partition) -> Result<(), Error> {
        let name = &partition.name;
        let staged = self.staged(name);
        let topic = self.live.join(&name.topic);
        let folder = topic.join(name.partition.to_string());
        partition.abandon();
        self.forget(name.key());
        fs::rename(&folder, &staged).map_err(Error::io("delete", &folder))?;
        disk::sync_folder(&*self.shared.config.disk, &topic)?;
        // Fails while there are other partitions.
        if fs::remove_dir(&topic).is_ok() {
            disk::sync_folder(&*self.shared.config.disk, &self.live)?;
        }
        fs::remove_dir_all(&staged).map_err(Error::io("remove", &staged))
    }

    fn staged(&self, name: &PartitionName) -> PathBuf {
        self.staging.join(format!("{}-{}", name.topic_id, name.partition))
    }

    fn insert(&self, partition: Partition) -> Arc<Partition> {
        let partition = Arc::new(partition);
        let key = partition.name.key();
        self.shared.partition_count.fetch_add(1, Ordering::Relaxed);
        self.by_key
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, Arc::clone(&partition));
        partition
    }
}

fn sorted_folders(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        folders.push(entry.map_err(Error::io("list", folder))?.path());
    }
    folders.sort();
    Ok(folders)
}
