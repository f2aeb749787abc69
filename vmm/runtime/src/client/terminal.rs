//! The terminal of this process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use boxlite_proto::message::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode of a terminal, restored on drop, also by a panic that unwinds.
#[derive(Debug)]
pub(super) struct RawMode(Option<(OwnedFd, Termios)>);

impl RawMode {
    /// Enters raw mode, if the descriptor is a terminal.
    pub(super) fn enter(terminal: BorrowedFd<'_>) -> Self {
        let enter = || {
            let before = tcgetattr(terminal).ok()?;
            let keep = terminal.try_clone_to_owned().ok()?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(terminal, OptionalActions::Drain, &raw).ok()?;
            Some((keep, before))
        };
        Self(enter())
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some((terminal, before)) = &self.0 {
            // A failure can be neither reported nor handled.
            let _ = tcsetattr(terminal.as_fd(), OptionalActions::Drain, before);
        }
    }
}

/// The size of a terminal; 80 by 24 if it is unknown.
pub(super) fn size(terminal: BorrowedFd<'_>) -> TerminalSize {
    match tcgetwinsize(terminal) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            TerminalSize { rows: size.ws_row, columns: size.ws_col }
        }
        _ => TerminalSize { rows: 24, columns: 80 },
    }
}
