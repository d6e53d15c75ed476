//! The entries of the metadata log on disk, and the vote: what a member must never forget.
//!
//! One file holds all of it, as the history of what was done, so that a vote and the entries around
//! it are ordered by one flush. An append is one frame: whole or not there. Everything is in
//! memory as well, which is little: what a snapshot stands for is purged.
//!
//! The file is `entries.log`, made of frames ([`crate::storage::frames`], magic `TWRL`, version 1).
//! A frame is a JSON list of steps; each is an object with one key:
//!
//! | step | value | meaning |
//! |---|---|---|
//! | `vote` | openraft's `Vote` | the newest promise to a leader |
//! | `entry` | openraft's `Entry` with the list of our records as data | comes after the one before |
//! | `truncate` | `{"from": index}` | entries from there on, inclusive, are no more |
//! | `purge` | `{"through": log id}` | entries up to there, inclusive, are in a snapshot |

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::types::{Entry, LogId, Vote};
use crate::Error;
use crate::storage::Disk;
use crate::storage::frames::{Format, FrameFile};

const FORMAT: Format = Format { magic: b"TWRL", version: 1, name: "log of metadata entries" };

/// History that is kept before the file is written anew: small enough to be read in no time.
const HISTORY_BYTES: u64 = 1 << 20;

/// Entries read at once, in bytes on disk: a message between members stays of moderate size.
const READ_BYTES: usize = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Step {
    Vote(Vote),
    Entry(Entry),
    Truncate { from: u64 },
    Purge { through: LogId },
}

/// The log of one member, with its one writer.
#[derive(Debug)]
pub(crate) struct EntryLog {
    file: FrameFile,
    kept: Kept,
}

impl EntryLog {
    /// Opens the log at `path`, or makes an empty one.
    ///
    /// # Errors
    /// The system's, [`Error::Corrupt`] and [`Error::FormatVersion`].
    pub(crate) fn open(path: &Path, disk: &Arc<dyn Disk>) -> Result<Self, Error> {
        let (file, frames) = FrameFile::open(path, disk, FORMAT)?;
        let mut kept = Kept::default();
        for frame in frames {
            let damage = |reason: String| Error::corrupt(path, frame.position, reason);
            let steps: Vec<&serde_json::value::RawValue> = serde_json::from_slice(&frame.body)
                .map_err(|error| damage(format!("not a list of steps: {error}")))?;
            for json in steps {
                let step = serde_json::from_str(json.get())
                    .map_err(|error| damage(format!("a step that is not known: {error}")))?;
                kept.take(step, json.get().len()).map_err(damage)?;
            }
        }
        Ok(Self { file, kept })
    }

    /// The newest promise.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.kept.vote
    }

    /// The last entry that a snapshot has replaced.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.kept.purged
    }

    /// The last entry, be it purged.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.kept.last()
    }

    /// The entries with these indexes, as far as they are there.
    pub(crate) fn entries(&self, range: Range<u64>) -> impl Iterator<Item = &Entry> {
        self.kept.range(range).map(|kept| &kept.entry)
    }

    /// As [`EntryLog::entries`], but only as many from the front as a message takes; at least one.
    pub(crate) fn some_entries(&self, range: Range<u64>) -> Vec<Entry> {
        let mut bytes = 0;
        let fits = |kept: &&KeptEntry| {
            let first = bytes == 0;
            bytes += kept.bytes;
            first || bytes <= READ_BYTES
        };
        self.kept.range(range).take_while(fits).map(|kept| kept.entry.clone()).collect()
    }

    /// Promises, durably.
    ///
    /// # Errors
    /// As [`FrameFile::append`].
    pub(crate) fn save_vote(&mut self, vote: Vote) -> Result<(), Error> {
        self.write(vec![Step::Vote(vote)])
    }

    /// Adds entries that follow the last one, durably.
    ///
    /// # Errors
    /// As [`FrameFile::append`], and if they do not follow.
    pub(crate) fn append(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        self.write(entries.into_iter().map(Step::Entry).collect())
    }

    /// Drops the entries from `from` on, inclusive.
    ///
    /// # Errors
    /// As [`FrameFile::append`].
    pub(crate) fn truncate(&mut self, from: u64) -> Result<(), Error> {
        self.write(vec![Step::Truncate { from }])
    }

    /// Drops the entries up to `through`, inclusive: a snapshot on disk stands for them.
    ///
    /// # Errors
    /// As [`FrameFile::append`].
    pub(crate) fn purge(&mut self, through: LogId) -> Result<(), Error> {
        self.write(vec![Step::Purge { through }])
    }

    fn write(&mut self, steps: Vec<Step>) -> Result<(), Error> {
        if steps.is_empty() {
            return Ok(());
        }
        let steps: Vec<(Step, String)> = steps
            .into_iter()
            .map(|step| {
                let json = encode(&step);
                (step, json)
            })
            .collect();
        self.kept
            .check(steps.iter().map(|(step, _)| step))
            .map_err(|reason| Error::corrupt(self.file.path(), self.file.size(), reason))?;
        self.file.append(&list(steps.iter().map(|(_, json)| json.as_str())))?;
        for (step, json) in steps {
            self.kept.take(step, json.len()).expect("checked before it was written");
        }
        self.shorten();
        Ok(())
    }

    /// Writes the file anew when most of it is history.
    fn shorten(&mut self) {
        if self.file.size() < HISTORY_BYTES + 2 * self.kept.bytes as u64 {
            return;
        }
        let head = self.kept.vote.map(Step::Vote).into_iter();
        let head = head.chain(self.kept.purged.map(|through| Step::Purge { through }));
        let mut frames: Vec<Vec<u8>> = head.map(|step| list([encode(&step).as_str()])).collect();
        frames.extend(self.kept.entries.iter().map(|kept| {
            // Borrowing: the entries may be megabytes.
            list([format!("{{\"entry\":{}}}", to_json(&kept.entry)).as_str()])
        }));
        if let Err(error) = self.file.replace(&frames) {
            tracing::warn!(error = %error.full_text(), "log of metadata entries not written anew");
        }
    }
}

fn encode(step: &Step) -> String {
    to_json(step)
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("steps are made of maps with text keys, lists and numbers")
}

fn list<'a>(steps: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let steps: Vec<&str> = steps.into_iter().collect();
    format!("[{}]", steps.join(",")).into_bytes()
}

/// What all steps so far leave.
#[derive(Debug, Default)]
struct Kept {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// Without gaps, from the one after `purged`.
    entries: VecDeque<KeptEntry>,
    /// Of `entries`, on disk.
    bytes: usize,
}

#[derive(Debug)]
struct KeptEntry {
    entry: Entry,
    bytes: usize,
}

impl Kept {
    fn last(&self) -> Option<LogId> {
        self.entries.back().map(|kept| kept.entry.log_id).or(self.purged)
    }

    /// The index of the first entry that is kept, or would be.
    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    fn range(&self, range: Range<u64>) -> impl Iterator<Item = &KeptEntry> {
        let first = self.first_index();
        let place = |index: u64| {
            usize::try_from(index.saturating_sub(first))
                .unwrap_or(usize::MAX)
                .min(self.entries.len())
        };
        let (start, end) = (place(range.start), place(range.end));
        self.entries.range(start..end.max(start))
    }

    /// Whether entries follow the last one.
    fn check<'a>(&self, steps: impl Iterator<Item = &'a Step>) -> Result<(), String> {
        let mut next = self.last().map_or(0, |last| last.index + 1);
        for step in steps {
            if let Step::Entry(entry) = step {
                follows(entry, next)?;
                next += 1;
            }
        }
        Ok(())
    }

    fn take(&mut self, step: Step, bytes: usize) -> Result<(), String> {
        match step {
            Step::Vote(vote) => self.vote = Some(vote),
            Step::Entry(entry) => {
                follows(&entry, self.last().map_or(0, |last| last.index + 1))?;
                self.bytes += bytes;
                self.entries.push_back(KeptEntry { entry, bytes });
            }
            Step::Truncate { from } => {
                while self.entries.back().is_some_and(|kept| kept.entry.log_id.index >= from) {
                    let dropped = self.entries.pop_back();
                    self.bytes -= dropped.map_or(0, |kept| kept.bytes);
                }
            }
            Step::Purge { through } => {
                while self
                    .entries
                    .front()
                    .is_some_and(|kept| kept.entry.log_id.index <= through.index)
                {
                    let dropped = self.entries.pop_front();
                    self.bytes -= dropped.map_or(0, |kept| kept.bytes);
                }
                self.purged = self.purged.max(Some(through));
            }
        }
        Ok(())
    }
}

fn follows(entry: &Entry, next: u64) -> Result<(), String> {
    let index = entry.log_id.index;
    if index == next { Ok(()) } else { Err(format!("entry {index} where {next} must follow")) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use openraft::{CommittedLeaderId, EntryPayload, Membership};
    use uuid::Uuid;

    use super::super::types::{Member, Proposal};
    use super::*;
    use crate::metadata::Record;
    use crate::storage::FileSystem;

    fn disk() -> Arc<dyn Disk> {
        Arc::new(FileSystem)
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, 1), index)
    }

    fn entry(term: u64, index: u64) -> Entry {
        let next = i64::try_from(index).unwrap();
        let records = [Record::ProducerIds { next }];
        Entry { log_id: id(term, index), payload: EntryPayload::Normal(Proposal(records.into())) }
    }

    fn text(log: &EntryLog) -> String {
        let entries: Vec<String> = log
            .entries(0..u64::MAX)
            .map(|entry| format!("{}@{}", entry.log_id.index, entry.log_id.leader_id.term))
            .collect();
        entries.join(" ")
    }

    #[test]
    fn what_was_done_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.log");
        let check = |log: &EntryLog, entries: &str| {
            assert_eq!(text(log), entries);
            let found = EntryLog::open(&path, &disk()).unwrap();
            assert_eq!(text(&found), entries, "after a restart");
            assert_eq!((found.vote(), found.purged()), (log.vote(), log.purged()));
            assert_eq!(found.last(), log.last());
        };
        let mut log = EntryLog::open(&path, &disk()).unwrap();
        check(&log, "");
        log.save_vote(Vote::new(1, 2)).unwrap();
        log.append(vec![entry(0, 0), entry(1, 1), entry(1, 2)]).unwrap();
        check(&log, "0@0 1@1 2@1");
        log.truncate(2).unwrap();
        log.append(vec![entry(2, 2), entry(2, 3)]).unwrap();
        check(&log, "0@0 1@1 2@2 3@2");
        log.save_vote(Vote::new_committed(2, 1)).unwrap();
        log.purge(id(1, 1)).unwrap();
        check(&log, "2@2 3@2");
        // A snapshot that is ahead of all entries.
        log.purge(id(4, 9)).unwrap();
        check(&log, "");
        assert_eq!(log.last(), Some(id(4, 9)));
        log.append(vec![entry(4, 10)]).unwrap();
        check(&log, "10@4");
    }

    #[test]
    fn an_append_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.log");
        let mut log = EntryLog::open(&path, &disk()).unwrap();
        log.save_vote(Vote::new(1, 1)).unwrap();
        log.append(vec![entry(1, 0)]).unwrap();
        let before = log.file.size();
        log.append(vec![entry(1, 1), entry(1, 2), entry(1, 3)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in usize::try_from(before).unwrap()..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut found = EntryLog::open(&path, &disk()).unwrap();
            assert_eq!(text(&found), "0@1", "cut to {length} bytes");
            found.append(vec![entry(2, 1)]).unwrap();
            assert_eq!(text(&EntryLog::open(&path, &disk()).unwrap()), "0@1 1@2");
        }
    }

    #[test]
    fn a_gap_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.log");
        let mut log = EntryLog::open(&path, &disk()).unwrap();
        log.append(vec![entry(1, 0)]).unwrap();
        assert!(log.append(vec![entry(1, 1), entry(1, 3)]).is_err());
        assert_eq!(text(&EntryLog::open(&path, &disk()).unwrap()), "0@1");
    }

    #[test]
    fn history_does_not_grow_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("entries.log");
        let mut log = EntryLog::open(&path, &disk()).unwrap();
        let name = "x".repeat(50_000);
        let mut largest = 0;
        for index in 0..100 {
            let state = crate::metadata::ClusterState {
                cluster_id: name.clone(),
                level: 1,
                min_insync_replicas: 1,
            };
            let records = [Record::Cluster { state }];
            let payload = EntryPayload::Normal(Proposal(records.into()));
            log.append(vec![Entry { log_id: id(1, index), payload }]).unwrap();
            if index % 5 == 4 {
                log.purge(id(1, index - 1)).unwrap();
            }
            largest = largest.max(log.file.size());
        }
        assert!(largest < 2 * HISTORY_BYTES, "{largest}");
        let found = EntryLog::open(&path, &disk()).unwrap();
        assert_eq!((text(&found), found.purged()), (text(&log), log.purged()));
    }

    // openraft's types are part of the format: these texts are on the disks of clusters that run.
    #[test]
    fn each_step_has_its_json() {
        let check = |step: &Step, json: &str| {
            assert_eq!(encode(step), json);
            assert_eq!(encode(&serde_json::from_str::<Step>(json).unwrap()), json);
        };
        check(
            &Step::Vote(Vote::new_committed(7, 2)),
            r#"{"vote":{"leader_id":{"term":7,"node_id":2},"committed":true}}"#,
        );
        check(
            &Step::Entry(entry(7, 12)),
            r#"{"entry":{"log_id":{"leader_id":{"term":7,"node_id":1},"index":12},"payload":{"Normal":[{"producer_ids":{"next":12}}]}}}"#,
        );
        check(
            &Step::Entry(Entry { log_id: id(7, 13), payload: EntryPayload::Blank }),
            r#"{"entry":{"log_id":{"leader_id":{"term":7,"node_id":1},"index":13},"payload":"Blank"}}"#,
        );
        let member = Member { address: "a:1".to_owned(), directory: Uuid::from_u128(9) };
        let membership =
            Membership::new(vec![[1].into()], BTreeMap::from([(1, member.clone()), (2, member)]));
        check(
            &Step::Entry(Entry { log_id: id(0, 0), payload: EntryPayload::Membership(membership) }),
            r#"{"entry":{"log_id":{"leader_id":{"term":0,"node_id":1},"index":0},"payload":{"Membership":{"configs":[[1]],"nodes":{"1":{"address":"a:1","directory":"00000000-0000-0000-0000-000000000009"},"2":{"address":"a:1","directory":"00000000-0000-0000-0000-000000000009"}}}}}}"#,
        );
        check(&Step::Truncate { from: 3 }, r#"{"truncate":{"from":3}}"#);
        check(
            &Step::Purge { through: id(7, 12) },
            r#"{"purge":{"through":{"leader_id":{"term":7,"node_id":1},"index":12}}}"#,
        );
    }
}
