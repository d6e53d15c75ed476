//! What all nodes of the cluster know: its brokers, topics, partitions, who leads which.
//!
//! ```text
//! controller ── records ──► log of the quorum ──► every node applies them in order ──► Image
//! ```
//!
//! The controller decides and writes each decision as one entry of the metadata log: one or more
//! [`Record`]s that count together. Every node applies the entries in their order to its
//! [`Image`], so that all have the same one at the same [`MetadataIndex`]. A record is the whole
//! new state of one thing ("set X to this"), never a difference: applying it twice changes
//! nothing, and a snapshot of the image stands for all entries below it.
//!
//! Nothing here decides anything (`controller` does) and nothing here does IO (`quorum` does).
//!
//! | bytes | form | written by | read by |
//! |---|---|---|---|
//! | records of an entry | JSON, see `records` | the controller that leads | every node |
//! | snapshot | JSON of the [`Image`] | every controller, for itself and for who lags | the same |

mod image;
mod records;
mod states;

pub(crate) use image::{Image, TopicImage};
pub(crate) use records::{LEVEL, Record};
pub(crate) use states::{
    BrokerEpoch, BrokerState, ClusterState, MIN_ISR_CONFIG, MetadataIndex, PartitionEpoch,
    PartitionState,
};
