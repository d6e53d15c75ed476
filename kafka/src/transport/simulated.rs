//! A connection over a network that somebody else makes up: the simulator's, which delays, cuts and
//! breaks what goes over it. Typed calls, nothing is encoded.

use std::{fmt, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use super::Settings;
use crate::{
    error::Error,
    wire::{ApiRange, KafkaString, Request, RequestHeader, Response},
};

/// One client's end of a network in which brokers have addresses.
#[async_trait]
pub trait Network: fmt::Debug + Send + Sync {
    /// A connection to the broker at `address`, `host:port`.
    ///
    /// # Errors
    /// If nobody is there, or the way there is cut.
    async fn connect(&self, address: &str) -> io::Result<Arc<dyn Line>>;
}

/// A connection to one broker. It ends when it is dropped.
#[async_trait]
pub trait Line: fmt::Debug + Send + Sync {
    /// What the broker at the other end answers.
    fn supported_apis(&self) -> Vec<ApiRange>;

    /// Sends `request` and waits for its response.
    ///
    /// Requests arrive in the order in which these futures are polled first, and dropping one of
    /// them does not take the request back.
    ///
    /// # Errors
    /// If the connection ends before the response is here; whether the request took effect is then
    /// unknown, and every further call fails.
    async fn call(&self, header: RequestHeader, request: Request) -> io::Result<Response>;

    /// Whether it has ended.
    fn is_closed(&self) -> bool;

    /// Ends it: calls that wait fail.
    fn close(&self);
}

#[derive(Debug)]
pub(super) struct Simulated {
    address: Arc<str>,
    client_id: KafkaString,
    request_timeout: Duration,
    line: Arc<dyn Line>,
}

impl Simulated {
    pub(super) async fn connect(
        network: &dyn Network,
        address: &str,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Connect { address: address.to_owned(), source };
        let line = timeout(settings.connect_timeout, network.connect(address))
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        Ok(Self {
            address: address.into(),
            client_id: settings.client_id.clone(),
            request_timeout: settings.request_timeout,
            line,
        })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn supported_apis(&self) -> Vec<ApiRange> {
        self.line.supported_apis()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.line.is_closed()
    }

    pub(super) async fn call(&self, version: i16, request: Request) -> Result<Response, Error> {
        let api = request.api();
        let client_id = Some(self.client_id.clone());
        let header = RequestHeader { api, version, correlation_id: 0, client_id };
        match timeout(self.request_timeout, self.line.call(header, request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) => Err(Error::ConnectionLost { address: self.address.to_string() }),
            Err(_) => {
                // As over TCP: what comes later would answer nobody.
                self.line.close();
                let (address, after) = (self.address.to_string(), self.request_timeout);
                Err(Error::RequestTimeout { address, api, after })
            }
        }
    }
}
