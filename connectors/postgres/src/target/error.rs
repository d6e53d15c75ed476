//! What a server's error means for apply.

use tailwater_apply::TargetError;
use tailwater_change::Problem;
use tokio_postgres::Error;
use tokio_postgres::error::DbError;

use crate::connect::{ConnectError, is_passing};

/// What became of a statement that the server did not execute.
#[derive(Debug)]
pub(super) enum Failure {
    /// A value or constraint stood against it: classes 22 (data) and 23 (integrity). In a
    /// set-based step a reason to replay, in a replay a conflict.
    Data(Box<DbError>),
    /// Everything else.
    Other(TargetError),
}

impl Failure {
    /// Sorts `error` of `operation`.
    pub(super) fn of(operation: &str, error: Error) -> Self {
        let stands_against = error.as_db_error().is_some_and(|said| {
            matches!(said.code().code().get(..2), Some("22" | "23" | "44"))
                // An index entry that does not fit is the value's fault as well.
                || matches!(said.code().code(), "54000" | "428C9" | "27000")
        });
        match error.as_db_error() {
            Some(said) if stands_against => Self::Data(Box::new(said.clone())),
            _ => Self::Other(target_error(operation, error)),
        }
    }

    /// Where data cannot stand against it.
    pub(super) fn into_error(self, operation: &str) -> TargetError {
        match self {
            Self::Data(said) => refused(operation, &said),
            Self::Other(error) => error,
        }
    }
}

impl From<TargetError> for Failure {
    fn from(error: TargetError) -> Self {
        Self::Other(error)
    }
}

/// What the server said, without the values: `DETAIL` names them, and class 22's messages do.
pub(super) fn said(error: &DbError) -> String {
    let code = error.code().code();
    let message = match code {
        "22001" => "a value is too long for its column",
        "22003" | "22008" => "a value is out of its column's range",
        "22P02" | "22007" | "22P03" => "a value is none of its column's type",
        "22021" | "22P05" => "a character that the target's encoding does not have",
        _ if code.starts_with("22") => "a value that its column's type does not hold",
        _ => error.message(),
    };
    let mut text = format!("{message} ({code})");
    for (what, name) in [("column", error.column()), ("constraint", error.constraint())] {
        let Some(name) = name else { continue };
        if !text.contains(name) {
            text.push_str(", ");
            text.push_str(what);
            text.push(' ');
            text.push_str(name);
        }
    }
    text
}

/// What became of `operation`.
pub(super) fn target_error(operation: &str, error: Error) -> TargetError {
    match error.as_db_error() {
        // A failed-over target may still be a standby for a while.
        Some(said) if is_passing(said.code().code()) || said.code().code() == "25006" => {
            TargetError::unavailable(operation, error)
        }
        Some(said) => refused(operation, said),
        None => TargetError::unavailable(operation, error),
    }
}

fn refused(operation: &str, error: &DbError) -> TargetError {
    let remedy = match error.code().code() {
        "42501" => "grant it; `tailwater check` prints the exact statement",
        "42P01" | "42703" | "3F000" => {
            "create it as the source has it, or route the table elsewhere, then `tailwater resume`"
        }
        "42804" | "42883" => "give the target's column the source's type, then `tailwater resume`",
        _ => "do what the server's message says, then `tailwater resume`",
    };
    TargetError::Refused(Problem::new(format!("{operation}: {}", said(error)), remedy))
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Other(connect_error(error))
    }
}

/// Why there is no session.
pub(super) fn connect_error(error: ConnectError) -> TargetError {
    match error {
        ConnectError::Refused(problem) => TargetError::Refused(problem),
        ConnectError::Unavailable { address, source } => {
            TargetError::unavailable(format!("connecting to {address}"), source)
        }
    }
}
