//! Values that the target's type cannot hold, found before they are sent.
//!
//! PostgreSQL would refuse them too, but with the value in the message and, in a COPY, without
//! the row. Here the reason is named without the value, and the caller adds column and key.

/// Why a value does not fit its column on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("a zero or partial date, which PostgreSQL does not have")]
    ZeroDate,
    #[error("a time below 00:00:00 or beyond 24:00:00, which PostgreSQL's time does not have")]
    TimeOfDay,
    #[error("a NUL character, which PostgreSQL's text does not have")]
    Nul,
    #[error("a number outside the range of the target's type")]
    Range,
    #[error("a value that is not in the canonical form of its kind")]
    Malformed,
}
