//! What replicas want done outside of their partitions.
//!
//! ISR proposals go to the controller in a task of their own, all that wait in one request: whom to
//! follow must not wait for an answer. And twice a second every replica is told that time goes by.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::wire::ErrorCode;
use tailwater_kafka::{BrokerId, LeaderEpoch};
use tokio::sync::{mpsc, watch};

use super::fetcher::Fetchers;
use super::link::ControllerLink;
use super::membership::Standing;
use crate::controller::{AlterPartitions, ControllerAnswer, ControllerRequest, IsrChange};
use crate::coordinator::Coordinators;
use crate::partitions::{PartitionKey, Partitions};
use crate::replica::{Event, IsrRefused};
use crate::storage::flusher::Flusher;
use crate::storage::partition::Shared;
use crate::storage::role::Errand;

/// How often replicas are told that time goes by.
const TICK: Duration = Duration::from_millis(500);

/// Proposals that may wait for the request that is under way: one per partition that leads, and a
/// later one of the same partition takes the place of an earlier one.
const PROPOSALS: usize = 1024;

/// Carries out errands.
#[derive(Debug)]
pub(crate) struct ErrandRunner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) partitions: Arc<Partitions>,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) coordinators: Arc<Coordinators>,
    pub(crate) fetchers: Fetchers,
    pub(crate) proposals: mpsc::Sender<IsrChange>,
}

impl ErrandRunner {
    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.shared.errands.changed() => {
                    for (key, errand) in self.shared.errands.take() {
                        self.carry_out(key, errand);
                    }
                }
                _ = tick.tick() => {
                    for partition in self.partitions.all() {
                        partition.tell(Event::Tick);
                    }
                    self.coordinators.renew(&self.flusher);
                }
            }
        }
    }

    fn carry_out(&mut self, (topic, partition): PartitionKey, errand: Errand) {
        let Some(found) = self.partitions.get((topic, partition)) else { return };
        match errand {
            Errand::Follow { leader } => self.fetchers.follow(&found, leader),
            Errand::StopFollowing => self.fetchers.unfollow(&found),
            Errand::Lead { leader_epoch } => {
                self.fetchers.unfollow(&found);
                self.coordinators.lead(&found, leader_epoch, &self.flusher);
            }
            Errand::Resign => self.coordinators.resign(&found),
            Errand::ProposeIsr { leader_epoch, partition_epoch, isr } => {
                let change = IsrChange { topic, partition, leader_epoch, partition_epoch, isr };
                // Full only while no controller answers; the replica proposes again by itself.
                drop(self.proposals.try_send(change));
            }
        }
    }
}

/// The channel from errands to [`propose`].
pub(crate) fn proposals() -> (mpsc::Sender<IsrChange>, mpsc::Receiver<IsrChange>) {
    mpsc::channel(PROPOSALS)
}

/// Brings proposals to the controller, and its refusals back to the replicas. What it took comes
/// with the metadata.
pub(crate) async fn propose(
    id: BrokerId,
    mut proposals: mpsc::Receiver<IsrChange>,
    standing: watch::Receiver<Standing>,
    link: Arc<ControllerLink>,
    partitions: Arc<Partitions>,
) {
    while let Some(first) = proposals.recv().await {
        let mut newest = BTreeMap::from([((first.topic, first.partition), first)]);
        while let Ok(more) = proposals.try_recv() {
            newest.insert((more.topic, more.partition), more);
        }
        let changes: Vec<IsrChange> = newest.into_values().collect();
        let asked: Vec<(PartitionKey, LeaderEpoch)> = changes
            .iter()
            .map(|change| ((change.topic, change.partition), change.leader_epoch))
            .collect();
        let Some(epoch) = standing.borrow().epoch else { continue };
        let request = ControllerRequest::AlterPartitions(AlterPartitions { id, epoch, changes });
        let refused = match link.ask(request).await {
            Ok(ControllerAnswer::Partitions(answers)) => asked
                .into_iter()
                .zip(answers)
                .filter_map(|(asked, answer)| Some((asked, answer.err()?.code)))
                .collect(),
            Ok(_) => Vec::new(),
            Err(refusal) => asked.into_iter().map(|asked| (asked, refusal.code)).collect(),
        };
        for ((key, leader_epoch), code) in refused {
            let Some(partition) = partitions.get(key) else { continue };
            let refused = match code {
                ErrorCode::InvalidUpdateVersion | ErrorCode::FencedLeaderEpoch => {
                    IsrRefused::Outdated
                }
                _ => IsrRefused::Other,
            };
            partition.tell(Event::IsrRefused { leader_epoch, refused });
        }
    }
}
