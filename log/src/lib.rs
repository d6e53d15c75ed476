//! The log: segments, the broker.
