//! Who applies: waiting for the pipeline's lock on the target, and holding on to it.
//!
//! The lock is the session's that applies, so a session that lost it cannot commit; the fence is
//! the safety behind it. The target ends a session that it has heard nothing of for
//! [`SESSION_LEASE`](crate::SESSION_LEASE), and so whoever has nothing else to say shows every
//! second that it lives: idle, in the middle of a transaction that the log is slow to bring, and
//! paused.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc;

use super::commands::{Command, Order};
use super::session::Context;
use super::{Error, Failure, State};
use crate::{Target, TargetConnector, TargetError};

/// How often a standby asks for the lock.
pub(super) const STANDBY_INTERVAL: Duration = Duration::from_secs(1);

/// How often a session that is idle shows that it lives.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(1);

/// A target that answers nothing for this long is one that we do not reach: it may have given the
/// lock to another by now. Longer than the pauses of a busy one.
const PING_LIMIT: Duration = Duration::from_secs(10);

/// Connects and waits for the pipeline's lock; `None`: paused meanwhile. Says that it `waited`.
pub(super) async fn locked_target(
    context: &mut Context,
    commands: &mut mpsc::Receiver<Command>,
    mut waited: impl FnMut(),
) -> Result<Option<Box<dyn Target>>, Error> {
    let mut target = context.connector.connect().await?;
    let name = context.row_name();
    while !in_time(target.try_lock(&name)).await? {
        let holder = in_time(target.lock_holder(&name)).await;
        stand_by(
            context,
            &holder.unwrap_or_else(|error| format!("it is not known which: {error}")),
        );
        waited();
        tokio::select! {
            biased;
            Some(command) = commands.recv() => match command.order {
                Order::Pause => {
                    command.answer(Ok(()));
                    return Ok(None);
                }
                Order::Resume | Order::Skip(_) => {
                    command.refuse("another process applies this pipeline");
                }
            },
            () = tokio::time::sleep(context.role.standby_interval()) => {}
        }
    }
    Ok(Some(target))
}

fn stand_by(context: &Context, holder: &str) {
    let name = context.config.name.as_str();
    let before = context.status.borrow().state;
    if before != State::Standby {
        tracing::info!(
            pipeline = name,
            holder,
            "another process applies this pipeline: standing by"
        );
    }
    let reason = format!("another process applies this pipeline: {holder}");
    let failure = Failure::new(reason, String::new());
    context.status.send_modify(|status| {
        status.state = State::Standby;
        status.caught_up = false;
        status.failure = Some(failure);
    });
}

/// A sign of life of the session that holds the lock.
pub(super) async fn ping(target: &mut dyn Target) -> Result<(), TargetError> {
    in_time(target.ping()).await
}

/// Keeps the lock without applying, and takes it anew when it is lost and to be had: that one
/// process pauses is no reason for another to go on.
pub(super) async fn keep_lock(
    mut target: Option<Box<dyn Target>>,
    connector: &dyn TargetConnector,
    pipeline: &str,
) -> Infallible {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        target = match target {
            Some(mut held) => ping(held.as_mut()).await.is_ok().then_some(held),
            None => lock(connector, pipeline).await.ok().flatten(),
        };
    }
}

async fn lock(
    connector: &dyn TargetConnector,
    pipeline: &str,
) -> Result<Option<Box<dyn Target>>, TargetError> {
    let mut target = connector.connect().await?;
    let locked = in_time(target.try_lock(pipeline)).await?;
    Ok(locked.then_some(target))
}

pub(super) async fn in_time<T>(
    asking: impl Future<Output = Result<T, TargetError>>,
) -> Result<T, TargetError> {
    let answered = tokio::time::timeout(PING_LIMIT, asking).await;
    answered.unwrap_or_else(|_elapsed| {
        let limit = PING_LIMIT.as_secs();
        let silence = format!("the target has not answered for {limit} s");
        let silence = std::io::Error::new(std::io::ErrorKind::TimedOut, silence);
        Err(TargetError::unavailable("hold the pipeline's lock", silence))
    })
}
