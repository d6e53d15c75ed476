//! What happened, line by line: to be read where a seed fails, and hashed to tell runs apart.

use std::fmt::{self, Debug, Write as _};
use std::hash::{DefaultHasher, Hasher};
use std::io::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::time::Instant;

/// Wall-clock milliseconds at which every run begins.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// When the run of this process began.
static BEGAN: OnceLock<Instant> = OnceLock::new();

fn elapsed_us() -> i64 {
    let elapsed = BEGAN.get_or_init(Instant::now).elapsed();
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
}

/// The simulated time of day: microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    EPOCH_MS * 1000 + elapsed_us()
}

/// The simulated time of day: milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    now_us() / 1000
}

/// The trace of a run. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    hasher: DefaultHasher,
    lines: u64,
    show: Show,
}

/// How much of a trace is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Show {
    /// Nothing.
    Nothing,
    /// A line for each thing that happens.
    Lines,
    /// With what is in each message.
    Messages,
}

impl Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl Trace {
    pub(crate) fn new(show: Show) -> Self {
        let inner = Inner { hasher: DefaultHasher::new(), lines: 0, show };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Something that `who` did or met.
    pub(crate) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        let at = elapsed_us();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        hash_into(&mut inner.hasher, format_args!("{at} {who} {what}\n"));
        inner.lines += 1;
        if inner.show >= Show::Lines {
            let (seconds, micros) = (at / 1_000_000, at % 1_000_000);
            let mut out = std::io::stdout().lock();
            // Who reads it may have gone.
            drop(writeln!(out, "{seconds:>4}.{micros:06}  {who:<10} {what}"));
        }
    }

    /// A message that arrived: its contents are in the hash, what it is in the line.
    pub(crate) fn message(&self, way: fmt::Arguments<'_>, contents: &dyn Debug) {
        let digest = {
            let mut hasher = DefaultHasher::new();
            hash_into(&mut hasher, format_args!("{contents:?}"));
            hasher.finish()
        };
        self.note("network", format_args!("{way} #{:08x}", digest >> 32));
        if self.inner.lock().unwrap_or_else(PoisonError::into_inner).show >= Show::Messages {
            // Who reads it may have gone.
            drop(writeln!(std::io::stdout().lock(), "             {contents:?}"));
        }
    }

    /// The hash of everything so far, and how many lines that were.
    pub(crate) fn hash(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.hasher.finish(), inner.lines)
    }
}

fn hash_into(hasher: &mut DefaultHasher, text: fmt::Arguments<'_>) {
    Hashed(hasher).write_fmt(text).expect("a hasher takes whatever it is given");
}

struct Hashed<'a>(&'a mut DefaultHasher);

impl fmt::Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
