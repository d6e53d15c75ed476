//! Log to target database, exactly once.
