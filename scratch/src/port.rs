//! Ports that nobody else takes.
//!
//! A port the kernel hands out for `:0` may go to any outgoing connection the moment it is
//! released, above all while its server is being restarted. So ours come from below the kernel's
//! ephemeral range, and a lock on a file named after the port keeps parallel test processes apart.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use crate::folder;

/// Below 32768, where Linux begins to hand out ports for outgoing connections.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Locks of the ports this process has been given; they are released when it ends.
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// A loopback TCP port for the exclusive use of this process until it ends.
///
/// # Panics
/// When no port is left, or the folder of scratch servers cannot be written.
#[must_use]
pub fn free_port() -> u16 {
    let folder = folder::root().expect("the scratch folder is writable").join("ports");
    std::fs::create_dir_all(&folder).expect("the scratch folder is writable");
    let start = u16::try_from(random() % u64::from(COUNT)).expect("a remainder of a u16");
    for step in 0..COUNT {
        let port = FIRST + (start + step) % COUNT;
        let file = File::create(folder.join(port.to_string())).expect("a lock file");
        if file.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            TAKEN.lock().expect("nothing panics under this lock").push(file);
            return port;
        }
    }
    unreachable!("all {COUNT} scratch ports are taken")
}

/// A random number, from the only source of randomness in `std`.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
