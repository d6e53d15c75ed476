//! A host of its own, whose cable can be pulled.
//!
//! What pulling a plug looks like from the other end and no proxy can show: no FIN, no RST, and no
//! kernel that goes on answering keepalives. A network namespace and a pair of virtual interfaces
//! between it and this host ([`Host::start`]), or between it and a switch
//! ([`Network::host`](crate::Network::host)); nothing leaves this machine. Only root may.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::Result;

use crate::namespace::{Namespace, ip};
use crate::port::random;

/// A host beside this one.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    /// Its own address.
    address: Ipv4Addr,
    /// This host's address on its network.
    here: Ipv4Addr,
}

/// The interface on the other side.
pub(crate) const INTERFACE: &str = "uplink";

/// The hardware address of nobody.
const NOBODY: &str = "02:00:00:00:00:01";

/// Numbers of a network's addresses: ours, another of ours, and the first of a host.
pub(crate) const HERE: u8 = 1;
pub(crate) const ALSO_HERE: u8 = 2;
pub(crate) const FIRST_HOST: u8 = 3;

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

    /// Makes one on a network of the two of us; it is gone on drop.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn start() -> Result<Host> {
        let at = addresses();
        let host = Host::create(at(FIRST_HOST), at(HERE))?;
        let name = host.namespace.name();
        ip(&["link", "add", name, "type", "veth", "peer", "name", INTERFACE, "netns", name])?;
        for last in [HERE, ALSO_HERE] {
            ip(&["addr", "add", &format!("{}/29", at(last)), "dev", name])?;
        }
        ip(&["link", "set", name, "up"])?;
        host.connect()?;
        Ok(host)
    }

    /// One that is not yet on its network.
    pub(crate) fn create(address: Ipv4Addr, here: Ipv4Addr) -> Result<Host> {
        Ok(Host { namespace: Namespace::create()?, address, here })
    }

    /// Takes its interface, which is there by now, into use.
    pub(crate) fn connect(&self) -> Result<()> {
        self.namespace.ip(&["addr", "add", &format!("{}/29", self.address), "dev", INTERFACE])?;
        self.plug()
    }

    /// What its namespace is called.
    pub(crate) fn name(&self) -> &str {
        self.namespace.name()
    }

    /// Its own address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
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
        self.namespace.ip(&["link", "set", INTERFACE, "down"])
    }

    /// Puts the cable back.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn plug(&self) -> Result<()> {
        self.namespace.ip(&["link", "set", INTERFACE, "up"])
    }

    /// Nothing more from there reaches `address`, and nobody is told. What comes from that address
    /// still arrives.
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn lose(&self, address: Ipv4Addr) -> Result<()> {
        // Sent to a machine that is not there.
        let address = address.to_string();
        self.namespace.ip(&[
            "neigh",
            "replace",
            &address,
            "lladdr",
            NOBODY,
            "dev",
            INTERFACE,
            "nud",
            "permanent",
        ])
    }

    /// Ends [`Host::lose`].
    ///
    /// # Errors
    /// If the system does not let us.
    pub fn find(&self, address: Ipv4Addr) -> Result<()> {
        self.namespace.ip(&["neigh", "del", &address.to_string(), "dev", INTERFACE])
    }

    /// `command`, on this host: the same program, arguments, environment and process id.
    #[must_use]
    pub fn wrap(&self, command: &Command) -> Command {
        self.namespace.wrap(command)
    }
}

/// The addresses of a network of 10.192.0.0/10 that nobody else has, by their number below 8.
pub(crate) fn addresses() -> impl Fn(u8) -> Ipv4Addr {
    let net = random().to_le_bytes();
    move |last| Ipv4Addr::new(10, 192 | (net[0] & 63), net[1], (net[2] & 0xF8) | last)
}
