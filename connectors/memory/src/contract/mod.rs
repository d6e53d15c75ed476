//! The contract suite for targets.
