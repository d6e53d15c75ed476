//! When what counts is how much gets through, and no longer how soon each change does.

/// Microseconds since the source committed.
const FAR_BEHIND_US: i64 = 1_000_000;

/// Whether a transaction that was committed at `committed_at_us` comes late at `now_us` (microseconds
/// since 1970, UTC): a second or more. Fewer and larger batches are then worth a twentieth of that.
/// Of one that does not say when it was committed nobody knows: it is not.
#[must_use]
pub fn is_far_behind(now_us: i64, committed_at_us: Option<i64>) -> bool {
    committed_at_us.is_some_and(|at| now_us.saturating_sub(at) >= FAR_BEHIND_US)
}
