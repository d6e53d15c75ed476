//! PostgreSQL as source and target.
