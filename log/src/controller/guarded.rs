//! Topics that others rely on, and what therefore cannot be changed about them.
//!
//! | topic | relies on it | so |
//! |---|---|---|
//! | `__consumer_offsets`, `__transaction_state` | the coordinators: a key is in the partition to which it hashes | as many partitions as it was made with, compacted, never emptied |
//! | `_schemas` | the schema registry: all schemas, in their order | the same |
//! | `<source>.state` | capture: where it stands | the same |
//! | `<source>`, beside which there is a `<source>.state` | apply: every change, in its order | as many partitions as it was made with, never compacted |
//!
//! And of every topic: what was compacted has gaps between its offsets, which in a topic that is not
//! compacted are damage. So compaction is not taken back.

use std::collections::BTreeMap;

use tailwater_kafka::wire::ErrorCode;

use super::requests::Refusal;
use crate::coordinator;
use crate::metadata::{Image, TopicImage};
use crate::topic_config::{is_compacted, is_deleted_from};

/// Where the schema registry keeps its schemas.
const SCHEMAS: &str = "_schemas";

/// What the topic beside a source's has behind its name.
const STATE: &str = ".state";

/// What is kept in a topic that others rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// The last of each key, for ever.
    Latest(&'static str),
    /// Every change of a source, in order.
    Changes,
}

fn kept(image: &Image, name: &str) -> Option<Kept> {
    let is_there = |name: &str| image.topic_by_name(name).is_some();
    let is_state = |name: &str| {
        image.topic_by_name(name).is_some_and(|(_, topic)| is_compacted(&topic.configs))
    };
    if coordinator::is_internal(name) {
        return Some(Kept::Latest("the cluster keeps its clients' positions and ids there"));
    }
    if name == SCHEMAS {
        return Some(Kept::Latest("the schema registry keeps its schemas there"));
    }
    if let Some(source) = name.strip_suffix(STATE)
        && is_there(source)
    {
        return Some(Kept::Latest("capture keeps there where it stands"));
    }
    is_state(&format!("{name}{STATE}")).then_some(Kept::Changes)
}

/// Whether a topic of that name may be made with these settings.
///
/// # Errors
/// Why not.
pub(super) fn check_new(name: &str, configs: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if !coordinator::is_internal(name) || is_compacted(configs) && !is_deleted_from(configs) {
        return Ok(());
    }
    let message = format!(
        "topic {name:?} is the cluster's own and is made when it is needed: cleanup.policy must be \
         compact"
    );
    Err(Refusal::new(ErrorCode::InvalidConfig, message))
}

/// Whether a topic may have more partitions.
///
/// # Errors
/// Why not.
pub(super) fn check_growth(image: &Image, name: &str) -> Result<(), Refusal> {
    let because = match kept(image, name) {
        None => return Ok(()),
        Some(Kept::Latest(because)) => because,
        Some(Kept::Changes) => {
            "a source's changes are spread over as many partitions as it began with"
        }
    };
    let message = format!("topic {name:?} keeps its number of partitions: {because}");
    Err(Refusal::new(ErrorCode::InvalidPartitions, message))
}

/// Whether a topic may have these settings instead of its present ones.
///
/// # Errors
/// Why not.
pub(super) fn check_settings(
    image: &Image,
    topic: &TopicImage,
    configs: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    let refused = |because: &str| {
        let message = format!("topic {:?}: {because}", topic.name);
        Err(Refusal::new(ErrorCode::InvalidConfig, message))
    };
    let (compacts, deletes) = (is_compacted(configs), is_deleted_from(configs));
    match kept(image, &topic.name) {
        Some(Kept::Latest(because)) if !compacts || deletes => {
            refused(&format!("cleanup.policy must be compact: {because}"))
        }
        Some(Kept::Changes) if compacts => {
            refused("cleanup.policy must be delete: apply needs every change of a source")
        }
        _ if is_compacted(&topic.configs) && !compacts => refused(
            "cleanup.policy keeps compact: what was compacted has gaps; add delete to it \
             (compact,delete), or make another topic",
        ),
        _ => Ok(()),
    }
}
