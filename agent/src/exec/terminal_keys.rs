//! Finds the signals that a terminal generates for typed keys.

use std::os::fd::AsFd;

use rustix::termios::{LocalModes, SpecialCodeIndex, Termios, tcgetattr};

/// The first signal that the terminal generates for typed data and that ends a process: SIGINT or SIGQUIT.
pub(super) fn signal(terminal: impl AsFd, typed: &[u8]) -> Option<i32> {
    let modes = tcgetattr(terminal).ok()?;
    signal_by(&modes, typed)
}

fn signal_by(modes: &Termios, typed: &[u8]) -> Option<i32> {
    if !modes.local_modes.contains(LocalModes::ISIG) {
        return None;
    }
    let key = |index| Some(modes.special_codes[index]).filter(|key| *key != 0);
    // The byte after this key is literal.
    let literal = key(SpecialCodeIndex::VLNEXT)
        .filter(|_| modes.local_modes.contains(LocalModes::IEXTEN | LocalModes::ICANON));
    let mut bytes = typed.iter().copied().map(Some);
    while let Some(byte) = bytes.next() {
        if byte == literal {
            bytes.next();
        } else if byte == key(SpecialCodeIndex::VINTR) {
            return Some(libc::SIGINT);
        } else if byte == key(SpecialCodeIndex::VQUIT) {
            return Some(libc::SIGQUIT);
        }
    }
    None
}

#[cfg(test)]
mod tests;
