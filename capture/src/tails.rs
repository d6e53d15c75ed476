//! Where the partitions of the log end, and what that is together.
//!
//! The writer before us may have died between any two of them: each ends where it ends. A source is
//! held as far as the partition that has least, and each gets again only what it lacks. That goes
//! for rows. Of a snapshot's closing words, which mean something only where all partitions have
//! them, it is enough that one has them: they were appended when everything before them was in the
//! log, everywhere. So the others get them now, before anything else.

use tailwater_change::{Control, Place};

use crate::capture::held;
use crate::tail::Tail;

/// The ends of all partitions, by their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tails(Vec<Tail>);

/// What of a snapshot's closing words a partition lacks, and the end of its synthetic transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lacks {
    End(Place),
    Cut(Place),
    Rest(Place),
}

impl Lacks {
    pub(crate) fn control(self) -> Control<'static> {
        match self {
            Self::End(Place { epoch, commit, .. }) => Control::SnapshotEnd { epoch, commit },
            Self::Cut(Place { epoch, commit, .. }) => Control::SnapshotCut { epoch, commit },
            Self::Rest(Place { epoch, commit, .. }) => Control::SnapshotRest { epoch, commit },
        }
    }
}

impl Tails {
    pub(crate) fn new(tails: Vec<Tail>) -> Self {
        Self(tails)
    }

    /// Every partition ends there.
    pub(crate) fn all(tail: Tail, partitions: usize) -> Self {
        Self(vec![tail; partitions])
    }

    /// What is to be said to which partition, and where they all end then.
    pub(crate) fn complete(mut self) -> (Self, Vec<(usize, Lacks)>) {
        let mut lacking = Vec::new();
        let inside = self.0.iter().filter_map(|tail| match tail {
            Tail::Snapshot { next } => Some(*next),
            Tail::Unknown | Tail::Loaded { .. } | Tail::At { .. } => None,
        });
        let Some(inside) = inside.max() else { return (self, lacking) };
        let is_loaded = self.0.iter().any(|tail| matches!(tail, Tail::Loaded { .. }));
        let is_cut = self.0.iter().any(|tail| match tail {
            Tail::At { place, .. } => (place.epoch, place.commit) >= (inside.epoch, inside.commit),
            Tail::Unknown | Tail::Snapshot { .. } | Tail::Loaded { .. } => false,
        });
        let end = Place::end_of(inside.epoch, inside.commit);
        for (partition, tail) in self.0.iter_mut().enumerate() {
            match *tail {
                Tail::Snapshot { next } if !next.same_transaction(&inside) => {}
                Tail::Snapshot { .. } if is_loaded => {
                    lacking.push((partition, Lacks::End(end)));
                    *tail = Tail::Loaded { place: end };
                }
                Tail::Snapshot { .. } if is_cut => {
                    lacking.push((partition, Lacks::Cut(end)));
                    *tail = Tail::At { place: end, whole: true };
                }
                Tail::At { place, .. } if !is_cut && place < inside => {
                    lacking.push((partition, Lacks::Rest(end)));
                    *tail = Tail::Snapshot { next: inside };
                }
                Tail::Unknown | Tail::Snapshot { .. } | Tail::Loaded { .. } | Tail::At { .. } => {}
            }
        }
        (self, lacking)
    }

    /// What the log holds, on every partition.
    pub(crate) fn common(&self) -> Tail {
        if let [tail] = self.0.as_slice() {
            return *tail;
        }
        let mut inside: Option<Place> = None;
        let mut loaded = None;
        let mut least: Option<(Place, bool)> = None;
        for tail in &self.0 {
            match *tail {
                // Nothing was told there, or it is gone: the others alone do not make a snapshot.
                Tail::Unknown => {}
                Tail::Snapshot { next } => inside = inside.max(Some(next)),
                Tail::Loaded { place } => loaded = Some(place),
                Tail::At { place, whole } => {
                    let less = least.is_none_or(|least| held((place, whole)) < held(least));
                    least = if less { Some((place, whole)) } else { least };
                }
            }
        }
        let unknown = self.0.iter().any(|tail| matches!(tail, Tail::Unknown));
        match (inside, loaded, least) {
            (None, None, None) => Tail::Unknown,
            (Some(_), ..) | (_, Some(_), _) if unknown => Tail::Unknown,
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Tail::Unknown,
            // The number after all of them: what some have and others lack has places of its own.
            (Some(next), None, None) => {
                Tail::Snapshot { next: Place { ordinal: next.ordinal.next(), ..next } }
            }
            (None, Some(place), None) => Tail::Loaded { place },
            (None, None, Some((place, whole))) => Tail::At { place, whole },
            (None, Some(loaded), Some((place, whole))) => {
                if loaded <= held((place, whole)) {
                    Tail::At { place: loaded, whole: true }
                } else {
                    Tail::At { place, whole }
                }
            }
        }
    }

    /// What each partition need not get again when the stream goes on.
    pub(crate) fn held(&self) -> Vec<Option<Place>> {
        let of = |tail: &Tail| match *tail {
            Tail::Unknown => None,
            Tail::Snapshot { next } => Some(Place::end_of(next.epoch, next.commit)),
            Tail::Loaded { place } => Some(place),
            Tail::At { place, whole } => Some(held((place, whole))),
        };
        self.0.iter().map(of).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Tail> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use tailwater_change::{Commit, Epoch, Ordinal};

    use super::*;

    fn place(commit: u64, ordinal: u64) -> Place {
        Place::new(Epoch::FIRST, Commit::lsn(commit), Ordinal::new(ordinal))
    }

    fn end_of(commit: u64) -> Place {
        Place::end_of(Epoch::FIRST, Commit::lsn(commit))
    }

    fn at(place: Place) -> Tail {
        Tail::At { place, whole: place.ordinal == Ordinal::END }
    }

    fn inside(commit: u64, ordinal: u64) -> Tail {
        Tail::Snapshot { next: place(commit, ordinal) }
    }

    fn check(tails: &[Tail], expected: Tail, lacking: &[(usize, Lacks)]) {
        let (tails, lacks) = Tails::new(tails.to_vec()).complete();
        assert_eq!((tails.common(), lacks.as_slice()), (expected, lacking));
    }

    #[test]
    fn one_partition_is_as_it_is() {
        for tail in
            [Tail::Unknown, inside(9, 4), Tail::Loaded { place: end_of(9) }, at(place(9, 1))]
        {
            check(&[tail], tail, &[]);
        }
    }

    #[test]
    fn a_source_is_held_as_far_as_the_partition_that_has_least() {
        check(&[at(end_of(9)), at(place(9, 3)), at(place(10, 0))], at(place(9, 3)), &[]);
        check(&[at(place(9, 3)), at(place(9, 3))], at(place(9, 3)), &[]);
        // A last row with its flag is as good as an end.
        let flagged = Tail::At { place: place(9, 3), whole: true };
        check(&[flagged, at(place(9, 7))], at(place(9, 7)), &[]);
        check(&[Tail::Unknown, at(end_of(9))], at(end_of(9)), &[]);
        check(&[Tail::Loaded { place: end_of(5) }, at(place(9, 0))], at(end_of(5)), &[]);
    }

    #[test]
    fn what_closes_a_snapshot_somewhere_closes_it_everywhere() {
        let loaded = Tail::Loaded { place: end_of(5) };
        let end = Lacks::End(end_of(5));
        check(&[inside(5, 4), loaded, inside(5, 2)], loaded, &[(0, end), (2, end)]);
        let cut = Lacks::Cut(end_of(5));
        check(&[inside(5, 4), at(end_of(5))], at(end_of(5)), &[(0, cut)]);
        check(&[at(place(7, 0)), inside(5, 4)], at(end_of(5)), &[(1, cut)]);
        let rest = Lacks::Rest(end_of(8));
        check(&[at(place(7, 0)), inside(8, 4)], inside(8, 5), &[(0, rest)]);
    }

    #[test]
    fn inside_a_snapshot_the_next_number_is_above_all_others() {
        check(&[inside(5, 4), inside(5, 9)], inside(5, 10), &[]);
        check(&[inside(5, 4), Tail::Unknown], Tail::Unknown, &[]);
    }
}
