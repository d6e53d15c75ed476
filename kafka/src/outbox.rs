//! Slices on their way into a socket: written together, gone as far as they were written.
//!
//! Held by whoever writes, not by the write: a write that is dropped half way loses nothing.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Slices per system call; Linux takes up to 1024, and more than a few dozen gain nothing.
const SLICES_PER_WRITE: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    parts: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    pub(crate) fn push(&mut self, parts: Vec<Bytes>) {
        for part in parts {
            self.bytes += part.len();
            self.parts.push_back(part);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that wait to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes once. Cancel-safe.
    pub(crate) async fn write_some(
        &mut self,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        let slices: Vec<IoSlice<'_>> =
            self.parts.iter().take(SLICES_PER_WRITE).map(|part| IoSlice::new(part)).collect();
        let written = to.write_vectored(&slices).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.advance(written);
        Ok(())
    }

    /// Writes all there is.
    pub(crate) async fn write_all(
        &mut self,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> std::io::Result<()> {
        while !self.is_empty() {
            self.write_some(to).await?;
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(front) = self.parts.front_mut() {
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.parts.pop_front();
        }
    }
}
