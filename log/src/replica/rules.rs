//! Each rule of a leader and of a follower, one replica at a time; broker 1 is it.

use std::time::Duration;

use tailwater_kafka::{BrokerId, LeaderEpoch, Offset};

use super::{
    Assignment, Command, Event, Fetched, FollowerStatus, IsrRefused, LogView, NotNow, Replica,
    Settings, WrongEpoch,
};
use crate::metadata::{BrokerEpoch, PartitionEpoch};

const ME: i32 = 1;

/// A replica, its log, and a clock.
struct Bench {
    replica: Replica,
    log: LogView,
    now: Duration,
    partition_epoch: i32,
    min_insync: usize,
    live: Vec<(i32, i64)>,
}

impl Bench {
    fn new(end: i64) -> Self {
        let end = Offset::new(end);
        Self {
            replica: Replica::new(BrokerId::new(ME), Settings::default(), Offset::ZERO),
            log: LogView { start: Offset::ZERO, end, durable_end: end },
            now: Duration::ZERO,
            partition_epoch: 0,
            min_insync: 1,
            live: vec![(1, 10), (2, 20), (3, 30)],
        }
    }

    /// Leads epoch 5 of replicas 1, 2 and 3, the log's end at 10.
    fn leading(isr: &[i32], min_insync: usize) -> Self {
        let mut bench = Self { min_insync, ..Self::new(10) };
        assert_eq!(
            bench.assign(Some(ME), 5, isr),
            [Command::BeginEpoch { leader_epoch: epoch(5) }]
        );
        bench.handle(Event::EpochBegun { leader_epoch: epoch(5) });
        bench
    }

    fn handle(&mut self, event: Event) -> Vec<Command> {
        self.replica.handle(self.now, event, self.log).into_iter().collect()
    }

    fn assign(&mut self, leader: Option<i32>, leader_epoch: i32, isr: &[i32]) -> Vec<Command> {
        self.partition_epoch += 1;
        let assignment = self.assignment(leader, leader_epoch, isr);
        self.handle(Event::Assigned(assignment))
    }

    fn assignment(&self, leader: Option<i32>, leader_epoch: i32, isr: &[i32]) -> Assignment {
        let live =
            self.live.iter().map(|(id, epoch)| (BrokerId::new(*id), BrokerEpoch::new(*epoch)));
        Assignment {
            leader: leader.map(BrokerId::new),
            leader_epoch: epoch(leader_epoch),
            partition_epoch: PartitionEpoch::new(self.partition_epoch),
            replicas: brokers(&[1, 2, 3]),
            isr: brokers(isr),
            live: live.collect(),
            min_insync: self.min_insync,
        }
    }

    fn append(&mut self, end: i64) -> Vec<Command> {
        self.log.end = Offset::new(end);
        self.log.durable_end = Offset::new(end);
        self.handle(Event::Durable)
    }

    fn fetch(&mut self, replica: i32, from: i64) -> Vec<Command> {
        self.fetch_as(replica, 10 * i64::from(replica), from)
    }

    fn fetch_as(&mut self, replica: i32, broker_epoch: i64, from: i64) -> Vec<Command> {
        self.handle(Event::Fetched(Fetched {
            replica: BrokerId::new(replica),
            broker_epoch: BrokerEpoch::new(broker_epoch),
            from: Offset::new(from),
        }))
    }

    fn refuse(&mut self, refused: IsrRefused) -> Vec<Command> {
        self.handle(Event::IsrRefused { leader_epoch: epoch(5), refused })
    }

    fn tick(&mut self, after: Duration) -> Vec<Command> {
        self.now += after;
        self.handle(Event::Tick)
    }

    fn said(&mut self, leader_epoch: i32, high_watermark: i64, log_start: i64) -> Vec<Command> {
        self.handle(Event::LeaderSaid {
            leader_epoch: epoch(leader_epoch),
            high_watermark: Offset::new(high_watermark),
            log_start: Offset::new(log_start),
        })
    }

    fn propose(&self, isr: &[i32]) -> Command {
        Command::ProposeIsr {
            leader_epoch: epoch(5),
            partition_epoch: PartitionEpoch::new(self.partition_epoch),
            isr: isr
                .iter()
                .map(|id| (BrokerId::new(*id), BrokerEpoch::new(10 * i64::from(*id))))
                .collect(),
        }
    }
}

fn epoch(epoch: i32) -> LeaderEpoch {
    LeaderEpoch::new(epoch)
}

fn brokers(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().map(|id| BrokerId::new(*id)).collect()
}

fn committed(offset: i64) -> Command {
    Command::HighWatermark(Offset::new(offset))
}

const NOTHING: [Command; 0] = [];
const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(31);

#[test]
fn a_node_alone_commits_what_it_flushed() {
    let mut bench = Bench::new(10);
    bench.assign(Some(ME), 5, &[1]);
    assert_eq!(bench.replica.may_append(false), Err(NotNow::NotLeader));
    assert_eq!(bench.replica.check_leader(epoch(5)), Err(WrongEpoch::NotLeader));
    let begun = bench.handle(Event::EpochBegun { leader_epoch: epoch(5) });
    assert_eq!(begun, [committed(10)]);
    assert_eq!(bench.replica.leads(), Some(epoch(5)));
    assert!(bench.replica.readable_from_leader_start());

    bench.log.end = Offset::new(20);
    assert_eq!(bench.handle(Event::Tick), NOTHING);
    assert_eq!(bench.append(20), [committed(20)]);
    assert_eq!(bench.handle(Event::Durable), NOTHING);
}

#[test]
fn the_high_watermark_is_the_least_flushed_end_of_the_isr() {
    let mut bench = Bench::leading(&[1, 2, 3], 2);
    // What the others have is not known until they ask in this epoch.
    assert_eq!(bench.append(20), NOTHING);
    assert_eq!(bench.fetch(2, 10), NOTHING);
    assert!(!bench.replica.readable_from_leader_start());
    assert_eq!(bench.fetch(3, 12), [committed(10)]);
    assert!(bench.replica.readable_from_leader_start());
    assert_eq!(bench.fetch(2, 20), [committed(12)]);
    assert_eq!(bench.fetch(3, 20), [committed(20)]);
    // The followers may be ahead of the leader's own disk.
    bench.log.end = Offset::new(30);
    assert_eq!((bench.fetch(2, 30), bench.fetch(3, 30)), (vec![], vec![]));
    bench.log.durable_end = Offset::new(25);
    assert_eq!(bench.handle(Event::Durable), [committed(25)]);
    // An older question that comes late takes nothing back.
    assert_eq!(bench.fetch(2, 20), NOTHING);
    assert_eq!(bench.replica.high_watermark(), Offset::new(25));
}

#[test]
fn the_wrong_incarnation_and_strangers_do_not_count() {
    let mut bench = Bench::leading(&[1, 2], 1);
    assert_eq!(bench.fetch_as(2, 19, 10), NOTHING);
    assert_eq!(bench.fetch_as(4, 40, 10), NOTHING);
    assert_eq!(bench.replica.followers().next().unwrap().end, None);
    assert_eq!(bench.fetch(2, 10), [committed(10)]);

    // It came back: it has to say anew what it has. The partition is as it was.
    bench.append(20);
    bench.live[1] = (2, 21);
    let assignment = bench.assignment(Some(ME), 5, &[1, 2]);
    bench.handle(Event::Assigned(assignment));
    assert_eq!(bench.fetch(2, 20), NOTHING);
    assert_eq!(bench.fetch_as(2, 21, 15), [committed(15)]);

    // In the ISR but no replica: it holds, and never counts.
    let mut bench = Bench::new(10);
    bench.live.push((4, 40));
    bench.assign(Some(ME), 5, &[1, 4]);
    bench.handle(Event::EpochBegun { leader_epoch: epoch(5) });
    assert_eq!(bench.fetch_as(4, 40, 10), NOTHING);
}

#[test]
fn too_small_an_isr_commits_nothing_and_refuses_acks_all() {
    let mut bench = Bench::leading(&[1, 2], 2);
    bench.fetch(2, 10);
    assert_eq!(bench.replica.may_append(true), Ok(()));
    assert_eq!(bench.assign(Some(ME), 5, &[1]), NOTHING);
    assert_eq!(bench.replica.may_append(true), Err(NotNow::NotEnoughReplicas));
    assert_eq!(bench.replica.may_append(false), Ok(()));
    assert_eq!(bench.append(20), NOTHING);

    // It is back, and asks from where it stood: it may join, since nothing was committed without it.
    assert_eq!(bench.fetch(2, 10), [bench.propose(&[1, 2])]);
    assert_eq!(bench.assign(Some(ME), 5, &[1, 2]), NOTHING);
    assert_eq!(bench.fetch(2, 20), [committed(20)]);

    // More than there are replicas cannot be asked for.
    let mut bench = Bench { min_insync: 7, ..Bench::new(10) };
    bench.assign(Some(ME), 5, &[1, 2, 3]);
    bench.handle(Event::EpochBegun { leader_epoch: epoch(5) });
    assert_eq!(bench.replica.may_append(true), Ok(()));
}

/// The proposal counts before its answer.
///
/// ```text
/// leader     ───────►10────────────►20────────►30
/// follower 2 ───────►10    proposed: the high watermark waits for it
/// ```
#[test]
fn whoever_is_proposed_counts_at_once() {
    let mut bench = Bench::leading(&[1], 1);
    assert_eq!(bench.fetch(2, 10), [bench.propose(&[1, 2])]);
    assert_eq!(bench.append(20), NOTHING);
    assert_eq!(bench.fetch(2, 15), [committed(15)]);
    // Not twice while the first is under way.
    assert_eq!(bench.fetch(3, 20), NOTHING);
    assert_eq!(bench.assign(Some(ME), 5, &[1, 2]), NOTHING);
    assert_eq!(bench.replica.isr(), brokers(&[1, 2]));
    assert_eq!(bench.fetch(3, 20), [bench.propose(&[1, 2, 3])]);
    // An older word of the controller changes nothing.
    bench.partition_epoch = 0;
    assert_eq!(bench.assign(Some(ME), 5, &[1]), NOTHING);
    assert_eq!(bench.replica.isr(), brokers(&[1, 2]));
}

#[test]
fn only_with_all_that_is_committed_and_all_before_the_epoch_one_joins() {
    let mut bench = Bench::leading(&[1, 2], 1);
    bench.fetch(2, 5);
    assert_eq!(bench.replica.high_watermark(), Offset::new(5));
    // At the high watermark, but before the epoch's start.
    assert_eq!(bench.fetch(3, 7), NOTHING);
    bench.append(30);
    bench.fetch(2, 25);
    assert_eq!(bench.fetch(3, 20), NOTHING);
    assert_eq!(bench.fetch(3, 25), [bench.propose(&[1, 2, 3])]);

    // One that is fenced or stopping has no epoch that counts.
    let mut bench = Bench::leading(&[1], 1);
    bench.live.retain(|(id, _)| *id != 2);
    bench.assign(Some(ME), 5, &[1]);
    assert_eq!(bench.fetch(2, 10), NOTHING);
    // Nor does a leader that is itself one propose anything.
    bench.live.retain(|(id, _)| *id != 1);
    bench.assign(Some(ME), 5, &[1]);
    assert_eq!(bench.fetch(3, 10), NOTHING);
}

/// Under steady load a follower is always a little behind what the leader alone has.
#[test]
fn the_high_watermark_waits_for_one_that_keeps_up() {
    let mut bench = Bench::leading(&[1], 1);
    bench.append(20);
    assert_eq!(bench.replica.high_watermark(), Offset::new(20));
    assert_eq!(bench.fetch(2, 0), NOTHING);
    bench.append(30);
    // Where the end was when it asked before: it keeps up.
    assert_eq!(bench.fetch(2, 20), NOTHING);
    assert_eq!(bench.append(40), NOTHING);
    assert_eq!(bench.fetch(2, 30), [bench.propose(&[1, 2])]);

    // One that stopped asking does not hold it for ever.
    let mut bench = Bench::leading(&[1], 1);
    bench.append(20);
    bench.fetch(2, 0);
    bench.append(30);
    bench.fetch(2, 20);
    assert_eq!(bench.append(40), NOTHING);
    assert_eq!(bench.tick(LONG), [committed(40)]);
}

#[test]
fn one_that_falls_behind_leaves_and_counts_until_the_controller_agrees() {
    let mut bench = Bench::leading(&[1, 2, 3], 1);
    bench.fetch(2, 10);
    bench.fetch(3, 10);
    bench.append(20);
    bench.now += LONG;
    assert_eq!(bench.fetch(2, 20), NOTHING);
    let status = |replica, end, in_sync| FollowerStatus {
        replica: BrokerId::new(replica),
        end: Some(Offset::new(end)),
        in_sync,
    };
    assert!(bench.replica.followers().eq([status(2, 20, true), status(3, 10, true)]));
    assert_eq!(bench.tick(Duration::ZERO), [bench.propose(&[1, 2])]);
    assert_eq!(bench.replica.high_watermark(), Offset::new(10));
    assert_eq!(bench.assign(Some(ME), 5, &[1, 2]), [committed(20)]);
    assert!(bench.replica.followers().eq([status(2, 20, true), status(3, 10, false)]));
}

#[test]
fn one_that_never_asked_leaves_too_and_one_at_the_end_stays() {
    let mut bench = Bench::leading(&[1, 2, 3], 1);
    bench.fetch(2, 10);
    bench.now += LONG;
    assert_eq!(bench.fetch(2, 10), NOTHING);
    assert_eq!(bench.tick(Duration::ZERO), [bench.propose(&[1, 2])]);
}

/// Who lags asks all the time; from who is silent nothing will come.
#[test]
fn a_silent_one_leaves_long_before_one_that_lags() {
    let mut bench = Bench::leading(&[1, 2, 3], 1);
    bench.fetch(2, 10);
    bench.fetch(3, 10);
    bench.append(20);
    for _ in 0..3 {
        assert_eq!(bench.tick(SECOND), NOTHING);
        assert_eq!(bench.fetch(2, 10), NOTHING);
    }
    assert_eq!(bench.tick(SECOND), [bench.propose(&[1, 2])]);
    assert_eq!(bench.assign(Some(ME), 5, &[1, 2]), NOTHING);
    // Though it was at the end a moment ago, it holds nothing back and does not belong there.
    assert_eq!(bench.fetch(2, 20), [committed(20)]);
    assert_eq!(bench.tick(SECOND), NOTHING);
    assert_eq!(bench.fetch(3, 20), [bench.propose(&[1, 2, 3])]);
}

#[test]
fn a_leader_that_hears_of_nobody_sends_producers_elsewhere() {
    let mut bench = Bench::leading(&[1, 2, 3], 2);
    bench.fetch(2, 10);
    bench.fetch(3, 10);
    bench.append(20);
    assert_eq!(bench.tick(3 * SECOND), NOTHING);
    assert_eq!(bench.replica.may_append(true), Ok(()));
    assert_eq!(bench.tick(SECOND), [Command::Stranded, bench.propose(&[1])]);
    assert!(bench.replica.is_stranded());
    assert_eq!(bench.replica.may_append(true), Err(NotNow::NotLeader));
    // They are told once, and who wants no other's word is served.
    assert_eq!(bench.tick(SECOND), NOTHING);
    assert_eq!(bench.replica.may_append(false), Ok(()));

    // What it wrote may yet be committed: when it hears of them again,
    assert_eq!(bench.fetch(2, 20), NOTHING);
    assert_eq!(bench.replica.may_append(true), Ok(()));
    assert_eq!(bench.fetch(3, 20), [committed(20)]);
    // or when the controller says that it goes on without them.
    assert_eq!(bench.tick(4 * SECOND), [Command::Stranded, bench.propose(&[1])]);
    bench.assign(Some(ME), 5, &[1]);
    assert_eq!(bench.replica.may_append(true), Err(NotNow::NotEnoughReplicas));
}

#[test]
fn a_member_that_lost_what_it_had_leaves_at_once() {
    let mut bench = Bench::leading(&[1, 2], 1);
    bench.fetch(2, 10);
    bench.fetch(2, 0);
    assert_eq!(bench.tick(SECOND), [bench.propose(&[1])]);
}

/// "No answer" may mean "taken": until the partition epoch says otherwise the new member counts, and
/// when it is not wanted any more, the ISR as it is is proposed to find out.
#[test]
fn a_proposal_without_an_answer_counts_until_the_partition_epoch_rises() {
    for refused in [None, Some(IsrRefused::Other), Some(IsrRefused::Outdated)] {
        let mut bench = Bench::leading(&[1], 1);
        assert_eq!(bench.fetch(2, 10), [bench.propose(&[1, 2])]);
        if let Some(refused) = refused {
            assert_eq!(bench.refuse(refused), NOTHING);
        }
        bench.append(20);
        assert_eq!(bench.replica.high_watermark(), Offset::new(10));
        // Again, not at once.
        bench.now += 4 * SECOND;
        assert_eq!(bench.fetch(2, 10), NOTHING);
        assert_eq!(bench.tick(2 * SECOND), [bench.propose(&[1, 2])]);

        // Now it is fenced, with the same partition epoch; or lost.
        bench.live.retain(|(id, _)| *id != 2);
        let assignment = bench.assignment(Some(ME), 5, &[1]);
        assert_eq!(bench.handle(Event::Assigned(assignment)), NOTHING);
        assert_eq!(bench.replica.high_watermark(), Offset::new(10));
        assert_eq!(bench.tick(6 * SECOND), [bench.propose(&[1])]);
        assert_eq!(bench.assign(Some(ME), 5, &[1]), [committed(20)]);
    }
}

#[test]
fn a_refused_proposal_is_made_again_after_a_while() {
    let mut bench = Bench::leading(&[1], 1);
    assert_eq!(bench.fetch(2, 10), [bench.propose(&[1, 2])]);
    assert_eq!(bench.refuse(IsrRefused::Other), NOTHING);
    assert_eq!(bench.tick(Duration::from_millis(499)), NOTHING);
    assert_eq!(bench.tick(Duration::from_millis(1)), [bench.propose(&[1, 2])]);
    // A newer state makes waiting pointless.
    assert_eq!(bench.refuse(IsrRefused::Outdated), NOTHING);
    bench.assign(Some(ME), 5, &[1]);
    assert_eq!(bench.fetch(2, 10), [bench.propose(&[1, 2])]);
    // What another reign was told is not for this one.
    bench.assign(Some(ME), 6, &[1]);
    bench.handle(Event::EpochBegun { leader_epoch: epoch(6) });
    assert_eq!(bench.refuse(IsrRefused::Other), NOTHING);
    assert_eq!(bench.fetch(2, 10).len(), 1);
}

#[test]
fn a_follower_commits_what_the_leader_did_and_it_has_flushed() {
    let mut bench = Bench::new(10);
    let follow = Command::Follow { leader: BrokerId::new(2), leader_epoch: epoch(5) };
    assert_eq!(bench.assign(Some(2), 5, &[1, 2]), [follow]);
    assert_eq!(bench.replica.follows(), Some((BrokerId::new(2), epoch(5))));
    assert_eq!(bench.said(5, 8, 0), [committed(8)]);
    bench.log.end = Offset::new(30);
    assert_eq!(bench.said(5, 25, 0), [committed(10)]);
    bench.log.durable_end = Offset::new(20);
    assert_eq!(bench.handle(Event::Durable), [committed(20)]);
    // A new leader may know less; another reign's word does not count.
    assert_eq!(bench.said(5, 5, 0), NOTHING);
    assert_eq!(bench.said(4, 30, 0), NOTHING);
    assert_eq!(bench.replica.high_watermark(), Offset::new(20));
    // What an older leader said does not count for the log after cutting it for the next.
    bench.said(5, 30, 0);
    bench.assign(Some(3), 6, &[1, 3]);
    bench.append(40);
    assert_eq!(bench.replica.high_watermark(), Offset::new(20));
    assert_eq!(bench.replica.check_leader(epoch(6)), Err(WrongEpoch::NotLeader));
    assert!(!bench.replica.readable_from_leader_start());
}

#[test]
fn a_follower_forgets_what_the_leader_forgot_but_not_what_may_be_needed() {
    let mut bench = Bench::new(10);
    bench.assign(Some(2), 5, &[1, 2]);
    let start = |at| Command::StartOffset(Offset::new(at));
    assert_eq!(bench.said(5, 8, 3), [committed(8), start(3)]);
    bench.log.start = Offset::new(3);
    assert_eq!(bench.said(5, 8, 3), NOTHING);
    assert_eq!(bench.said(5, 20, 15), [committed(10), start(10)]);
    // It began anew where the leader begins.
    (bench.log.start, bench.log.end) = (Offset::new(15), Offset::new(15));
    bench.log.durable_end = Offset::new(15);
    assert_eq!(bench.said(5, 15, 15), NOTHING);
    assert_eq!(bench.replica.high_watermark(), Offset::new(15));
}

#[test]
fn roles_change_with_the_leader_epoch_only() {
    let mut bench = Bench::leading(&[1, 2], 1);
    assert_eq!(bench.replica.check_leader(epoch(4)), Err(WrongEpoch::Fenced));
    assert_eq!(bench.replica.check_leader(epoch(6)), Err(WrongEpoch::Unknown));
    assert_eq!(bench.replica.check_leader(LeaderEpoch::NONE), Ok(()));
    let again = bench.assignment(Some(ME), 5, &[1, 2]);
    assert_eq!(bench.handle(Event::Assigned(again)), NOTHING);

    let follow =
        |leader, at| Command::Follow { leader: BrokerId::new(leader), leader_epoch: epoch(at) };
    assert_eq!(bench.assign(Some(2), 6, &[1, 2]), [Command::StopLeading, follow(2, 6)]);
    assert_eq!(bench.replica.may_append(false), Err(NotNow::NotLeader));
    assert_eq!(bench.assign(Some(2), 6, &[1, 2, 3]), NOTHING);
    assert_eq!(bench.assign(Some(3), 7, &[1, 3]), [follow(3, 7)]);
    let begin = Command::BeginEpoch { leader_epoch: epoch(8) };
    assert_eq!(bench.assign(Some(ME), 8, &[1]), [Command::StopFollowing, begin]);
    // An epoch that is over before it is on disk.
    assert_eq!(bench.assign(None, 9, &[1]), [Command::StopLeading]);
    assert_eq!(bench.handle(Event::EpochBegun { leader_epoch: epoch(8) }), NOTHING);
    assert_eq!(bench.replica.leads(), None);
    assert_eq!(bench.assign(Some(2), 10, &[2]), [follow(2, 10)]);
    assert_eq!(bench.handle(Event::Unassigned), [Command::StopFollowing]);
    assert_eq!(bench.handle(Event::Unassigned), NOTHING);
    assert_eq!(bench.replica.follows(), None);
}
