//! Who writes: producer ids, and the turns of those that number what they write.

mod ids;
mod sequence;

pub(crate) use ids::ProducerIds;
pub(crate) use sequence::{ProducerBatch, ProducerStates, Refusal, Verdict};
