//! Memory that a large row has used goes back to the system.
//!
//! glibc gives a large block pages of its own, but raises the bound of what is large with each
//! one that is freed: after one row of 20 MB the next lies in the heap, where whatever stands
//! behind it keeps its room for good. Fixing the bound ends that. It can be done from outside only,
//! before the process begins, so the process begins once more.

use std::env;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// glibc's name of the bound.
const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";

/// Above the batches of a steady stream, which are used again and again; below large rows.
const BYTES: &str = "4194304";

/// Begins the process once more, with the bound fixed, unless it is already.
///
/// # Errors
/// It cannot; the process is as it was.
pub(crate) fn return_large_blocks() -> io::Result<()> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) || env::var_os(VARIABLE).is_some() {
        return Ok(());
    }
    let mut arguments = env::args_os();
    let mut again = Command::new(env::current_exe()?);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    Err(again.args(arguments).env(VARIABLE, BYTES).exec())
}
