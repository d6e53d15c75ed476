//! The client: what capture, apply and the registry ask of a cluster.
//!
//! [`Client`] itself does the small things (topics, offsets, groups), each call with retries of
//! its own within [`ClientConfig::call_timeout`]. What moves data has its own connections, so that
//! a long poll never stands in the way of a produce: [`Client::producer`], [`Client::reader`].

mod calls;
mod cluster;

use std::{sync::Arc, time::Duration};

pub(crate) use cluster::{Backoff, Cluster, Connections, Pinned, Route};

use crate::{
    error::Error,
    ids::{Offset, PartitionId, TopicId, TopicPartition},
    producer::{Producer, ProducerConfig},
    reader::{PartitionReader, ReaderConfig},
    transport::{Settings, Transport},
    wire::{KafkaString, Request, Response},
};

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// What the client calls itself in requests; brokers log it.
    pub client_id: String,
    /// How long a TCP connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a broker may take to answer. A connection that does not is given up.
    pub request_timeout: Duration,
    /// How long a call (topics, offsets, groups) is retried before it fails.
    pub call_timeout: Duration,
    /// Where the client is: readers then read from a replica that is there too, if the cluster knows
    /// of one (KIP-392).
    pub rack: Option<String>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            client_id: "tailwater".to_owned(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(60),
            rack: None,
        }
    }
}

/// A topic as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its identity; `None` where the broker is older than Kafka 2.8.
    pub id: Option<TopicId>,
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: i32,
}

/// A topic to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions it is to have.
    pub partitions: i32,
    /// Copies of each partition.
    pub replication_factor: i16,
    /// Settings by Kafka's names, such as `cleanup.policy`.
    pub configs: Vec<(String, String)>,
}

impl TopicSpec {
    /// A topic with the cluster's settings.
    pub fn new(name: impl Into<String>, partitions: i32, replication_factor: i16) -> Self {
        Self { name: name.into(), partitions, replication_factor, configs: Vec::new() }
    }
}

/// Which offset of a partition is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetAt {
    /// The first that the log still has.
    Earliest,
    /// The one after the last that readers may see.
    Latest,
    /// The first at or after this time, milliseconds since 1970; the end if there is none.
    Timestamp(i64),
}

/// A client of a cluster; clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    cluster: Arc<Cluster>,
    connections: Arc<tokio::sync::Mutex<Connections>>,
}

impl Client {
    /// Reaches the cluster.
    ///
    /// # Errors
    /// If no broker answers.
    pub async fn connect(config: ClientConfig, transport: Transport) -> Result<Self, Error> {
        let settings = Settings {
            client_id: KafkaString::from(config.client_id.clone()),
            connect_timeout: config.connect_timeout,
            request_timeout: config.request_timeout,
        };
        let rack = KafkaString::from(config.rack.unwrap_or_default());
        let call_timeout = config.call_timeout;
        let cluster = Arc::new(Cluster { transport, settings, call_timeout, rack });
        let mut connections = Connections::new(Arc::clone(&cluster));
        connections.any().await?;
        Ok(Self { cluster, connections: Arc::new(tokio::sync::Mutex::new(connections)) })
    }

    /// A producer that is idempotent and waits for all in-sync replicas.
    ///
    /// With a transactional id it fences every older producer of that id. Kafka transactions are
    /// never used.
    ///
    /// # Errors
    /// If no producer id could be had.
    pub async fn producer(&self, config: ProducerConfig) -> Result<Producer, Error> {
        let identity = self.init_producer_id(config.transactional_id.as_deref()).await?;
        Ok(Producer::start(Arc::clone(&self.cluster), identity, config))
    }

    /// A reader of one partition. It starts to fetch at once.
    #[must_use]
    pub fn reader(&self, config: ReaderConfig) -> PartitionReader {
        PartitionReader::start(Arc::clone(&self.cluster), config)
    }

    /// The cluster's identity.
    ///
    /// # Errors
    /// If no broker answers in time.
    pub async fn cluster_id(&self) -> Result<String, Error> {
        let mut backoff = self.backoff();
        loop {
            let result = self.try_cluster_id().await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    /// The topic `name`, or `None` if it does not exist. Never creates it.
    ///
    /// # Errors
    /// If no broker answers in time, or it refuses.
    pub async fn topic(&self, name: &str) -> Result<Option<TopicInfo>, Error> {
        let mut backoff = self.backoff();
        loop {
            let result = self.try_topic(name).await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    /// Creates a topic and waits until it can be used. One that exists already with the same
    /// partition count is as good.
    ///
    /// # Errors
    /// [`Error::PartitionCount`] if it exists otherwise; else if it cannot be created in time.
    pub async fn create_topic(&self, spec: &TopicSpec) -> Result<TopicInfo, Error> {
        let mut backoff = self.backoff();
        loop {
            let result = self.try_create_topic(spec).await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    /// Deletes a topic with all its records. One that does not exist is as good.
    ///
    /// # Errors
    /// If it cannot be deleted in time.
    pub async fn delete_topic(&self, name: &str) -> Result<(), Error> {
        let mut backoff = self.backoff();
        loop {
            let result = self.try_delete_topic(name).await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    /// An offset of a partition, as readers see it.
    ///
    /// # Errors
    /// If the partition does not exist or its leader does not answer in time.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partition: PartitionId,
        at: OffsetAt,
    ) -> Result<Offset, Error> {
        let of = TopicPartition::new(topic, partition);
        let mut backoff = self.backoff();
        loop {
            let result = self.try_list_offsets(&of, at).await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    /// Notes for `group` that everything below each offset is done with. Overwrites what was there.
    ///
    /// # Errors
    /// If the group's coordinator does not take it in time, or the group has members.
    pub async fn commit_offsets(
        &self,
        group: &str,
        offsets: &[(TopicPartition, Offset)],
    ) -> Result<(), Error> {
        let mut backoff = self.backoff();
        loop {
            let result = self.try_commit_offsets(group, offsets).await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    /// What `group` last committed for each partition of `of`, in that order; `None` where it never
    /// did.
    ///
    /// # Errors
    /// If the group's coordinator does not answer in time.
    pub async fn fetch_offsets(
        &self,
        group: &str,
        of: &[TopicPartition],
    ) -> Result<Vec<Option<Offset>>, Error> {
        let mut backoff = self.backoff();
        loop {
            let result = self.try_fetch_offsets(group, of).await;
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    /// Asks any broker, again if the connection ends: for requests that may be repeated. What is
    /// refused stands in the response.
    ///
    /// # Errors
    /// If no broker answers in time, or none knows the request.
    pub async fn ask<R>(&self, request: impl Into<Request>) -> Result<R, Error>
    where
        R: TryFrom<Response>,
    {
        let request = request.into();
        let mut backoff = self.backoff();
        loop {
            let connection = self.connections.lock().await.any().await;
            let result = match connection {
                Ok(connection) => connection.call(request.clone()).await,
                Err(error) => Err(error),
            };
            if let Some(result) = backoff.settle(result).await {
                return result;
            }
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::until(self.cluster.call_timeout)
    }
}
