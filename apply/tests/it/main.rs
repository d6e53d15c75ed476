//! Apply, tried against the memory target and logs written by hand.

mod assembling;
mod commanding;
mod exactly_once;
mod loading;
mod planning;
mod rig;
mod support;
