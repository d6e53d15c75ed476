//! Capture over a real log in the same process, with a source that follows a script.

#[cfg(test)]
mod locking;
#[cfg(test)]
mod partitions;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod rest;
#[cfg(test)]
mod resync;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod script;
