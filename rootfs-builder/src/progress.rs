//! Progress events of long work, so that a launcher can draw bars.

use std::path::Path;

/// Receives progress events: often (about one per 256 KiB), on the thread that works.
pub trait Progress: Send + Sync {
    /// Handles one event.
    fn report(&self, event: Event<'_>);

    /// Polled many times a second while something is fetched. Once this returns true, the call
    /// fails soon with [`Error::Cancelled`](crate::Error::Cancelled); what was fetched is kept for
    /// the next attempt.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _: Event<'_>) {}
}

impl<F: Fn(Event<'_>) + Send + Sync> Progress for F {
    fn report(&self, event: Event<'_>) {
        self(event);
    }
}

/// One progress event. All numbers are bytes; `done` never shrinks within a phase unless noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A compressed or streamed archive is being expanded to a temporary file.
    Expanding {
        /// The archive; `-` if it is a stream.
        file: &'a Path,
        /// Bytes read of the archive.
        done: u64,
        /// Length of the archive in bytes, if known beforehand.
        total: Option<u64>,
    },
    /// A directory is being read to compute its digest.
    Scanning {
        /// The directory.
        dir: &'a Path,
        /// Bytes of the tar stream made of it.
        done: u64,
    },
    /// Another process is making this disk or blob; waiting for it.
    Waiting {
        /// The file that will appear.
        file: &'a Path,
    },
    /// A registry or mirror is being asked for an image.
    Asking {
        /// The registry's name.
        registry: &'a str,
    },
    /// A layer is being fetched from a registry; several run at a time. `done` starts at what an
    /// earlier attempt fetched, and falls back if that turns out to be unusable.
    Pulling(LayerProgress),
    /// A layer is in the store already.
    Present(LayerProgress),
    /// A layer is being copied into the store.
    Copying(LayerProgress),
    /// A layer is being read by the builder.
    Unpacking(LayerProgress),
    /// All layers are on the new disk; the disk is being synced.
    Syncing,
    /// A problem that was worked around and should be known.
    Warning(&'a str),
}

/// How much of a layer is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// Index of the layer, from 0.
    pub layer: usize,
    /// Number of layers.
    pub layers: usize,
    /// Bytes read of the layer as it is stored.
    pub done: u64,
    /// Length of the layer as it is stored, if known beforehand.
    pub total: Option<u64>,
}

/// Limits the rate of events to about one per 256 KiB.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    reported: u64,
}

impl Pace {
    const STEP: u64 = 256 << 10;

    /// Whether `done` should be reported now.
    pub(crate) fn is_due(&mut self, done: u64) -> bool {
        let due = done.saturating_sub(self.reported) >= Self::STEP;
        if due {
            self.reported = done;
        }
        due
    }
}
