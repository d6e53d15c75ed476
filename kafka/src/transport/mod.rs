//! How a client reaches brokers: over TCP, by a call into the node of the same process, or over the
//! simulator's network.
//!
//! All give a [`Connection`]: requests go out in the order of the calls, and each call resolves
//! with its own response. What rides on it (client, producer, reader) cannot tell which it is.

mod in_process;
mod sasl;
mod security;
mod simulated;
mod tcp;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use in_process::InProcess;
use security::Secured;
pub use security::{SaslConfig, SaslMechanism, Security, TlsConfig};
use simulated::Simulated;
pub use simulated::{Line, Network};
use tcp::Tcp;

use crate::{
    error::Error,
    ids::BrokerId,
    node::Node,
    wire::{
        ApiKey, ApiRange, ErrorCode, KafkaString, Request, Response,
        api_versions_request::ApiVersionsRequestData,
        api_versions_response::ApiVersionsResponseData,
    },
};

/// The way to a cluster.
#[derive(Clone)]
pub struct Transport {
    way: Way,
}

#[derive(Clone)]
enum Way {
    Tcp { bootstrap: Arc<[String]>, secured: Secured },
    InProcess(Arc<dyn Node>),
    Simulated { bootstrap: Arc<[String]>, network: Arc<dyn Network> },
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.way {
            Way::Tcp { bootstrap, .. } => f.debug_tuple("Tcp").field(bootstrap).finish(),
            Way::InProcess(node) => f.debug_tuple("InProcess").field(&node.node_id()).finish(),
            Way::Simulated { bootstrap, .. } => {
                f.debug_tuple("Simulated").field(bootstrap).finish()
            }
        }
    }
}

impl Transport {
    /// A cluster reached through any of `bootstrap`, each `host:port`.
    #[must_use]
    pub fn tcp(bootstrap: Vec<String>) -> Self {
        Self { way: Way::Tcp { bootstrap: bootstrap.into(), secured: Secured::default() } }
    }

    /// A cluster reached through any of `bootstrap`, each `host:port`, with TLS and SASL.
    ///
    /// # Errors
    /// [`Error::TlsConfig`] if the certificates are not what they should be.
    pub fn tcp_secured(bootstrap: Vec<String>, security: &Security) -> Result<Self, Error> {
        let secured = Secured::new(security)?;
        Ok(Self { way: Way::Tcp { bootstrap: bootstrap.into(), secured } })
    }

    /// The node of this process; other brokers of its cluster are reached over TCP.
    #[must_use]
    pub fn in_process(node: Arc<dyn Node>) -> Self {
        Self { way: Way::InProcess(node) }
    }

    /// A cluster in a simulated network, reached through any of `bootstrap`, each `host:port`.
    #[must_use]
    pub fn simulated(bootstrap: Vec<String>, network: Arc<dyn Network>) -> Self {
        Self { way: Way::Simulated { bootstrap: bootstrap.into(), network } }
    }

    /// A connection to any broker.
    pub(crate) async fn bootstrap(&self, settings: &Settings) -> Result<Connection, Error> {
        let bootstrap = match &self.way {
            Way::InProcess(node) => return Ok(Connection::in_process(node, settings)),
            Way::Tcp { bootstrap, .. } | Way::Simulated { bootstrap, .. } => bootstrap,
        };
        let mut last = None;
        for address in bootstrap.iter() {
            match self.address(address, settings).await {
                Ok(connection) => return Ok(connection),
                // Asking the others with the same password helps nobody.
                Err(error @ Error::Authentication { .. }) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        let addresses = bootstrap.join(", ");
        let source = Box::new(last.unwrap_or(Error::Closed));
        Err(Error::NoBroker { addresses, source })
    }

    /// A connection to broker `id`, which Metadata says is at `address`.
    pub(crate) async fn broker(
        &self,
        id: BrokerId,
        address: &str,
        settings: &Settings,
    ) -> Result<Connection, Error> {
        match &self.way {
            Way::InProcess(node) if node.node_id() == id => {
                Ok(Connection::in_process(node, settings))
            }
            _ => self.address(address, settings).await,
        }
    }

    async fn address(&self, address: &str, settings: &Settings) -> Result<Connection, Error> {
        match &self.way {
            Way::InProcess(_) => Connection::tcp(address, &Secured::default(), settings).await,
            Way::Tcp { secured, .. } => Connection::tcp(address, secured, settings).await,
            Way::Simulated { network, .. } => {
                Connection::simulated(address, &**network, settings).await
            }
        }
    }
}

/// What every connection of a client has in common.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) client_id: KafkaString,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
}

/// A connection to one broker; clones share it. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Tells connections to one address apart: what was sent on which.
    id: u64,
    link: Link,
    versions: Arc<[ApiRange]>,
}

#[derive(Debug, Clone)]
enum Link {
    Tcp(Arc<Tcp>),
    InProcess(Arc<InProcess>),
    Simulated(Arc<Simulated>),
}

/// The versions this client speaks. Capped where a newer version names topics by id only: every
/// broker from Kafka 2.1 to 4.x has versions below the cap.
const SPOKEN: [ApiRange; 21] = [
    ApiRange::new(ApiKey::Produce, 3, 12),
    ApiRange::new(ApiKey::Fetch, 4, 12),
    ApiRange::new(ApiKey::ListOffsets, 1, 7),
    ApiRange::new(ApiKey::Metadata, 4, 12),
    ApiRange::new(ApiKey::OffsetCommit, 2, 8),
    ApiRange::new(ApiKey::OffsetFetch, 1, 7),
    ApiRange::new(ApiKey::FindCoordinator, 1, 3),
    ApiRange::new(ApiKey::ApiVersions, 0, 3),
    ApiRange::new(ApiKey::CreateTopics, 2, 7),
    ApiRange::new(ApiKey::DeleteTopics, 1, 5),
    ApiRange::new(ApiKey::InitProducerId, 0, 4),
    ApiRange::new(ApiKey::DescribeConfigs, 1, 4),
    ApiRange::new(ApiKey::OffsetForLeaderEpoch, 2, 4),
    ApiRange::new(ApiKey::CreatePartitions, 0, 3),
    ApiRange::new(ApiKey::ElectLeaders, 0, 2),
    ApiRange::new(ApiKey::AlterPartitionReassignments, 0, 1),
    ApiRange::new(ApiKey::ListPartitionReassignments, 0, 0),
    ApiRange::new(ApiKey::DescribeQuorum, 0, 2),
    ApiRange::new(ApiKey::DescribeCluster, 0, 2),
    ApiRange::new(ApiKey::UnregisterBroker, 0, 0),
    ApiRange::new(ApiKey::RemoveRaftVoter, 0, 0),
];

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Connection {
    fn in_process(node: &Arc<dyn Node>, settings: &Settings) -> Self {
        let versions = node.supported_apis().into();
        let link = Link::InProcess(Arc::new(InProcess::new(Arc::clone(node), settings)));
        Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), link, versions }
    }

    async fn tcp(address: &str, secured: &Secured, settings: &Settings) -> Result<Self, Error> {
        let tcp = Tcp::connect(address, secured, settings).await?;
        let versions = negotiate(&tcp).await?.into();
        if let Some(sasl) = &secured.sasl {
            sasl::authenticate(&tcp, sasl).await?;
        }
        let link = Link::Tcp(Arc::new(tcp));
        Ok(Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), link, versions })
    }

    async fn simulated(
        address: &str,
        network: &dyn Network,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let line = Simulated::connect(network, address, settings).await?;
        let versions = line.supported_apis().into();
        let link = Link::Simulated(Arc::new(line));
        Ok(Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), link, versions })
    }

    /// Which connection this is, for as long as the process lives.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether it has ended; every further call fails.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.link {
            Link::Tcp(tcp) => tcp.is_closed(),
            Link::InProcess(link) => link.is_closed(),
            Link::Simulated(line) => line.is_closed(),
        }
    }

    pub(crate) fn address(&self) -> &str {
        match &self.link {
            Link::Tcp(tcp) => tcp.address(),
            Link::InProcess(_) => in_process::ADDRESS,
            Link::Simulated(line) => line.address(),
        }
    }

    /// The newest version of `api` that both ends speak.
    pub(crate) fn version(&self, api: ApiKey) -> Result<i16, Error> {
        common_version(&self.versions, api)
            .ok_or_else(|| Error::NoCommonVersion { address: self.address().to_owned(), api })
    }

    /// Sends `request` and waits for its response.
    ///
    /// Requests go out in the order in which these futures are polled first. Dropping the future
    /// does not take the request back.
    pub(crate) async fn call<R>(&self, request: impl Into<Request>) -> Result<R, Error>
    where
        R: TryFrom<Response>,
    {
        let request = request.into();
        let api = request.api();
        let version = self.version(api)?;
        self.call_in(version, request).await
    }

    /// As [`Connection::call`], in a version that the other end knows.
    async fn call_in<R>(&self, version: i16, request: Request) -> Result<R, Error>
    where
        R: TryFrom<Response>,
    {
        let api = request.api();
        let response = match &self.link {
            Link::Tcp(tcp) => tcp.call(version, &request).await?,
            Link::InProcess(link) => link.call(version, request).await?,
            Link::Simulated(line) => line.call(version, request).await?,
        };
        R::try_from(response).map_err(|_| self.unexpected(api, "with a response of another kind"))
    }

    /// The error for a response that does not hold what was asked for.
    pub(crate) fn unexpected(&self, api: ApiKey, problem: &'static str) -> Error {
        Error::UnexpectedResponse { address: self.address().to_owned(), api, problem }
    }
}

/// A connection of one broker to another, at versions that both know.
///
/// Clients have [`crate::Client`]; this is for what brokers say to each other. It ends when it is
/// dropped.
#[derive(Debug)]
pub struct BrokerConnection(Connection);

impl BrokerConnection {
    /// Connects to broker `id` at `address`, `host:port`, the way that `transport` goes.
    ///
    /// # Errors
    /// If it is not reached within five seconds.
    pub async fn connect(
        transport: &Transport,
        id: BrokerId,
        address: &str,
    ) -> Result<Self, Error> {
        let settings = Settings {
            client_id: KafkaString::from_static("tailwater-broker"),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
        };
        transport.broker(id, address, &settings).await.map(Self)
    }

    /// Whether it has ended; every further call fails.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends `request` in `version` and waits for its response.
    ///
    /// # Errors
    /// If the other broker does not know that version, or does not answer.
    pub async fn call_at<R>(&self, version: i16, request: impl Into<Request>) -> Result<R, Error>
    where
        R: TryFrom<Response>,
    {
        let request = request.into();
        let api = request.api();
        if !crate::wire::supports(&self.0.versions, api, version) {
            return Err(Error::NoCommonVersion { address: self.0.address().to_owned(), api });
        }
        self.0.call_in(version, request).await
    }
}

/// Asks a broker what it speaks. One that does not know our version of the question answers in
/// version 0 that it does not, and is asked again in version 0 (KIP-511).
async fn negotiate(tcp: &Tcp) -> Result<Vec<ApiRange>, Error> {
    let request = Request::ApiVersions(
        ApiVersionsRequestData::default()
            .with_client_software_name(KafkaString::from_static("tailwater"))
            .with_client_software_version(KafkaString::from_static(env!("CARGO_PKG_VERSION"))),
    );
    let mut response = api_versions(tcp, 3, &request).await?;
    if ErrorCode::from(response.error_code) == ErrorCode::UnsupportedVersion {
        response =
            api_versions(tcp, 0, &Request::ApiVersions(ApiVersionsRequestData::default())).await?;
    }
    if response.error_code != 0 {
        let operation = format!("ask {} for its versions", tcp.address());
        return Err(Error::broker(operation, response.error_code));
    }
    let ranges = response.api_keys.iter().filter_map(|range| {
        let api = ApiKey::from_i16(range.api_key)?;
        Some(ApiRange::new(api, range.min_version, range.max_version))
    });
    Ok(ranges.collect())
}

async fn api_versions(
    tcp: &Tcp,
    version: i16,
    request: &Request,
) -> Result<ApiVersionsResponseData, Error> {
    match tcp.call(version, request).await? {
        Response::ApiVersions(response) => Ok(response),
        _ => Err(Error::UnexpectedResponse {
            address: tcp.address().to_owned(),
            api: ApiKey::ApiVersions,
            problem: "with a response of another kind",
        }),
    }
}

fn common_version(theirs: &[ApiRange], api: ApiKey) -> Option<i16> {
    let ours = SPOKEN.iter().find(|range| range.api == api)?;
    let theirs = theirs.iter().find(|range| range.api == api)?;
    let newest = ours.max.min(theirs.max);
    (newest >= ours.min.max(theirs.min)).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        // What Kafka 4.x advertises.
        let theirs = [
            ApiRange::new(ApiKey::Produce, 0, 13),
            ApiRange::new(ApiKey::Fetch, 4, 18),
            ApiRange::new(ApiKey::Metadata, 0, 13),
        ];
        assert_eq!(common_version(&theirs, ApiKey::Produce), Some(12));
        assert_eq!(common_version(&theirs, ApiKey::Fetch), Some(12));
        assert_eq!(common_version(&theirs, ApiKey::ListOffsets), None);
        let newer = [ApiRange::new(ApiKey::Fetch, 13, 20)];
        assert_eq!(common_version(&newer, ApiKey::Fetch), None);
    }
}
