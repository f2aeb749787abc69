//! What a long build tells whoever waits for it.

use std::path::Path;

/// One thing that happened while the builder works. Wording and bars are the listener's.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Something a person should know, e.g. that a source was not reachable.
    Note(&'a str),
    /// Another builder works on the same kernel; this one waits for it.
    Waiting,
    /// A download: bytes so far, and of how many where that is known.
    Downloading {
        /// What is downloaded.
        what: &'a str,
        /// Bytes so far.
        bytes: u64,
        /// The size to expect, in bytes.
        total: Option<u64>,
    },
    /// The source archive is being unpacked.
    Unpacking(&'a Path),
    /// The configuration is being made and checked.
    Configuring,
    /// The kernel is compiled: steps so far of about `expected`.
    Compiling {
        /// Lines that make has printed: one a step.
        steps: u64,
        /// About how many there will be.
        expected: u64,
    },
}

/// Who is told of [`Event`]s.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(Event<'_>);
