//! How controllers reach each other: over TCP, or over a network that somebody else makes up.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::log::Log;
use crate::node::controller::Ask;
use crate::quorum::{
    ControllerHandler, ControllerMessage, ControllerReply, NetworkError, QuorumNetwork, TcpNetwork,
};

/// The way to other controllers.
#[derive(Debug, Clone, Default)]
pub enum ControllerNetwork {
    /// TCP.
    #[default]
    Tcp,
    /// A simulator's.
    Wire(Arc<dyn ControllerWire>),
}

/// Takes what a node says to a controller there, and brings back the answer.
#[async_trait]
pub trait ControllerWire: fmt::Debug + Send + Sync {
    /// Has [`Log::answer_controller`] of the node at `address` answer `request`.
    ///
    /// # Errors
    /// If there is no answer; what was asked for may have happened, or may yet.
    async fn call(&self, address: &str, request: Bytes) -> io::Result<Bytes>;
}

impl ControllerNetwork {
    pub(crate) fn network(&self) -> Arc<dyn QuorumNetwork> {
        match self {
            Self::Tcp => Arc::new(TcpNetwork::new()),
            Self::Wire(wire) => Arc::new(Wired(Arc::clone(wire))),
        }
    }
}

#[derive(Debug)]
struct Wired(Arc<dyn ControllerWire>);

#[async_trait]
impl QuorumNetwork for Wired {
    async fn call(
        &self,
        address: &str,
        message: ControllerMessage,
    ) -> Result<ControllerReply, NetworkError> {
        let failed = |reason: String| NetworkError::new(address, reason);
        let request = serde_json::to_vec(&message).map_err(|error| failed(error.to_string()))?;
        let answer = self.0.call(address, request.into()).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        serde_json::from_slice(&answer).map_err(|error| failed(error.to_string()))
    }
}

#[async_trait]
impl ControllerHandler for Log {
    async fn handle(&self, message: ControllerMessage) -> ControllerReply {
        let refused = |reason: &str| ControllerReply::Refused { reason: reason.to_owned() };
        let Some(controller) = &self.controller else {
            return refused("this node carries no controller");
        };
        match message {
            ControllerMessage::Quorum(message) => {
                ControllerReply::Quorum(controller.quorum().handle(message).await)
            }
            ControllerMessage::Controller(ask) => match serde_json::from_value::<Ask>(ask) {
                Ok(ask) => match serde_json::to_value(controller.handle(ask).await) {
                    Ok(reply) => ControllerReply::Controller(reply),
                    Err(error) => refused(&error.to_string()),
                },
                Err(error) => refused(&error.to_string()),
            },
        }
    }
}

impl Log {
    /// Answers what another node says to the controller of this one, over a
    /// [`ControllerWire`]. Bytes that are not understood are answered with a refusal.
    pub async fn answer_controller(&self, request: Bytes) -> Bytes {
        let reply = match serde_json::from_slice(&request) {
            Ok(message) => ControllerHandler::handle(self, message).await,
            Err(error) => ControllerReply::Refused { reason: error.to_string() },
        };
        serde_json::to_vec(&reply).unwrap_or_default().into()
    }
}
