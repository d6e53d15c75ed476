//! Who leads what, and the connections there.
//!
//! Each user of a cluster has [`Connections`] of its own: at most one per broker, made when first
//! needed, made anew when it ended.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    error::{Disposition, Error},
    ids::{BrokerId, TopicId, TopicPartition},
    transport::{Connection, Settings, Transport},
    wire::{
        ApiKey, ErrorCode, KafkaString,
        find_coordinator_request::FindCoordinatorRequestData,
        find_coordinator_response::FindCoordinatorResponseData,
        metadata_request::{MetadataRequestData, MetadataRequestTopic},
        metadata_response::{MetadataResponseData, MetadataResponseTopic},
    },
};

/// The cluster as its users share it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) transport: Transport,
    pub(crate) settings: Settings,
    pub(crate) call_timeout: Duration,
    /// Where this client is; empty if nobody says.
    pub(crate) rack: KafkaString,
}

/// What a coordinator is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CoordinatorOf<'a> {
    Group(&'a str),
    TransactionalId(&'a str),
}

/// The connections of one user.
#[derive(Debug)]
pub(crate) struct Connections {
    cluster: Arc<Cluster>,
    bootstrap: Option<Connection>,
    brokers: HashMap<BrokerId, Connection>,
    /// Where the brokers were when one of them last said so: those that were named at first may all
    /// be gone.
    known: Vec<(BrokerId, String)>,
}

/// Where requests for a partition go.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) connection: Connection,
    /// The topic's identity; `None` where the broker is older than Kafka 2.8.
    pub(crate) topic_id: Option<TopicId>,
}

impl Connections {
    pub(crate) fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster, bootstrap: None, brokers: HashMap::new(), known: Vec::new() }
    }

    /// A connection to any broker.
    pub(crate) async fn any(&mut self) -> Result<Connection, Error> {
        if let Some(connection) = self.bootstrap.as_ref().filter(|it| !it.is_closed()) {
            return Ok(connection.clone());
        }
        self.brokers.retain(|_, connection| !connection.is_closed());
        if let Some(connection) = self.brokers.values().next() {
            return Ok(connection.clone());
        }
        let connection = match self.cluster.transport.bootstrap(&self.cluster.settings).await {
            Err(error @ Error::NoBroker { .. }) => self.any_known().await.ok_or(error)?,
            other => other?,
        };
        self.bootstrap = Some(connection.clone());
        Ok(connection)
    }

    async fn any_known(&mut self) -> Option<Connection> {
        for (id, address) in self.known.clone() {
            if let Ok(connection) = self.broker_at(id, &address).await {
                return Some(connection);
            }
        }
        None
    }

    /// What the cluster says about `topics`; nothing is created.
    pub(crate) async fn metadata(
        &mut self,
        topics: &[&str],
    ) -> Result<MetadataResponseData, Error> {
        let topics = topics
            .iter()
            .map(|name| {
                MetadataRequestTopic::default()
                    .with_name(Some(KafkaString::from((*name).to_owned())))
            })
            .collect();
        let request = MetadataRequestData::default()
            .with_topics(Some(topics))
            .with_allow_auto_topic_creation(false);
        let metadata: MetadataResponseData = self.any().await?.call(request).await?;
        let known = metadata.brokers.iter().map(|broker| {
            (BrokerId::new(broker.node_id), format!("{}:{}", broker.host, broker.port))
        });
        self.known = known.collect();
        Ok(metadata)
    }

    /// The way to the controller; where the cluster names none, any broker forwards.
    pub(crate) async fn controller(&mut self) -> Result<Connection, Error> {
        let metadata = self.metadata(&[]).await?;
        let id = BrokerId::new(metadata.controller_id);
        if metadata.brokers.iter().any(|broker| broker.node_id == id.get()) {
            self.broker(id, &metadata).await
        } else {
            self.any().await
        }
    }

    /// The ways to the leaders of `partitions`, in that order; an error stands where a partition
    /// has none at the moment.
    pub(crate) async fn leaders(
        &mut self,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Result<Route, Error>>, Error> {
        let mut topics: Vec<&str> = partitions.iter().map(|it| it.topic.as_str()).collect();
        topics.sort_unstable();
        topics.dedup();
        let metadata = self.metadata(&topics).await?;
        let mut routes = Vec::with_capacity(partitions.len());
        for partition in partitions {
            routes.push(match leader_of(partition, &metadata) {
                Ok((id, topic_id)) => {
                    let connection = self.broker(id, &metadata).await;
                    connection.map(|connection| Route { connection, topic_id })
                }
                Err(error) => Err(error),
            });
        }
        Ok(routes)
    }

    /// The way to the leader of `partition`.
    pub(crate) async fn leader(&mut self, partition: &TopicPartition) -> Result<Route, Error> {
        let mut routes = self.leaders(std::slice::from_ref(partition)).await?;
        routes.pop().unwrap_or(Err(Error::Closed))
    }

    /// The way to a broker that was named.
    pub(crate) async fn named(&mut self, id: BrokerId) -> Result<Connection, Error> {
        let metadata = self.metadata(&[]).await?;
        self.broker(id, &metadata).await
    }

    /// The way to a coordinator.
    pub(crate) async fn coordinator(&mut self, of: CoordinatorOf<'_>) -> Result<Connection, Error> {
        let (key, key_type, operation) = match of {
            CoordinatorOf::Group(group) => (group, 0, format!("find coordinator of {group:?}")),
            CoordinatorOf::TransactionalId(id) => {
                (id, 1, format!("find coordinator of transactional id {id:?}"))
            }
        };
        let request = FindCoordinatorRequestData::default()
            .with_key(KafkaString::from(key.to_owned()))
            .with_key_type(key_type);
        let found: FindCoordinatorResponseData = self.any().await?.call(request).await?;
        if found.error_code != 0 {
            let message = found.error_message.as_ref();
            return Err(Error::broker_says(operation, found.error_code, message));
        }
        let address = format!("{}:{}", found.host, found.port);
        self.broker_at(BrokerId::new(found.node_id), &address).await
    }

    async fn broker(
        &mut self,
        id: BrokerId,
        metadata: &MetadataResponseData,
    ) -> Result<Connection, Error> {
        let Some(broker) = metadata.brokers.iter().find(|broker| broker.node_id == id.get()) else {
            let operation = format!("find broker {id}");
            return Err(Error::broker(operation, ErrorCode::BrokerNotAvailable.into()));
        };
        self.broker_at(id, &format!("{}:{}", broker.host, broker.port)).await
    }

    async fn broker_at(&mut self, id: BrokerId, address: &str) -> Result<Connection, Error> {
        if let Some(connection) = self.brokers.get(&id).filter(|it| !it.is_closed()) {
            return Ok(connection.clone());
        }
        let Cluster { transport, settings, .. } = &*self.cluster;
        let connection = transport.broker(id, address, settings).await?;
        self.brokers.insert(id, connection.clone());
        Ok(connection)
    }
}

fn leader_of(
    partition: &TopicPartition,
    metadata: &MetadataResponseData,
) -> Result<(BrokerId, Option<TopicId>), Error> {
    let topic = find_topic(metadata, &partition.topic)?;
    let known =
        topic.partitions.iter().find(|known| known.partition_index == partition.partition.get());
    let operation = || format!("find leader of {partition}");
    let Some(known) = known else {
        return Err(Error::broker(operation(), ErrorCode::UnknownTopicOrPartition.into()));
    };
    // A replica that is missing is noted as an error too; the leader is there all the same.
    if known.leader_id < 0 {
        return Err(Error::broker(operation(), ErrorCode::LeaderNotAvailable.into()));
    }
    Ok((BrokerId::new(known.leader_id), topic_id(topic)))
}

/// A topic's identity; older brokers give none.
pub(crate) fn topic_id(topic: &MetadataResponseTopic) -> Option<TopicId> {
    (!topic.topic_id.is_nil()).then(|| TopicId::new(*topic.topic_id.inner()))
}

/// Holds a topic to the identity it had when it was first looked up: by its name alone, a topic
/// deleted and created anew looks the same, with other records under the same offsets.
#[derive(Debug, Default)]
pub(crate) struct Pinned(Option<TopicId>);

impl Pinned {
    /// Passes `route` on if its topic is the one known before.
    pub(crate) fn check(&mut self, of: &TopicPartition, route: Route) -> Result<Route, Error> {
        match (self.0, route.topic_id) {
            (Some(before), Some(now)) if before != now => {
                Err(Error::TopicRecreated { topic: of.topic.clone(), before, now })
            }
            (_, now) => {
                self.0 = now.or(self.0);
                Ok(route)
            }
        }
    }
}

/// The topic `name` of a Metadata response.
pub(crate) fn find_topic<'a>(
    metadata: &'a MetadataResponseData,
    name: &str,
) -> Result<&'a MetadataResponseTopic, Error> {
    let operation = || format!("look up topic {name:?}");
    let topic = metadata
        .topics
        .iter()
        .find(|topic| topic.name.as_ref().is_some_and(|it| it.as_str() == name))
        .ok_or_else(|| Error::broker(operation(), ErrorCode::UnknownTopicOrPartition.into()))?;
    if topic.error_code != 0 {
        return Err(Error::broker(operation(), topic.error_code));
    }
    Ok(topic)
}

/// Whether an error says that a topic or partition is not there.
pub(crate) fn is_unknown_topic(error: &Error) -> bool {
    matches!(error, Error::Broker { code: ErrorCode::UnknownTopicOrPartition, .. })
}

/// Pauses between attempts: 20 ms, doubling up to a second, until a deadline.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    deadline: Instant,
}

impl Backoff {
    /// The first pause. Leader elections and restarts of a local log take tens of milliseconds.
    pub(crate) const FIRST: Duration = Duration::from_millis(20);
    /// The longest pause: what an outage costs on top once it is over.
    pub(crate) const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) fn until(timeout: Duration) -> Self {
        Self { next: Self::FIRST, deadline: Instant::now() + timeout }
    }

    /// What a caller returns for `result`, or `None` after a pause, to try again.
    pub(crate) async fn settle<T>(&mut self, result: Result<T, Error>) -> Option<Result<T, Error>> {
        let Err(error) = &result else {
            return Some(result);
        };
        let at_pause_end = Instant::now() + self.next;
        if error.disposition() != Disposition::Retry || at_pause_end >= self.deadline {
            return Some(result);
        }
        tracing::debug!(%error, pause = ?self.next, "try again");
        tokio::time::sleep_until(at_pause_end).await;
        self.next = (self.next * 2).min(Self::LONGEST);
        None
    }
}

/// The unexpected-response error where a broker left out what was asked for.
pub(crate) fn left_out(connection: &Connection, api: ApiKey) -> Error {
    connection.unexpected(api, "without what was asked for")
}
