//! What `check` finds: a problem and the command that repairs it.

use std::fmt;

/// One thing that keeps a source, a target or a pipeline from running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, naming the server object, setting, table or column.
    pub what: String,
    /// What to do about it: the exact statement or setting where there is one.
    pub remedy: String,
}

impl Problem {
    /// A problem and its remedy.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

/// `text` with the name of the source in the commands that it tells to type: who found the problem
/// (a connector, a record of the log) does not know what the source is called. Without a name the
/// text stays as it is.
#[must_use]
pub fn name_source(text: &str, source: &str) -> String {
    const COMMAND: &str = "tailwater resync";
    if source.is_empty() {
        return text.to_owned();
    }
    text.replace(COMMAND, &format!("{COMMAND} --source {source}"))
}
