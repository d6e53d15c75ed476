//! Where the log ends: the newest place among the records of the writer that counts.
//!
//! No IO: fed with the last records of the topic in their order, it says how far a source is held
//! and whether the newest transaction has its end.

use tailwater_change::{
    ChunkError, ChunkJoiner, Control, DecodeError, Envelope, Epoch, Frame, FrameError, Operation,
    Ordinal, Place, SchemaId,
};

/// How the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// No record says.
    Unknown,
    /// Inside a snapshot that is not complete.
    Snapshot {
        /// What its next row's place would be.
        next: Place,
    },
    /// At the end of a snapshot.
    Loaded {
        /// The end of its synthetic transaction.
        place: Place,
    },
    /// Everything up to `place` is there.
    At {
        /// The newest row, or the end of its transaction.
        place: Place,
        /// Whether the transaction at `place` has its end.
        whole: bool,
    },
}

impl Tail {
    /// How far everything is there, and whether the last transaction is whole; not of a snapshot
    /// that is not complete.
    pub(crate) fn position(self) -> Option<(Place, bool)> {
        match self {
            Self::Unknown | Self::Snapshot { .. } => None,
            Self::Loaded { place } => Some((place, true)),
            Self::At { place, whole } => Some((place, whole)),
        }
    }
}

/// Why a record of the tail cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// It is not framed.
    #[error("not framed as Tailwater frames records")]
    Frame(#[from] FrameError),
    /// Its message does not decode.
    #[error("message does not decode")]
    Decode(#[from] DecodeError),
    /// Its chunks do not fit.
    #[error("chunks do not join")]
    Chunk(#[from] ChunkError),
}

/// Reads the tail of one partition.
#[derive(Debug)]
pub(crate) struct TailScan<'a> {
    control: &'a [SchemaId],
    joiner: ChunkJoiner,
    tail: Tail,
    epoch: Option<Epoch>,
}

/// A row larger than PostgreSQL and MySQL can have: the tail must be readable whatever the memory
/// setting was when it was written.
const LARGEST_ROW: usize = 2 << 30;

impl<'a> TailScan<'a> {
    /// Control records carry one of these schema ids: another version of us had another.
    pub(crate) fn new(control: &'a [SchemaId]) -> Self {
        Self { control, joiner: ChunkJoiner::new(LARGEST_ROW), tail: Tail::Unknown, epoch: None }
    }

    /// Takes the next record of the writer that counts.
    pub(crate) fn record(&mut self, value: &[u8]) -> Result<(), TailError> {
        let frame = Frame::parse(value)?;
        if !self.control.contains(&frame.schema) {
            self.joiner.reset();
            return self.row(frame.message);
        }
        let control = Control::decode(frame.message)?;
        if let Control::Chunk { attempt, index, last, data } = control {
            if let Some(whole) = self.joiner.push(attempt, index, last, data)? {
                return self.row(Frame::parse(&whole)?.message);
            }
            return Ok(());
        }
        self.joiner.reset();
        match &control {
            Control::Open { epoch, .. }
            | Control::End { epoch, .. }
            | Control::Idle { epoch, .. }
            | Control::SnapshotBegin { epoch, .. }
            | Control::SnapshotCut { epoch, .. }
            | Control::SnapshotRest { epoch, .. }
            | Control::SnapshotEnd { epoch, .. } => self.note(*epoch),
            Control::TableBegin { place, .. }
            | Control::TableEnd { place, .. }
            | Control::Reached { place, .. }
            | Control::SchemaChange { place, .. } => self.note(place.epoch),
            Control::Chunk { .. } => {}
        }
        match control {
            Control::End { epoch, commit, .. }
            | Control::Idle { epoch, commit }
            // What it has complete follows the stream from there.
            | Control::SnapshotCut { epoch, commit } => {
                self.tail = Tail::At { place: Place::end_of(epoch, commit), whole: true };
            }
            Control::SnapshotEnd { epoch, commit } => {
                self.tail = Tail::Loaded { place: Place::end_of(epoch, commit) };
            }
            Control::SnapshotBegin { epoch, commit }
            | Control::SnapshotRest { epoch, commit } => {
                let next = Place::new(epoch, commit, Ordinal::ZERO);
                self.tail = Tail::Snapshot { next };
            }
            Control::TableBegin { place: next, .. } | Control::TableEnd { place: next, .. } => {
                self.tail = Tail::Snapshot { next };
            }
            Control::Reached { place, snapshot: false } => {
                self.tail = Tail::At { place, whole: false };
            }
            Control::Reached { place, snapshot: true } => {
                let next = Place { ordinal: place.ordinal.next(), ..place };
                self.tail = Tail::Snapshot { next };
            }
            // A schema change stands in a transaction or between two: the rows around it say.
            Control::Open { .. } | Control::SchemaChange { .. } | Control::Chunk { .. } => {}
        }
        Ok(())
    }

    /// The newest epoch that any of the records names.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    fn note(&mut self, epoch: Epoch) {
        self.epoch = self.epoch.max(Some(epoch));
    }

    /// What the records say.
    pub(crate) fn tail(&self) -> Tail {
        self.tail
    }

    fn row(&mut self, message: &[u8]) -> Result<(), TailError> {
        let envelope = Envelope::decode(message)?;
        self.note(envelope.place.epoch);
        self.tail = match envelope.operation {
            Operation::Read => {
                let place = envelope.place;
                Tail::Snapshot { next: Place { ordinal: place.ordinal.next(), ..place } }
            }
            Operation::Insert | Operation::Update | Operation::Delete | Operation::Truncate => {
                Tail::At { place: envelope.place, whole: envelope.last }
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tailwater_change::{Chunks, Commit, EnvelopeWriter, Epoch};

    use super::*;

    const CONTROL: SchemaId = SchemaId::new(1);
    const TABLE: SchemaId = SchemaId::new(2);
    const EPOCH: Epoch = Epoch::FIRST;

    fn place(commit: u64, ordinal: u64) -> Place {
        Place::new(EPOCH, Commit::lsn(commit), Ordinal::new(ordinal))
    }

    fn row(at: Place, operation: Operation, last: bool) -> Vec<u8> {
        let mut value = Frame::prefix(TABLE).to_vec();
        let mut writer = EnvelopeWriter::begin(&mut value, operation, at, None);
        writer.after(&[0x08, 0x02]);
        if last {
            writer.last(None);
        }
        value
    }

    fn marker(control: &Control<'_>) -> Vec<u8> {
        let mut value = Frame::prefix(CONTROL).to_vec();
        control.encode(&mut value);
        value
    }

    fn check(records: &[Vec<u8>], expected: Tail) {
        let mut scan = TailScan::new(&[CONTROL]);
        for record in records {
            scan.record(record).unwrap();
        }
        assert_eq!(scan.tail(), expected);
    }

    #[test]
    fn the_last_row_says_how_far_and_whether_whole() {
        let insert = Operation::Insert;
        check(&[], Tail::Unknown);
        check(
            &[row(place(9, 0), insert, false), row(place(9, 4), insert, false)],
            Tail::At { place: place(9, 4), whole: false },
        );
        check(&[row(place(9, 0), insert, true)], Tail::At { place: place(9, 0), whole: true });
        check(
            &[
                row(place(9, 0), insert, false),
                marker(&Control::Idle { epoch: EPOCH, commit: Commit::lsn(12) }),
            ],
            Tail::At { place: Place::end_of(EPOCH, Commit::lsn(12)), whole: true },
        );
    }

    #[test]
    fn a_snapshot_says_what_comes_next_and_whether_it_ended() {
        let (epoch, commit) = (EPOCH, Commit::lsn(3));
        let next = |ordinal| Tail::Snapshot { next: place(3, ordinal) };
        let at_cut = Tail::At { place: Place::end_of(epoch, commit), whole: true };
        let read = row(place(3, 7), Operation::Read, false);
        let end = marker(&Control::TableEnd { place: place(3, 8), schema: TABLE, rows: 8 });
        let cut = marker(&Control::SnapshotCut { epoch, commit });
        let rest = marker(&Control::SnapshotRest { epoch, commit: Commit::lsn(11) });
        let whole = marker(&Control::SnapshotEnd { epoch, commit });
        check(&[marker(&Control::SnapshotBegin { epoch, commit })], next(0));
        check(std::slice::from_ref(&read), next(8));
        check(&[read.clone(), end.clone()], next(8));
        check(&[read, end, cut.clone()], at_cut);
        let streamed = row(place(9, 0), Operation::Insert, false);
        check(&[cut, streamed.clone()], Tail::At { place: place(9, 0), whole: false });
        check(&[streamed, rest], Tail::Snapshot { next: place(11, 0) });
        check(&[whole], Tail::Loaded { place: Place::end_of(epoch, commit) });
    }

    #[test]
    fn a_row_is_there_only_with_its_last_chunk() {
        let before = row(place(9, 0), Operation::Insert, false);
        let large = row(place(9, 1), Operation::Insert, true);
        let chunks: Vec<_> = Chunks::new(&large, 7, 1).map(|chunk| marker(&chunk)).collect();
        let mut records = vec![before];
        records.extend_from_slice(&chunks[..chunks.len() - 1]);
        check(&records, Tail::At { place: place(9, 0), whole: false });
        records.extend_from_slice(&chunks[chunks.len() - 1..]);
        check(&records, Tail::At { place: place(9, 1), whole: true });
        // A window of the tail that begins inside the run says nothing of it.
        check(&chunks[1..], Tail::Unknown);
    }
}
