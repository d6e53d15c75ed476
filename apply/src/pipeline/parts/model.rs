//! Leaders and partitions on one target, one statement at a time in any order, without any lock:
//! fences and the order of statements alone have to see to it that everything is applied once, in
//! its partition's order, and nothing on the wrong side of what concerns all.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_change::{Commit, Epoch, Place};
use tailwater_kafka::Offset;

use super::super::state::{Apart, SavedPosition, SavedState};
use super::{Row, Stand, gather, is_awaited, is_passed, part, positions, row_name, stand};
use crate::Progress;

const PARTITIONS: usize = 3;
const LEADERS: usize = 2;
/// For each partition.
const HOLDERS: usize = 2;

/// What is done wrong, to show that it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planted {
    /// A partition looks whether the pipeline is parted before it raises its fence.
    LooksFirst,
    /// A commit does not look at the fence.
    ForgetsFence,
    /// The leader reads the partitions' rows without raising their fences.
    OnlyReads,
    /// The leader raises the fences before it says that the partitions are called.
    CallsLate,
    /// A partition takes what concerns all by itself.
    PassesAlone,
    /// A partition's row counts although it is of an earlier time apart.
    AnyGeneration,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    place: u64,
    /// It stands in every partition.
    shared: bool,
}

/// The target: rows, and what was applied of each partition.
struct Database {
    main: Row,
    parts: Vec<Row>,
    applied: Vec<usize>,
    log: Vec<Vec<Record>>,
    planted: Option<Planted>,
}

struct Fenced;

type Outcome = Result<(), Fenced>;

enum Leader {
    Away,
    /// It has taken over a pipeline whose partitions are apart.
    Presiding(Row),
    Calling {
        main: Row,
        rows: Vec<Row>,
    },
    Together(Row),
}

enum Holder {
    Away,
    /// Its fence is raised.
    Taken(Row),
    /// It has looked first: planted.
    Looked(Row),
    Apart(Row),
}

fn place(number: u64) -> Place {
    Place::end_of(Epoch::FIRST, Commit::lsn(number))
}

fn log(rng: &mut SmallRng) -> Vec<Vec<Record>> {
    let mut log = vec![Vec::new(); PARTITIONS];
    for number in 1..=rng.random_range(4..24) {
        if rng.random_ratio(1, 5) {
            log.iter_mut().for_each(|lane| lane.push(Record { place: number, shared: true }));
        } else {
            let lane = rng.random_range(0..PARTITIONS);
            log[lane].push(Record { place: number, shared: false });
        }
    }
    log
}

fn empty(name: &str) -> Row {
    let progress = Progress {
        pipeline: name.into(),
        cluster_id: "c".into(),
        topic_id: "t".into(),
        next_offset: 0,
        place: Place::default(),
        fence: 0,
        state: String::new(),
    };
    Row { progress, state: SavedState::default() }
}

impl Database {
    fn new(log: Vec<Vec<Record>>, planted: Option<Planted>) -> Self {
        let mut main = empty("p");
        let start = SavedPosition { next_offset: 0, writer: None };
        main.state.others = vec![start; PARTITIONS - 1];
        let parts = (0..PARTITIONS).map(|at| empty(&row_name("p", at))).collect();
        Self { main, parts, applied: vec![0; PARTITIONS], log, planted }
    }

    fn row(&mut self, of: Option<usize>) -> &mut Row {
        match of {
            None => &mut self.main,
            Some(partition) => &mut self.parts[partition],
        }
    }

    fn take_over(&mut self, of: Option<usize>) -> Row {
        let row = self.row(of);
        row.progress.fence += 1;
        row.clone()
    }

    fn commit(&mut self, of: Option<usize>, row: &Row) -> Outcome {
        let forgets = self.planted == Some(Planted::ForgetsFence);
        let kept = self.row(of);
        if kept.progress.fence != row.progress.fence && !forgets {
            return Err(Fenced);
        }
        let fence = kept.progress.fence;
        *kept = row.clone();
        kept.progress.fence = fence;
        Ok(())
    }

    /// Everything is applied once and in order, and what concerns all after all that is before it.
    fn apply(&mut self, lane: usize, offset: usize) {
        let record = self.log[lane][offset];
        assert_eq!(self.applied[lane], offset, "partition {lane} at {}", record.place);
        if record.shared {
            for (at, lane) in self.log.iter().enumerate() {
                let before = lane.iter().filter(|other| other.place < record.place).count();
                assert!(self.applied[at] >= before, "{} before {at} was there", record.place);
                assert!(self.applied[at] <= before + 1, "{at} was beyond {}", record.place);
            }
        }
        self.applied[lane] += 1;
    }

    fn is_done(&self) -> bool {
        self.log.iter().zip(&self.applied).all(|(lane, applied)| lane.len() == *applied)
    }
}

impl Leader {
    fn step(&mut self, database: &mut Database, rng: &mut SmallRng) {
        let next = match std::mem::replace(self, Self::Away) {
            Self::Away => {
                let main = database.take_over(None);
                if main.state.parted.is_some() {
                    Ok(Self::Presiding(main))
                } else {
                    Ok(Self::Together(main))
                }
            }
            Self::Presiding(main) => Ok(Self::preside(main, database, rng)),
            Self::Calling { main, rows } => Self::call(main, rows, database),
            Self::Together(main) => Self::go_on(main, database, rng),
        };
        // Who is fenced begins anew.
        *self = next.unwrap_or(Self::Away);
    }

    fn preside(main: Row, database: &mut Database, rng: &mut SmallRng) -> Self {
        let called = main.state.parted.is_some_and(|parted| parted.called);
        let rows: Vec<_> = database.parts.iter().cloned().map(Some).collect();
        // Called for no reason, nothing may happen either.
        if !(called || is_awaited(&main, &rows) || rng.random_ratio(1, 30)) {
            return Self::Presiding(main);
        }
        Self::Calling { main, rows: Vec::new() }
    }

    fn call(mut main: Row, mut rows: Vec<Row>, database: &mut Database) -> Result<Self, Fenced> {
        let late = database.planted == Some(Planted::CallsLate);
        let called = main.state.parted.is_some_and(|parted| parted.called);
        let say = if late { rows.len() == PARTITIONS } else { rows.is_empty() };
        if say && !called {
            if let Some(parted) = &mut main.state.parted {
                parted.called = true;
            }
            database.commit(None, &main)?;
        } else if rows.len() < PARTITIONS {
            rows.push(match database.planted {
                Some(Planted::OnlyReads) => database.parts[rows.len()].clone(),
                _ => database.take_over(Some(rows.len())),
            });
        } else {
            let gathered = gather(&main, &rows);
            database.commit(None, &gathered)?;
            return Ok(Self::Together(gathered));
        }
        Ok(Self::Calling { main, rows })
    }

    /// As the merge does: the least of what is next in all partitions, shared records at once.
    fn go_on(mut main: Row, database: &mut Database, rng: &mut SmallRng) -> Result<Self, Fenced> {
        if is_passed(&main.progress, &main.state) && rng.random_ratio(1, 2) {
            main.state = part(&main.state, 0);
            database.commit(None, &main)?;
            return Ok(Self::Presiding(main));
        }
        let mut at: Vec<usize> = positions(&main.progress, &main.state)
            .map(|position| usize::try_from(position.next_offset.get()).unwrap())
            .collect();
        let heads = (0..PARTITIONS)
            .filter_map(|lane| database.log[lane].get(at[lane]).map(|record| record.place));
        let Some(least) = heads.min() else { return Ok(Self::Together(main)) };
        let taken: Vec<usize> = (0..PARTITIONS)
            .filter(|&lane| {
                database.log[lane].get(at[lane]).is_some_and(|record| record.place == least)
            })
            .collect();
        let offsets = at.clone();
        taken.iter().for_each(|&lane| at[lane] += 1);
        main.progress.place = place(least);
        main.progress.next_offset = i64::try_from(at[0]).unwrap();
        main.state.others = at[1..]
            .iter()
            .map(|&at| SavedPosition { next_offset: i64::try_from(at).unwrap(), writer: None })
            .collect();
        if main.state.floors.iter().all(|floor| *floor <= main.progress.place) {
            main.state.floors.clear();
        }
        database.commit(None, &main)?;
        for lane in taken {
            database.apply(lane, offsets[lane]);
        }
        Ok(Self::Together(main))
    }
}

impl Holder {
    fn step(&mut self, partition: usize, database: &mut Database) {
        let looks_first = database.planted == Some(Planted::LooksFirst);
        let next = match std::mem::replace(self, Self::Away) {
            Self::Away if looks_first => Ok(Self::Looked(database.main.clone())),
            Self::Away => Ok(Self::Taken(database.take_over(Some(partition)))),
            Self::Taken(own) => {
                let main = database.main.clone();
                Ok(Self::begin(&main, own, partition, database))
            }
            Self::Looked(main) => {
                let own = database.take_over(Some(partition));
                Ok(Self::begin(&main, own, partition, database))
            }
            Self::Apart(own) => Self::go_on(own, partition, database),
        };
        *self = next.unwrap_or(Self::Away);
    }

    fn begin(main: &Row, mut own: Row, partition: usize, database: &Database) -> Self {
        if database.planted == Some(Planted::AnyGeneration)
            && let (Some(apart), Some(parted)) = (&mut own.state.apart, main.state.parted)
        {
            (apart.generation, apart.waits) = (parted.generation, None);
        }
        match stand(main, &own, partition) {
            Stand::Aside => Self::Away,
            Stand::At(row) => Self::Apart(*row),
        }
    }

    fn go_on(mut own: Row, partition: usize, database: &mut Database) -> Result<Self, Fenced> {
        let offset = usize::try_from(own.progress.next_offset).unwrap();
        let Some(record) = database.log[partition].get(offset).copied() else {
            return Ok(Self::Apart(own));
        };
        let alone = database.planted == Some(Planted::PassesAlone);
        if record.shared && !alone {
            let generation = own.state.apart.map_or(0, |apart| apart.generation);
            own.state.apart = Some(Apart { generation, waits: Some(own.progress.next_offset) });
            database.commit(Some(partition), &own)?;
            return Ok(Self::Away);
        }
        own.progress.next_offset = Offset::new(own.progress.next_offset).next().get();
        own.progress.place = place(record.place);
        database.commit(Some(partition), &own)?;
        database.apply(partition, offset);
        Ok(Self::Apart(own))
    }
}

/// Whether everything is applied in the end.
fn run(seed: u64, planted: Option<Planted>) -> bool {
    let mut rng = SmallRng::seed_from_u64(seed);
    let log = log(&mut rng);
    let mut database = Database::new(log, planted);
    let mut leaders: Vec<_> = (0..LEADERS).map(|_| Leader::Away).collect();
    let mut holders: Vec<_> = (0..PARTITIONS * HOLDERS).map(|_| Holder::Away).collect();
    for step in 0..20_000 {
        if database.is_done() {
            return true;
        }
        // In the end nobody dies any more, and one of each is left.
        let calm = step > 2_000;
        let who = rng.random_range(0..LEADERS + holders.len());
        let dies = !calm && rng.random_ratio(1, 40);
        if who < LEADERS {
            let who = if calm { 0 } else { who };
            if dies {
                leaders[who] = Leader::Away;
            } else {
                leaders[who].step(&mut database, &mut rng);
            }
        } else {
            let who = who - LEADERS;
            let who = if calm { who % PARTITIONS } else { who };
            if dies {
                holders[who] = Holder::Away;
            } else {
                holders[who].step(who % PARTITIONS, &mut database);
            }
        }
    }
    false
}

#[test]
fn everything_is_applied_once_and_on_its_side_of_what_concerns_all() {
    for seed in 0..3_000 {
        println!("seed {seed}");
        assert!(run(seed, None), "seed {seed} does not get to its end");
    }
}

#[test]
fn what_each_step_is_for_is_seen_where_it_is_left_out() {
    for planted in [
        Planted::LooksFirst,
        Planted::ForgetsFence,
        Planted::OnlyReads,
        Planted::CallsLate,
        Planted::PassesAlone,
        Planted::AnyGeneration,
    ] {
        let seen = (0..3_000)
            .any(|seed| !std::panic::catch_unwind(|| run(seed, Some(planted))).unwrap_or(false));
        assert!(seen, "{planted:?} is not seen");
    }
}
