//! A snapshot that is too large for one message travels in parts.
//!
//! ```text
//! leader                                   member that is far behind
//! offset 0, 8 MiB of the image's JSON ───► has 0: takes it
//!            ◄─── next: 8 MiB
//! offset 8 MiB, the last part         ───► has 8 MiB: takes it, reads the image, installs it
//!            ◄─── the answer to the snapshot
//! ```
//!
//! Each part says where it stands, and each answer where the next one is to begin: a part that came
//! twice, or without what was before it, changes nothing.

use serde::{Deserialize, Serialize};

use super::types::{SnapshotMeta, Vote};

/// Bytes of an image's JSON in one message, unless something else is said: with its escapes a part
/// stays far below what a frame may have, and goes over a slow network within seconds.
pub(crate) const SNAPSHOT_PART_BYTES: usize = 8 << 20;

/// More than that is no image: ten million partitions.
const MAX_IMAGE_BYTES: usize = 2 << 30;

/// A part of a leader's snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotPart {
    /// The leader.
    pub(crate) vote: Vote,
    /// What the snapshot stands for.
    pub(crate) meta: SnapshotMeta,
    /// Where in the image's JSON this stands, in bytes.
    pub(crate) offset: u64,
    /// What stands there.
    pub(crate) text: String,
    /// Whether nothing comes after it.
    pub(crate) last: bool,
}

impl SnapshotPart {
    /// The part of `json` that begins at `offset`, of `most` bytes or a little less; `None` if nothing
    /// begins there.
    pub(crate) fn cut(
        vote: Vote,
        meta: &SnapshotMeta,
        json: &str,
        offset: u64,
        most: usize,
    ) -> Option<Self> {
        let from = usize::try_from(offset).ok()?;
        let rest = json.get(from..).filter(|rest| !rest.is_empty())?;
        // A character has four bytes at most.
        let end = rest.floor_char_boundary(most.max(4));
        let (text, last) = (rest[..end].to_owned(), end == rest.len());
        Some(Self { vote, meta: meta.clone(), offset, text, last })
    }
}

/// What a part did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// The next part is to begin there.
    More { next: u64 },
    /// Here is all of it.
    Whole { vote: Vote, meta: SnapshotMeta, json: String },
}

/// What has come of a snapshot so far.
#[derive(Debug, Default)]
pub(crate) struct Receiving {
    /// Of which leader, and which of its snapshots.
    of: Option<(Vote, String)>,
    json: String,
}

impl Receiving {
    /// Takes a part.
    ///
    /// # Errors
    /// Why not, for people: the snapshot cannot be one.
    pub(crate) fn take(&mut self, part: SnapshotPart) -> Result<Received, String> {
        let of = Some((part.vote, part.meta.snapshot_id.clone()));
        if of != self.of {
            *self = Self { of, json: String::new() };
        }
        let has = u64::try_from(self.json.len()).unwrap_or(u64::MAX);
        if part.offset != has {
            return Ok(Received::More { next: has });
        }
        if self.json.len().saturating_add(part.text.len()) > MAX_IMAGE_BYTES {
            *self = Self::default();
            return Err(format!("a snapshot of more than {MAX_IMAGE_BYTES} bytes"));
        }
        self.json.push_str(&part.text);
        if part.last {
            let json = std::mem::take(self).json;
            return Ok(Received::Whole { vote: part.vote, meta: part.meta, json });
        }
        Ok(Received::More { next: part.offset.saturating_add(part.text.len() as u64) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(id: &str) -> SnapshotMeta {
        SnapshotMeta { snapshot_id: id.to_owned(), ..SnapshotMeta::default() }
    }

    fn part(id: &str, json: &str, offset: u64) -> SnapshotPart {
        SnapshotPart::cut(Vote::new(1, 1), &meta(id), json, offset, 4).unwrap()
    }

    #[test]
    fn parts_come_to_the_whole_wherever_characters_end() {
        for json in ["x", "four", "fünf und mehr", "日本語日本語", "🦀🦀🦀"] {
            for most in 1..10 {
                let (mut receiving, mut offset) = (Receiving::default(), 0);
                let whole = loop {
                    let part =
                        SnapshotPart::cut(Vote::new(1, 1), &meta("a"), json, offset, most).unwrap();
                    assert!(part.text.len() <= most.max(4));
                    match receiving.take(part).unwrap() {
                        Received::More { next } => offset = next,
                        Received::Whole { json, .. } => break json,
                    }
                };
                assert_eq!(whole, json);
            }
        }
    }

    #[test]
    fn parts_that_are_lost_or_come_twice_are_asked_for_or_left() {
        let json = "123456789";
        let mut receiving = Receiving::default();
        assert_eq!(receiving.take(part("a", json, 4)), Ok(Received::More { next: 0 }));
        assert_eq!(receiving.take(part("a", json, 0)), Ok(Received::More { next: 4 }));
        assert_eq!(receiving.take(part("a", json, 0)), Ok(Received::More { next: 4 }));
        assert_eq!(receiving.take(part("a", json, 8)), Ok(Received::More { next: 4 }));
        // Another snapshot takes its place.
        assert_eq!(receiving.take(part("b", json, 4)), Ok(Received::More { next: 0 }));
        assert_eq!(receiving.take(part("b", json, 0)), Ok(Received::More { next: 4 }));
        assert_eq!(receiving.take(part("b", json, 4)), Ok(Received::More { next: 8 }));
        let Ok(Received::Whole { json: whole, .. }) = receiving.take(part("b", json, 8)) else {
            panic!("not whole");
        };
        assert_eq!(whole, json);
        // The answer to the last one was lost.
        assert_eq!(receiving.take(part("b", json, 8)), Ok(Received::More { next: 0 }));
    }

    #[test]
    fn there_is_no_part_where_none_begins() {
        let cut = |offset| SnapshotPart::cut(Vote::new(1, 1), &meta("a"), "ü12", offset, 4);
        assert!(cut(1).is_none() && cut(4).is_none() && cut(u64::MAX).is_none());
        assert!(cut(2).unwrap().last);
    }
}
