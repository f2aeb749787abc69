//! PID 1 of the guest.
//!
//! The agent boots the guest in one of three [roles](boxlite_proto::boot::Role), then serves the
//! host until a shutdown request:
//!
//! ```text
//!  boot ───── mounts, disk, host name and /etc, network: once, in order
//!    │
//!  server ─── the loop: one thread, one epoll (edge-triggered); requests, clock, shutdown
//!    ├── host      the transport, its connections: frames in, frames out, bounded both ways
//!    ├── exec      processes: user, pty, spawn, pump, reaper, the main command's namespace
//!    ├── socket    connections to sockets of the nested host
//!    └── job       requests that may block, each on a thread of its own:
//!          ├── unpack, pack   from tar to files and from files to tar
//!          └── inspect        metrics, processes, the entry at a path
//!
//!  sys, log ─ system calls that no crate wraps safely, epoll; the kernel log
//! ```
//!
//! The agent is loaded into every box, so it is small and does almost everything on one thread. Nothing
//! that the host sends makes it panic: a malformed frame closes its connection and ends everything that
//! the connection started.

mod boot;
mod exec;
mod host;
mod inspect;
mod job;
mod log;
pub mod pack;
pub mod server;
mod socket;
mod sys;
pub mod unpack;

pub use boot::run;
