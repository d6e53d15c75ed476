//! What controllers say to each other, and how it gets there.
//!
//! A request and its answer are JSON objects with one key, their kind. On the wire they travel in
//! the frames of [`super::network`]; in one process, or in a simulation, as they are.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use tailwater_kafka::BrokerId;
use uuid::Uuid;

use super::parts::SnapshotPart;
use super::types::{LogId, SnapshotMeta, TypeConfig, Vote};
use crate::metadata::Image;

/// A request to a controller.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ControllerMessage {
    /// For its member of the metadata quorum.
    Quorum(QuorumMessage),
    /// For what decides there; the quorum does not look inside.
    Controller(serde_json::Value),
}

/// The answer to a [`ControllerMessage`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ControllerReply {
    /// To one for the member.
    Quorum(QuorumAnswer),
    /// To one for what decides.
    Controller(serde_json::Value),
    /// Nobody here could take it.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// A request to a member of the metadata quorum.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum QuorumMessage {
    /// A message of the Raft protocol, for one member on one disk and for no other.
    Raft {
        /// The member.
        to: u64,
        /// Its metadata folder.
        directory: Uuid,
        /// What it says.
        message: RaftMessage,
    },
    /// Would it vote for the one that asks? Binds it to nothing.
    WouldVote {
        /// The member.
        to: u64,
        /// Its metadata folder.
        directory: Uuid,
        /// The last entry of the one that asks.
        last: Option<LogId>,
    },
    /// Who is there? Asked by a node that is not in any cluster, and by a leader that is to do with
    /// one member less.
    Who,
    /// A node wants to be a member.
    Join(Join),
    /// Who are the members, and how far is each?
    Describe,
    /// A member is to be one no more.
    Remove {
        /// Which.
        node: BrokerId,
        /// On this disk and no other; `None` for whichever it has.
        directory: Option<Uuid>,
    },
}

/// A message of the Raft protocol.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RaftMessage {
    /// A leader has entries, or is still there.
    AppendEntries(AppendEntriesRequest<TypeConfig>),
    /// A candidate asks for a vote.
    Vote(VoteRequest<u64>),
    /// A leader's snapshot, for who is too far behind.
    Snapshot {
        /// The leader.
        vote: Vote,
        /// What it stands for.
        meta: SnapshotMeta,
        /// What it says.
        image: Arc<Image>,
    },
    /// A part of one that is too large for one message.
    SnapshotPart(SnapshotPart),
}

/// A node that wants to be a member, on the disk that it has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Join {
    pub(crate) node: BrokerId,
    pub(crate) directory: Uuid,
    /// `host:port` of its controller listener.
    pub(crate) address: String,
}

/// The answer to a [`QuorumMessage`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum QuorumAnswer {
    /// To [`QuorumMessage::Raft`].
    Raft(RaftAnswer),
    /// To [`QuorumMessage::WouldVote`].
    WouldVote(bool),
    /// To [`QuorumMessage::Who`].
    Who(WhoAnswer),
    /// To [`QuorumMessage::Join`].
    Join(JoinAnswer),
    /// To [`QuorumMessage::Describe`].
    Described(QuorumDescription),
    /// To [`QuorumMessage::Remove`]: it is done, or was done before.
    Removed(RemoveAnswer),
    /// To one that only the leader answers.
    NotLeader {
        /// Where that is, if known: `host:port`.
        leader: Option<String>,
    },
    /// The member does not do that.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// The answer to a [`RaftMessage`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RaftAnswer {
    AppendEntries(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    /// To a snapshot, also when it came in parts.
    Snapshot(SnapshotResponse<u64>),
    /// To a part: where in the image's JSON the next one is to begin, in bytes.
    SnapshotPart {
        next: u64,
    },
}

/// Who a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhoAnswer {
    pub(crate) node: BrokerId,
    pub(crate) directory: Uuid,
    /// Which controllers its configuration names.
    pub(crate) controllers: BTreeSet<BrokerId>,
    pub(crate) standing: Standing,
}

/// How far a node has come on its way into a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It has nothing.
    Empty,
    /// It has entries, but has not seen that it is a member.
    Forming,
    /// It is a member.
    Member,
    /// It was one.
    Removed,
}

/// The answer to a [`Join`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum JoinAnswer {
    /// It is a member.
    Joined,
    /// Another one can do that.
    NotLeader {
        /// Where, if known: `host:port`.
        leader: Option<String>,
    },
    /// Not yet: ask again.
    Later {
        /// Why, for people.
        reason: String,
    },
}

/// The answer to [`QuorumMessage::Remove`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RemoveAnswer {
    /// It is a member no more.
    Done,
    /// It is none, or not on that disk.
    NotFound,
    /// It stays one.
    Refused {
        /// Why, for people, with the remedy where there is one.
        reason: String,
    },
}

/// A quorum, as its leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QuorumDescription {
    /// Who leads.
    pub(crate) leader: BrokerId,
    /// Which election that was.
    pub(crate) term: u64,
    /// The last entry that is committed.
    pub(crate) committed: u64,
    /// The members, by id.
    pub(crate) members: Vec<MemberDescription>,
}

/// A member, as the leader knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemberDescription {
    /// Its node.
    pub(crate) node: BrokerId,
    /// Its metadata folder.
    pub(crate) directory: Uuid,
    /// `host:port` of its controller listener.
    pub(crate) address: String,
    /// Whether it has a vote.
    pub(crate) votes: bool,
    /// Its last entry; `None` if the leader does not know of any.
    pub(crate) last: Option<u64>,
    /// How long ago the leader heard of it, ms; `None` if it never did.
    pub(crate) silent_ms: Option<u64>,
}

/// Why a call had no answer. What was asked for may have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("controller at {address} does not answer: {reason}")]
pub(crate) struct NetworkError {
    /// Who was asked.
    pub(crate) address: String,
    /// What happened, for people.
    pub(crate) reason: String,
}

impl NetworkError {
    pub(crate) fn new(address: &str, reason: impl fmt::Display) -> Self {
        Self { address: address.to_owned(), reason: reason.to_string() }
    }
}

/// The way to other controllers: TCP, or a simulation of it.
#[async_trait]
pub(crate) trait QuorumNetwork: fmt::Debug + Send + Sync {
    /// Asks the controller at `address`, and waits for the answer for as long as the caller does.
    ///
    /// # Errors
    /// [`NetworkError`]: what was asked for may have happened, or may yet.
    async fn call(
        &self,
        address: &str,
        message: ControllerMessage,
    ) -> Result<ControllerReply, NetworkError>;
}

/// Who answers other controllers.
#[async_trait]
pub(crate) trait ControllerHandler: Send + Sync {
    /// Answers.
    async fn handle(&self, message: ControllerMessage) -> ControllerReply;
}

/// Asks a member at `address`.
///
/// # Errors
/// [`NetworkError`], also for an answer to something else.
pub(crate) async fn ask(
    network: &dyn QuorumNetwork,
    address: &str,
    message: QuorumMessage,
) -> Result<QuorumAnswer, NetworkError> {
    match network.call(address, ControllerMessage::Quorum(message)).await? {
        ControllerReply::Quorum(QuorumAnswer::Refused { reason })
        | ControllerReply::Refused { reason } => Err(NetworkError::new(address, reason)),
        ControllerReply::Quorum(answer) => Ok(answer),
        ControllerReply::Controller(_) => Err(NetworkError::new(address, OTHER_ANSWER)),
    }
}

/// What is wrong with an answer that does not fit its question.
pub(crate) const OTHER_ANSWER: &str = "it answers another question than was asked";
