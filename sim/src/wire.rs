//! What controllers say to each other, over the simulated network.
//!
//! Each call goes its own way, so one may overtake another. Who asked may be gone, or have lost
//! patience, when its message arrives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tailwater_log::{ControllerWire, Log};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::dice::ms;
use crate::network::{Network, host_of};

/// How long a call waits for somebody who says nothing: then its connection counts as dead.
const SILENCE: Duration = Duration::from_secs(10);

/// A controller that can be reached.
#[derive(Debug, Clone)]
pub(crate) struct ControllerEnd {
    pub(crate) log: Arc<Log>,
    pub(crate) off: CancellationToken,
}

/// What a process calls controllers over.
#[derive(Debug)]
pub(crate) struct Wire {
    network: Network,
    host: String,
    off: CancellationToken,
}

impl Wire {
    /// The wire of a process on `host`, until it is `off`.
    pub(crate) fn new(network: &Network, host: &str, off: CancellationToken) -> Self {
        Self { network: network.clone(), host: host.to_owned(), off }
    }
}

#[async_trait]
impl ControllerWire for Wire {
    async fn call(&self, address: &str, request: Bytes) -> io::Result<Bytes> {
        let (answer, answered) = oneshot::channel();
        let carried = Carried {
            network: self.network.clone(),
            client: self.host.clone(),
            client_off: self.off.clone(),
            host: host_of(address).to_owned(),
            address: address.to_owned(),
        };
        self.network.spawn(async move {
            let (id, broken) = carried.network.register(&carried.client, &carried.host);
            let outcome = broken.run_until_cancelled(carried.carry(request)).await.flatten();
            carried.network.forget(id);
            if let Some(bytes) = outcome {
                // Nobody waits any more: the call was dropped.
                drop(answer.send(bytes));
            }
        });
        match tokio::time::timeout(SILENCE, answered).await {
            Ok(answered) => answered.map_err(|_| io::ErrorKind::ConnectionReset.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// One call under way.
struct Carried {
    network: Network,
    client: String,
    client_off: CancellationToken,
    host: String,
    address: String,
}

impl Carried {
    /// The answer, if it comes back.
    async fn carry(&self, request: Bytes) -> Option<Bytes> {
        let Self { network, client, host, .. } = self;
        network.arrival(Some(network.arrives(None)), client, host).await;
        let lost = self.client_off.is_cancelled() && network.chance(0.3);
        if lost || network.breaks() {
            return None;
        }
        let Some(ControllerEnd { log, off }) = network.controller(&self.address) else {
            tokio::time::sleep(ms(1)).await;
            return None;
        };
        network.tell(format_args!("{client} -> {host} controller"), &request);
        let answer = off.run_until_cancelled(log.answer_controller(request)).await;
        drop(log);
        let Some(answer) = answer else {
            // Nobody may be there to say that nobody is there.
            if network.chance(0.3) {
                tokio::time::sleep(SILENCE).await;
            }
            return None;
        };
        network.arrival(Some(network.arrives(None)), host, client).await;
        if self.client_off.is_cancelled() || network.breaks() {
            return None;
        }
        network.tell(format_args!("{client} <- {host} controller"), &answer);
        Some(answer)
    }
}
