//! The threads behind the table: customers who write, and readers who look at the target.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail};

use super::pairs::Pair;
use super::shop::{Customers, WHOLE};
use crate::clock::{Stop, now};
use crate::session::Session;

/// One statement batch per tick: often enough to look steady, rarely enough to cost little.
const TICK: Duration = Duration::from_millis(100);
/// Transactions of a tick over one round of them: business comes and goes.
const WAVE: [u64; 16] = [4, 5, 7, 10, 14, 18, 21, 23, 24, 23, 21, 18, 14, 10, 7, 5];
/// How long one step of the wave takes, in ticks.
const WAVE_STEP: usize = 15;
/// Every so often one transaction changes many rows, in ticks.
const CELEBRATION: usize = 150;
/// Looking costs the target two full scans.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A thread that goes on until all is stopped, and what it has counted.
#[derive(Debug)]
pub(crate) struct Worker {
    count: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Worker {
    /// Writes on `pair`'s source; counts changed rows.
    pub(crate) fn write(pair: &Pair, stop: &Stop) -> Result<Worker> {
        let session = Session::open(&pair.from.server, pair.from.database)?;
        Ok(Worker::spawn(stop, move |stop, count| write(session, stop, count)))
    }

    /// Looks at `pair`'s target for half a transaction; counts its looks.
    pub(crate) fn look(pair: &Pair, stop: &Stop) -> Result<Worker> {
        let session = Session::open(&pair.to.server, pair.to.database)?;
        let name = pair.name;
        Ok(Worker::spawn(stop, move |stop, count| look(name, session, stop, count)))
    }

    fn spawn(
        stop: &Stop,
        work: impl FnOnce(&Stop, &AtomicU64) -> Result<()> + Send + 'static,
    ) -> Worker {
        let count = Arc::new(AtomicU64::new(0));
        let (stop, counted) = (stop.clone(), Arc::clone(&count));
        let thread = thread::spawn(move || {
            let worked = work(&stop, &counted);
            // What ends one thread ends the demo: it says why when they are joined.
            stop.ask();
            worked
        });
        Worker { count, thread }
    }

    /// What it has counted so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Its end, after everything was stopped: what it counted, or why it failed.
    pub(crate) fn join(self) -> Result<u64> {
        match self.thread.join() {
            Ok(worked) => worked.map(|()| self.count.load(Ordering::Relaxed)),
            Err(_) => bail!("a thread of the demo panicked"),
        }
    }
}

fn write(mut session: Session, stop: &Stop, rows: &AtomicU64) -> Result<()> {
    let mut customers = Customers::new(1);
    let mut next = now();
    for tick in 1_usize.. {
        let mut sql = String::new();
        let mut changed = 0;
        for _ in 0..WAVE[tick / WAVE_STEP % WAVE.len()] {
            changed += customers.act(&mut sql);
        }
        if tick.is_multiple_of(CELEBRATION) {
            changed += customers.celebrate(&mut sql);
        }
        session.run(&sql)?;
        rows.fetch_add(changed, Ordering::Relaxed);
        // Never a burst to make up for what a busy machine could not take.
        next = (next + TICK).max(now());
        if stop.wait_until(next) {
            break;
        }
    }
    Ok(())
}

fn look(name: &str, mut session: Session, stop: &Stop, looks: &AtomicU64) -> Result<()> {
    while !stop.wait_until(now() + LOOK_INTERVAL) {
        let missing = session.value(WHOLE)?;
        if missing.bytes().any(|byte| (b'1'..=b'9').contains(&byte)) {
            bail!("{name}: a reader of the target saw half a transaction: {missing} is missing");
        }
        looks.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
