//! Failures on demand: which call of a session fails, and how.

use std::sync::Mutex;

use tokio::sync::watch;

/// A call to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// `connect`
    Connect,
    /// `try_lock`
    TryLock,
    /// `progress`
    Progress,
    /// `take_over`
    TakeOver,
    /// `describe`
    Describe,
    /// `create_table`
    CreateTable,
    /// `finish_table`
    FinishTable,
    /// `is_empty`
    IsEmpty,
    /// `begin`
    Begin,
    /// `clear`
    Clear,
    /// `savepoint`
    Savepoint,
    /// `rollback_to_savepoint`
    RollbackToSavepoint,
    /// `step`
    Step,
    /// `replay`
    Replay,
    /// `commit`
    Commit,
    /// `rollback`
    Rollback,
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is lost before the call has any effect.
    Lost,
    /// The call takes effect, and the connection is lost before it says so.
    LostAfter,
    /// The call never returns and has no effect.
    Hang,
    /// The call takes effect and never returns.
    HangAfter,
}

/// The failures of a database: each happens once, at the call it was asked for.
#[derive(Debug)]
pub struct Faults {
    planned: Mutex<Planned>,
    hung: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Planned {
    calls: u64,
    at_call: Option<(u64, Fault)>,
    at_op: Option<(Op, u64, Fault)>,
    happened: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { planned: Mutex::default(), hung: watch::Sender::new(0) }
    }
}

impl Faults {
    /// The `call`th call from now on, counting from 0 and whatever it is, fails.
    pub fn at_call(&self, call: u64, fault: Fault) {
        let mut planned = self.lock();
        planned.at_call = Some((planned.calls + call, fault));
    }

    /// The `nth` call of `op` from now on, counting from 0, fails.
    pub fn at(&self, op: Op, nth: u64, fault: Fault) {
        self.lock().at_op = Some((op, nth, fault));
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Failures that have happened.
    pub fn happened(&self) -> u64 {
        self.lock().happened
    }

    /// Waits until a call hangs.
    ///
    /// # Panics
    /// Never: the sender lives as long as `self`.
    pub async fn hung(&self) {
        let mut hung = self.hung.subscribe();
        let before = *hung.borrow_and_update();
        if before > 0 {
            return;
        }
        hung.changed().await.expect("the sender lives in self");
    }

    /// Counts a call; how it is to fail.
    pub(crate) fn next(&self, op: Op) -> Option<Fault> {
        let mut planned = self.lock();
        let call = planned.calls;
        planned.calls += 1;
        let mut fault = None;
        if let Some((at, planned_fault)) = planned.at_call
            && at == call
        {
            planned.at_call = None;
            fault = Some(planned_fault);
        }
        if let Some((at, nth, planned_fault)) = planned.at_op
            && at == op
        {
            if nth == 0 {
                planned.at_op = None;
                fault = Some(planned_fault);
            } else {
                planned.at_op = Some((at, nth - 1, planned_fault));
            }
        }
        planned.happened += u64::from(fault.is_some());
        fault
    }

    pub(crate) fn note_hung(&self) {
        self.hung.send_modify(|hung| *hung += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Planned> {
        self.planned.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
