//! Where chance comes from: each component throws dice of its own, all made from the seed.
//!
//! Of its own, so that a component that throws once more does not change what happens to all others.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Dice of one component.
#[derive(Debug)]
pub(crate) struct Dice(Mutex<SmallRng>);

impl Dice {
    /// The dice of the component called `label` in the run of `seed`.
    pub(crate) fn new(seed: u64, label: &str) -> Self {
        // Keyed with zeroes: the same everywhere.
        let mut hasher = DefaultHasher::new();
        (seed, label).hash(&mut hasher);
        Self(Mutex::new(SmallRng::seed_from_u64(hasher.finish())))
    }

    /// Whether something of this probability happens.
    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.with(|rng| rng.random_bool(probability))
    }

    /// From 0 to 1.
    pub(crate) fn fraction(&self) -> f64 {
        self.with(Rng::random)
    }

    /// A number within `range`.
    pub(crate) fn pick(&self, range: Range<usize>) -> usize {
        self.with(|rng| rng.random_range(range))
    }

    /// A time within `range`, its order of magnitude as likely as any other.
    pub(crate) fn time(&self, range: Range<Duration>) -> Duration {
        let (least, most) = (range.start.as_secs_f64().max(1e-6), range.end.as_secs_f64());
        let exponent = self.with(|rng| rng.random_range(least.ln()..most.ln()));
        Duration::from_secs_f64(exponent.exp())
    }

    /// What a generator gives.
    pub(crate) fn with<T>(&self, throw: impl FnOnce(&mut SmallRng) -> T) -> T {
        throw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Milliseconds, for ranges of times.
pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
