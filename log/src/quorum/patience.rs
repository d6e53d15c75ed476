//! Waiting for room: what a full disk refuses is tried again until there is some.
//!
//! To openraft every failed write is the end of the member. A full disk is not: a member that waits
//! is like one that is slow, the others go on without it, and it goes on when someone makes room.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Error;

/// Between attempts; each may fill the disk's last bytes for a moment, so not often.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How long what passes by itself is waited for: until the member is closed.
#[derive(Debug, Clone)]
pub(crate) struct Patience(pub(crate) CancellationToken);

impl Patience {
    /// Does `act`, again and again while its error passes by itself.
    ///
    /// # Errors
    /// Those that do not pass; any, once the member is being closed.
    pub(crate) async fn insist<T>(
        &self,
        mut act: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut told = false;
        loop {
            match act() {
                Err(error) if error.passes() && !self.0.is_cancelled() => {
                    if !told {
                        tracing::warn!(error = %error.full_text(), "metadata quorum waits for room");
                        told = true;
                    }
                }
                outcome => return outcome,
            }
            tokio::select! {
                biased;
                () = self.0.cancelled() => {}
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
    }
}
