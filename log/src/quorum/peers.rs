//! The other members as openraft asks for them.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend};
use tokio::time::Instant;

use super::messages::{
    NetworkError, OTHER_ANSWER, QuorumAnswer, QuorumMessage, QuorumNetwork, RaftAnswer,
    RaftMessage, ask,
};
use super::parts::SnapshotPart;
use super::types::{LogId, Member, Snapshot, TypeConfig, Vote};
use crate::storage::partition::lock;

/// Makes a [`Peer`] for each other member.
#[derive(Debug, Clone)]
pub(crate) struct Peers {
    pub(crate) network: Arc<dyn QuorumNetwork>,
    /// Where the configuration says that members are: a member may have moved since it joined.
    pub(crate) addresses: Arc<BTreeMap<u64, String>>,
    /// Between attempts to reach a member that does not answer.
    pub(crate) again_after: Duration,
    /// Bytes of a snapshot in one message.
    pub(crate) part_bytes: usize,
    /// When each member was last sent what it has answered.
    pub(crate) heard: Heard,
}

/// When each member was last sent what it has answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<BTreeMap<u64, Instant>>>);

impl Heard {
    fn note(&self, id: u64, sent: Instant) {
        lock(&self.0).insert(id, sent);
    }

    /// How long ago that was; `None` if it never did.
    pub(crate) fn silence(&self, id: u64) -> Option<Duration> {
        lock(&self.0).get(&id).map(Instant::elapsed)
    }
}

impl Peers {
    /// Where `member` is reached.
    pub(crate) fn address(&self, id: u64, member: &Member) -> String {
        self.addresses.get(&id).unwrap_or(&member.address).clone()
    }

    /// Asks `member` whether it would vote for this one, whose last entry is `last`.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub(crate) async fn would_vote(
        &self,
        id: u64,
        member: Member,
        last: Option<LogId>,
    ) -> Result<bool, NetworkError> {
        let address = self.address(id, &member);
        let message = QuorumMessage::WouldVote { to: id, directory: member.directory, last };
        match ask(&*self.network, &address, message).await? {
            QuorumAnswer::WouldVote(yes) => Ok(yes),
            _ => Err(NetworkError::new(&address, OTHER_ANSWER)),
        }
    }

    /// Whether `member` answers now, on the directory with which it joined.
    pub(crate) async fn is_there(&self, id: u64, member: &Member) -> bool {
        let address = self.address(id, member);
        let answer = ask(&*self.network, &address, QuorumMessage::Who).await;
        matches!(answer, Ok(QuorumAnswer::Who(who)) if who.directory == member.directory)
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &Member) -> Peer {
        let address = self.address(target, node);
        let network = Arc::clone(&self.network);
        let Self { again_after, part_bytes, .. } = *self;
        let heard = self.heard.clone();
        Peer { target, member: node.clone(), address, network, again_after, part_bytes, heard }
    }
}

/// The way to one other member, on the disk that it had when it joined.
#[derive(Debug)]
pub(crate) struct Peer {
    target: u64,
    member: Member,
    address: String,
    network: Arc<dyn QuorumNetwork>,
    again_after: Duration,
    part_bytes: usize,
    heard: Heard,
}

/// How often a snapshot is begun anew because its receiver lacks what was sent, before it is given up:
/// it will be tried again.
const RESTARTS: usize = 3;

impl Peer {
    async fn ask(&self, message: RaftMessage) -> Result<RaftAnswer, Unreachable> {
        let directory = self.member.directory;
        let sent = Instant::now();
        let message = QuorumMessage::Raft { to: self.target, directory, message };
        // Always as "unreachable": what does not answer is left alone for a while, not hammered.
        match ask(&*self.network, &self.address, message).await {
            Ok(QuorumAnswer::Raft(answer)) => {
                // One that follows another leader is not bound to this one by its answer.
                let follows_another = matches!(
                    answer,
                    RaftAnswer::AppendEntries(AppendEntriesResponse::HigherVote(_))
                );
                if !follows_another {
                    self.heard.note(self.target, sent);
                }
                Ok(answer)
            }
            Ok(_) => Err(self.unreachable(OTHER_ANSWER)),
            Err(error) => Err(Unreachable::new(&error)),
        }
    }

    /// Sends a snapshot, in parts if it is large; each message is waited for up to `limit`.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
        limit: Duration,
    ) -> Result<SnapshotResponse<u64>, Unreachable> {
        let Snapshot { meta, snapshot: image } = snapshot;
        let json = serde_json::to_string(&**image).map_err(|error| Unreachable::new(&error))?;
        if json.len() <= self.part_bytes {
            let message = RaftMessage::Snapshot { vote, meta, image: *image };
            return match self.ask_within(limit, message).await? {
                RaftAnswer::Snapshot(answer) => Ok(answer),
                _ => Err(self.unreachable(OTHER_ANSWER)),
            };
        }
        let (mut offset, mut restarts) = (0, 0);
        while restarts <= RESTARTS {
            let part = SnapshotPart::cut(vote, &meta, &json, offset, self.part_bytes);
            let part = part.ok_or_else(|| self.unreachable(OTHER_ANSWER))?;
            match self.ask_within(limit, RaftMessage::SnapshotPart(part)).await? {
                RaftAnswer::Snapshot(answer) => return Ok(answer),
                RaftAnswer::SnapshotPart { next } => {
                    restarts += usize::from(next <= offset);
                    offset = next;
                }
                RaftAnswer::AppendEntries(_) | RaftAnswer::Vote(_) => {
                    return Err(self.unreachable(OTHER_ANSWER));
                }
            }
        }
        Err(self.unreachable("it does not keep the parts of a snapshot"))
    }

    async fn ask_within(
        &self,
        limit: Duration,
        message: RaftMessage,
    ) -> Result<RaftAnswer, Unreachable> {
        let answer = tokio::time::timeout(limit, self.ask(message)).await;
        answer.unwrap_or_else(|elapsed| {
            Err(Unreachable::from(AnyError::new(&elapsed).add_context(|| "snapshot sent")))
        })
    }

    fn unreachable(&self, reason: &str) -> Unreachable {
        Unreachable::new(&NetworkError::new(&self.address, reason))
    }
}

type CallError = RPCError<u64, Member, RaftError<u64>>;

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        match self.ask(RaftMessage::AppendEntries(rpc)).await? {
            RaftAnswer::AppendEntries(answer) => Ok(answer),
            RaftAnswer::Vote(_) | RaftAnswer::Snapshot(_) | RaftAnswer::SnapshotPart { .. } => {
                Err(self.unreachable(OTHER_ANSWER).into())
            }
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        match self.ask(RaftMessage::Vote(rpc)).await? {
            RaftAnswer::Vote(answer) => Ok(answer),
            RaftAnswer::AppendEntries(_)
            | RaftAnswer::Snapshot(_)
            | RaftAnswer::SnapshotPart { .. } => Err(self.unreachable(OTHER_ANSWER).into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot, option.hard_ttl()) => Ok(sent?),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.again_after))
    }
}
