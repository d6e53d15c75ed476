//! Frames on a connection: bounded, and read without trusting their length.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The largest frame. A snapshot of any size goes in parts; the image that a broker is given at once
/// has a hundred thousand partitions in so much.
pub(crate) const MAX_FRAME_BYTES: usize = 64 << 20;

/// A request, or the answer to the one with the same id.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Envelope<T> {
    pub(crate) id: u64,
    pub(crate) body: T,
}

/// Why there are no more frames.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the connection ended within a frame")]
    Torn,
    #[error("a frame of {0} bytes; at most {MAX_FRAME_BYTES} are taken")]
    TooLarge(usize),
    #[error("a frame that is not understood")]
    Json(#[source] serde_json::Error),
}

/// A frame with `envelope`.
///
/// # Errors
/// [`FrameError::TooLarge`].
pub(crate) fn encode<T: Serialize>(envelope: &Envelope<T>) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, envelope).map_err(FrameError::Json)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge(length));
    }
    let length = u32::try_from(length).map_err(|_| FrameError::TooLarge(length))?;
    (&mut frame[..4]).put_u32(length);
    Ok(frame)
}

/// Reads frames off one end of a connection.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    stream: R,
    /// Read, not yet taken. Grows with what arrives, not with what a length promises.
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next frame; `None` if the connection ended after one. May be dropped at any time:
    /// what was read stays here.
    ///
    /// # Errors
    /// [`FrameError`]; the connection is of no more use.
    pub(crate) async fn next<T: DeserializeOwned>(
        &mut self,
    ) -> Result<Option<Envelope<T>>, FrameError> {
        loop {
            if let Some(body) = self.take()? {
                return serde_json::from_slice(&body).map(Some).map_err(FrameError::Json);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Torn) };
            }
        }
    }

    fn take(&mut self) -> Result<Option<BytesMut>, FrameError> {
        let Some(mut length) = self.buffer.get(..4) else { return Ok(None) };
        let length = usize::try_from(length.get_u32()).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge(length));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(length)))
    }
}
