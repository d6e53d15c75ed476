//! What a broker is to a caller in the same process.
//!
//! The TCP listener  and the in-process transport both call a [`Node`]: one code
//! path, whether a request came over a socket or from the capture loop next door.

use std::net::SocketAddr;

use async_trait::async_trait;

use crate::{
    ids::BrokerId,
    wire::{ApiRange, Request, RequestHeader, Response},
};

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestContext {
    /// The peer's address, or `None` for a caller in this process.
    pub peer: Option<SocketAddr>,
}

impl RequestContext {
    /// A caller in this process.
    pub const IN_PROCESS: Self = Self { peer: None };
}

/// A broker: takes typed requests, gives typed responses.
///
/// The contract with its callers:
///
/// - Only requests within [`Node::supported_apis`] arrive; the callers answer the others.
/// - The response is of the request's variant, and encodable at the request's version. For a
///   Produce with `acks = 0` it is dropped.
/// - **Order**: requests of one connection are started (polled for the first time) in the order in
///   which they arrived and then run side by side, so that pipelined produces share a flush.
///   Whatever depends on that order, such as taking a partition's lock to check sequences, has to
///   be settled, or queued fairly, by the first poll.
/// - **Cancellation**: the future may be dropped at any await, when the connection ends. What was
///   appended by then stays appended; what must not stop half way runs in a task of the node's.
#[async_trait]
pub trait Node: Send + Sync {
    /// The node's id, as Metadata names it.
    fn node_id(&self) -> BrokerId;

    /// The APIs and versions this node answers; also what its ApiVersions response advertises,
    /// see [`crate::wire::advertised`].
    fn supported_apis(&self) -> &[ApiRange];

    /// Answers one request; a Fetch waits inside for its `max_wait_ms`.
    async fn handle(
        &self,
        context: &RequestContext,
        header: &RequestHeader,
        request: Request,
    ) -> Response;
}
