//! What the box runtime and a box's process say to each other, and what they leave on the disk for
//! one another.
//!
//! ```text
//!   runtime ── spec, control ──▶ machine          a Unix socket: LaunchSpec and open files, requests
//!           ◀───── control ─────                  stages of the boot, answers, the end
//!           ◀── status, events, logbook ──        files in the box's folder and in the home
//! ```
//!
//! Types with serde derives and the little code that reads and writes them; no async runtime, no
//! hypervisor, no device. What lies in a home, and what a box's process is asked while it runs, is read by
//! other releases of this project: fields are added with a default, and never change their meaning. A
//! [`LaunchSpec`](spec::LaunchSpec) goes from a runtime to an executable of the same release.

#![forbid(unsafe_code)]

pub mod boot;
pub mod control;
pub mod events;
pub mod logbook;
pub mod metrics;
pub mod nested;
pub mod spec;
pub mod status;
