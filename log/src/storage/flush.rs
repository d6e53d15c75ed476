//! Writing what waits, flushing it, and only then saying so.
//!
//! One round takes everything that waits in a partition: one write per segment, one flush, however
//! many producers are behind it. While it runs the next round's batches gather.
//!
//! What a failure means:
//! - **No space on write**, or no file or memory for the next segment: what was written of the
//!   round's last part is cut off again, everything not yet written is taken back (its producers
//!   hear a retriable storage error and their sequence numbers begin again where the file ends),
//!   and the partition goes on. Nothing acknowledged is touched.
//! - **A flush fails**, or anything else: the partition goes offline. The system may have dropped
//!   the pages, and a second flush would report success without them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tailwater_kafka::Offset;

use crate::Error;
use crate::config::FlushPolicy;
use crate::coordinator;
use crate::producers::{ProducerBatch, ProducerStates};
use crate::replica::Event;
use crate::storage::disk::{self, DiskFile};
use crate::storage::index::SegmentIndex;
use crate::storage::partition::{Acks, Files, NotKept, Online, Partition, Pending, Stopped, lock};
use crate::storage::segment::{self, ActiveSegment, Kind, SealedSegment};

/// Producer snapshots kept: the newest, and one more in case it is damaged.
const KEPT_SNAPSHOTS: usize = 2;

impl Partition {
    /// Writes and flushes everything that waits. Returns whether more came meanwhile.
    pub(crate) fn write_round(&self) -> bool {
        let mut files = lock(&self.files);
        self.round(&mut files);
        drop(files);
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return false };
        online.scheduled = online.has_work();
        online.scheduled
    }

    /// Flushes what was written under a policy that does not flush before acknowledging, makes the
    /// `flushed` file durable, and keeps to the share of memory for recent batches.
    pub(crate) fn sync_in_background(&self) {
        let mut files = lock(&self.files);
        let outcome = match self.shared.config.flush {
            FlushPolicy::Interval(_) => self.flush_written(&mut files),
            FlushPolicy::Always | FlushPolicy::Never => Ok(()),
        };
        let outcome = outcome.and_then(|()| match &mut files.flushed {
            Some(flushed) => flushed.sync(),
            None => Ok(()),
        });
        if let Ok(online) = self.lock_state().online() {
            // Every new partition makes the shares smaller, also of those that get nothing new.
            online.tail.trim(self.shared.tail_share());
        }
        if let Err(error) = outcome {
            self.stop(Stopped::Offline(error.full_text()));
        }
    }

    /// Closes the active segment and begins the next, if there is anything in it.
    ///
    /// # Errors
    /// Without space, files or memory the active segment stays as it is. After any other error the
    /// partition is offline.
    pub(super) fn roll(&self, files: &mut Files) -> Result<(), Error> {
        // Flushed whatever the policy: only the last segment may have an unflushed tail.
        self.flush_written(files)?;
        self.expire_producers(self.shared.config.clock.now_ms());
        let (active, end, producers) = {
            let mut state = self.lock_state();
            let Ok(online) = state.online() else { return Err(Error::Closed) };
            if online.active.size == 0 {
                return Ok(());
            }
            (online.active.clone(), online.written_end, online.producers_written.clone())
        };
        self.seal(&active, end, &producers);
        let path = segment::path(&self.folder, end, Kind::Log);
        let file = self.create_segment(&path).inspect_err(|error| {
            if !error.passes() {
                self.stop(Stopped::Offline(error.full_text()));
            }
        })?;
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return Err(Error::Closed) };
        let size = 0;
        let next = ActiveSegment {
            base: end,
            path,
            file,
            size,
            index: SegmentIndex::new(end),
            began_ms: None,
            written_ms: self.shared.config.clock.now_ms(),
        };
        let sealed = std::mem::replace(&mut online.active, next);
        online.sealed.push(SealedSegment {
            base: sealed.base,
            end,
            size: sealed.size,
            max_timestamp: sealed.index.max_timestamp(),
            written_ms: sealed.written_ms,
        });
        Ok(())
    }

    /// Makes an empty segment whose name is on the disk, or none: one that nobody knows of would
    /// stand inside of what the segment before it goes on to hold.
    fn create_segment(&self, path: &Path) -> Result<Arc<dyn DiskFile>, Error> {
        let disk = &self.shared.config.disk;
        let created = disk.create(path).map_err(Error::io("create", path));
        let made = created.and_then(|file| disk::sync_folder(&**disk, &self.folder).map(|()| file));
        if made.is_err() {
            disk::remove_file(path).inspect_err(|error| {
                self.stop(Stopped::Offline(error.full_text()));
            })?;
        }
        made
    }

    /// Writes index and producer snapshot of a segment that ends with `end`. Both can be made again
    /// from segments, so a full disk is no reason to stop.
    pub(super) fn seal(&self, active: &ActiveSegment, end: Offset, producers: &ProducerStates) {
        let index = segment::path(&self.folder, active.base, Kind::Index);
        let snapshot = segment::path(&self.folder, end, Kind::Producers);
        let written = active
            .index
            .write(&index, active.size, end)
            .and_then(|()| disk::replace_cache_file(&snapshot, &producers.encode()))
            .and_then(|()| self.remove_old_snapshots());
        if let Err(error) = written {
            tracing::warn!(
                topic = %self.name.topic,
                partition = %self.name.partition,
                error = %error.full_text(),
                "index or producer snapshot not written; the next start rebuilds them"
            );
        }
    }

    fn remove_old_snapshots(&self) -> Result<(), Error> {
        let snapshots = segment::list(&self.folder, Kind::Producers)?;
        let old = snapshots.len().saturating_sub(KEPT_SNAPSHOTS);
        for offset in &snapshots[..old] {
            disk::remove_file(&segment::path(&self.folder, *offset, Kind::Producers))?;
        }
        Ok(())
    }

    pub(super) fn round(&self, files: &mut Files) {
        let batches: Vec<Pending> = match self.lock_state().online() {
            Ok(online) => online.pending.drain(..).collect(),
            Err(_) => return,
        };
        let mut rest = &batches[..];
        let mut write = || self.keep_epochs(files).and_then(|()| self.write(files, &mut rest));
        let written = if coordinator::is_internal(&self.name.topic) {
            // Offsets that cannot be committed would hold back what makes room on a full disk.
            self.shared.reserve.spend(write)
        } else {
            write()
        };
        let outcome = match written {
            Err(error) if error.passes() => {
                self.take_back(&batches, &error);
                Ok(())
            }
            other => other,
        };
        let outcome = outcome.and_then(|()| match self.shared.config.flush {
            FlushPolicy::Always => self.flush_written(files),
            FlushPolicy::Interval(_) | FlushPolicy::Never => Ok(()),
        });
        match outcome {
            Ok(()) => {
                self.note_durable();
                self.begin_epoch(files);
            }
            Err(error) => self.stop(Stopped::Offline(error.full_text())),
        }
    }

    /// Writes `rest` from its front; what is left of it is not written.
    fn write(&self, files: &mut Files, rest: &mut &[Pending]) -> Result<(), Error> {
        while let Some(first) = rest.first() {
            let active = self.active_with_room_for(files, first)?;
            let fitting = self.fitting(&active, rest);
            let (now, later) = rest.split_at(fitting);
            let parts: Vec<Bytes> =
                now.iter().map(|pending| pending.batch.bytes().clone()).collect();
            if let Err(error) = active.file.write_all_at(&parts, active.size) {
                active.file.truncate(active.size).map_err(|cut| {
                    // No NoSpace: with half a batch behind it the partition cannot go on.
                    Error::Io { operation: "cut", path: active.path.clone(), source: cut }
                })?;
                return Err(Error::io("write", &active.path)(error));
            }
            self.note_written(now);
            *rest = later;
        }
        Ok(())
    }

    fn active_with_room_for(
        &self,
        files: &mut Files,
        next: &Pending,
    ) -> Result<ActiveSegment, Error> {
        let active = self.active()?;
        if active.size == 0 || self.fitting(&active, std::slice::from_ref(next)) > 0 {
            return Ok(active);
        }
        self.roll(files)?;
        self.active()
    }

    fn active(&self) -> Result<ActiveSegment, Error> {
        self.lock_state().online().map(|online| online.active.clone()).map_err(|_| Error::Closed)
    }

    /// How many of `batches` the segment still takes; an empty one takes any first batch.
    fn fitting(&self, active: &ActiveSegment, batches: &[Pending]) -> usize {
        let now = self.shared.config.clock.now_ms();
        let topic = self.topic_config();
        let age = i64::try_from(topic.segment_age.as_millis()).unwrap_or(i64::MAX);
        if active.began_ms.is_some_and(|began| now.saturating_sub(began) >= age) {
            return 0;
        }
        let mut size = active.size;
        let mut count = 0;
        for pending in batches {
            let batch = &pending.batch;
            size += batch.bytes().len() as u64;
            let relative = batch.last_offset().get() - active.base.get();
            let fits = size <= topic.segment_bytes && relative <= i64::from(i32::MAX);
            if !fits && (count > 0 || active.size > 0) {
                break;
            }
            count += 1;
        }
        count
    }

    fn note_written(&self, batches: &[Pending]) {
        let now = self.shared.config.clock.now_ms();
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return };
        for Pending { batch, .. } in batches {
            let active = &mut online.active;
            active.index.note(batch.base_offset(), active.size, batch.max_timestamp());
            active.size += batch.bytes().len() as u64;
            active.began_ms.get_or_insert(now);
            active.written_ms = now;
            online.written_end = batch.next_offset();
            if let Some(producer) = ProducerBatch::of(batch.header()) {
                online.producers_written.record(
                    &producer,
                    batch.base_offset(),
                    batch.last_offset(),
                    now,
                );
            }
        }
        // While it is flushed here, it is copied there.
        state.wake_followers();
    }

    /// Flushes everything written, and notes how far. A failure takes the partition offline.
    pub(super) fn flush_written(&self, files: &mut Files) -> Result<(), Error> {
        let (active, written_end) = match self.lock_state().online() {
            Ok(online) => (online.active.clone(), online.written_end),
            Err(_) => return Ok(()),
        };
        if written_end == files.flushed_end {
            return Ok(());
        }
        if let Err(source) = active.file.sync() {
            // What is on the disk is unknown from here on. Not NoSpace either: nothing to retry.
            let error = Error::Io { operation: "flush", path: active.path.clone(), source };
            let reason = error.full_text();
            let remedy = "nothing was acknowledged since; restart the node when the disk is sound";
            self.stop(Stopped::Offline(format!("{reason}; {remedy}")));
            return Err(error);
        }
        files.flushed_end = written_end;
        match &mut files.flushed {
            Some(flushed) => flushed.write(written_end),
            None => Ok(()),
        }
    }

    /// Notes leader epochs that come with records before the records are written: what a crash
    /// leaves is of the epoch that the file says. A leader with another history would send its
    /// followers back to the epoch before, for ever. So too with one more: an epoch that began here
    /// without a record, where records of an older one came after all.
    fn keep_epochs(&self, files: &mut Files) -> Result<(), Error> {
        let description = match self.lock_state().online() {
            Ok(online) => {
                online.epochs.forget_before(online.start);
                if online.epochs == files.described {
                    return Ok(());
                }
                self.description(online, online.start)
            }
            Err(_) => return Ok(()),
        };
        self.describe(files, description)
    }

    /// Everything written counts from now on, here and for the high watermark.
    fn note_durable(&self) {
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return };
        if online.durable_end == online.written_end {
            return;
        }
        online.durable_end = online.written_end;
        online.acknowledge_kept(Acks::Leader);
        if let Some(fetcher) = &state.fetcher {
            fetcher.notify_one();
        }
        state.tell(self, Event::Durable);
    }

    /// Notes the epoch in which this replica is to lead; then it leads.
    fn begin_epoch(&self, files: &mut Files) {
        let (leader_epoch, description) = {
            let mut state = self.lock_state();
            let starts = state.replica.starts();
            let Ok(online) = state.online() else { return };
            let Some(leader_epoch) = online.beginning.take() else { return };
            // Another assignment may have come since; and what came before it must be written.
            if starts != Some(leader_epoch) || !online.pending.is_empty() {
                return;
            }
            if let Err(falls) = online.epochs.begin(leader_epoch, online.end) {
                drop(state);
                return self.stop(Stopped::Offline(falls.to_string()));
            }
            (leader_epoch, self.description(online, online.start))
        };
        let noted = self.flush_written(files).and_then(|()| self.describe(files, description));
        if let Err(error) = noted {
            return self.stop(Stopped::Offline(error.full_text()));
        }
        self.lock_state().tell(self, Event::EpochBegun { leader_epoch });
    }

    /// Makes as if the batches that are not written had never come.
    fn take_back(&self, round: &[Pending], error: &Error) {
        let text = error.full_text();
        tracing::warn!(
            topic = %self.name.topic,
            partition = %self.name.partition,
            error = text,
            "batches refused"
        );
        let mut state = self.lock_state();
        let Ok(online) = state.online() else { return };
        let written_end = online.written_end;
        let mut producers = online.producers_written.clone();
        let dropped: Vec<Pending> = online.pending.drain(..).collect();
        for Pending { batch, .. } in round.iter().chain(&dropped) {
            if batch.base_offset() >= written_end
                && let Some(producer) = ProducerBatch::of(batch.header())
            {
                producers.expect_again(&producer, self.shared.config.clock.now_ms());
            }
        }
        online.producers = producers;
        online.end = written_end;
        online.tail.truncate(written_end);
        online.refuse_from(written_end, &NotKept::NoSpace(text));
    }
}

impl Online {
    /// The end of what is kept as `acks` says.
    pub(super) fn kept_end(&self, acks: Acks) -> Offset {
        match acks {
            Acks::Leader => self.durable_end,
            Acks::All => self.high_watermark,
        }
    }

    /// Moves the high watermark up to `to`, and acknowledges what is below; whether it moved.
    pub(super) fn advance_high_watermark(&mut self, to: Offset) -> bool {
        if to <= self.high_watermark {
            return false;
        }
        self.high_watermark = to;
        if to == self.written_end {
            self.readable_max_timestamp = self.written_max_timestamp();
        }
        self.acknowledge_kept(Acks::All);
        true
    }

    fn acknowledge_kept(&mut self, acks: Acks) {
        let below = self.kept_end(acks);
        for index in (0..self.acknowledgements.len()).rev() {
            let awaited = &self.acknowledgements[index];
            if awaited.acks == acks && awaited.last < below {
                let awaited = self.acknowledgements.swap_remove(index);
                // The request may be gone; then nobody needs to know.
                drop(awaited.tell.send(Ok(())));
            }
        }
    }

    /// Tells everyone who waits for something at or after `end` that it is not kept.
    pub(super) fn refuse_from(&mut self, end: Offset, why: &NotKept) {
        for index in (0..self.acknowledgements.len()).rev() {
            if self.acknowledgements[index].last >= end {
                let awaited = self.acknowledgements.swap_remove(index);
                drop(awaited.tell.send(Err(why.clone())));
            }
        }
    }
}
