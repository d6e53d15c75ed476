//! A first snapshot that breaks off, anywhere: finished tables stay, and at the end every consumer
//! has what the source has.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tailwater_capture::CaptureState;
use tailwater_change::TableSchema;
use tokio::task::JoinSet;

use crate::parts::{Copy, Parts, PartsSource, cascaded, table};
use crate::scenarios::{Running, World};
use crate::script::Script;

/// What one table of three rows says: its begin, its rows, its end.
const TABLE: usize = 5;

struct Run {
    world: World,
    parts: Arc<Parts>,
}

impl Run {
    async fn new(tables: Vec<TableSchema>) -> Self {
        let world = World::new(Script::new(Vec::new(), Vec::new())).await;
        Self { world, parts: Parts::new(tables) }
    }

    async fn of_three() -> Self {
        Self::new(["a", "b", "c"].map(table).into()).await
    }

    fn start(&self) -> Running {
        self.world.start_source(Arc::new(PartsSource(Arc::clone(&self.parts))))
    }

    /// Commits once more, waits until the log has that, and reads what the topic holds.
    async fn finish(&self, running: Running) -> Copy {
        running.is(CaptureState::Streaming).await;
        let last = {
            let mut inner = self.parts.inner();
            inner.commit_to_all();
            inner.now()
        };
        self.parts.news.notify_one();
        running.reaches(last).await;
        running.stop().await;
        let copy = self.world.copy().await;
        assert_eq!(copy.rows, self.parts.inner().rows());
        copy
    }

    /// Runs until it hangs where the script says.
    async fn hangs(&self, at: usize) -> Running {
        self.parts.inner().hangs_at = Some(at);
        let running = self.start();
        while self.parts.inner().steps < at {
            tokio::task::yield_now().await;
        }
        // What was finished by then is remembered a moment later.
        let tables = self.parts.inner().tables.clone();
        for table in tables[..(at - 1) / TABLE].iter().filter(|table| !table.changes_unlogged()) {
            let name = &table.table.name;
            while !self.world.state().await.contains(&format!("\"name\":\"{name}\"")) {
                tokio::task::yield_now().await;
            }
        }
        self.parts.inner().hangs_at = None;
        running
    }

    /// Whole snapshots, and rests.
    fn taken(&self) -> (usize, usize) {
        let inner = self.parts.inner();
        (inner.snapshots, inner.rests)
    }

    fn reads(&self) -> BTreeMap<String, usize> {
        self.parts.inner().reads.clone()
    }
}

async fn breaking(breaks: Vec<usize>, busy: bool) -> Run {
    let run = Run::of_three().await;
    {
        let mut inner = run.parts.inner();
        (inner.breaks, inner.busy) = (breaks.into_iter().collect(), busy);
    }
    let running = run.start();
    let copy = run.finish(running).await;
    assert!(run.parts.inner().breaks.is_empty());
    assert_eq!(copy.markers.last(), Some(&"end"));
    run
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_it_breaks_finished_tables_stay() {
    let mut runs = JoinSet::new();
    for (at, busy) in (1..=3 * TABLE + 1).flat_map(|at| [(at, false), (at, true)]) {
        runs.spawn(async move {
            let run = breaking(vec![at], busy).await;
            let finished = (at - 1) / TABLE;
            let copy = run.world.copy().await;
            let inner = run.parts.inner();
            let went_on = usize::from(finished > 0);
            assert_eq!((inner.snapshots, inner.rests), (2 - went_on, went_on), "broken at {at}");
            assert_eq!(copy.epoch, if finished > 0 { 1 } else { 2 });
            for name in ["a", "b", "c"].into_iter().take(finished) {
                assert_eq!(inner.reads[name], 3, "{name}, broken at {at}");
            }
            let markers: &[&str] = match (finished, busy) {
                (0, _) => &["begin", "begin", "end"],
                // Nothing has happened: it is the same snapshot.
                (_, false) => &["begin", "end"],
                (_, true) => &["begin", "cut", "rest", "end"],
            };
            assert_eq!(copy.markers, markers, "broken at {at}");
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

/// In the first part, while the stream catches up, in the second part, and in what comes of those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_breaks_again_and_again() {
    let mut runs = JoinSet::new();
    for seed in 0..40 {
        runs.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed);
            let first = random.random_range(TABLE + 1..3 * TABLE + 1);
            let mut breaks = vec![first];
            for _ in 0..random.random_range(1..4) {
                breaks.push(breaks[breaks.len() - 1] + random.random_range(1..8));
            }
            println!("seed {seed}: {breaks:?}");
            let run = breaking(breaks, seed % 4 > 0).await;
            assert_eq!(run.parts.inner().snapshots, 1, "seed {seed}");
            assert_eq!(run.reads()["a"], 3, "seed {seed}");
        });
    }
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_the_state_says_what_is_finished() {
    let run = Run::of_three().await;
    // In the third table.
    run.hangs(2 * TABLE + 2).await.kill().await;
    run.parts.inner().commit_to_all();
    let copy = run.finish(run.start()).await;
    assert_eq!(copy.markers, ["begin", "cut", "rest", "end"]);
    let reads = run.reads();
    assert_eq!((reads["a"], reads["b"]), (3, 3));
    assert_eq!(run.parts.inner().snapshots, 1);
    // And it is a source like any other then.
    run.finish(run.start()).await;
    assert_eq!(run.taken(), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_source_no_longer_has_begins_anew() {
    for void in [false, true] {
        let run = Run::of_three().await;
        run.hangs(2 * TABLE + 2).await.kill().await;
        {
            let mut inner = run.parts.inner();
            inner.commit_to_all();
            inner.lost = !void;
            inner.void = void.then(|| "a table was added".to_owned());
        }
        let copy = run.finish(run.start()).await;
        assert_eq!((copy.epoch, &*copy.markers), (2, &["begin", "begin", "end"][..]));
        assert_eq!(run.taken(), (2, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_gives_up_only_what_cannot_go_on() {
    for (at, releases) in [(2, 1), (TABLE + 2, 0)] {
        let run = Run::of_three().await;
        let running = run.hangs(at).await;
        running.handle.pause();
        running.is(CaptureState::Paused).await;
        assert_eq!(run.parts.inner().releases, releases);
        running.handle.resume();
        run.finish(running).await;
        assert_eq!(run.parts.inner().snapshots, 1 + releases);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resync_meanwhile_reads_everything_again() {
    let run = Run::of_three().await;
    let running = run.hangs(2 * TABLE + 2).await;
    let patience = crate::scenarios::PATIENCE;
    running.handle.resync(tailwater_change::Epoch::new(0), patience).await.unwrap();
    let copy = run.finish(running).await;
    assert_eq!((copy.epoch, run.taken()), (2, (2, 0)));
}

/// The planted bug of the tests around it: what the copy checks is not so where the stream and the
/// rest do not meet exactly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rest_that_is_not_exact_is_seen() {
    let run = Run::of_three().await;
    run.hangs(2 * TABLE + 2).await.kill().await;
    {
        let mut inner = run.parts.inner();
        inner.inexact = true;
        inner.commit_to_all();
        inner.commit_to_all();
    }
    let finished = tokio::spawn(async move { run.finish(run.start()).await }).await;
    let panic = finished.unwrap_err().into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("a second time"), "{text}");
}

/// A stream does not tell of cascades that the source hides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_whose_changes_are_hidden_is_read_to_the_end_or_again() {
    let run = Run::new(vec![table("a"), cascaded("b"), table("c")]).await;
    run.hangs(2 * TABLE + 2).await.kill().await;
    run.parts.inner().commit_to_all();
    run.finish(run.start()).await;
    let reads = run.reads();
    assert_eq!((reads["a"], reads["b"]), (3, 3 + 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_that_changes_meanwhile_stops() {
    let run = Run::of_three().await;
    run.hangs(2 * TABLE + 2).await.kill().await;
    {
        let mut inner = run.parts.inner();
        inner.commit_to_all();
        inner.ddl_behind = Some(inner.now());
        inner.commit_to_all();
    }
    let running = run.start();
    running.is(CaptureState::Stopped).await;
    let error = running.handle.status().error.unwrap();
    assert!(error.contains("public.c changed its definition: column c added"), "{error}");
    {
        // What the catalog then says.
        let mut inner = run.parts.inner();
        (inner.ddl_behind, inner.void) = (None, Some("the definition of c changed".into()));
        assert_eq!(inner.releases, 0);
    }
    running.handle.resume();
    let copy = run.finish(running).await;
    assert_eq!(copy.epoch, 2);
}
