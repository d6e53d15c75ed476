//! A controller in memory: elects from the ISR only, takes an ISR by compare-and-set.

use std::collections::BTreeMap;

use tailwater_kafka::{BrokerId, LeaderEpoch};

use crate::replica::{Assignment, BrokerEpoch, IsrRefused, PartitionEpoch};

#[derive(Debug)]
pub(super) struct Controller {
    state: Assignment,
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
            partition_epoch: PartitionEpoch::new(0),
            isr: replicas.clone(),
            replicas,
            live: BTreeMap::new(),
            min_insync,
        };
        Self { state, brokers: BTreeMap::new(), registrations: 0, images: Vec::new() }
    }

    pub(super) fn state(&self) -> &Assignment {
        &self.state
    }

    /// The incarnation, and the first image that it may act upon.
    pub(super) fn register(&mut self, id: BrokerId, keeps_place: bool) -> (BrokerEpoch, usize) {
        self.registrations += 1;
        let (epoch, registered) = (BrokerEpoch::new(self.registrations), self.images.len());
        self.brokers.insert(id, Broker { epoch, fenced: true, registered });
        self.change(|state| {
            if !keeps_place {
                leave(state, id);
            }
        });
        (epoch, registered)
    }

    pub(super) fn fence(&mut self, id: BrokerId) {
        self.brokers.get_mut(&id).unwrap().fenced = true;
        self.change(|state| leave(state, id));
    }

    /// A broker that has seen its own registration is unfenced.
    pub(super) fn heartbeat(&mut self, id: BrokerId, applied: usize) {
        let broker = self.brokers.get_mut(&id).unwrap();
        if broker.fenced && applied > broker.registered {
            broker.fenced = false;
            self.change(|_| ());
        }
    }

    /// Has another in-sync replica lead.
    pub(super) fn elect(&mut self, id: BrokerId) {
        if self.state.isr.contains(&id) && !self.brokers[&id].fenced {
            self.change(|state| {
                if state.leader != Some(id) {
                    state.leader = Some(id);
                }
            });
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
        self.change(|state| state.isr = isr);
        Ok((self.state.isr.clone(), self.state.partition_epoch))
    }

    fn change(&mut self, change: impl FnOnce(&mut Assignment)) {
        let (leader, isr) = (self.state.leader, self.state.isr.clone());
        change(&mut self.state);
        let unfenced = self.brokers.iter().filter(|(_, broker)| !broker.fenced);
        self.state.live = unfenced.map(|(id, broker)| (*id, broker.epoch)).collect();
        let may_lead = |id: &BrokerId, state: &Assignment| {
            state.isr.contains(id) && state.live.contains_key(id)
        };
        if !self.state.leader.is_some_and(|id| may_lead(&id, &self.state)) {
            self.state.leader =
                self.state.replicas.iter().find(|id| may_lead(id, &self.state)).copied();
        }
        if self.state.leader != leader {
            self.state.leader_epoch = LeaderEpoch::new(self.state.leader_epoch.get() + 1);
        }
        if (self.state.leader, &self.state.isr) != (leader, &isr) {
            self.rise();
        }
        self.images.push(self.state.clone());
    }

    fn rise(&mut self) {
        let next = self.state.partition_epoch.get() + 1;
        self.state.partition_epoch = PartitionEpoch::new(next);
    }
}

/// The last member stays: nobody else has everything.
fn leave(state: &mut Assignment, id: BrokerId) {
    if state.isr.len() > 1 {
        state.isr.retain(|member| *member != id);
    }
}
