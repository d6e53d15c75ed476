//! Where the log ends: the newest place among the records of the writer that counts.
//!
//! No IO: fed with the last records of the topic in their order, it says how far a source is held
//! and whether the newest transaction has its end.

use tailwater_change::{
    ChunkError, ChunkJoiner, Control, DecodeError, Envelope, Epoch, Frame, FrameError, Operation,
    Place, SchemaId,
};

/// How the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// No record says.
    Unknown,
    /// Inside a snapshot that is not complete.
    Snapshot,
    /// Everything up to `place` is there.
    At {
        /// The newest row, or the end of its transaction.
        place: Place,
        /// Whether the transaction at `place` has its end.
        whole: bool,
    },
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
pub(crate) struct TailScan {
    control: SchemaId,
    joiner: ChunkJoiner,
    tail: Tail,
    epoch: Option<Epoch>,
}

/// A row larger than PostgreSQL and MySQL can have: the tail must be readable whatever the memory
/// setting was when it was written.
const LARGEST_ROW: usize = 2 << 30;

impl TailScan {
    /// Control records carry the schema id `control`.
    pub(crate) fn new(control: SchemaId) -> Self {
        Self { control, joiner: ChunkJoiner::new(LARGEST_ROW), tail: Tail::Unknown, epoch: None }
    }

    /// Takes the next record of the writer that counts.
    pub(crate) fn record(&mut self, value: &[u8]) -> Result<(), TailError> {
        let frame = Frame::parse(value)?;
        if frame.schema != self.control {
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
            | Control::SnapshotEnd { epoch, .. } => self.note(*epoch),
            Control::TableBegin { place, .. }
            | Control::TableEnd { place, .. }
            | Control::SchemaChange { place, .. } => self.note(place.epoch),
            Control::Chunk { .. } => {}
        }
        match control {
            Control::End { epoch, commit, .. }
            | Control::Idle { epoch, commit }
            | Control::SnapshotEnd { epoch, commit } => {
                self.tail = Tail::At { place: Place::end_of(epoch, commit), whole: true };
            }
            Control::SnapshotBegin { .. }
            | Control::TableBegin { .. }
            | Control::TableEnd { .. } => self.tail = Tail::Snapshot,
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
            Operation::Read => Tail::Snapshot,
            Operation::Insert | Operation::Update | Operation::Delete | Operation::Truncate => {
                Tail::At { place: envelope.place, whole: envelope.last }
            }
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tailwater_change::{Chunks, Commit, EnvelopeWriter, Epoch, Ordinal};

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
        let mut scan = TailScan::new(CONTROL);
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
        check(&[row(place(3, 7), Operation::Read, false)], Tail::Snapshot);
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
