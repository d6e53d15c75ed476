//! A controller in memory: elects from the ISR and the eligible leader replicas (ELR, KIP-966) only,
//! takes an ISR by compare-and-set.

use std::collections::BTreeMap;

use tailwater_kafka::{BrokerId, LeaderEpoch};

use crate::metadata::{BrokerEpoch, PartitionEpoch};
use crate::replica::{Assignment, IsrRefused};

#[derive(Debug)]
pub(super) struct Controller {
    state: Assignment,
    /// Not in the ISR, but complete: nothing is committed while the ISR is below the minimum.
    elr: Vec<BrokerId>,
    brokers: BTreeMap<BrokerId, Broker>,
    registrations: i64,
    /// Every state there was; brokers take them in this order.
    pub(super) images: Vec<Assignment>,
}

#[derive(Debug)]
struct Broker {
    epoch: BrokerEpoch,
    fenced: bool,
    /// The image of its registration.
    registered: usize,
}

impl Controller {
    pub(super) fn new(replicas: Vec<BrokerId>, min_insync: usize) -> Self {
        let state = Assignment {
            leader: None,
            leader_epoch: LeaderEpoch::new(0),
            partition_epoch: PartitionEpoch::ZERO,
            isr: replicas.clone(),
            replicas,
            live: BTreeMap::new(),
            min_insync,
        };
        Self {
            state,
            elr: Vec::new(),
            brokers: BTreeMap::new(),
            registrations: 0,
            images: Vec::new(),
        }
    }

    pub(super) fn state(&self) -> &Assignment {
        &self.state
    }

    /// The incarnation, and the first image that it may act upon.
    pub(super) fn register(&mut self, id: BrokerId, keeps_place: bool) -> (BrokerEpoch, usize) {
        self.registrations += 1;
        let (epoch, registered) = (BrokerEpoch::new(self.registrations), self.images.len());
        self.brokers.insert(id, Broker { epoch, fenced: true, registered });
        if !keeps_place {
            self.leave(id);
        }
        self.change();
        (epoch, registered)
    }

    pub(super) fn fence(&mut self, id: BrokerId) {
        self.brokers.get_mut(&id).unwrap().fenced = true;
        self.leave(id);
        self.change();
    }

    /// What it had is gone. Refused where nobody else has it all.
    pub(super) fn forget(&mut self, id: BrokerId) -> bool {
        let mut complete = self.state.isr.iter().chain(&self.elr);
        if complete.all(|other| *other == id) {
            return false;
        }
        self.fence(id);
        self.elr.retain(|other| *other != id);
        true
    }

    /// `min.insync.replicas` is another one from now on.
    pub(super) fn set_min_insync(&mut self, min_insync: usize) {
        self.state.min_insync = min_insync;
        self.set_isr(self.state.isr.clone());
        self.change();
    }

    /// A broker that has seen its own registration is unfenced.
    pub(super) fn heartbeat(&mut self, id: BrokerId, applied: usize) {
        let broker = self.brokers.get_mut(&id).unwrap();
        if broker.fenced && applied > broker.registered {
            broker.fenced = false;
            self.change();
        }
    }

    /// Has another in-sync replica lead.
    pub(super) fn elect(&mut self, id: BrokerId) {
        if self.state.isr.contains(&id) && self.state.live.contains_key(&id) {
            self.lead(id);
            self.change();
        }
    }

    pub(super) fn propose(
        &mut self,
        from: BrokerId,
        at: (LeaderEpoch, PartitionEpoch),
        isr: &[(BrokerId, BrokerEpoch)],
    ) -> Result<(Vec<BrokerId>, PartitionEpoch), IsrRefused> {
        if self.state.leader != Some(from)
            || at != (self.state.leader_epoch, self.state.partition_epoch)
        {
            return Err(IsrRefused::Outdated);
        }
        if !isr.iter().all(|(id, epoch)| self.state.live.get(id) == Some(epoch)) {
            return Err(IsrRefused::Other);
        }
        let isr: Vec<_> = isr.iter().map(|(id, _)| *id).collect();
        // Also if it is the same one: whoever proposed it wants to know that nothing older comes.
        self.rise();
        self.set_isr(isr);
        self.change();
        Ok((self.state.isr.clone(), self.state.partition_epoch))
    }

    /// Has somebody lead who may, and publishes what there is now.
    fn change(&mut self) {
        let unfenced = self.brokers.iter().filter(|(_, broker)| !broker.fenced);
        self.state.live = unfenced.map(|(id, broker)| (*id, broker.epoch)).collect();
        let state = &self.state;
        let may_lead =
            |id: &BrokerId, of: &[BrokerId]| of.contains(id) && state.live.contains_key(id);
        if !state.leader.is_some_and(|id| may_lead(&id, &state.isr)) {
            let first =
                |of: &[BrokerId]| state.replicas.iter().find(|id| may_lead(id, of)).copied();
            match (first(&state.isr), first(&self.elr)) {
                (Some(next), _) => self.lead(next),
                (None, Some(next)) => {
                    self.set_isr(vec![next]);
                    self.lead(next);
                }
                (None, None) if state.leader.is_some() => {
                    self.state.leader = None;
                    self.rise_leader();
                }
                (None, None) => {}
            }
        }
        self.images.push(self.state.clone());
    }

    fn lead(&mut self, id: BrokerId) {
        if self.state.leader != Some(id) {
            self.state.leader = Some(id);
            self.rise_leader();
        }
    }

    fn leave(&mut self, id: BrokerId) {
        let staying = self.state.isr.iter().filter(|member| **member != id);
        let isr = staying.copied().collect();
        self.set_isr(isr);
    }

    /// Who leaves an ISR that is then too small to commit anything stays complete.
    fn set_isr(&mut self, isr: Vec<BrokerId>) {
        let complete = std::mem::take(&mut self.elr).into_iter().chain(self.state.isr.clone());
        if isr.len() < self.state.min_insync.min(self.state.replicas.len()) {
            let mut elr: Vec<_> = complete.filter(|id| !isr.contains(id)).collect();
            elr.sort_unstable();
            elr.dedup();
            self.elr = elr;
        }
        if isr != self.state.isr {
            self.state.isr = isr;
            self.rise();
        }
    }

    fn rise_leader(&mut self) {
        self.state.leader_epoch = LeaderEpoch::new(self.state.leader_epoch.get() + 1);
        self.rise();
    }

    fn rise(&mut self) {
        self.state.partition_epoch = self.state.partition_epoch.next();
    }
}
