//! The terminal of this process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use boxlite_proto::message::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Passes every key on as it is until dropped, which also happens when a panic unwinds.
#[derive(Debug)]
pub(super) struct RawMode(Option<(OwnedFd, Termios)>);

impl RawMode {
    /// Changes the terminal, if it is one.
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
            // There is nobody to tell, and nothing else to try.
            let _ = tcsetattr(terminal.as_fd(), OptionalActions::Drain, before);
        }
    }
}

/// The terminal's size; the classic one if it does not say.
pub(super) fn size(terminal: BorrowedFd<'_>) -> TerminalSize {
    match tcgetwinsize(terminal) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            TerminalSize { rows: size.ws_row, columns: size.ws_col }
        }
        _ => TerminalSize { rows: 24, columns: 80 },
    }
}
