//! Micro-VM boxes: the machine, the box runtime API and the `boxlite-vmm` launcher.

#![deny(unsafe_code)]

mod arch;
mod audience;
mod backend;
pub mod cli;
pub mod client;
pub mod events;
#[cfg(target_os = "linux")]
mod kvm;
mod limits;
pub mod logbook;
pub mod machine;
pub mod runtime;
pub mod softhost;
mod sparse;
mod sys;

/// The guide's snippets compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/library.md")]
struct LibraryGuide;
