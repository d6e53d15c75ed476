//! The commands as a person meets them.

#[cfg(test)]
mod db;
