//! Apply, tried against the memory target and logs written by hand.

mod assembling;
mod planning;
mod support;
