//! What must hold after each step.

use tailwater_kafka::LeaderEpoch;

use super::{Entry, World, index};

/// An entry that some leader showed to be committed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Committed {
    entry: Entry,
    /// Of the leader that did so first. Leaders of later epochs must have it.
    by: LeaderEpoch,
}

impl World {
    /// What has become committed since `n` was judged last, as `n` sees it.
    pub(super) fn judge(&mut self, n: usize) {
        let node = &self.nodes[n];
        let (from, to) = (node.judged, index(node.replica.high_watermark()));
        if to > node.log.end() {
            return self.fail(format!("broker {n}: its high watermark {to} is above its end"));
        }
        let leads = node.replica.leads();
        for offset in from.max(node.log.start)..to {
            let entry = self.nodes[n].log.entries[offset];
            match (self.committed.get(offset), leads) {
                (Some(committed), _) if committed.entry == entry => {}
                (Some(committed), _) => {
                    let was = committed.entry;
                    return self.fail(format!("broker {n}: {entry:?} at {offset} was {was:?}"));
                }
                (None, Some(by)) => {
                    self.committed.push(Committed { entry, by });
                    self.judge_later_leaders(offset, entry, by);
                }
                (None, None) => {
                    return self.fail(format!("broker {n}: {offset} is not committed anywhere"));
                }
            }
        }
        self.nodes[n].judged = to.max(from);
    }

    /// A new leader must have all that leaders before it committed.
    pub(super) fn judge_election(&mut self, n: usize, epoch: LeaderEpoch) {
        let log = &self.nodes[n].log;
        let bound = self.committed.iter().enumerate().skip(log.start);
        let lacking = bound
            .filter(|(_, committed)| committed.by < epoch)
            .find(|(offset, committed)| log.entries.get(*offset) != Some(&committed.entry));
        if let Some((offset, committed)) = lacking {
            let what = committed.entry;
            self.fail(format!("broker {n} leads epoch {epoch} without {what:?} at {offset}"));
        }
    }

    /// A leader that was replaced without knowing it must not commit anything new.
    fn judge_later_leaders(&mut self, offset: usize, entry: Entry, by: LeaderEpoch) {
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            let Some(epoch) = node.replica.leads().filter(|_| node.up) else { continue };
            let has = offset < node.log.start || node.log.entries.get(offset) == Some(&entry);
            if epoch > by && !has {
                self.fail(format!("epoch {by} commits {entry:?} at {offset}, {epoch} has it not"));
            }
        }
    }

    /// Whether all replicas are in sync and the same.
    pub(super) fn is_whole(&self) -> bool {
        let Some(leader) = self.controller.state().leader else { return false };
        let leader = &self.nodes[usize::try_from(leader.get()).unwrap()];
        leader.replica.leads() == Some(self.controller.state().leader_epoch)
            && leader.replica.isr().len() == self.nodes.len()
            && leader.log.end() >= self.committed.len()
            && self.nodes.iter().all(|node| {
                let start = leader.log.start.max(node.log.start);
                index(node.replica.high_watermark()) == leader.log.end()
                    && node.log.end() == leader.log.end()
                    && node.log.entries[start..] == leader.log.entries[start..]
            })
    }
}
