//! Rows into a table, the fastest way that the server allows.
//!
//! `LOAD DATA LOCAL` reads a stream that we encode while it is sent, in pieces: neither a large
//! step nor a large row is held twice. LOCAL makes the server skip duplicates and bend bad values
//! with nothing but a warning, so a load counts only if it loaded every row and had no warning.
//! Where LOCAL is not allowed, and for a handful of rows, the same rows go as INSERT.
//!
//! Rows may also take the place of those that are there ([`Put::Replace`]). That too counts only if
//! the server says that every single one did.

use std::io;

use bytes::Bytes;
use futures_util::future::join;
use futures_util::stream;
use tailwater_apply::{Change, TargetError};
use tailwater_change::Value;
use tokio::sync::mpsc;

use super::failure::{sanitized, too_large};
use super::session::{Outcome, Session};
use super::spell::{self, Scratch, Spelled};
use super::sql::{self, Batch};
use super::table::{Field, Shape, on};

/// Of this size pieces go to the server: far below every `max_allowed_packet`.
const PIECE_BYTES: usize = 256 * 1024;

/// Below both, one INSERT is one round trip and a load is two.
const INSERT_ROWS: usize = 64;
const INSERT_BYTES: usize = 64 * 1024;

/// A statement is cut behind the row with which it reaches this size: the server parses all of one
/// before it executes it, and does so for less while that stays in its caches.
const STATEMENT_BYTES: usize = 16 * 1024;

/// So many bytes of statements travel together: few round trips, and little that waits twice.
const PACKET_BYTES: usize = 256 * 1024;

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
    pub(super) put: Put,
}

/// What becomes of rows that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// There are none.
    Insert,
    /// Each new row takes the place of one: only where no other row could be meant
    /// ([`Shape::replaces`]).
    Replace,
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
            Ok(outcomes) => Ok(Some(filling.put.judge(&outcomes, &[filling.rows.len()]))),
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

    /// By statements, several to a packet. What comes next is spelled while the server is at work.
    async fn insert(&mut self, filling: &Filling<'_>) -> Result<Filled, TargetError> {
        if filling.rows.is_empty() {
            return Ok(Filled::All);
        }
        let operation = on("insert rows into", &filling.shape.target.name);
        let mut packets = Packets::new(filling, self.max_packet.saturating_sub(1024));
        let mut next = packets.next(self.batch(false))?;
        while let Some(Packet { batch, rows }) = next {
            let spell = async { packets.next(Batch::default()) };
            let (ran, spelled) = join(self.run(&batch), spell).await;
            match ran {
                Ok(outcomes) => match filling.put.judge(&outcomes, &rows) {
                    Filled::All => {}
                    refused @ Filled::Refused(_) => return Ok(refused),
                },
                Err(failure) => match failure.data() {
                    Some(error) => return Ok(Filled::Refused(sanitized(error))),
                    None => return Err(failure.into_target(&operation)),
                },
            }
            next = spelled?;
        }
        Ok(Filled::All)
    }
}

/// A filling's rows as statements.
struct Packets<'f, 'b> {
    filling: &'f Filling<'b>,
    rows: std::slice::Iter<'f, &'b Change>,
    images: Images<'b>,
    head: String,
    /// The next row, unless it is empty: then it is not spelled yet.
    tuple: Vec<u8>,
    /// Bytes of a packet, at most.
    limit: usize,
}

/// Statements that go together, and how many rows each has.
struct Packet {
    batch: Batch,
    rows: Vec<usize>,
}

impl<'f, 'b> Packets<'f, 'b> {
    fn new(filling: &'f Filling<'b>, limit: usize) -> Self {
        let (rows, images) = (filling.rows.iter(), Images::default());
        Self { filling, rows, images, head: filling.head(), tuple: Vec::new(), limit }
    }

    /// The next packet, behind what `batch` has already; none when all rows are in one.
    fn next(&mut self, mut batch: Batch) -> Result<Option<Packet>, TargetError> {
        let mut rows: Vec<usize> = Vec::new();
        let mut start = 0;
        while self.spell()? {
            let open = !rows.is_empty() && batch.sql.len() - start < STATEMENT_BYTES;
            let head = if open { 0 } else { self.head.len() };
            let size = batch.sql.len() + head + 1 + self.tuple.len();
            if !rows.is_empty() && size > self.limit.min(PACKET_BYTES) {
                break;
            }
            if size > self.limit {
                let table = &self.filling.shape.target.name;
                return Err(too_large(&on("insert rows into", table)));
            }
            match rows.last_mut().filter(|_| open) {
                Some(count) => {
                    batch.sql.push(b',');
                    *count += 1;
                }
                None => {
                    start = batch.sql.len();
                    batch.statement().extend_from_slice(self.head.as_bytes());
                    rows.push(1);
                }
            }
            batch.sql.append(&mut self.tuple);
        }
        Ok((!rows.is_empty()).then_some(Packet { batch, rows }))
    }

    /// Whether there is a next row; it is in `tuple` then.
    fn spell(&mut self) -> Result<bool, TargetError> {
        if self.tuple.is_empty() {
            let Some(row) = self.rows.next() else { return Ok(false) };
            self.images.read(self.filling.shape, row)?;
            put_tuple(self.filling, &self.images, &mut self.tuple)?;
        }
        Ok(true)
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

impl Put {
    /// Whether the statements did to all of their rows what they were to do. A row that takes
    /// another's place counts twice: one goes, one comes. Less is one that was not there, or one
    /// that was there just so.
    fn judge(self, outcomes: &[Outcome], rows: &[usize]) -> Filled {
        if outcomes.len() != rows.len() {
            return Filled::Refused("the server answered another number of statements".into());
        }
        let each = match self {
            Self::Insert => 1,
            Self::Replace => 2,
        };
        let bad = outcomes.iter().zip(rows).find(|(outcome, rows)| !outcome.is(each * **rows));
        bad.map_or(Filled::All, |(outcome, rows)| {
            Filled::Refused(format!(
                "{} of {} changes by {rows} rows, with {} warnings",
                outcome.affected,
                each * rows,
                outcome.warnings
            ))
        })
    }
}

fn put_load(filling: &Filling<'_>, out: &mut Vec<u8>) {
    let mut text = format!(
        "LOAD DATA LOCAL INFILE 'rows' {}INTO TABLE {} CHARACTER SET binary \
         FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' (",
        if filling.put == Put::Replace { "REPLACE " } else { "" },
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

impl Filling<'_> {
    /// What stands before the rows of a statement.
    fn head(&self) -> String {
        let names: Vec<&str> = self.cells.iter().map(|cell| cell.name.as_str()).collect();
        let verb = match self.put {
            Put::Insert => "INSERT",
            Put::Replace => "REPLACE",
        };
        format!("{verb} INTO {} ({}) VALUES ", self.into, names.join(","))
    }
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
