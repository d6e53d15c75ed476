//! What a server error means: try again, refuse the step, or stop with a remedy.
//!
//! Row values never leave here: of messages that quote them only the names of columns and keys are
//! passed on.

use mysql_async::{DriverError, Error, ServerError};
use tailwater_apply::TargetError;
use tailwater_change::Problem;

/// A statement that failed, and those sent behind it with it.
#[derive(Debug)]
pub(super) struct Failure {
    error: Error,
}

/// ER_DUP_ENTRY.
pub(super) const DUPLICATE: u16 = 1062;

/// What a server error calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// It may pass: locks, restarts, read-only, resources.
    Passing,
    /// Privileges.
    Denied,
    /// A packet beyond `max_allowed_packet`.
    TooLarge,
    /// LOCAL is not allowed on either side.
    NoInfile,
    /// The statement or its data.
    Data,
}

fn class(code: u16) -> Class {
    match code {
        // Out of disk or memory, too many connections, storage engine busy.
        3 | 28 | 1021 | 1037 | 1038 | 1040 | 1041 | 1114 | 1203 | 1206 | 1226 | 1030 => {
            Class::Passing
        }
        // Shutdown, killed, interrupted, aborted, gone.
        1053
        | 1077
        | 1079
        | 1080
        | 1152
        | 1158..=1161
        | 1184
        | 1317
        | 1927
        | 3024
        | 3169
        | 4031 => Class::Passing,
        // Lock wait, deadlock, certification of a group or cluster, read-only.
        1205 | 1213 | 1290 | 1792 | 1836 | 3100 | 3101 | 3572 | 1047 => Class::Passing,
        1044 | 1045 | 1095 | 1131 | 1142 | 1143 | 1227 | 1370 | 1410 | 1698 => Class::Denied,
        1153 | 1162 | 1301 => Class::TooLarge,
        1148 | 3948 | 4166 => Class::NoInfile,
        _ => Class::Data,
    }
}

impl Failure {
    /// The driver's error.
    pub(super) fn of(error: Error) -> Self {
        Self { error }
    }

    /// The driver's error, as it is.
    pub(super) fn error(&self) -> &Error {
        &self.error
    }

    /// The server's error, if it is one about the statement or its data: the transaction goes on.
    pub(super) fn data(&self) -> Option<&ServerError> {
        match &self.error {
            Error::Server(error) if class(error.code) == Class::Data => Some(error),
            _ => None,
        }
    }

    /// Whether `LOAD DATA LOCAL` is not allowed here after all.
    pub(super) fn forbids_infile(&self) -> bool {
        matches!(&self.error, Error::Server(error) if class(error.code) == Class::NoInfile)
    }

    /// The error of `operation`, where nothing can be done about it here.
    pub(super) fn into_target(self, operation: &str) -> TargetError {
        let Error::Server(error) = &self.error else {
            if matches!(self.error, Error::Driver(DriverError::PacketTooLarge)) {
                return too_large(operation);
            }
            return TargetError::unavailable(operation, self.error);
        };
        match class(error.code) {
            Class::Passing => TargetError::unavailable(operation, Spoken(sanitized(error))),
            Class::Denied => TargetError::Refused(Problem::new(
                format!("{operation}: {}", sanitized(error)),
                "grant the target's account ALL on the target databases and on `tailwater`.*: \
                 GRANT ALL ON `tailwater`.* TO the account",
            )),
            Class::TooLarge => too_large(operation),
            Class::NoInfile | Class::Data => TargetError::Refused(Problem::new(
                format!("{operation}: {}", sanitized(error)),
                "make the target's table take what the source's table holds, then `tailwater \
                 resume`",
            )),
        }
    }
}

/// A server error in our words: the original could quote row values.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Spoken(pub(super) String);

/// A row is larger than one packet may be.
pub(super) fn too_large(operation: &str) -> TargetError {
    TargetError::Refused(Problem::new(
        format!("{operation}: a row is larger than the target's max_allowed_packet"),
        "SET GLOBAL max_allowed_packet = 1073741824, or SET GLOBAL local_infile = 1 so that rows \
         are sent in pieces",
    ))
}

/// The message without what it quotes from rows.
pub(super) fn sanitized(error: &ServerError) -> String {
    let mut text = format!("error {} ({})", error.code, error.state);
    // Duplicate entry, and the errors about wrong values: they quote the value first, names last.
    let quotes_values = matches!(
        error.code,
        1062 | 1169
            | 1292
            | 1366
            | 1367
            | 1411
            | 1525
            | 1586
            | 1690
            | 3140
            | 3141
            | 3156
            | 1064
            | 3854
    );
    if !quotes_values {
        return format!("{text}: {}", error.message);
    }
    text.push_str(match error.code {
        1062 | 1169 | 1586 => ": duplicate entry",
        1064 => ": the server does not understand the statement",
        _ => ": incorrect value",
    });
    for (words, name) in
        [("key", named(&error.message, "key ")), ("column", named(&error.message, "column "))]
    {
        if let Some(name) = name {
            text.push_str(&format!(", {words} {name}"));
        }
    }
    text
}

/// The name of the violated key: `PRIMARY`, whatever table the server puts before it.
pub(super) fn violated_key(error: &ServerError) -> Option<&str> {
    let name = named(&error.message, "key ")?;
    Some(name.rsplit_once('.').map_or(name, |(_, key)| key))
}

/// The quoted name behind the last `word`: what stands before may be a value.
fn named<'a>(message: &'a str, word: &str) -> Option<&'a str> {
    let (_, rest) = message
        .rsplit_once(&format!("{word}'"))
        .or_else(|| message.rsplit_once(&format!("{word}`")))?;
    rest.split(['\'', '`']).find(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: u16, message: &str) -> ServerError {
        ServerError { code, message: message.into(), state: "23000".into() }
    }

    #[test]
    fn the_violated_key_is_named_and_the_value_is_not() {
        let error = server(1062, "Duplicate entry 'x' for key 'y' for key 'shop.users.mail'");
        assert_eq!(violated_key(&error), Some("mail"));
        assert_eq!(sanitized(&error), "error 1062 (23000): duplicate entry, key shop.users.mail");
        let error = server(1062, "Duplicate entry '1' for key 'PRIMARY'");
        assert_eq!(violated_key(&error), Some("PRIMARY"));
        let error = server(1366, "Incorrect integer value: 'secret' for column 'a' at row 1");
        assert_eq!(sanitized(&error), "error 1366 (23000): incorrect value, column a");
    }

    #[test]
    fn locks_pass_and_data_does_not() {
        let failure = |code| Failure::of(Error::Server(server(code, "m")));
        assert!(matches!(failure(1213).into_target("t"), TargetError::Unavailable { .. }));
        assert!(failure(1213).data().is_none());
        assert!(failure(1062).data().is_some());
        assert!(matches!(failure(1142).into_target("t"), TargetError::Refused(_)));
    }
}
