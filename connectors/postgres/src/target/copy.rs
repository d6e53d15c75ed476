//! Rows into a `COPY … FROM STDIN`: encoded straight from the row messages, sent in pieces.
//!
//! Nothing is allocated per row, and no row is held whole: a large value goes on in pieces while
//! it is being encoded. Both formats are documented at
//! <https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS>.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt as _;
use tailwater_apply::TargetError;
use tailwater_change::Value;
use tokio_postgres::{Client, CopyInSink, Statement};

use super::error::Failure;
use super::form::Form;
use super::param::put_text;
use super::statement::CopyFormat;
use super::unfit::Unfit;

/// Large enough that a piece costs little beside its bytes, small enough that the server is
/// parsing the first while we encode the next.
const PIECE_BYTES: usize = 128 << 10;

const SIGNATURE: &[u8] = b"PGCOPY\n\xFF\r\n\0";

/// Why a row did not go.
#[derive(Debug)]
pub(super) enum CopyError {
    /// A value that the target cannot hold: the field's number in the row.
    Unfit(usize, Unfit),
    Failed(Failure),
}

/// A running `COPY … FROM STDIN`. Dropped unfinished, it is aborted, and the transaction with it.
pub(super) struct Copy {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    format: CopyFormat,
    buffer: BytesMut,
    text: String,
}

impl Copy {
    /// Begins `statement`, a COPY in `format`.
    pub(super) async fn begin(
        client: &Client,
        statement: &Statement,
        format: CopyFormat,
    ) -> Result<Self, Failure> {
        let sink = client.copy_in(statement).await.map_err(|error| Failure::of("COPY", error))?;
        let mut buffer = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
        if format == CopyFormat::Binary {
            buffer.put_slice(SIGNATURE);
            // No flags, no header extension.
            buffer.put_u64(0);
        }
        Ok(Self { sink: Box::pin(sink), format, buffer, text: String::new() })
    }

    /// Sends one row.
    pub(super) async fn row(
        &mut self,
        fields: impl ExactSizeIterator<Item = (Form, Value<'_>)>,
    ) -> Result<(), CopyError> {
        match self.format {
            CopyFormat::Binary => {
                let count =
                    i16::try_from(fields.len()).map_err(|_| bug("more than 32,767 fields"))?;
                self.buffer.put_i16(count);
                for (number, (form, value)) in fields.enumerate() {
                    self.binary(form, &value).await.map_err(|error| error.at(number))?;
                }
            }
            CopyFormat::Text => {
                for (number, (form, value)) in fields.enumerate() {
                    if number > 0 {
                        self.buffer.put_u8(b'\t');
                    }
                    self.escaped(form, &value).await.map_err(|error| error.at(number))?;
                }
                self.buffer.put_u8(b'\n');
            }
        }
        if self.buffer.len() >= PIECE_BYTES { Ok(self.send().await?) } else { Ok(()) }
    }

    /// Ends it; returns how many rows the server took.
    pub(super) async fn finish(mut self) -> Result<u64, Failure> {
        if self.format == CopyFormat::Binary {
            self.buffer.put_i16(-1);
        }
        self.send().await?;
        self.sink.as_mut().finish().await.map_err(|error| Failure::of("COPY", error))
    }

    async fn binary(&mut self, form: Form, value: &Value<'_>) -> Result<(), FieldError> {
        if matches!(value, Value::Null | Value::Unsent) {
            self.buffer.put_i32(-1);
            return Ok(());
        }
        if let Some(raw) = form.raw(value) {
            if form == Form::Text && memchr::memchr(0, raw).is_some() {
                return Err(FieldError::Unfit(Unfit::Nul));
            }
            let length = i32::try_from(raw.len()).map_err(|_| FieldError::Unfit(Unfit::Range))?;
            self.buffer.put_i32(length);
            if raw.len() < PIECE_BYTES {
                self.buffer.put_slice(raw);
                return Ok(());
            }
            for piece in raw.chunks(PIECE_BYTES) {
                self.buffer.put_slice(piece);
                self.send().await?;
            }
            return Ok(());
        }
        let start = self.buffer.len();
        self.buffer.put_i32(0);
        form.put(&mut self.buffer, value).map_err(FieldError::Unfit)?;
        let length = self.buffer.len() - start - 4;
        let length = i32::try_from(length).map_err(|_| FieldError::Unfit(Unfit::Range))?;
        self.buffer[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    async fn escaped(&mut self, form: Form, value: &Value<'_>) -> Result<(), FieldError> {
        form.check(value).map_err(FieldError::Unfit)?;
        match form.widen(*value) {
            Value::Null | Value::Unsent => self.buffer.put_slice(b"\\N"),
            Value::Text(text) => {
                for piece in text.as_bytes().chunks(PIECE_BYTES) {
                    escape(&mut self.buffer, piece);
                    if self.buffer.len() >= PIECE_BYTES {
                        self.send().await?;
                    }
                }
            }
            Value::Bytes(bytes) => {
                self.buffer.put_slice(b"\\\\x");
                for piece in bytes.chunks(PIECE_BYTES) {
                    self.text.clear();
                    put_text(&mut self.text, &Value::Bytes(piece));
                    self.buffer.put_slice(&self.text.as_bytes()[2..]);
                    if self.buffer.len() >= PIECE_BYTES {
                        self.send().await?;
                    }
                }
            }
            ref other => {
                self.text.clear();
                put_text(&mut self.text, other);
                self.buffer.put_slice(self.text.as_bytes());
            }
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Failure> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = self.buffer.split().freeze();
        self.buffer.reserve(PIECE_BYTES + PIECE_BYTES / 4);
        self.sink.send(piece).await.map_err(|error| Failure::of("COPY", error))
    }
}

/// As [`CopyError`], the field not yet named.
enum FieldError {
    Unfit(Unfit),
    Failed(Failure),
}

impl FieldError {
    fn at(self, number: usize) -> CopyError {
        match self {
            Self::Unfit(unfit) => CopyError::Unfit(number, unfit),
            Self::Failed(failure) => CopyError::Failed(failure),
        }
    }
}

impl From<Failure> for FieldError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Failure> for CopyError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn bug(detail: &str) -> CopyError {
    let error = TargetError::Bug { operation: "COPY".into(), detail: detail.into() };
    CopyError::Failed(Failure::Other(error))
}

/// Appends text with what COPY reads as something else escaped.
fn escape(out: &mut BytesMut, mut text: &[u8]) {
    let special = |byte: &u8| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t');
    while let Some(at) = text.iter().position(special) {
        out.put_slice(&text[..at]);
        out.put_slice(match text[at] {
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            _ => b"\\\\",
        });
        text = &text[at + 1..];
    }
    out.put_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_as_copy_reads_it() {
        let mut out = BytesMut::new();
        escape(&mut out, b"a\\b\tc\nd\re\\");
        assert_eq!(&out[..], b"a\\\\b\\tc\\nd\\re\\\\");
    }
}
