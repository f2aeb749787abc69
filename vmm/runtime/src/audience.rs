//! Who reads the errors of this process: somebody who types command lines, or somebody who embeds the library. The
//! same remedy is a flag for one and a method for the other.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether it is somebody who types command lines. Errors are made in many places and read in one, so that is the
/// process's, not the error's.
static COMMAND_LINE: AtomicBool = AtomicBool::new(false);

/// The errors of this process are for somebody who types command lines.
pub fn is_command_line() {
    COMMAND_LINE.store(true, Ordering::Relaxed);
}

/// Whether the errors of this process are for somebody who embeds the library.
pub(crate) fn is_embedder() -> bool {
    !COMMAND_LINE.load(Ordering::Relaxed)
}

/// A text for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) typed: &'static str,
    pub(crate) embedded: &'static str,
}

impl Words {
    /// The text for whoever reads it.
    pub(crate) fn get(self) -> &'static str {
        if is_embedder() { self.embedded } else { self.typed }
    }
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}
