//! Hosts that reach each other and this one through a switch, until a link between them is cut.
//!
//! ```text
//!   host ── uplink ─┐
//!   host ── uplink ─┤ switch ├── this host
//!   host ── uplink ─┘
//! ```
//!
//! The switch is a bridge in a network namespace of its own. Only root may.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use crate::host::{ALSO_HERE, FIRST_HOST, HERE, Host, INTERFACE, addresses};
use crate::namespace::{Namespace, ip};

/// A network of up to four hosts and this one; it is gone on drop.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    /// Its first address: the others differ in the last three bits.
    first: Ipv4Addr,
    hosts: u8,
}

/// The bridge, in the switch.
const BRIDGE: &str = "bridge";

/// Hosts that have an address.
const MOST_HOSTS: u8 = 4;

impl Network {
    /// Makes one with nobody on it but this host.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn start() -> Result<Network> {
        let at = addresses();
        let network = Network { switch: Namespace::create()?, first: at(0), hosts: 0 };
        let switch = &network.switch;
        switch.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        switch.ip(&["link", "set", BRIDGE, "up"])?;
        let name = switch.name();
        ip(&["link", "add", name, "type", "veth", "peer", "name", "here", "netns", name])?;
        network.attach("here")?;
        for last in [HERE, ALSO_HERE] {
            ip(&["addr", "add", &format!("{}/29", at(last)), "dev", name])?;
        }
        ip(&["link", "set", name, "up"])?;
        Ok(network)
    }

    /// One more host.
    ///
    /// # Errors
    /// If the system does not let us, or there are four.
    pub fn host(&mut self) -> Result<Host> {
        ensure!(self.hosts < MOST_HOSTS, "a network has {MOST_HOSTS} hosts at most");
        let host = Host::create(self.at(FIRST_HOST + self.hosts), self.at(HERE))?;
        self.hosts += 1;
        let (port, there) = (port(&host), host.name());
        let peer = ["peer", "name", INTERFACE, "netns", there];
        self.switch.ip(&[&["link", "add", &port, "type", "veth"], &peer[..]].concat())?;
        self.attach(&port)?;
        host.connect()?;
        Ok(host)
    }

    /// Pulls a host's cable out of the switch: nobody is told, neither there nor elsewhere.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn isolate(&self, host: &Host) -> Result<()> {
        self.switch.ip(&["link", "set", &port(host), "down"])
    }

    /// Ends [`Network::isolate`].
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn join(&self, host: &Host) -> Result<()> {
        self.switch.ip(&["link", "set", &port(host), "up"])
    }

    fn attach(&self, port: &str) -> Result<()> {
        self.switch.ip(&["link", "set", port, "master", BRIDGE])?;
        self.switch.ip(&["link", "set", port, "up"])
    }

    fn at(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, d] = self.first.octets();
        Ipv4Addr::new(a, b, c, d | last)
    }
}

/// A host's port in the switch.
fn port(host: &Host) -> String {
    format!("port{}", host.address().octets()[3])
}
