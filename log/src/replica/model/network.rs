//! What brokers say to each other, and to the controller.

use tailwater_kafka::{BrokerId, LeaderEpoch};

use super::{Entry, Plant, World, at, index};
use crate::metadata::{BrokerEpoch, PartitionEpoch};
use crate::replica::truncation::OwnLog;
use crate::replica::{
    Assignment, EpochEnd, Event, Fetched, IsrRefused, Truncation, divergence, truncation_point,
};

/// On its way; in any order, perhaps never.
#[derive(Debug, Clone)]
pub(super) enum Message {
    Fetch(Fetch),
    FetchAnswer {
        to: usize,
        request: u64,
        leader_epoch: LeaderEpoch,
        said: Said,
    },
    Propose {
        from: usize,
        broker_epoch: BrokerEpoch,
        at: (LeaderEpoch, PartitionEpoch),
        isr: Vec<(BrokerId, BrokerEpoch)>,
    },
    ProposeAnswer {
        to: usize,
        broker_epoch: BrokerEpoch,
        leader_epoch: LeaderEpoch,
        result: Result<(Vec<tailwater_kafka::BrokerId>, PartitionEpoch), IsrRefused>,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch {
    request: u64,
    from: usize,
    to: usize,
    leader_epoch: LeaderEpoch,
    broker_epoch: BrokerEpoch,
    offset: usize,
    last_fetched: LeaderEpoch,
}

#[derive(Debug, Clone)]
pub(super) enum Said {
    Entries {
        entries: Vec<Entry>,
        high_watermark: usize,
        start: usize,
    },
    Parts(EpochEnd),
    /// The leader begins here, later than it was asked for.
    BeginsAt(usize),
}

impl Message {
    /// TCP does not repeat itself; but a request that was sent again is one more.
    pub(super) fn is_request(&self) -> bool {
        matches!(self, Self::Fetch(_) | Self::Propose { .. })
    }
}

impl World {
    /// Asks the leader, unless an answer is awaited.
    pub(super) fn ask(&mut self, n: usize) {
        let flushed = self.nodes[n].log.durable == self.nodes[n].log.end();
        let Some((leader, leader_epoch)) = self.nodes[n].replica.follows() else { return };
        if self.nodes[n].asked.is_some() {
            return;
        }
        if !flushed && self.plant != Plant::AskUnflushed {
            self.flush(n);
        }
        self.requests += 1;
        let node = &mut self.nodes[n];
        node.asked = Some(self.requests);
        let offset = node.log.end();
        let fetch = Fetch {
            request: self.requests,
            from: n,
            to: usize::try_from(leader.get()).unwrap(),
            leader_epoch,
            broker_epoch: node.broker_epoch,
            offset,
            last_fetched: node.log.epochs.last_written(at(offset)),
        };
        self.network.push(Message::Fetch(fetch));
    }

    /// Delivers, or loses it where the way is cut.
    pub(super) fn deliver(&mut self, message: Message) {
        self.note(|_| format!("{message:?}"));
        match message {
            Message::Fetch(fetch) => {
                let to = &self.nodes[fetch.to];
                if to.up && !to.cut_from_peers && !self.nodes[fetch.from].cut_from_peers {
                    self.serve(fetch);
                }
            }
            Message::FetchAnswer { to, request, leader_epoch, said } => {
                let node = &mut self.nodes[to];
                let awaited = node.asked == Some(request) || self.plant == Plant::TakeAnyAnswer;
                if node.up && !node.cut_from_peers && awaited {
                    node.asked = None;
                    self.take(to, leader_epoch, said);
                }
            }
            Message::Propose { from, broker_epoch, at, isr } => {
                if !self.nodes[from].cut_from_controller {
                    let id = self.nodes[from].id;
                    let isr = match self.plant {
                        Plant::ForgetFence => self.renewed(&isr),
                        _ => isr,
                    };
                    let result = self.controller.propose(id, at, &isr);
                    self.network.push(Message::ProposeAnswer {
                        to: from,
                        broker_epoch,
                        leader_epoch: at.0,
                        result,
                    });
                }
            }
            Message::ProposeAnswer { to, broker_epoch, leader_epoch, result } => {
                let node = &self.nodes[to];
                if node.up && !node.cut_from_controller && node.broker_epoch == broker_epoch {
                    self.hear(to, leader_epoch, result);
                }
            }
        }
    }

    fn hear(
        &mut self,
        n: usize,
        leader_epoch: LeaderEpoch,
        result: Result<(Vec<BrokerId>, PartitionEpoch), IsrRefused>,
    ) {
        match result {
            Err(refused) => self.tell(n, Event::IsrRefused { leader_epoch, refused }),
            Ok((isr, partition_epoch)) if self.plant == Plant::TakeAnswerAsImage => {
                let image = self.controller.images[self.nodes[n].applied - 1].clone();
                if image.leader_epoch == leader_epoch {
                    self.tell(n, Event::Assigned(Assignment { isr, partition_epoch, ..image }));
                }
            }
            // It comes as an image.
            Ok(_) => {}
        }
    }

    /// Delivers everything, also what comes of it.
    pub(super) fn deliver_all(&mut self) {
        while !self.network.is_empty() {
            let message = self.network.remove(0);
            self.deliver(message);
        }
    }

    fn serve(&mut self, fetch: Fetch) {
        let node = &self.nodes[fetch.to];
        let right = match self.plant {
            Plant::SkipRequestEpoch => node.replica.leads().is_some(),
            _ => node.replica.check_leader(fetch.leader_epoch).is_ok(),
        };
        if !right {
            return;
        }
        let log = &node.log;
        let (end, offset) = (log.end(), at(fetch.offset));
        let parts = divergence(&log.epochs, at(end), fetch.last_fetched, offset);
        let said = match parts {
            Some(parts) if self.plant != Plant::SkipDivergence => Said::Parts(parts),
            _ if fetch.offset < log.start => Said::BeginsAt(log.start),
            // Without records, and yet beyond: nothing to say to that but nothing.
            _ if fetch.offset > end => return,
            _ => {
                self.count(fetch);
                let node = &self.nodes[fetch.to];
                Said::Entries {
                    entries: node.log.entries[fetch.offset..].to_vec(),
                    high_watermark: index(node.replica.high_watermark()),
                    start: node.log.start,
                }
            }
        };
        let Fetch { from: to, request, leader_epoch, .. } = fetch;
        self.network.push(Message::FetchAnswer { to, request, leader_epoch, said });
    }

    fn count(&mut self, fetch: Fetch) {
        let leader = fetch.to;
        let mut fetched = Fetched {
            replica: self.nodes[fetch.from].id,
            broker_epoch: fetch.broker_epoch,
            from: at(fetch.offset),
        };
        if self.plant == Plant::ForgetFence {
            fetched.broker_epoch = self.known_epoch(leader, fetch.from, fetched.broker_epoch);
        }
        self.tell(leader, Event::Fetched(fetched));
        let followers: Vec<_> = self.nodes[leader].replica.followers().collect();
        let outside = followers.iter().any(|one| one.replica == fetched.replica && !one.in_sync);
        if self.plant == Plant::CountNonIsrAck && outside {
            for member in followers.iter().filter(|one| one.in_sync) {
                let number = usize::try_from(member.replica.get()).unwrap();
                let broker_epoch = self.known_epoch(leader, number, fetched.broker_epoch);
                let counted = Fetched { replica: member.replica, broker_epoch, ..fetched };
                self.tell(leader, Event::Fetched(counted));
            }
        }
    }

    /// The incarnation of a broker as the leader knows it.
    fn known_epoch(&self, leader: usize, n: usize, otherwise: BrokerEpoch) -> BrokerEpoch {
        let image = &self.controller.images[self.nodes[leader].applied - 1];
        image.live.get(&self.nodes[n].id).copied().unwrap_or(otherwise)
    }

    /// As if the members had been named without their incarnations.
    fn renewed(&self, isr: &[(BrokerId, BrokerEpoch)]) -> Vec<(BrokerId, BrokerEpoch)> {
        let live = &self.controller.state().live;
        isr.iter().map(|(id, epoch)| (*id, live.get(id).copied().unwrap_or(*epoch))).collect()
    }

    fn take(&mut self, n: usize, leader_epoch: LeaderEpoch, said: Said) {
        let node = &mut self.nodes[n];
        let Some((_, following)) = node.replica.follows() else { return };
        if following != leader_epoch && self.plant != Plant::TakeAnyAnswer {
            return;
        }
        match said {
            Said::Entries { entries, high_watermark, start } => {
                for entry in entries {
                    if let Err(falls) = node.log.epochs.note(entry.epoch, at(node.log.end())) {
                        return self.fail(format!("broker {n}: {falls}"));
                    }
                    node.log.entries.push(entry);
                }
                self.tell(
                    n,
                    Event::LeaderSaid {
                        leader_epoch: following,
                        high_watermark: at(high_watermark),
                        log_start: at(start),
                    },
                );
            }
            Said::Parts(said) => self.cut(n, said),
            Said::BeginsAt(start) if node.log.end() < start => {
                node.log.reset(start);
                self.note(|_| format!("broker {n} begins anew at {start}"));
            }
            Said::BeginsAt(_) => {}
        }
    }

    fn cut(&mut self, n: usize, said: EpochEnd) {
        let node = &mut self.nodes[n];
        let own = OwnLog {
            epochs: &node.log.epochs,
            start: at(node.log.start),
            end: at(node.log.end()),
            high_watermark: node.replica.high_watermark(),
        };
        match truncation_point(own, said) {
            None => {}
            Some(Truncation::To(to)) => {
                node.log.truncate(index(to));
                self.note(|_| format!("broker {n} cuts its log at {to}"));
            }
            Some(lost) => self.fail(format!("broker {n}: {lost:?} after {said:?}")),
        }
    }
}
