//! How a node gets into a cluster: it begins one, or joins the one that there is.
//!
//! Two clusters where there should be one would be the end of every promise, so a node without
//! entries does nothing on its own unless it is alone in `controllers`. It asks all others:
//!
//! ```text
//! one is a member of a cluster ────────────────► join it
//! all answer, all have nothing, all name the same controllers
//!      ├─ this is the one with the least id ────► begin a cluster of all of them
//!      └─ else ─────────────────────────────────► wait for it
//! someone does not answer, or has something else ► wait, and say for what
//! ```
//!
//! A node that has once seen itself as a member never asks again: who was removed stays removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::BrokerId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::config::QuorumConfig;
use super::messages::{
    Join, JoinAnswer, QuorumAnswer, QuorumMessage, QuorumNetwork, Standing, WhoAnswer, ask,
};
use super::status::QuorumStatus;
use super::types::{Member, Raft, raft_id};
use super::{Shared, standing};

/// Between rounds of questions.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How long another node may take for an answer.
const WHO_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a leader may take for a join; it goes on by itself after it has said "later".
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node knows before it decides.
#[derive(Debug)]
struct Round<'a> {
    node: BrokerId,
    /// Whether it has no entry itself.
    empty: bool,
    controllers: &'a BTreeMap<BrokerId, String>,
    /// Of each other controller: who it is, if it answered.
    answers: BTreeMap<BrokerId, Option<WhoAnswer>>,
}

/// What a node does next on its way into a cluster.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Begin a cluster of this node and these, on these directories.
    Begin(BTreeMap<BrokerId, Uuid>),
    /// Ask these to let it in.
    Join(Vec<BrokerId>),
    /// Ask again later.
    Wait(String),
}

impl Round<'_> {
    fn decide(&self) -> Step {
        let members = self.with(Standing::Member);
        if !members.is_empty() {
            return Step::Join(members);
        }
        if !self.empty {
            return Step::Wait("a leader of the cluster that is being formed".to_owned());
        }
        if let Some(obstacle) = self.obstacle() {
            return Step::Wait(obstacle);
        }
        let least = self.controllers.keys().next().copied().unwrap_or(self.node);
        if least != self.node {
            return Step::Wait(format!("controller {least}, which begins the cluster"));
        }
        let known = |(id, answer): (&BrokerId, &Option<WhoAnswer>)| {
            answer.as_ref().map(|answer| (*id, answer.directory))
        };
        Step::Begin(self.answers.iter().filter_map(known).collect())
    }

    fn with(&self, standing: Standing) -> Vec<BrokerId> {
        let stands = |answer: &Option<WhoAnswer>| {
            answer.as_ref().is_some_and(|answer| answer.standing == standing)
        };
        self.answers.iter().filter(|(_, answer)| stands(answer)).map(|(id, _)| *id).collect()
    }

    /// Why no cluster can be begun by anyone.
    fn obstacle(&self) -> Option<String> {
        let names: BTreeSet<BrokerId> = self.controllers.keys().copied().collect();
        for (id, answer) in &self.answers {
            let address = self.controllers.get(id).map_or("", String::as_str);
            let Some(answer) = answer else {
                return Some(format!("an answer of controller {id} at {address}"));
            };
            if answer.node != *id {
                return Some(format!(
                    "controller {id} at {address}: node {} answers there; correct `controllers`",
                    answer.node
                ));
            }
            if answer.controllers != names {
                return Some(format!(
                    "the same `controllers` everywhere: node {} names {}, controller {id} names {}",
                    self.node,
                    list(&names),
                    list(&answer.controllers)
                ));
            }
            match answer.standing {
                Standing::Empty | Standing::Member => {}
                Standing::Forming => {
                    return Some(format!("the cluster that controller {id} is forming"));
                }
                Standing::Removed => {
                    return Some(format!(
                        "controller {id}, which was removed from a cluster: take it out of \
                         `controllers`, or remove its metadata folder"
                    ));
                }
            }
        }
        None
    }
}

fn list(ids: &BTreeSet<BrokerId>) -> String {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

/// A node on its way into a cluster.
pub(crate) struct Formation {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: QuorumConfig,
    pub(crate) network: Arc<dyn QuorumNetwork>,
    pub(crate) status: watch::Sender<QuorumStatus>,
}

impl Formation {
    /// Goes on until this node is a member.
    pub(crate) async fn run(self) {
        let stopping = self.shared.stopping.clone();
        stopping.run_until_cancelled(self.form()).await;
    }

    async fn form(&self) {
        let mut metrics = self.shared.raft.metrics();
        loop {
            metrics.mark_unchanged();
            if self.is_member() {
                self.arrived().await;
                return;
            }
            self.round().await;
            tokio::select! {
                biased;
                changed = metrics.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Entries arrive one after the other while a cluster is formed.
                    tokio::time::sleep(AGAIN_AFTER / 10).await;
                }
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
    }

    /// Whether an applied entry says so, and means the disk that this node has now.
    fn is_member(&self) -> bool {
        let members = self.shared.machine.membership();
        let id = raft_id(self.config.node);
        let known = members.membership().get_node(&id);
        members.voter_ids().any(|voter| voter == id)
            && known.is_some_and(|member| member.directory == self.shared.directory)
    }

    async fn arrived(&self) {
        self.wait_for(None);
        let kept = self.shared.patience.insist(|| self.shared.identity().join()).await;
        if let Err(error) = kept {
            tracing::warn!(error = %error.full_text(), "membership of this node not noted");
        }
    }

    async fn round(&self) {
        let empty = standing(&self.shared) == Standing::Empty;
        let answers = self.ask_all().await;
        let (node, controllers) = (self.config.node, &self.config.controllers);
        let step = Round { node, empty, controllers, answers }.decide();
        match step {
            Step::Begin(others) => self.begin(others).await,
            Step::Join(through) => self.join(through).await,
            Step::Wait(reason) => self.wait_for(Some(reason)),
        }
    }

    async fn ask_all(&self) -> BTreeMap<BrokerId, Option<WhoAnswer>> {
        let mut questions = JoinSet::new();
        for (id, address) in self.config.others() {
            let (network, address) = (Arc::clone(&self.network), address.clone());
            questions.spawn(async move {
                let call = ask(&*network, &address, QuorumMessage::Who);
                match tokio::time::timeout(WHO_TIMEOUT, call).await {
                    Ok(Ok(QuorumAnswer::Who(answer))) => (id, Some(answer)),
                    _ => (id, None),
                }
            });
        }
        questions.join_all().await.into_iter().collect()
    }

    async fn begin(&self, others: BTreeMap<BrokerId, Uuid>) {
        let own = (self.config.node, self.shared.directory);
        let member = |(id, directory): (BrokerId, Uuid)| {
            let address = self.config.controllers.get(&id).cloned().unwrap_or_default();
            (raft_id(id), Member { address, directory })
        };
        let members: BTreeMap<u64, Member> = others.into_iter().chain([own]).map(member).collect();
        begin(&self.shared.raft, members).await;
        self.wait_for(Some("a majority of the cluster that this node begins".to_owned()));
    }

    async fn join(&self, through: Vec<BrokerId>) {
        let mut reason = "a leader".to_owned();
        for member in through {
            let Some(address) = self.config.controllers.get(&member) else { continue };
            match self.ask_to_join(address).await {
                Ok(()) => {
                    reason = "the entries of the cluster that it joins".to_owned();
                    break;
                }
                Err(obstacle) => reason = obstacle,
            }
        }
        self.wait_for(Some(reason));
    }

    /// Asks the node at `address`, and the leader that it names.
    async fn ask_to_join(&self, address: &str) -> Result<(), String> {
        match self.send_join(address).await? {
            JoinAnswer::NotLeader { leader: Some(leader) } => {
                match self.send_join(&leader).await? {
                    JoinAnswer::Joined => Ok(()),
                    JoinAnswer::NotLeader { .. } => Err(NO_LEADER.to_owned()),
                    JoinAnswer::Later { reason } => Err(reason),
                }
            }
            JoinAnswer::Joined => Ok(()),
            JoinAnswer::NotLeader { leader: None } => Err(NO_LEADER.to_owned()),
            JoinAnswer::Later { reason } => Err(reason),
        }
    }

    async fn send_join(&self, address: &str) -> Result<JoinAnswer, String> {
        let join = Join {
            node: self.config.node,
            directory: self.shared.directory,
            address: self.config.address.clone(),
        };
        let call = ask(&*self.network, address, QuorumMessage::Join(join));
        match tokio::time::timeout(JOIN_TIMEOUT, call).await {
            Ok(Ok(QuorumAnswer::Join(answer))) => Ok(answer),
            Ok(Ok(_)) => Err(format!("controller at {address} does not understand")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("controller at {address} does not answer")),
        }
    }

    fn wait_for(&self, reason: Option<String>) {
        self.status.send_if_modified(|status| {
            if status.waiting_for == reason {
                return false;
            }
            if let Some(reason) = &reason {
                tracing::info!(
                    "node {} is in no cluster yet, waits for {reason}",
                    self.config.node
                );
            }
            status.waiting_for = reason;
            true
        });
    }
}

const NO_LEADER: &str = "the cluster to have a leader";

/// Begins a cluster of `members`, unless this node has entries by now.
pub(crate) async fn begin(raft: &Raft, members: BTreeMap<u64, Member>) {
    if let Err(error) = raft.initialize(members).await {
        tracing::debug!(%error, "cluster not begun");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: i32) -> BrokerId {
        BrokerId::new(id)
    }

    fn who(node: i32, standing: Standing) -> WhoAnswer {
        let controllers = [1, 2, 3].map(id).into();
        let directory = Uuid::from_u128(node.unsigned_abs().into());
        WhoAnswer { node: id(node), directory, controllers, standing }
    }

    fn decide(node: i32, empty: bool, answers: Vec<(i32, Option<WhoAnswer>)>) -> String {
        let controllers = (1..=3).map(|node| (id(node), format!("c{node}:9093"))).collect();
        let answers = answers.into_iter().map(|(node, answer)| (id(node), answer)).collect();
        let round = Round { node: id(node), empty, controllers: &controllers, answers };
        match round.decide() {
            Step::Begin(others) => format!("begin with {}", list(&others.into_keys().collect())),
            Step::Join(through) => format!("join through {}", list(&through.into_iter().collect())),
            Step::Wait(reason) => format!("wait for {reason}"),
        }
    }

    fn known(node: i32, standing: Standing) -> (i32, Option<WhoAnswer>) {
        (node, Some(who(node, standing)))
    }

    #[test]
    fn the_least_of_all_empty_nodes_begins() {
        use Standing::Empty;
        assert_eq!(decide(1, true, vec![known(2, Empty), known(3, Empty)]), "begin with 2, 3");
        assert_eq!(
            decide(2, true, vec![known(1, Empty), known(3, Empty)]),
            "wait for controller 1, which begins the cluster"
        );
    }

    #[test]
    fn nobody_begins_while_somebody_is_silent() {
        assert_eq!(
            decide(1, true, vec![known(2, Standing::Empty), (3, None)]),
            "wait for an answer of controller 3 at c3:9093"
        );
    }

    #[test]
    fn a_cluster_that_there_is_is_joined_although_somebody_is_silent() {
        assert_eq!(decide(1, true, vec![(2, None), known(3, Standing::Member)]), "join through 3");
        // It was begun here, but the others went on without this node.
        assert_eq!(
            decide(1, false, vec![known(2, Standing::Member), known(3, Standing::Member)]),
            "join through 2, 3"
        );
    }

    #[test]
    fn whoever_has_something_is_waited_for() {
        use Standing::{Empty, Forming, Removed};
        assert_eq!(
            decide(1, true, vec![known(2, Empty), known(3, Forming)]),
            "wait for the cluster that controller 3 is forming"
        );
        let text = decide(1, true, vec![known(2, Removed), known(3, Empty)]);
        assert!(text.contains("controller 2, which was removed"), "{text}");
        assert_eq!(
            decide(1, false, vec![known(2, Empty), known(3, Empty)]),
            "wait for a leader of the cluster that is being formed"
        );
    }

    #[test]
    fn nobody_begins_while_the_configurations_differ() {
        let fewer = WhoAnswer { controllers: [2, 3].map(id).into(), ..who(3, Standing::Empty) };
        assert_eq!(
            decide(1, true, vec![known(2, Standing::Empty), (3, Some(fewer))]),
            "wait for the same `controllers` everywhere: node 1 names 1, 2, 3, controller 3 names 2, 3"
        );
        let other = who(2, Standing::Empty);
        let text = decide(1, true, vec![known(2, Standing::Empty), (3, Some(other))]);
        assert!(text.contains("node 2 answers there"), "{text}");
    }
}
