//! How long work tells of itself, so that a launcher can draw bars.

use std::path::Path;

/// Hears of progress. Called often (about once per 256 KiB) and from the thread that works.
pub trait Progress: Send + Sync {
    /// Something went on.
    fn report(&self, event: Event<'_>);

    /// Asked many times a second while something is fetched: once the answer is yes, that ends with
    /// [`Error::Cancelled`](crate::Error::Cancelled), soon. What was fetched is kept for the next time.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody.
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

/// One piece of progress. All numbers are bytes, `done` never shrinks within a phase
/// unless it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A compressed or received archive is being expanded to a temporary file.
    Expanding {
        /// The archive; `-`: it has no file.
        file: &'a Path,
        /// Bytes read of it.
        done: u64,
        /// Bytes of it in all, where known beforehand.
        total: Option<u64>,
    },
    /// A directory is being read to learn its identity.
    Scanning {
        /// The directory.
        dir: &'a Path,
        /// Bytes of the tar stream made of it.
        done: u64,
    },
    /// Another process is making what is wanted here (a disk, a blob); waiting for it.
    Waiting {
        /// The file that will appear.
        file: &'a Path,
    },
    /// A registry (or a mirror) is asked for an image.
    Asking {
        /// The registry's name.
        registry: &'a str,
    },
    /// A layer is being fetched from a registry; several are at a time. `done` begins with what
    /// was fetched by an earlier attempt, and goes back where that turns out to be of no use.
    Pulling(LayerProgress),
    /// A layer is in the store already.
    Present(LayerProgress),
    /// A layer is being copied into the store.
    Copying(LayerProgress),
    /// A layer is being read by the builder.
    Unpacking(LayerProgress),
    /// All layers are on the new disk; it is being written out to stable storage.
    Syncing,
    /// Something is wrong, was dealt with, and should be known.
    Warning(&'a str),
}

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// Which layer, from 0.
    pub layer: usize,
    /// How many layers there are.
    pub layers: usize,
    /// Bytes of the (compressed) layer read.
    pub done: u64,
    /// Bytes of the (compressed) layer in all, where known beforehand.
    pub total: Option<u64>,
}

/// Thins out reports: says yes about once per 256 KiB, and whenever asked to by `force`.
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
