//! A node's folder: whose it is, and whether it was stopped in order.
//!
//! | file | says |
//! |---|---|
//! | `node.json` | which node's folder this is, and a name of its own: an empty folder in its place is another one |
//! | `stopped.json` | as which registration the node stopped with everything flushed; there between a clean stop and the next start |

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tailwater_kafka::BrokerId;
use uuid::Uuid;

use crate::Error;
use crate::config::Config;
use crate::metadata::BrokerEpoch;
use crate::partitions::Partitions;
use crate::storage::checkpoint::{decode_json, encode_json, json_version};
use crate::storage::disk;
use crate::storage::flusher::Flusher;
use crate::storage::folder_lock::FolderLock;
use crate::storage::partition::Shared;
use crate::storage::reserve::Reserve;

const NODE_VERSION: u32 = 2;
/// A folder that no other node knows anything of.
const BEFORE_METADATA: u32 = 1;
const STOPPED_VERSION: u32 = 1;

/// What `node.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredNode {
    version: u32,
    node_id: i32,
    /// Chosen when the folder was made: another folder has none of the records that this one has.
    directory: Uuid,
}

/// What `stopped.json` says: it is there between a clean stop and the next start.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredStop {
    version: u32,
    broker_epoch: BrokerEpoch,
}

/// What opening the folder gives.
pub(crate) struct Folder {
    pub(crate) shared: Arc<Shared>,
    pub(crate) directory: Uuid,
    /// The registration that stopped in order; `None` after a crash.
    pub(crate) stopped_as: Option<BrokerEpoch>,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) flusher: Arc<Flusher>,
}

/// Opens a node's folder, making what is not there yet. Blocks.
///
/// # Errors
/// If it is in use, another node's, or cannot be understood.
pub(crate) fn open(config: Config) -> Result<Folder, Error> {
    let data_dir = config.data_dir.clone();
    fs::create_dir_all(&data_dir).map_err(Error::io("create", &data_dir))?;
    let folder_lock = FolderLock::take(&data_dir)?;
    let directory = match read_node(&data_dir, config.node_id)? {
        Some(directory) => directory,
        None => write_node(&data_dir, config.node_id)?,
    };
    let stopped_as = take_stop(&data_dir, &config)?;
    let reserve = Reserve::open(&data_dir, config.reserve_bytes);
    let shared = Arc::new(Shared::new(config, folder_lock, reserve));
    let partitions = Arc::new(Partitions::new(&data_dir, Arc::clone(&shared))?);
    let config = &shared.config;
    let flusher = Arc::new(Flusher::start(config.flush_threads, &config.workers)?);
    Ok(Folder { shared, directory, stopped_as, partitions, flusher })
}

/// Which folder this is, if it is a node's already.
fn read_node(data_dir: &Path, node_id: BrokerId) -> Result<Option<Uuid>, Error> {
    let path = data_dir.join("node.json");
    let Some(contents) = disk::read_if_exists(&path)? else { return Ok(None) };
    if json_version(&path, &contents)? == BEFORE_METADATA {
        return Err(Error::Config {
            problems: vec![format!(
                "{} is from before there was metadata, which no release had: begin with an empty \
                 folder, and let the sources write anew",
                data_dir.display()
            )],
        });
    }
    let stored: StoredNode = decode_json(&path, &contents, NODE_VERSION)?;
    if stored.node_id != node_id.get() {
        return Err(Error::OtherNode {
            path: data_dir.to_owned(),
            found: stored.node_id,
            configured: node_id.get(),
        });
    }
    Ok(Some(stored.directory))
}

fn write_node(data_dir: &Path, node_id: BrokerId) -> Result<Uuid, Error> {
    let path = data_dir.join("node.json");
    let stored =
        StoredNode { version: NODE_VERSION, node_id: node_id.get(), directory: Uuid::new_v4() };
    disk::replace_file(&path, &encode_json(&stored))?;
    Ok(stored.directory)
}

/// As which registration the node stopped with everything flushed. What says so goes, durably,
/// before anything is written that a crash could take away.
fn take_stop(data_dir: &Path, config: &Config) -> Result<Option<BrokerEpoch>, Error> {
    let path = data_dir.join("stopped.json");
    let Some(contents) = disk::read_if_exists(&path)? else { return Ok(None) };
    let stored: StoredStop = decode_json(&path, &contents, STOPPED_VERSION)?;
    disk::remove_file(&path)?;
    disk::sync_folder(&*config.disk, data_dir)?;
    Ok(Some(stored.broker_epoch))
}

/// Notes that the node stopped in order. Blocks.
///
/// # Errors
/// The system's: the next start then takes it for a crash.
pub(crate) fn note_stop(data_dir: &Path, broker_epoch: BrokerEpoch) -> Result<(), Error> {
    let stop = StoredStop { version: STOPPED_VERSION, broker_epoch };
    disk::replace_file(&data_dir.join("stopped.json"), &encode_json(&stop))
}
