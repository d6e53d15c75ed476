//! A node in its cluster: what it tells the controller and is told, and what it does about it.
//!
//! ```text
//!           register, heartbeat                    ┌──────────── assignments ───────────┐
//! controller ◄──────────────── membership ── image ┤                                    ▼
//!            ────── news ────►                     └─► requests' view         partitions' replicas
//!            ◄──── ISR proposals ── errands ◄──────────── commands ─────────────────────┤
//!                                      └─► fetchers ── Fetch ──► leaders ── batches ────┘
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `controller` | the controller of this process: decisions between the quorum and who asks |
//! | `link` | the way to whichever controller is active |
//! | `membership` | registers, heartbeats, applies metadata |
//! | `assign` | makes each replica here what metadata says |
//! | `errands` | ISR proposals, whom to follow, what to coordinate |
//! | `fetcher` | copies from one leader |
//! | `peer` | the way to another broker |
//! | `throttle` | how fast, for replicas that are not in sync |

pub(crate) mod assign;
pub(crate) mod controller;
pub(crate) mod errands;
pub(crate) mod fetcher;
pub(crate) mod link;
pub(crate) mod membership;
pub(crate) mod peer;
pub(crate) mod throttle;
pub(crate) mod wire;
