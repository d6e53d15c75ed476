//! Who a member is: which node, on which disk, and whether it has ever been a member.
//!
//! The file is `member.json`, version 1, replaced whole: `{"version": 1, "node": id, "directory":
//! uuid, "joined": bool}`. The directory's UUID is drawn when the folder is made, so a node that
//! lost its disk comes back with another one.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tailwater_kafka::BrokerId;
use uuid::Uuid;

use crate::Error;
use crate::storage::disk;

const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    node: BrokerId,
    directory: Uuid,
    joined: bool,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The identity of a metadata folder.
#[derive(Debug)]
pub(crate) struct Identity {
    path: PathBuf,
    stored: Stored,
}

impl Identity {
    /// Reads the identity in `folder`, or makes a new one.
    ///
    /// # Errors
    /// The system's, [`Error::Corrupt`], [`Error::FormatVersion`] and [`Error::OtherNode`].
    pub(crate) fn open(folder: &Path, node: BrokerId) -> Result<Self, Error> {
        let path = folder.join("member.json");
        let Some(contents) = disk::read_if_exists(&path)? else {
            let stored =
                Stored { version: VERSION, node, directory: Uuid::new_v4(), joined: false };
            let identity = Self { path, stored };
            identity.save()?;
            return Ok(identity);
        };
        let damage = |error: serde_json::Error| Error::corrupt(&path, 0, error.to_string());
        let Version { version } = serde_json::from_slice(&contents).map_err(damage)?;
        if version != VERSION {
            return Err(Error::FormatVersion { path, found: version, supported: VERSION });
        }
        let stored: Stored = serde_json::from_slice(&contents).map_err(damage)?;
        if stored.node != node {
            let (found, configured) = (stored.node.get(), node.get());
            return Err(Error::OtherNode { path: folder.to_owned(), found, configured });
        }
        Ok(Self { path, stored })
    }

    /// The folder's UUID.
    pub(crate) fn directory(&self) -> Uuid {
        self.stored.directory
    }

    /// Whether it has ever been a member with a vote.
    pub(crate) fn joined(&self) -> bool {
        self.stored.joined
    }

    /// It is a member: it never asks to become one again.
    ///
    /// # Errors
    /// The system's; then it may ask again after a restart, which changes nothing.
    pub(crate) fn join(&mut self) -> Result<(), Error> {
        self.stored.joined = true;
        self.save()
    }

    fn save(&self) -> Result<(), Error> {
        let json = serde_json::to_vec(&self.stored).expect("numbers and text");
        disk::replace_file(&self.path, &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_identity_and_belongs_to_one_node() {
        let folder = tempfile::tempdir().unwrap();
        let open = |node| Identity::open(folder.path(), BrokerId::new(node));
        let mut identity = open(3).unwrap();
        assert!(!identity.joined());
        identity.join().unwrap();
        let again = open(3).unwrap();
        assert_eq!((again.directory(), again.joined()), (identity.directory(), true));
        assert!(matches!(open(4), Err(Error::OtherNode { found: 3, configured: 4, .. })));
        std::fs::write(folder.path().join("member.json"), r#"{"version":2}"#).unwrap();
        assert!(matches!(open(3), Err(Error::FormatVersion { found: 2, .. })));
        std::fs::write(folder.path().join("member.json"), "{").unwrap();
        assert!(matches!(open(3), Err(Error::Corrupt { .. })));
    }
}
