//! Capture over a real log in the same process, with a source that follows a script.

mod reading;
mod scenarios;
mod script;
