//! Scratch database servers for tests, the demo and the bench.
