//! The entry log as openraft asks for it.
//!
//! The files are small and one flush answers what waits, so everything is done where it is asked
//! for: no thread, nothing that a simulation could not repeat.

use std::fmt::Debug;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use tokio::sync::watch;

use super::entry_log::EntryLog;
use super::patience::Patience;
use super::snapshot::Durable;
use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::Error;
use crate::storage::partition::lock;

/// A handle on the entry log: openraft's core writes, its replication reads.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    log: Arc<Mutex<EntryLog>>,
    patience: Patience,
    /// What the snapshot on disk stands for.
    snapshot: watch::Receiver<Durable>,
}

impl LogStore {
    pub(crate) fn new(
        log: EntryLog,
        patience: Patience,
        snapshot: watch::Receiver<Durable>,
    ) -> Self {
        Self { log: Arc::new(Mutex::new(log)), patience, snapshot }
    }

    async fn write<T>(
        &self,
        mut act: impl FnMut(&mut EntryLog) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.patience.insist(|| act(&mut lock(&self.log))).await
    }

    /// Waits until a snapshot that stands for the entries up to `through` is on the disk. openraft
    /// asks for a purge while the snapshot that it got from the leader may still be on its way
    /// there: a crash between the two would leave neither.
    async fn snapshot_through(&mut self, through: LogId) -> Result<(), StorageError> {
        let reached = |durable: &Durable| durable.last >= Some(through) || durable.failed.is_some();
        let outcome = tokio::select! {
            biased;
            outcome = self.snapshot.wait_for(reached) => outcome.map(|durable| durable.failed.clone()),
            () = self.patience.0.cancelled() => Ok(Some("the member is being closed".to_owned())),
        };
        match outcome {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(StorageIOError::write_logs(AnyError::error(reason)).into()),
            Err(closed) => Err(StorageIOError::write_logs(AnyError::new(&closed)).into()),
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(lock(&self.log).entries(half_open(&range)).cloned().collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(lock(&self.log).some_entries(start..end))
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let log = lock(&self.log);
        Ok(LogState { last_purged_log_id: log.purged(), last_log_id: log.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let saved = self.write(|log| log.save_vote(*vote)).await;
        saved.map_err(|error| StorageIOError::write_vote(cause(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(lock(&self.log).vote())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let appended = self.write(|log| log.append(entries.clone())).await;
        match appended {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => Err(StorageIOError::write_logs(cause(&error)).into()),
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let truncated = self.write(|log| log.truncate(log_id.index)).await;
        truncated.map_err(|error| StorageIOError::write_logs(cause(&error)).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.snapshot_through(log_id).await?;
        let purged = self.write(|log| log.purge(log_id)).await;
        purged.map_err(|error| StorageIOError::write_logs(cause(&error)).into())
    }
}

/// An error as openraft passes it on.
pub(crate) fn cause(error: &Error) -> AnyError {
    AnyError::error(error.full_text())
}
