//! Progress events of a build.

use std::path::Path;

/// A progress event. The listener words and draws it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A message for people, e.g. that a source was unreachable.
    Note(&'a str),
    /// Another process builds the same kernel; waiting for it.
    Waiting,
    /// A download is in progress.
    Downloading {
        /// The file.
        what: &'a str,
        /// Bytes so far.
        bytes: u64,
        /// Expected size in bytes, if known.
        total: Option<u64>,
    },
    /// The source archive is being unpacked.
    Unpacking(&'a Path),
    /// The configuration is being made and checked.
    Configuring,
    /// The kernel is being compiled.
    Compiling {
        /// Steps so far: lines that make has printed.
        steps: u64,
        /// Approximate number of steps.
        expected: u64,
    },
}

/// Receives [`Event`]s.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(Event<'_>);
