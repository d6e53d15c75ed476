//! A source that follows a script: transactions with fixed commits, and failures where the test
//! wants them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tailwater_capture::{
    Changes, Event, LockHolder, LockSession, Rest, Resume, ServerIdentity, Snapshot,
    SourceConnector, SourceError, SourceLock, SourceState, Stream, TableReader, TableSlot,
};
use tailwater_change::{
    Column, Commit, Dialect, Identity, Kind, Operation, Ordinal, Problem, TableId, TableSchema,
    Value,
};
use tokio::sync::{Notify, watch};

/// A transaction: its commit and the ids that it inserts, each with a text of this length.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) commit: u64,
    pub(crate) ids: Vec<i64>,
    pub(crate) text_length: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) snapshot: Vec<i64>,
    pub(crate) transactions: Mutex<Vec<Transaction>>,
    pub(crate) idle_through: Mutex<Option<u64>>,
    /// The stream breaks after this many events, once.
    pub(crate) break_after: AtomicUsize,
    /// The snapshot breaks after this many rows, once.
    pub(crate) break_snapshot_after: AtomicUsize,
    pub(crate) snapshots: AtomicUsize,
    /// How often capture has asked who the server is: with every attempt.
    pub(crate) attempts: watch::Sender<usize>,
    /// The source no longer has what a stream would go on from, until the next snapshot.
    pub(crate) lost: AtomicBool,
    /// The source does not answer.
    pub(crate) away: AtomicBool,
    /// A snapshot of this many rows never ends.
    pub(crate) hang_snapshot_after: AtomicUsize,
    pub(crate) confirmed: Mutex<Vec<u64>>,
    pub(crate) resumes: Mutex<Vec<Option<Resume>>>,
    pub(crate) news: Notify,
    /// Its lock, if it is of use to more than one process.
    pub(crate) lock: Option<Arc<ScriptedLock>>,
    /// Planted: the source takes for confirmed what it has sent.
    pub(crate) confirmed_early: AtomicBool,
    sent: AtomicU64,
}

/// A source's lock, of which the test decides when a session of it ends.
#[derive(Debug, Default)]
pub(crate) struct ScriptedLock {
    holder: Mutex<Option<usize>>,
    sessions: AtomicUsize,
    /// How often it was asked for in vain.
    pub(crate) refused: watch::Sender<usize>,
}

impl ScriptedLock {
    fn session(self: &Arc<Self>) -> ScriptedSession {
        let number = self.sessions.fetch_add(1, Ordering::SeqCst);
        ScriptedSession { lock: Arc::clone(self), number }
    }

    /// The session that has it ends, and another gets it: one that nobody here knows.
    pub(crate) fn give_away(&self) {
        *self.holder.lock().unwrap() = Some(usize::MAX);
    }

    /// The session that has it.
    pub(crate) fn holder(&self) -> Option<usize> {
        *self.holder.lock().unwrap()
    }

    /// Whoever asks next gets it.
    pub(crate) fn free(&self) {
        *self.holder.lock().unwrap() = None;
    }
}

#[derive(Debug)]
struct ScriptedSession {
    lock: Arc<ScriptedLock>,
    number: usize,
}

impl Drop for ScriptedSession {
    fn drop(&mut self) {
        self.lock.holder.lock().unwrap().take_if(|holder| *holder == self.number);
    }
}

#[async_trait]
impl LockSession for ScriptedSession {
    async fn try_take(&mut self) -> Result<LockHolder, SourceError> {
        let holder = *self.lock.holder.lock().unwrap().get_or_insert(self.number);
        if holder == self.number {
            return Ok(LockHolder::Us);
        }
        self.lock.refused.send_modify(|refused| *refused += 1);
        Ok(LockHolder::Another(format!("session {holder}")))
    }

    async fn check(&mut self) -> Result<(), SourceError> {
        match *self.lock.holder.lock().unwrap() {
            Some(holder) if holder == self.number => Ok(()),
            _ => Err(broken("hold the lock")),
        }
    }

    async fn lag_bytes(&mut self, _after: Commit) -> Result<Option<u64>, SourceError> {
        Ok(Some(0))
    }
}

/// The snapshot's consistent point.
pub(crate) const SNAPSHOT: u64 = 10;

impl Script {
    pub(crate) fn new(snapshot: Vec<i64>, transactions: Vec<Transaction>) -> Arc<Self> {
        let never = || AtomicUsize::new(usize::MAX);
        Arc::new(Self {
            snapshot,
            transactions: Mutex::new(transactions),
            break_after: never(),
            break_snapshot_after: never(),
            hang_snapshot_after: never(),
            ..Self::default()
        })
    }

    /// As [`new`](Self::new), with a lock for several processes.
    pub(crate) fn with_lock(snapshot: Vec<i64>, transactions: Vec<Transaction>) -> Arc<Self> {
        let mut script = Self::new(snapshot, transactions);
        let own = Arc::get_mut(&mut script).expect("nobody has it yet");
        own.lock = Some(Arc::default());
        script
    }

    pub(crate) fn commit(&self, transaction: Transaction) {
        self.transactions.lock().unwrap().push(transaction);
        self.news.notify_one();
    }

    pub(crate) fn idle(&self, through: u64) {
        *self.idle_through.lock().unwrap() = Some(through);
        self.news.notify_one();
    }
}

pub(crate) fn schema() -> Arc<TableSchema> {
    let column = |name: &str, field, kind| Column {
        nullable: false,
        ..Column::nullable(name, field, kind, "")
    };
    Arc::new(TableSchema {
        table: TableId::new("public", "t"),
        dialect: Dialect::Postgres,
        columns: vec![
            column("id", 1, Kind::Int { bits: 64, signed: true }),
            column("text", 2, Kind::Text { length: None, fixed: false }),
        ],
        identity: Identity::Key(vec![0]),
        indexes: Vec::new(),
        foreign_keys: Vec::new(),
        hides_cascades: false,
        options: None,
    })
}

fn broken(what: &str) -> SourceError {
    SourceError::unavailable(what, std::io::Error::other("as the script says"))
}

#[derive(Debug, Clone)]
pub(crate) struct Scripted(pub(crate) Arc<Script>);

#[async_trait]
impl SourceConnector for Scripted {
    async fn check(&self) -> Vec<Problem> {
        Vec::new()
    }

    async fn server(&self) -> Result<ServerIdentity, SourceError> {
        self.0.attempts.send_modify(|attempts| *attempts += 1);
        if self.0.away.load(Ordering::SeqCst) {
            return Err(broken("connect"));
        }
        Ok(ServerIdentity("scripted".into()))
    }

    async fn lock_session(&self) -> Result<SourceLock, SourceError> {
        Ok(match &self.0.lock {
            Some(lock) => SourceLock::new(lock.session()),
            None => SourceLock::new(()),
        })
    }

    async fn tables(&self) -> Result<Vec<Arc<TableSchema>>, SourceError> {
        Ok(vec![schema()])
    }

    async fn current(&self) -> Result<Commit, SourceError> {
        Ok(Commit::lsn(SNAPSHOT))
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, SourceError> {
        self.0.snapshots.fetch_add(1, Ordering::SeqCst);
        self.0.lost.store(false, Ordering::SeqCst);
        Ok(Box::new(ScriptedSnapshot { script: Arc::clone(&self.0), next: 0, begun: false }))
    }

    /// It has one table: where something is complete, all of it is.
    async fn snapshot_rest(
        &self,
        _resume: &Resume,
        _finished: &[TableId],
    ) -> Result<Rest, SourceError> {
        Ok(Rest::Void("there is no rest".into()))
    }

    async fn stream(&self, resume: Option<&Resume>) -> Result<Box<dyn Stream>, SourceError> {
        self.0.resumes.lock().unwrap().push(resume.cloned());
        if self.0.lost.load(Ordering::SeqCst) {
            return Err(SourceError::PositionLost {
                after: "here".into(),
                problem: Problem::new("its slot is gone", "`tailwater resync`"),
            });
        }
        let mut after =
            resume.map_or(0, |resume| resume.after.position() - u64::from(resume.again));
        if self.0.confirmed_early.load(Ordering::SeqCst) {
            after = after.max(self.0.sent.load(Ordering::SeqCst));
        }
        Ok(Box::new(ScriptedStream {
            script: Arc::clone(&self.0),
            after,
            events: 0,
            ready: Vec::new(),
            bound: false,
            idled: 0,
        }))
    }

    async fn table_reader(&self) -> Result<Box<dyn TableReader>, SourceError> {
        Err(broken("read a table"))
    }

    async fn release(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

struct ScriptedSnapshot {
    script: Arc<Script>,
    next: usize,
    begun: bool,
}

#[async_trait]
impl Snapshot for ScriptedSnapshot {
    fn commit(&self) -> Commit {
        Commit::lsn(SNAPSHOT)
    }

    fn server(&self) -> ServerIdentity {
        ServerIdentity("scripted".into())
    }

    fn state(&self) -> SourceState {
        SourceState("{}".into())
    }

    async fn next(&mut self, out: &mut Changes, _bytes: usize) -> Result<(), SourceError> {
        let (slot, schema) = (TableSlot(0), schema());
        if !self.begun {
            self.begun = true;
            out.schema(slot, Arc::clone(&schema));
            out.push(Event::TableBegin(slot));
            return Ok(());
        }
        if self.next == self.script.hang_snapshot_after.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.next == self.script.break_snapshot_after.load(Ordering::SeqCst) {
            self.script.break_snapshot_after.store(usize::MAX, Ordering::SeqCst);
            return Err(broken("snapshot"));
        }
        let Some(id) = self.script.snapshot.get(self.next) else {
            out.push(Event::TableEnd(slot));
            out.push(Event::SnapshotEnd);
            return Ok(());
        };
        let ordinal = Ordinal::new(self.next as u64);
        let values = [Value::Int(*id), Value::Text("")];
        out.row(slot, &schema, Operation::Read, ordinal, None, Some(&values));
        self.next += 1;
        Ok(())
    }
}

/// One event of the stream, not yet given.
#[derive(Clone)]
enum Piece {
    Begin(u64),
    Row { ordinal: u64, id: i64, text_length: usize },
    End(u64),
}

struct ScriptedStream {
    script: Arc<Script>,
    after: u64,
    events: usize,
    ready: Vec<Piece>,
    bound: bool,
    idled: u64,
}

impl ScriptedStream {
    fn refill(&mut self) {
        let transactions = self.script.transactions.lock().unwrap();
        let Some(next) = transactions.iter().find(|t| t.commit > self.after) else { return };
        self.after = next.commit;
        self.script.sent.store(next.commit, Ordering::SeqCst);
        self.ready.push(Piece::Begin(next.commit));
        self.ready.extend((0..).zip(&next.ids).map(|(ordinal, &id)| Piece::Row {
            ordinal,
            id,
            text_length: next.text_length,
        }));
        self.ready.push(Piece::End(next.commit));
        self.ready.reverse();
    }
}

#[async_trait]
impl Stream for ScriptedStream {
    fn server(&self) -> ServerIdentity {
        ServerIdentity("scripted".into())
    }

    fn state(&self) -> SourceState {
        SourceState("{}".into())
    }

    async fn next(&mut self, out: &mut Changes, _bytes: usize) -> Result<(), SourceError> {
        loop {
            if self.ready.is_empty() {
                self.refill();
            }
            let idle = *self.script.idle_through.lock().unwrap();
            if let Some(piece) = self.ready.last() {
                if self.events == self.script.break_after.load(Ordering::SeqCst) {
                    self.script.break_after.store(usize::MAX, Ordering::SeqCst);
                    return Err(broken("stream"));
                }
                self.events += 1;
                let (slot, schema) = (TableSlot(0), schema());
                if !self.bound {
                    self.bound = true;
                    out.schema(slot, Arc::clone(&schema));
                }
                match piece.clone() {
                    Piece::Begin(commit) => {
                        // By turns long ago and now, by the clock of these tests.
                        let at = if commit % 20 == 0 { 7 } else { 1_700_000_000_000_000 };
                        out.begin(Commit::lsn(commit), Some(at));
                    }
                    Piece::Row { ordinal, id, text_length } => {
                        let text = "x".repeat(text_length);
                        let values = [Value::Int(id), Value::Text(&text)];
                        let ordinal = Ordinal::new(ordinal);
                        out.row(slot, &schema, Operation::Insert, ordinal, None, Some(&values));
                    }
                    Piece::End(commit) => out.end(Some(commit.to_string())),
                }
                self.ready.pop();
                return Ok(());
            }
            if let Some(through) = idle.filter(|through| *through > self.idled) {
                self.idled = through;
                out.push(Event::Idle { through: Commit::lsn(through) });
                return Ok(());
            }
            self.script.news.notified().await;
        }
    }

    async fn confirm(&mut self, through: Commit) -> Result<(), SourceError> {
        self.script.confirmed.lock().unwrap().push(through.position());
        Ok(())
    }

    async fn probe(&mut self) -> Result<(), SourceError> {
        Ok(())
    }
}
