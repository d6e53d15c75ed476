//! A host of its own, whose cable can be pulled.
//!
//! What pulling a plug looks like from the other end and no proxy can show: no FIN, no RST, and no
//! kernel that goes on answering keepalives. A network namespace and a pair of virtual interfaces
//! between it and this host; nothing leaves this machine. Only root may.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::flavor::run;
use crate::port::random;

/// A host beside this one, on a network of the two.
#[derive(Debug)]
pub struct Host {
    /// Of the namespace and of the interface here.
    name: String,
    /// This host's address on that network.
    here: Ipv4Addr,
}

/// The interface on the other side.
const INTERFACE: &str = "uplink";

impl Host {
    /// Whether this machine lets us make one.
    ///
    /// # Errors
    /// The reason why not.
    pub fn available() -> Result<(), String> {
        Host::start().map(drop).map_err(|error| {
            format!("another host needs root, `ip` and network namespaces: {error:#}")
        })
    }

    /// Makes one; it is gone on drop.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn start() -> Result<Host> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);

        sweep()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Interfaces have names of at most 15 characters.
        let name = format!("tw{}x{number}", std::process::id());
        let net = random().to_le_bytes();
        // Of 10.192.0.0/10, eight addresses.
        let at = |last| Ipv4Addr::new(10, 192 | (net[0] & 63), net[1], (net[2] & 0xF8) | last);
        let host = Host { name, here: at(1) };
        let name = host.name.as_str();
        ip(&["netns", "add", name])?;
        ip(&["link", "add", name, "type", "veth", "peer", "name", INTERFACE, "netns", name])?;
        for last in [1, 2] {
            ip(&["addr", "add", &format!("{}/29", at(last)), "dev", name])?;
        }
        ip(&["link", "set", name, "up"])?;
        ip(&["-n", name, "addr", "add", &format!("{}/29", at(3)), "dev", INTERFACE])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        host.plug()?;
        Ok(host)
    }

    /// The address under which it reaches this host.
    #[must_use]
    pub fn address_here(&self) -> Ipv4Addr {
        self.here
    }

    /// Another address under which it reaches this host.
    #[must_use]
    pub fn other_address_here(&self) -> Ipv4Addr {
        let [a, b, c, d] = self.here.octets();
        Ipv4Addr::new(a, b, c, d + 1)
    }

    /// Its network, as servers name those that they let in.
    #[must_use]
    pub fn network(&self) -> String {
        let [a, b, c, d] = self.here.octets();
        format!("{}/29", Ipv4Addr::new(a, b, c, d & 0xF8))
    }

    /// Pulls the cable.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn unplug(&self) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", INTERFACE, "down"])
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn plug(&self) -> Result<()> {
        ip(&["-n", &self.name, "link", "set", INTERFACE, "up"])
    }

    /// Nothing more from there reaches `address`, one of this host's, nor comes back.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn lose(&self, address: Ipv4Addr) -> Result<()> {
        ip(&["-n", &self.name, "route", "add", "blackhole", &address.to_string()])
    }

    /// Ends [`Host::lose`].
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn find(&self, address: Ipv4Addr) -> Result<()> {
        ip(&["-n", &self.name, "route", "del", "blackhole", &address.to_string()])
    }

    /// `command`, on this host: the same program, arguments, environment and process id.
    #[must_use]
    pub fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("ip");
        wrapped.args(["netns", "exec", &self.name]);
        wrapped.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            wrapped.current_dir(folder);
        }
        wrapped
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The interfaces go with it, once nothing runs there any more.
        let _gone = ip(&["netns", "del", &self.name]);
        let _gone = ip(&["link", "del", &self.name]);
    }
}

/// Removes what processes have left that were killed.
fn sweep() -> Result<()> {
    let listed = Command::new("ip").args(["netns", "list"]).output().context("run ip")?;
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let ours = name.strip_prefix("tw").and_then(|rest| rest.split_once('x'));
        let Some(pid) = ours.and_then(|(pid, _)| pid.parse::<u32>().ok()) else { continue };
        if !crate::folder::alive(pid) {
            // Another process may be sweeping, too.
            let _gone = ip(&["netns", "del", name]);
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    match run(Command::new("ip").args(arguments)) {
        Ok(()) => Ok(()),
        Err(error) => bail!("ip {}: {error:#}", arguments.join(" ")),
    }
}
