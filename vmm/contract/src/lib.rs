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
//! hypervisor, no device. A format here is read by other versions of this project: fields are added
//! with a default, and never change their meaning.

#![forbid(unsafe_code)]

pub mod boot;
pub mod control;
pub mod events;
pub mod logbook;
pub mod metrics;
pub mod nested;
pub mod spec;
pub mod status;
