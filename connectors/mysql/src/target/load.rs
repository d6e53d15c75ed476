//! Rows into a table, the fastest way that the server allows.
//!
//! `LOAD DATA LOCAL` reads a stream that we encode while it is sent, in pieces: neither a large
//! step nor a large row is held twice. LOCAL makes the server skip duplicates and bend bad values
//! with nothing but a warning, so a load counts only if it loaded every row and had no warning.
//! Where LOCAL is not allowed, and for a handful of rows, the same rows go as INSERT.

use std::io;

use bytes::Bytes;
use futures_util::stream;
use tailwater_apply::{Change, TargetError};
use tailwater_change::Value;
use tokio::sync::mpsc;

use super::failure::{sanitized, too_large};
use super::session::Session;
use super::spell::{self, Scratch, Spelled};
use super::sql::{self, Batch};
use super::table::{Field, Shape, on};

/// Of this size pieces go to the server: far below every `max_allowed_packet`.
const PIECE_BYTES: usize = 256 * 1024;

/// Below both, one INSERT is one round trip and a load is two.
const INSERT_ROWS: usize = 64;
const INSERT_BYTES: usize = 64 * 1024;

/// An INSERT is cut at this size, however large packets may be.
const STATEMENT_BYTES: usize = 1024 * 1024;

/// Which image of a change a column is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Image {
    /// The row that the change names.
    Old,
    /// The row it makes.
    New,
}

/// A column to fill: its name in the filled table as SQL, and where its values come from.
#[derive(Debug)]
pub(super) struct Cell<'a> {
    pub(super) name: String,
    pub(super) image: Image,
    pub(super) field: &'a Field,
}

/// What is to be loaded.
#[derive(Debug)]
pub(super) struct Filling<'a> {
    pub(super) shape: &'a Shape,
    /// The filled table as SQL.
    pub(super) into: &'a str,
    pub(super) cells: Vec<Cell<'a>>,
    pub(super) rows: &'a [&'a Change],
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filled {
    /// Every row is there as it was sent.
    All,
    /// Something was not; what is there must be rolled back.
    Refused(String),
}

/// The values of a change's images.
#[derive(Debug, Default)]
pub(super) struct Images<'b> {
    pub(super) old: Vec<Value<'b>>,
    pub(super) new: Vec<Value<'b>>,
}

impl<'b> Images<'b> {
    /// Reads both images of `change`; the old one is the new one where the identity stays.
    pub(super) fn read(&mut self, shape: &Shape, change: &'b Change) -> Result<(), TargetError> {
        if let Some(after) = &change.after {
            sql::read(shape, after, &change.unsent, &mut self.new)?;
        }
        let identity = change.identity().ok_or_else(|| TargetError::Bug {
            operation: on("change a row of", &shape.target.name),
            detail: "the change has no image".into(),
        })?;
        sql::read(shape, identity, &[], &mut self.old)
    }

    fn of(&self, cell: &Cell<'_>) -> Value<'b> {
        match cell.image {
            Image::Old => self.old[cell.field.source],
            Image::New => self.new[cell.field.source],
        }
    }
}

impl Session {
    /// Loads the rows. An error means that sending them again would not help.
    pub(super) async fn fill(&mut self, filling: &Filling<'_>) -> Result<Filled, TargetError> {
        let bytes: usize = filling
            .rows
            .iter()
            .map(|row| {
                row.after.as_ref().map_or(0, Bytes::len)
                    + row.before.as_ref().map_or(0, |it| it.bytes.len())
            })
            .sum();
        let few = filling.rows.len() <= INSERT_ROWS && bytes <= INSERT_BYTES;
        if self.local_infile
            && !few
            && let Some(filled) = self.load(filling).await?
        {
            return Ok(filled);
        }
        self.insert(filling).await
    }

    /// By `LOAD DATA`; none if the server does not allow it after all.
    async fn load(&mut self, filling: &Filling<'_>) -> Result<Option<Filled>, TargetError> {
        let operation = on("load rows into", &filling.shape.target.name);
        let mut batch = self.batch(false);
        put_load(filling, batch.statement());
        // Two pieces: one on its way, one being filled.
        let (pieces, mut waiting) = mpsc::channel::<io::Result<Bytes>>(2);
        self.conn.set_infile_handler(async move {
            let stream = stream::poll_fn(move |context| waiting.poll_recv(context));
            Ok(Box::pin(stream) as mysql_async::InfileData)
        });
        let piece_bytes = PIECE_BYTES.min(self.max_packet / 2);
        let (outcome, encoded) = {
            let send = Box::pin(encode(filling, pieces, piece_bytes));
            let run = Box::pin(self.run(&batch));
            race(run, send).await
        };
        if let Some(Err(error)) = encoded {
            return Err(error);
        }
        match outcome {
            Ok(outcomes) => Ok(Some(judge(&outcomes, filling.rows.len()))),
            Err(failure) if failure.forbids_infile() => {
                tracing::warn!(server = %self.server, "the server does not allow LOAD DATA LOCAL");
                self.local_infile = false;
                Ok(None)
            }
            Err(failure) => match failure.data() {
                Some(error) => Ok(Some(Filled::Refused(sanitized(error)))),
                None => Err(failure.into_target(&operation)),
            },
        }
    }

    /// By INSERT, several where one would be too large.
    async fn insert(&mut self, filling: &Filling<'_>) -> Result<Filled, TargetError> {
        let operation = on("insert rows into", &filling.shape.target.name);
        let limit = self.max_packet.saturating_sub(1024);
        let mut images = Images::default();
        let mut rows = filling.rows.iter().peekable();
        let mut tuple = Vec::new();
        let mut held = false;
        while held || rows.peek().is_some() {
            let mut batch = self.batch(false);
            let start = batch.sql.len();
            put_insert(filling, batch.statement());
            let mut count = 0;
            loop {
                if !held {
                    let Some(row) = rows.next() else { break };
                    images.read(filling.shape, row)?;
                    tuple.clear();
                    put_tuple(filling, &images, &mut tuple)?;
                }
                let size = batch.sql.len() + tuple.len() + 1;
                held = count > 0 && (size > limit || size - start > STATEMENT_BYTES);
                if held {
                    break;
                }
                if size > limit {
                    return Err(too_large(&operation));
                }
                if count > 0 {
                    batch.sql.push(b',');
                }
                batch.sql.extend_from_slice(&tuple);
                count += 1;
            }
            match self.run(&batch).await {
                Ok(outcomes) => match judge(&outcomes, count) {
                    Filled::All => {}
                    refused @ Filled::Refused(_) => return Ok(refused),
                },
                Err(failure) => match failure.data() {
                    Some(error) => return Ok(Filled::Refused(sanitized(error))),
                    None => return Err(failure.into_target(&operation)),
                },
            }
        }
        Ok(Filled::All)
    }
}

/// Runs both to the end of the first, which is all of it if the server gave up early.
async fn race<R, S>(
    mut run: impl Future<Output = R> + Unpin,
    mut send: impl Future<Output = S> + Unpin,
) -> (R, Option<S>) {
    tokio::select! {
        biased;
        outcome = &mut run => (outcome, None),
        sent = &mut send => (run.await, Some(sent)),
    }
}

fn judge(outcomes: &[super::session::Outcome], rows: usize) -> Filled {
    match outcomes {
        [outcome] if outcome.is(rows) => Filled::All,
        [outcome] => Filled::Refused(format!(
            "{} of {rows} rows went in, with {} warnings",
            outcome.affected, outcome.warnings
        )),
        _ => Filled::Refused("the server answered another number of statements".into()),
    }
}

fn put_load(filling: &Filling<'_>, out: &mut Vec<u8>) {
    let mut text = format!(
        "LOAD DATA LOCAL INFILE 'rows' INTO TABLE {} CHARACTER SET binary \
         FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' (",
        filling.into
    );
    let mut assignments = String::new();
    for (at, cell) in filling.cells.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        if cell.field.convert {
            text.push_str(&format!("{comma}@v{at}"));
            let first = if assignments.is_empty() { " SET " } else { "," };
            assignments.push_str(&format!("{first}{}=CONVERT(@v{at} USING utf8mb4)", cell.name));
        } else {
            text.push_str(&format!("{comma}{}", cell.name));
        }
    }
    out.extend_from_slice(text.as_bytes());
    out.push(b')');
    out.extend_from_slice(assignments.as_bytes());
}

fn put_insert(filling: &Filling<'_>, out: &mut Vec<u8>) {
    let names: Vec<&str> = filling.cells.iter().map(|cell| cell.name.as_str()).collect();
    let text = format!("INSERT INTO {} ({}) VALUES ", filling.into, names.join(","));
    out.extend_from_slice(text.as_bytes());
}

fn put_tuple(
    filling: &Filling<'_>,
    images: &Images<'_>,
    out: &mut Vec<u8>,
) -> Result<(), TargetError> {
    let mut scratch = Scratch::default();
    for (at, cell) in filling.cells.iter().enumerate() {
        out.push(if at == 0 { b'(' } else { b',' });
        let spelled = spell::spell(images.of(cell), cell.field.form, &mut scratch)
            .map_err(|error| filling.shape.unspeakable(cell.field, error))?;
        spell::put_literal(out, spelled);
    }
    out.push(b')');
    Ok(())
}

/// Encodes the rows into pieces of about `piece_bytes`. Ends early, without an error, when nobody
/// takes them any more.
async fn encode(
    filling: &Filling<'_>,
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece_bytes: usize,
) -> Result<(), TargetError> {
    let mut images = Images::default();
    let mut scratch = Scratch::default();
    let mut piece = Vec::with_capacity(piece_bytes + piece_bytes / 4);
    for row in filling.rows {
        images.read(filling.shape, row)?;
        for (at, cell) in filling.cells.iter().enumerate() {
            if at > 0 {
                piece.push(b'\t');
            }
            let spelled = spell::spell(images.of(cell), cell.field.form, &mut scratch)
                .map_err(|error| filling.shape.unspeakable(cell.field, error))?;
            match spelled {
                Spelled::Text(bytes) | Spelled::Bytes(bytes) if bytes.len() > piece_bytes => {
                    for part in bytes.chunks(piece_bytes) {
                        spell::put_escaped(&mut piece, part);
                        if !send(&pieces, &mut piece).await {
                            return Ok(());
                        }
                    }
                }
                small => spell::put_field(&mut piece, small),
            }
        }
        piece.push(b'\n');
        if piece.len() >= piece_bytes && !send(&pieces, &mut piece).await {
            return Ok(());
        }
    }
    send(&pieces, &mut piece).await;
    Ok(())
}

async fn send(pieces: &mpsc::Sender<io::Result<Bytes>>, piece: &mut Vec<u8>) -> bool {
    let capacity = piece.capacity();
    let full = std::mem::replace(piece, Vec::with_capacity(capacity));
    pieces.send(Ok(Bytes::from(full))).await.is_ok()
}

/// Every column that flows, from the new row.
pub(super) fn whole_row(shape: &Shape) -> Vec<Cell<'_>> {
    shape
        .fields
        .iter()
        .map(|field| Cell { name: field.name.clone(), image: Image::New, field })
        .collect()
}

/// Whether a batch with `statement` more bytes still goes in one packet.
pub(super) fn fits(session: &Session, batch: &Batch, statement: usize) -> bool {
    batch.sql.len() + statement + 1024 <= session.max_packet
}
