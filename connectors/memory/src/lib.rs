//! Contract reference for sources and targets.
