//! Who captures: waiting for the source's lock, and holding on to it.
//!
//! The lock decides who tries; the log's fence is the safety behind it. The source ends the session
//! of the lock when it has heard nothing of it for [`LOCK_LEASE`](crate::LOCK_LEASE), and so capture
//! is heard every second, whatever else it does: it snapshots, streams, or pauses. Whoever finds
//! that the lock is lost stops at once and asks for it like any other.

use std::time::Duration;

use tailwater_change::Commit;
use tokio_util::sync::CancellationToken;

use crate::capture::{Capture, STANDBY_INTERVAL};
use crate::error::Error;
use crate::session::Why;
use crate::status::{CaptureState, CaptureStatus};
use crate::{LockHolder, SourceError, SourceLock};

/// A server that answers nothing for this long is one that we do not reach: it may have given the
/// lock to another by now. Longer than the pauses of a busy one.
const LOCK_SILENCE: Duration = Duration::from_secs(10);
/// How often the source is asked where it is: often enough for a person who looks at the lag, and
/// nothing to the source.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

impl Capture {
    /// Takes the source's lock, in the session that waits for it if there is one; `None`: another
    /// process has it.
    pub(crate) async fn take_lock(
        &self,
        waiting: &mut Option<SourceLock>,
    ) -> Result<Option<SourceLock>, SourceError> {
        let mut lock = match waiting.take() {
            Some(lock) => lock,
            None => self.connector.lock_session().await?,
        };
        let holder = tokio::time::timeout(LOCK_SILENCE, lock.try_take()).await;
        match holder.unwrap_or_else(|_elapsed| Err(silent()))? {
            LockHolder::Us => Ok(Some(lock)),
            LockHolder::Another(who) => {
                *waiting = Some(lock);
                self.stand_by(&who);
                Ok(None)
            }
        }
    }

    fn stand_by(&self, holder: &str) {
        let status = self.handle.status();
        if status.state == CaptureState::Paused {
            return;
        }
        let source = self.config.source.as_str();
        if status.state != CaptureState::Standby {
            tracing::info!(source, holder, "another process captures this source: standing by");
        }
        let text = format!("another process captures this source: {holder}");
        self.handle.set(CaptureState::Standby, Some(text));
    }

    /// Does `work` under the lock, until that is lost.
    pub(crate) async fn under(
        &self,
        lock: &mut SourceLock,
        work: impl Future<Output = Result<Why, Error>>,
    ) -> Result<Why, Error> {
        let stop = CancellationToken::new();
        let mut holding = std::pin::pin!(self.hold(lock, &stop));
        let ended = tokio::select! {
            ended = work => ended,
            Err(lost) = &mut holding => Err(lost.into()),
        };
        if matches!(ended, Ok(Why::Paused)) {
            // The session goes on: what it was asked last is to be answered first.
            stop.cancel();
            holding.await?;
        }
        ended
    }

    /// Shows the source that we live, and asks it how far the log is behind it, until it is told to
    /// `stop`: the session then waits for no answer.
    ///
    /// # Errors
    /// The lock is lost.
    async fn hold(
        &self,
        lock: &mut SourceLock,
        stop: &CancellationToken,
    ) -> Result<(), SourceError> {
        let mut status = self.handle.watch();
        loop {
            let asked = tokio::time::timeout(LOCK_SILENCE, self.ask(lock)).await;
            asked.unwrap_or_else(|_elapsed| Err(silent()))?;
            let streams = covered(&status.borrow()).is_some();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(MEASURE_INTERVAL) => {}
                // How far the log is behind is known as soon as the stream begins.
                _streams = status.wait_for(|status| covered(status).is_some()), if !streams => {}
            }
        }
    }

    async fn ask(&self, lock: &mut SourceLock) -> Result<(), SourceError> {
        let covered = covered(&self.handle.status());
        if let Some(covered) = covered {
            let asked_at_ms = (self.config.clock)();
            let lag_bytes = lock.lag_bytes(covered).await.unwrap_or_else(|error| {
                tracing::debug!(source = self.config.source, %error, "the lag is not known");
                None
            });
            self.handle.measured(lag_bytes, asked_at_ms);
        }
        lock.check().await
    }

    /// Keeps the lock, and takes it anew when it is lost and to be had, until it is told to `stop`.
    /// What it holds then stays in `lock`: in a new session it would have to be asked for, and another
    /// process could be first.
    pub(crate) async fn keep(&self, lock: &mut Option<SourceLock>, stop: &CancellationToken) {
        loop {
            let Some(taken) = stop.run_until_cancelled(self.take_lock(lock)).await else { return };
            if let Ok(Some(mut held)) = taken {
                match self.hold(&mut held, stop).await {
                    Ok(()) => {
                        *lock = Some(held);
                        return;
                    }
                    Err(lost) => {
                        tracing::debug!(source = self.config.source, %lost, "the lock is lost");
                    }
                }
            }
            // Nothing tells when it is to be had.
            let pause = tokio::time::sleep(STANDBY_INTERVAL);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }
}

/// Up to where the log has what is streamed.
fn covered(status: &CaptureStatus) -> Option<Commit> {
    status.covered().filter(|_commit| status.state == CaptureState::Streaming)
}

/// The session of the lock has no answer.
fn silent() -> SourceError {
    let limit = LOCK_SILENCE.as_secs();
    let what = format!("the server has not answered for {limit} s");
    SourceError::unavailable("hold the source's lock", what)
}
