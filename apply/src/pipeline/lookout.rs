//! What ends a stop without a word to the pipeline: a snapshot of a later epoch.
//!
//! It replaces whatever came before it, so what the pipeline stopped at no longer matters: it goes
//! on there. Somebody has asked for it (`tailwater resync`), perhaps for that very reason: a table
//! that changed its definition, a record that cannot be read, a gap in the log.

use std::sync::Arc;
use std::time::Duration;

use tailwater_change::{Epoch, Place};
use tailwater_kafka::Offset;

use super::intake::Intake;
use super::schemas::{Meaning, Schemas};
use super::{ChangeLog, Error, LogIdentity, PipelineConfig};
use crate::{Item, PartBounds, Position, Progress, Resume, SchemaUse};

/// Where a session stands: what to look behind if it cannot go on.
#[derive(Debug, Clone)]
pub(super) struct Stand {
    pub(super) log: LogIdentity,
    /// Behind what is applied, by the partition's number.
    pub(super) at: Vec<Position>,
    pub(super) resume: Resume,
    /// Snapshots of this epoch, and of those before it, are known.
    pub(super) epoch: Epoch,
}

/// A snapshot that supersedes what is before it.
#[derive(Debug, Clone)]
pub(super) struct Superseded {
    pub(super) log: LogIdentity,
    /// The records with which it begins, by the partition's number, and whose batches count from
    /// there on.
    pub(super) at: Vec<Position>,
    /// Whom that writer reads.
    pub(super) server: Option<String>,
    pub(super) snapshot: Place,
}

impl Superseded {
    /// Where it begins in the first partition.
    pub(super) fn from(&self) -> Offset {
        self.at.first().map_or(Offset::ZERO, |first| first.next_offset)
    }

    /// Whether it is still to come: a commit whose outcome was unknown may have passed its begin.
    pub(super) fn is_ahead(&self, progress: &Progress, log: &LogIdentity) -> bool {
        let read = (&progress.cluster_id, &progress.topic_id) == (&log.cluster_id, &log.topic_id);
        self.log == *log && !(read && progress.next_offset > self.from().get())
    }
}

/// Reads on behind a stop.
pub(super) struct Lookout {
    log: Arc<dyn ChangeLog>,
    stand: Stand,
    bounds: PartBounds,
    intake: Intake,
    server: Option<String>,
}

/// The record before this one: in every partition a snapshot begins with a record of its own.
fn before(position: Position) -> Position {
    Position { next_offset: Offset::new(position.next_offset.get() - 1), ..position }
}

/// What is read at once: markers are looked for, rows are passed over.
const PREFETCH_BYTES: usize = 1 << 20;

/// How often a log that cannot be read is tried again: a person is looked for, too.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

impl Lookout {
    pub(super) fn new(log: &Arc<dyn ChangeLog>, config: &PipelineConfig, stand: Stand) -> Self {
        Self::at(Arc::clone(log), config.part_bounds(), stand)
    }

    fn at(log: Arc<dyn ChangeLog>, bounds: PartBounds, stand: Stand) -> Self {
        Self {
            intake: Intake::new(&*log, stand.resume, &stand.at, PREFETCH_BYTES, bounds),
            server: None,
            log,
            bounds,
            stand,
        }
    }

    /// Waits until there is one. Cancel-safe.
    pub(super) async fn found(&mut self, schemas: &mut Schemas) -> Superseded {
        loop {
            match self.look(schemas).await {
                Ok(superseded) => return superseded,
                Err(error) => {
                    tracing::debug!(error = error.reason(), "cannot look behind the stop");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    if matches!(error, Error::OffsetOutOfRange { .. })
                        && let Ok(starts) = self.log.start().await
                    {
                        for (position, start) in self.stand.at.iter_mut().zip(starts) {
                            position.next_offset = position.next_offset.max(start);
                        }
                    }
                    *self = Self::at(Arc::clone(&self.log), self.bounds, self.stand.clone());
                }
            }
        }
    }

    async fn look(&mut self, schemas: &mut Schemas) -> Result<Superseded, Error> {
        loop {
            match self.intake.next_item() {
                Ok(None) => self.intake.read().await?,
                Ok(Some(Item::Schema(id))) => {
                    let usage = match schemas.get(id).await? {
                        Meaning::Control => SchemaUse::Control,
                        Meaning::Table(_) => SchemaUse::Ignored,
                    };
                    self.intake.assembler.learn(id, usage);
                }
                Ok(Some(Item::Opened { server })) => self.server = Some(server),
                Ok(Some(Item::SnapshotBegin { snapshot, mark }))
                    if snapshot.epoch > self.stand.epoch =>
                {
                    return Ok(Superseded {
                        log: self.stand.log.clone(),
                        at: mark.positions().map(before).collect(),
                        server: self.server.clone(),
                        snapshot,
                    });
                }
                Ok(Some(_)) => {}
                // Perhaps the very record that the pipeline stopped at: reading goes on behind it.
                Err(error) => tracing::debug!(%error, "passed over on the way to a snapshot"),
            }
        }
    }
}
