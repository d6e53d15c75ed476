//! What happens after an error: the four answers.

/// What the owner of a failed operation does next. Every error of Tailwater maps to one of these
/// in an exhaustive `disposition()`, so that a new kind of error cannot be added undecided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It may pass by itself: try again after a backoff, nothing is lost meanwhile.
    Retry,
    /// A human must act: stop, keep the position, say the reason and the remedy.
    Operator,
    /// Another instance took over: stop at once and change nothing more.
    Fenced,
    /// Our own mistake: stop, keep the position, report it.
    Bug,
}
