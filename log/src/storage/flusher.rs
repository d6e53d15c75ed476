//! The threads that write and flush.
//!
//! Writing blocks, so it has threads of its own ([`Workers`] says where it has not). A partition with something to write stands in one
//! queue, at most once (its `scheduled` flag), so the queue is bounded by the number of partitions.
//! A thread takes it, does one round, and puts it at the end again if more came meanwhile: each
//! partition is written by one thread at a time, and many are flushed side by side.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::task::JoinSet;

use crate::Error;
use crate::storage::partition::{Partition, lock};
use crate::workers::{DiskTime, Workers};

/// A handle on the flush threads.
#[derive(Debug)]
pub(crate) struct Flusher {
    queue: Arc<Queue>,
    hands: Hands,
}

#[derive(Debug)]
enum Hands {
    Threads(Mutex<Vec<JoinHandle<()>>>),
    /// One task per partition in the queue.
    Tasks(Arc<dyn DiskTime>, Mutex<JoinSet<()>>),
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    partitions: VecDeque<Arc<Partition>>,
    stopping: bool,
}

impl Flusher {
    /// Starts `count` threads, if it is to be threads.
    ///
    /// # Errors
    /// If the system has no more threads.
    pub(crate) fn start(count: usize, workers: &Workers) -> Result<Self, Error> {
        let queue = Arc::new(Queue::default());
        if let Workers::Tasks(time) = workers {
            let hands = Hands::Tasks(Arc::clone(time), Mutex::default());
            return Ok(Self { queue, hands });
        }
        let flusher = Self { queue, hands: Hands::Threads(Mutex::default()) };
        for number in 0..count {
            let queue = Arc::clone(&flusher.queue);
            let thread = std::thread::Builder::new()
                .name(format!("log-flush-{number}"))
                .spawn(move || queue.work())
                .map_err(Error::io("start a thread for", std::path::Path::new("the log")))?;
            if let Hands::Threads(threads) = &flusher.hands {
                lock(threads).push(thread);
            }
        }
        Ok(flusher)
    }

    /// Has a partition written that [`Taken`](crate::storage::append::Taken) said is to be.
    pub(crate) fn schedule(&self, partition: &Arc<Partition>) {
        match &self.hands {
            Hands::Threads(_) => {
                lock(&self.queue.waiting).partitions.push_back(Arc::clone(partition));
                self.queue.changed.notify_one();
            }
            Hands::Tasks(time, tasks) => {
                let mut tasks = lock(tasks);
                while tasks.try_join_next().is_some() {}
                tasks.spawn(write_all(Arc::clone(partition), Arc::clone(time)));
            }
        }
    }

    /// Lets the threads finish what they are writing, and ends them. What still waits in the queue
    /// is left; closing each partition writes it. Blocks.
    ///
    /// # Errors
    /// If a thread had ended before by a panic.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        self.end_threads();
        let threads = match &self.hands {
            Hands::Threads(threads) => std::mem::take(&mut *lock(threads)),
            Hands::Tasks(_, tasks) => {
                lock(tasks).abort_all();
                Vec::new()
            }
        };
        let mut outcome = Ok(());
        for thread in threads {
            if thread.join().is_err() {
                outcome = Err(Error::TaskFailed);
            }
        }
        outcome
    }

    fn end_threads(&self) {
        lock(&self.queue.waiting).stopping = true;
        self.queue.changed.notify_all();
    }
}

impl Drop for Flusher {
    /// A log that is dropped without being closed is left like one whose process died.
    fn drop(&mut self) {
        self.end_threads();
    }
}

async fn write_all(partition: Arc<Partition>, time: Arc<dyn DiskTime>) {
    loop {
        tokio::time::sleep(time.next()).await;
        if partition.guard(Partition::write_round) != Some(true) {
            return;
        }
    }
}

impl Queue {
    fn work(&self) {
        while let Some(partition) = self.next() {
            if partition.guard(Partition::write_round) == Some(true) {
                lock(&self.waiting).partitions.push_back(partition);
                self.changed.notify_one();
            }
        }
    }

    fn next(&self) -> Option<Arc<Partition>> {
        let mut waiting = lock(&self.waiting);
        loop {
            if waiting.stopping {
                return None;
            }
            if let Some(partition) = waiting.partitions.pop_front() {
                return Some(partition);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
