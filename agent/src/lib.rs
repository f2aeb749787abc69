//! PID 1 of the guest.
//!
//! The agent boots the guest in one of three [roles](boxlite_proto::boot::Role), then serves the
//! host until it is told to shut down:
//!
//! ```text
//!  boot ──── mounts, disk, net, identity, clock        once, in order, any failure is fatal
//!    │
//!  server ── one thread, one epoll (edge-triggered)
//!    ├── connection   frames in, frames out, bounded both ways
//!    ├── exec         processes: user, pty, spawn, pump
//!    ├── layer        hands the tar of a layer to ──▶ unpack, on a thread of its own
//!    ├── reaper       every zombie is reaped, every exec learns how it ended
//!    └── shutdown     SIGTERM, SIGKILL, unmount, reset
//! ```
//!
//! It is small and single-threaded because it is loaded into every box. It never panics on
//! what the host sends: a malformed frame ends its connection with everything that it started.

mod boot;
mod clock;
mod connection;
mod disk;
mod exec;
mod identity;
mod layer;
mod log;
mod mounts;
mod net;
mod poller;
mod reaper;
pub mod server;
mod shutdown;
mod sys;
mod transport;
pub mod unpack;

pub use boot::run;
