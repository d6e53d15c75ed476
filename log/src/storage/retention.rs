//! Letting go of old segments, whole and from the front, and closing down.
//!
//! A segment goes when it is too old or the partition too large, it is below the high watermark,
//! and no attached pipeline still needs it; when the node holds more than it may
//! ([`Config::retention_limit`](crate::Config::retention_limit)), also if one does, but no more
//! than brings it back under the limit. The new first offset is durable before a file is
//! removed, so that a crash in between leaves nothing that looks like a lost segment.

use std::time::Duration;

use tailwater_kafka::Offset;

use crate::Error;
use crate::storage::checkpoint::PartitionDescription;
use crate::storage::disk;
use crate::storage::partition::{Files, Online, Partition, Stopped, lock};
use crate::storage::segment::{self, Kind, SealedSegment};

/// What keeps a partition from letting go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing: no attached pipeline reads it.
    Nothing,
    /// Everything from this offset on is still needed.
    From(Offset),
}

impl Hold {
    fn allows(self, segment_end: Offset) -> bool {
        match self {
            Self::Nothing => true,
            Self::From(needed) => segment_end <= needed,
        }
    }
}

impl Partition {
    /// Removes what is no longer kept; returns how many bytes that freed. Blocks.
    ///
    /// `excess_bytes` is how much more the node holds than it may: so much goes despite `hold`.
    ///
    /// # Errors
    /// The system's. If the new first offset could not be noted, all stays as it is. A file that
    /// could not be removed is not readable any more, and is tried again next time.
    pub(crate) fn enforce_retention(
        &self,
        now_ms: i64,
        hold: Hold,
        excess_bytes: u64,
    ) -> Result<u64, Error> {
        let topic = self.topic_config();
        if !topic.delete {
            return Ok(0);
        }
        let mut files = lock(&self.files);
        if self.leads().is_none() {
            let followed = self.follow_start(&mut files);
            let removed = self.remove(&mut files.unremoved);
            return followed.and(removed);
        }
        let expire_before = topic.retention.map(|kept| now_ms.saturating_sub(millis(kept)));
        if self.active_is_expired(expire_before, hold, excess_bytes) {
            self.shared.reserve.spend(|| self.roll(&mut files))?;
        }
        let released = self.release(&mut files, expire_before, hold, excess_bytes);
        let removed = self.remove(&mut files.unremoved);
        released.and(removed)
    }

    /// A follower keeps what its leader keeps.
    fn follow_start(&self, files: &mut Files) -> Result<(), Error> {
        let (gone, start, description) = {
            let mut state = self.lock_state();
            let Ok(online) = state.online() else { return Ok(()) };
            let start = online.leader_start.min(online.high_watermark);
            if start <= online.start {
                return Ok(());
            }
            let count = online.sealed.partition_point(|segment| segment.end <= start);
            (online.sealed[..count].to_vec(), start, self.description(online, start))
        };
        self.shared.reserve.spend(|| self.describe(files, description.clone()))?;
        if let Ok(online) = self.lock_state().online() {
            online.start = start;
            online.epochs.forget_before(start);
            online.sealed.drain(..gone.len());
        }
        files.unremoved.extend(gone);
        Ok(())
    }

    /// Moves the first offset behind what is no longer kept, and leaves that to be removed.
    fn release(
        &self,
        files: &mut Files,
        expire_before: Option<i64>,
        hold: Hold,
        excess_bytes: u64,
    ) -> Result<(), Error> {
        let (gone, start, description) = {
            let mut state = self.lock_state();
            let Ok(online) = state.online() else { return Ok(()) };
            let count = self.expired_count(online, expire_before, hold, excess_bytes);
            if count == 0 {
                return Ok(());
            }
            let start = online.sealed[count - 1].end;
            (online.sealed[..count].to_vec(), start, self.description(online, start))
        };
        self.shared.reserve.spend(|| self.describe(files, description.clone()))?;
        if let Ok(online) = self.lock_state().online() {
            online.start = online.start.max(start);
            online.epochs.forget_before(start);
            online.sealed.drain(..gone.len());
        }
        tracing::info!(
            topic = %self.name.topic,
            partition = %self.name.partition,
            segments = gone.len(),
            log_start_offset = %start,
            "removed segments past their retention"
        );
        files.unremoved.extend(gone);
        Ok(())
    }

    /// Forgets producers that have been silent for longer than they are remembered.
    pub(crate) fn expire_producers(&self, now_ms: i64) {
        let before = now_ms.saturating_sub(millis(self.shared.config.producer_expiration));
        if let Ok(online) = self.lock_state().online() {
            online.producers_written.expire(before);
            online.producers.expire(before);
        }
    }

    /// Writes and flushes what waits, leaves seals for a fast start, and serves nobody any more.
    pub(crate) fn close(&self) {
        let mut files = lock(&self.files);
        while self.lock_state().online().is_ok_and(|online| !online.pending.is_empty()) {
            self.round(&mut files);
        }
        match self.flush_written(&mut files) {
            Ok(()) => self.seal_active(&mut files),
            Err(error) => self.stop(Stopped::Offline(error.full_text())),
        }
        self.stop(Stopped::Closed);
        (files.flushed, files.refused) = (None, false);
    }

    /// Serves nobody any more; what waits is given up. The files are the caller's to remove.
    pub(crate) fn abandon(&self) {
        let mut files = lock(&self.files);
        self.stop(Stopped::Deleted);
        (files.flushed, files.refused) = (None, false);
    }

    fn seal_active(&self, files: &mut Files) {
        let sealable = match self.lock_state().online() {
            Ok(online) => {
                (online.active.clone(), online.written_end, online.producers_written.clone())
            }
            Err(_) => return,
        };
        let (active, end, producers) = sealable;
        self.seal(&active, end, &producers);
        if let Some(flushed) = &mut files.flushed
            && let Err(error) = flushed.sync()
        {
            tracing::warn!(error = %error.full_text(), "flush mark not flushed");
        }
    }

    /// Says it in `partition.json`, durably.
    pub(super) fn describe(
        &self,
        files: &mut Files,
        description: PartitionDescription,
    ) -> Result<(), Error> {
        description.write(&self.folder)?;
        files.described = description.epochs;
        Ok(())
    }

    pub(super) fn description(&self, online: &Online, start: Offset) -> PartitionDescription {
        let mut epochs = online.epochs.clone();
        epochs.forget_before(start);
        PartitionDescription {
            topic_id: self.name.topic_id,
            partition: self.name.partition.get(),
            start,
            epochs,
        }
    }

    /// Whether all of the active segment is too old: it is closed then, so that it can go too.
    fn active_is_expired(&self, expire_before: Option<i64>, hold: Hold, excess_bytes: u64) -> bool {
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return false };
        online.active.size > 0
            && online.written_end == online.high_watermark
            && is_too_old(
                online.active.index.max_timestamp(),
                online.active.written_ms,
                expire_before,
            )
            && (hold.allows(online.high_watermark) || excess_bytes > 0)
    }

    fn expired_count(
        &self,
        online: &Online,
        expire_before: Option<i64>,
        hold: Hold,
        mut excess_bytes: u64,
    ) -> usize {
        let retention_bytes = self.topic_config().retention_bytes;
        let mut size = online.size();
        let mut count = 0;
        for segment in &online.sealed {
            let too_old = is_too_old(segment.max_timestamp, segment.written_ms, expire_before);
            let too_large = retention_bytes.is_some_and(|kept| size - segment.size >= kept);
            let readable = segment.end <= online.high_watermark;
            if !(too_old || too_large) || !readable {
                break;
            }
            if !hold.allows(segment.end) {
                if excess_bytes == 0 {
                    break;
                }
                tracing::warn!(
                    topic = %self.name.topic,
                    partition = %self.name.partition,
                    offset = %segment.base,
                    "retention_limit is reached: removing what a pipeline has not applied"
                );
            }
            excess_bytes = excess_bytes.saturating_sub(segment.size);
            size -= segment.size;
            count += 1;
        }
        count
    }

    /// Removes what it can of `segments`; returns how many bytes that freed.
    fn remove(&self, segments: &mut Vec<SealedSegment>) -> Result<u64, Error> {
        let mut freed = 0;
        let mut outcome = Ok(());
        segments.retain(|segment| {
            let removed = [Kind::Log, Kind::Index].into_iter().try_for_each(|kind| {
                disk::remove_file(&segment::path(&self.folder, segment.base, kind))
            });
            let left = removed.is_err();
            if !left {
                freed += segment.size;
            }
            if outcome.is_ok() {
                outcome = removed;
            }
            left
        });
        outcome.map(|()| freed)
    }
}

/// Records are as old as their times say, and at least as old as their writing: one from the future
/// or without a time is not kept for good.
fn is_too_old(max_timestamp: i64, written_ms: i64, expire_before: Option<i64>) -> bool {
    let newest = if max_timestamp < 0 { written_ms } else { max_timestamp.min(written_ms) };
    expire_before.is_some_and(|before| newest < before)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
