//! Who writes: sequence numbers per partition, transactional ids per node.

mod registry;
mod sequence;

pub(crate) use registry::{InitError, InitRequest, ProducerRegistry};
pub(crate) use sequence::{ProducerBatch, ProducerStates, Refusal, Verdict};
