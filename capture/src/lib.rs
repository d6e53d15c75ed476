//! Source database to log.
