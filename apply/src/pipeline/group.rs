//! The consumer group's offsets: what holds the log's retention back until we have applied it.
//!
//! Nothing reads it to resume; the target's progress does that. So it may lag and fail without
//! harm, and is committed beside the loop, about once a second.

use std::sync::Arc;
use std::time::Duration;

use tailwater_kafka::Offset;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ChangeLog;

/// Commits the group's offset now and then.
pub(super) struct Group {
    log: Arc<dyn ChangeLog>,
    name: String,
    /// By the partition's number.
    wanted: Vec<Offset>,
    committed: Option<Vec<Offset>>,
    due: Instant,
    running: JoinSet<Option<Vec<Offset>>>,
}

/// Often enough that the log forgets in time, seldom enough to cost nothing.
const INTERVAL: Duration = Duration::from_secs(1);

/// At shutdown the group's offset is worth this long a wait and no longer.
const LAST_COMMIT: Duration = Duration::from_secs(2);

impl Group {
    /// The group of `pipeline`, which has applied everything below `applied`.
    pub(super) fn new(log: Arc<dyn ChangeLog>, pipeline: &str, applied: Vec<Offset>) -> Self {
        let mut group = Self {
            log,
            name: format!("tailwater.{pipeline}"),
            wanted: applied,
            committed: None,
            due: Instant::now(),
            running: JoinSet::new(),
        };
        group.commit_if_due();
        group
    }

    /// Everything below `applied` is applied.
    pub(super) fn note(&mut self, applied: Vec<Offset>) {
        self.wanted = applied;
        self.commit_if_due();
    }

    /// Waits until there is something to commit, and starts it. Never returns while there is
    /// nothing. Cancel-safe.
    pub(super) async fn tick(&mut self) {
        if let Some(done) = self.running.join_next().await {
            self.settle(done.ok().flatten());
        }
        if self.is_committed() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep_until(self.due).await;
        self.commit_if_due();
    }

    /// A last commit.
    pub(super) async fn close(mut self) {
        self.running.shutdown().await;
        if self.is_committed() {
            return;
        }
        let wanted = by_partition(&self.wanted);
        let commit = self.log.commit(&self.name, &wanted);
        if let Ok(Err(error)) = tokio::time::timeout(LAST_COMMIT, commit).await {
            tracing::warn!(group = self.name, error = error.reason(), "group offset not committed");
        }
    }

    fn commit_if_due(&mut self) {
        while let Some(done) = self.running.try_join_next() {
            self.settle(done.ok().flatten());
        }
        if !self.running.is_empty() || self.is_committed() || Instant::now() < self.due {
            return;
        }
        self.due = Instant::now() + INTERVAL;
        let (log, name, wanted) = (Arc::clone(&self.log), self.name.clone(), self.wanted.clone());
        self.running.spawn(async move {
            match log.commit(&name, &by_partition(&wanted)).await {
                Ok(()) => Some(wanted),
                Err(error) => {
                    tracing::warn!(
                        group = name,
                        error = error.reason(),
                        "group offset not committed: the log keeps more than it has to"
                    );
                    None
                }
            }
        });
    }

    fn is_committed(&self) -> bool {
        self.committed.as_ref() == Some(&self.wanted)
    }

    fn settle(&mut self, committed: Option<Vec<Offset>>) {
        if committed.is_some() {
            self.committed = committed;
        }
    }
}

fn by_partition(offsets: &[Offset]) -> Vec<(usize, Offset)> {
    offsets.iter().copied().enumerate().collect()
}
