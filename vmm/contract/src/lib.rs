//! The interface between the box runtime and a box's VM process: the messages that they exchange, and the
//! files that they leave on disk for each other.
//!
//! ```text
//!   runtime ── spec, control ──▶ machine          a Unix socket: LaunchSpec and open files, requests
//!           ◀───── control ─────                  boot stages, answers, how it ended
//!           ◀── status, events, logbook ──        files in the box's folder and in the home
//!           ◀───── capture ─────                  a socket: the packets of a box in the nested host
//! ```
//!
//! Types with serde derives and the little code that reads and writes them; no async runtime, no
//! hypervisor, no device. Files in a home and requests to a running VM process are read by other releases of
//! this project: fields are added with a default, and never change their meaning. A
//! [`LaunchSpec`](spec::LaunchSpec) goes from a runtime to an executable of the same release.

#![forbid(unsafe_code)]

pub mod boot;
pub mod capture;
pub mod control;
pub mod events;
pub mod logbook;
pub mod metrics;
pub mod nested;
pub mod spec;
pub mod status;
mod sys;
