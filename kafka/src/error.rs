//! What can go wrong between a client and a cluster, and what the caller then does.

use std::{sync::Arc, time::Duration};

use crate::{
    batch::BatchError,
    ids::{Offset, TopicId, TopicPartition},
    wire::{ApiKey, ErrorCode, WireError},
};

/// What to do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Start again from what is known to be done: the cause may pass.
    Retry,
    /// Stop and tell a human: it will not pass by itself.
    Operator,
    /// Stop: another instance has taken over.
    Fenced,
    /// Stop: this is a mistake in our code, or in the broker's.
    Bug,
}

/// Why a call to a cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to a broker.
    #[error("connect to {address}")]
    Connect {
        /// `host:port`.
        address: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The certificates or keys for TLS are not what they should be.
    #[error("TLS settings: {problem}")]
    TlsConfig {
        /// What is wrong.
        problem: String,
    },
    /// The broker does not believe that we are who we say, or we do not believe it.
    #[error("authenticate as {username:?} to {address}: {problem}")]
    Authentication {
        /// `host:port`.
        address: String,
        /// Who we say we are.
        username: String,
        /// What is wrong.
        problem: String,
    },
    /// None of the bootstrap brokers answers.
    #[error("none of the brokers answers: {addresses}")]
    NoBroker {
        /// All that were tried.
        addresses: String,
        /// What the last one said.
        #[source]
        source: Box<Error>,
    },
    /// The connection ended while a request was under way; whether it took effect is unknown.
    #[error("connection to {address} ended during a request")]
    ConnectionLost {
        /// `host:port`.
        address: String,
    },
    /// The broker does not answer; whether the request took effect is unknown.
    #[error("{address} did not answer {api:?} within {after:?}")]
    RequestTimeout {
        /// `host:port`.
        address: String,
        /// The API.
        api: ApiKey,
        /// How long we waited.
        after: Duration,
    },
    /// Broker and client have no version of an API in common.
    #[error(
        "{address} has no version of {api:?} that this client speaks: Kafka 2.1 or newer is needed"
    )]
    NoCommonVersion {
        /// `host:port`.
        address: String,
        /// The API.
        api: ApiKey,
    },
    /// A request could not be encoded.
    #[error("encode a request to {address}")]
    Encode {
        /// `host:port`.
        address: String,
        /// Why.
        #[source]
        source: WireError,
    },
    /// The broker's response says something else than what was asked.
    #[error("{address} answered {api:?} {problem}")]
    UnexpectedResponse {
        /// `host:port`.
        address: String,
        /// The API that was called.
        api: ApiKey,
        /// What is wrong.
        problem: &'static str,
    },
    /// The broker refuses.
    #[error("{operation}: {code:?}: {}", message.as_deref().unwrap_or("no further message"))]
    Broker {
        /// What was being done, and on what.
        operation: String,
        /// The protocol's code.
        code: ErrorCode,
        /// What the broker adds.
        message: Option<String>,
    },
    /// The topic exists, but not as it was asked for.
    #[error(
        "topic {topic:?} exists with {actual} partitions, {wanted} were asked for: \
         use another name or set the partition count to {actual}"
    )]
    PartitionCount {
        /// Its name.
        topic: String,
        /// What was asked for.
        wanted: i32,
        /// What it has.
        actual: i32,
    },
    /// The topic was deleted and created anew while it was in use.
    #[error(
        "topic {topic:?} was created anew (its id was {before}, now it is {now}): \
         what it held is gone"
    )]
    TopicRecreated {
        /// Its name.
        topic: String,
        /// What its id was.
        before: TopicId,
        /// What its id is.
        now: TopicId,
    },
    /// A batch was acknowledged at an offset that older ones had taken.
    #[error(
        "{partition} put a batch at offset {actual}, where it had acknowledged all below \
         {expected}: the topic was created anew, or its log has lost records"
    )]
    LogShrunk {
        /// The partition.
        partition: TopicPartition,
        /// The end of what was acknowledged.
        expected: Offset,
        /// Where the batch is said to be.
        actual: Offset,
    },
    /// A newer producer with the same transactional id has taken over.
    #[error("producer of {partition} is fenced ({code:?}): another instance has taken over")]
    Fenced {
        /// The partition, or the transactional id where no partition was written yet.
        partition: String,
        /// The protocol's code.
        code: ErrorCode,
    },
    /// The log no longer knows where this producer stopped.
    #[error("{partition} does not continue where its last acknowledged batch ended ({code:?})")]
    SequenceLost {
        /// The partition.
        partition: TopicPartition,
        /// The protocol's code.
        code: ErrorCode,
    },
    /// A batch was not acknowledged in time; whether it is in the log is unknown.
    #[error("{partition} did not acknowledge a batch within {after:?}")]
    DeliveryTimeout {
        /// The partition.
        partition: TopicPartition,
        /// The delivery timeout.
        after: Duration,
        /// What the last attempt said, if there was one.
        #[source]
        source: Option<Arc<Error>>,
    },
    /// The producer has failed before; nothing appended since its failure is in the log.
    #[error("the producer has failed")]
    ProducerFailed(#[source] Arc<Error>),
    /// A record that does not fit a batch.
    #[error("record of {bytes} bytes is over the limit of {limit}: split it, or raise batch_bytes")]
    RecordTooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A batch could not be encoded.
    #[error("encode a batch for {partition}")]
    EncodeBatch {
        /// The partition.
        partition: TopicPartition,
        /// Why.
        #[source]
        source: BatchError,
    },
    /// The reader's position is not in the log.
    #[error(
        "offset {offset} of {partition} is not in the log, which starts at {log_start}: \
         retention removed it, or the topic was created anew"
    )]
    OffsetOutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// Where the reader stands.
        offset: Offset,
        /// The first offset that the log still has.
        log_start: Offset,
    },
    /// What the broker gave is not what was written.
    #[error("read {partition} at offset {offset}")]
    CorruptBatch {
        /// The partition.
        partition: TopicPartition,
        /// Where the reader stands.
        offset: Offset,
        /// What is wrong.
        #[source]
        source: BatchError,
    },
    /// The client's own task is gone: the runtime is shutting down.
    #[error("the client is closed")]
    Closed,
}

impl Error {
    /// What the caller does about it.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Connect { .. }
            | Self::NoBroker { .. }
            | Self::ConnectionLost { .. }
            | Self::RequestTimeout { .. }
            | Self::DeliveryTimeout { .. }
            | Self::SequenceLost { .. }
            | Self::Closed => Disposition::Retry,
            Self::Broker { code, .. } => broker_disposition(*code),
            Self::ProducerFailed(source) => source.disposition(),
            Self::Fenced { .. } => Disposition::Fenced,
            Self::NoCommonVersion { .. }
            | Self::TlsConfig { .. }
            | Self::Authentication { .. }
            | Self::PartitionCount { .. }
            | Self::TopicRecreated { .. }
            | Self::LogShrunk { .. }
            | Self::RecordTooLarge { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::CorruptBatch { .. } => Disposition::Operator,
            Self::Encode { .. } | Self::UnexpectedResponse { .. } | Self::EncodeBatch { .. } => {
                Disposition::Bug
            }
        }
    }

    /// The error for a broker's `code` during `operation`.
    pub(crate) fn broker(operation: impl Into<String>, code: i16) -> Self {
        Self::broker_says(operation, code, None)
    }

    pub(crate) fn broker_says(
        operation: impl Into<String>,
        code: i16,
        message: Option<&crate::wire::KafkaString>,
    ) -> Self {
        Self::Broker {
            operation: operation.into(),
            code: ErrorCode::from(code),
            message: message.map(|message| message.as_str().to_owned()),
        }
    }
}

/// Whether a code says that a newer producer has taken over.
pub(crate) fn is_fenced(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::InvalidProducerEpoch
            | ErrorCode::ProducerFenced
            | ErrorCode::InvalidProducerIdMapping
    )
}

fn broker_disposition(code: ErrorCode) -> Disposition {
    if is_fenced(code) {
        return Disposition::Fenced;
    }
    // Kafka's own classification of what passes by itself, and what it retries with new metadata.
    // Everything else needs a change by somebody: permissions, a config, a size.
    let stale = matches!(
        code,
        ErrorCode::KafkaStorageError
            // Too few brokers for it are there now: others may be starting, or come back.
            | ErrorCode::InvalidReplicationFactor
            | ErrorCode::FencedLeaderEpoch
            | ErrorCode::UnknownLeaderEpoch
            | ErrorCode::BrokerNotAvailable
            | ErrorCode::ConcurrentTransactions
    );
    if stale || code.is_retriable() { Disposition::Retry } else { Disposition::Operator }
}
