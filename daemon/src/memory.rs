//! What glibc's allocator does with memory that is free again.
//!
//! A block that is large has pages of its own, which go back to the system with it. But glibc raises
//! the bound of what is large with each such block: after one row of 20 MB the next lies in the
//! heap, where whatever stands behind it keeps its room for good. Fixing the bound ends that. It
//! also ends the heaps' keeping some of what is free: batches, which come and go by the thousand,
//! would take new pages from the system each time, a third of our system time. So what they
//! keep is given, too. All that can be done from outside only, before the process begins, so the
//! process begins once more.

use std::env;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// glibc's name of the bound of large blocks, in bytes.
const LARGE: &str = "MALLOC_MMAP_THRESHOLD_";

/// The three settings.
const SETTINGS: [(&str, &str); 3] = [
    // Above the batches of a steady stream, which are used again and again; below large rows.
    (LARGE, "4194304"),
    // What is free at the end of a heap, there is one for each busy thread, and stays.
    ("MALLOC_TRIM_THRESHOLD_", "2097152"),
    // What a heap grows by.
    ("MALLOC_TOP_PAD_", "524288"),
];

/// Begins the process once more, with the settings, unless it has one for large blocks already.
///
/// # Errors
/// It cannot; the process is as it was.
pub(crate) fn settle() -> io::Result<()> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) || env::var_os(LARGE).is_some() {
        return Ok(());
    }
    let mut arguments = env::args_os();
    let mut again = Command::new(env::current_exe()?);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    Err(again.args(arguments).envs(SETTINGS).exec())
}
