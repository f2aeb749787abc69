//! System calls that no crate wraps safely: the only `unsafe` code of the agent. Also has the poller.
//!
//! May use no other module of the agent.

pub(crate) mod cpu;
pub(crate) mod file;
pub(crate) mod ioctl;
pub(crate) mod poller;
pub(crate) mod process;
pub(crate) mod signal;
pub(crate) mod time;
pub(crate) mod vsock;
