//! From the log to the session: read, assembled, and taken ahead while the target works.
//!
//! The server takes its time for a batch, above all for the flush of its commit. The next one is
//! read and assembled meanwhile, up to a bound, and only as far as it is plain: whole transactions
//! one after the other, or rows of a snapshot. What asks for a decision stays where it is until its
//! turn has come.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;

use tailwater_kafka::RecordBatch;

use super::{ChangeLog, Error, LogReader};
use crate::{AssembleError, Assembler, Item, PartBounds, Position, Resume};

/// Bytes of rows after which the target's work is looked after: it must not wait for us.
const STRIDE_BYTES: usize = 256 << 10;

/// Of many partitions none is read in pieces smaller than this.
const LEAST_PREFETCH_BYTES: usize = 64 << 10;

/// What is read and not yet applied.
pub(super) struct Intake {
    /// One for each partition.
    readers: Vec<Box<dyn LogReader>>,
    pub(super) assembler: Assembler,
    /// Items that were taken ahead.
    ahead: VecDeque<Item>,
    ahead_bytes: usize,
    /// Nothing may be taken behind the last of them.
    halted: bool,
    failed: Option<Failed>,
}

/// What ended taking ahead: it is said in its turn.
enum Failed {
    Assemble(AssembleError),
    Read(Error),
}

impl Intake {
    /// Reads `log` from `positions` on, one for each partition, in all `prefetch_bytes` ahead.
    pub(super) fn new(
        log: &dyn ChangeLog,
        resume: Resume,
        positions: &[Position],
        prefetch_bytes: usize,
        bounds: PartBounds,
    ) -> Self {
        let each = (prefetch_bytes / positions.len().max(1)).max(LEAST_PREFETCH_BYTES);
        let readers = positions.iter().enumerate();
        let readers = readers
            .map(|(partition, position)| log.reader(partition, position.next_offset, each))
            .collect();
        let assembler = Assembler::merging(resume, positions, bounds);
        let ahead = VecDeque::new();
        Self { readers, assembler, ahead, ahead_bytes: 0, halted: false, failed: None }
    }

    /// The next item; `None`: more has to be read.
    pub(super) fn next_item(&mut self) -> Result<Option<Item>, AssembleError> {
        if let Some(item) = self.ahead.pop_front() {
            return Ok(Some(item));
        }
        (self.ahead_bytes, self.halted) = (0, false);
        match self.failed.take() {
            Some(Failed::Assemble(error)) => Err(error),
            failed => {
                self.failed = failed;
                self.assembler.next_item()
            }
        }
    }

    /// Whether everything that was read has been given.
    pub(super) fn is_drained(&self) -> bool {
        self.ahead.is_empty()
            && !matches!(self.failed, Some(Failed::Assemble(_)))
            && self.assembler.is_drained()
    }

    /// Whether everything that was readable at the last look has been given, to the last row of its
    /// last transaction.
    pub(super) fn is_at_end(&self) -> bool {
        self.is_drained() && self.is_log_at_end() && self.assembler.unfinished().is_none()
    }

    /// Whether everything that was readable at the last look has been read.
    pub(super) fn is_log_at_end(&self) -> bool {
        self.readers.iter().all(|reader| reader.is_at_end())
    }

    /// Reads more; waits while there is none. Cancel-safe.
    pub(super) async fn read(&mut self) -> Result<(), Error> {
        if let Some(Failed::Read(error)) = self.failed.take_if(|it| matches!(it, Failed::Read(_))) {
            return Err(error);
        }
        let (partition, batches) = self.next_batches().await?;
        for batch in batches {
            self.assembler.push_to(partition, batch);
        }
        Ok(())
    }

    /// Of whichever partition has some first, among those that are waited for.
    async fn next_batches(&mut self) -> Result<(usize, Vec<RecordBatch>), Error> {
        if let [reader] = self.readers.as_mut_slice() {
            return Ok((0, reader.next().await?));
        }
        let assembler = &self.assembler;
        let wanted = self.readers.iter_mut().enumerate();
        let wanted = wanted.filter(|(partition, _)| assembler.wants(*partition));
        let mut reads: Vec<_> =
            wanted.map(|(partition, reader)| (partition, reader.next())).collect();
        poll_fn(|context| {
            for (partition, read) in &mut reads {
                if let Poll::Ready(batches) = read.as_mut().poll(context) {
                    return Poll::Ready(batches.map(|batches| (*partition, batches)));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Takes ahead, about as much as `bytes` of rows. Does not end; cancel-safe.
    pub(super) async fn gather(&mut self, bytes: usize) -> std::convert::Infallible {
        let mut told = self.ahead_bytes;
        while !self.halted && self.failed.is_none() && self.ahead_bytes < bytes {
            match self.assembler.next_item() {
                Ok(Some(item)) => self.put(item),
                Ok(None) => {
                    if let Err(error) = self.read().await {
                        self.failed = Some(Failed::Read(error));
                    }
                }
                Err(error) => self.failed = Some(Failed::Assemble(error)),
            }
            if self.ahead_bytes - told >= STRIDE_BYTES {
                told = self.ahead_bytes;
                tokio::task::yield_now().await;
            }
        }
        std::future::pending().await
    }

    fn put(&mut self, item: Item) {
        self.ahead_bytes += size_of::<Item>();
        match &item {
            Item::Part(part) if part.snapshot || (part.first && part.end) => {
                self.ahead_bytes += part.bytes;
            }
            Item::Idle(_) => {}
            _ => self.halted = true,
        }
        self.ahead.push_back(item);
    }
}
