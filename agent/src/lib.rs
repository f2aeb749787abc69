//! PID 1 of the guest.
//!
//! The agent boots the guest in one of three [roles](boxlite_proto::boot::Role), then serves the
//! host until it is told to shut down:
//!
//! ```text
//!  boot ──── mounts, disk, net, etc, clock             once, in order, any failure is fatal
//!    │
//!  server ── one thread, one epoll (edge-triggered)
//!    ├── connection   frames in, frames out, bounded both ways
//!    ├── exec         processes: user, pty, spawn, pump, the main command's namespace
//!    ├── job          what may block, each on a thread of its own:
//!    │                  unpack, pack ── tars become files and files tars
//!    │                  inspect ────── metrics, processes, what is at a path
//!    ├── reaper       every zombie is reaped, every exec learns how it ended
//!    └── shutdown     SIGTERM, SIGKILL, unmount, reset
//! ```
//!
//! It is small and does almost everything on one thread because it is loaded into every box. It never
//! panics on what the host sends: a malformed frame ends its connection with everything that it started.

mod boot;
mod clock;
mod connection;
mod disk;
mod etc;
mod exec;
mod identity;
mod init;
mod inspect;
mod job;
mod log;
mod mountinfo;
mod mounts;
mod net;
pub mod pack;
mod poller;
mod reaper;
pub mod server;
mod shutdown;
mod sys;
mod transport;
pub mod unpack;
mod work;

pub use boot::run;
