//! The guest's serial console: its last lines are kept for the report of a panic, and all output goes to a file if
//! one was requested. Both are bounded, because the guest can write without limit.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of console output that are kept in memory.
const KEPT: usize = 32 << 10;
/// The most bytes of console output in the file.
const FILE_LIMIT: u64 = 16 << 20;
/// Lines in a report.
const REPORTED_LINES: usize = 24;
/// The first line that the kernel prints when it panics.
const PANIC: &str = "Kernel panic - not syncing";

/// The console. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Console(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    tail: VecDeque<u8>,
    file: Option<File>,
    written: u64,
}

impl Console {
    pub(super) fn new(file: Option<File>) -> Self {
        let state = State { tail: VecDeque::new(), file, written: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last lines, if the kernel panicked.
    pub(super) fn panic(&self) -> Option<Vec<String>> {
        let tail: Vec<u8> = self.state().tail.iter().copied().collect();
        let lines: Vec<String> = String::from_utf8_lossy(&tail).lines().map(printable).collect();
        let panic = lines.iter().position(|line| line.contains(PANIC))?;
        // Half of the report is from before the panic, to show what led to it.
        let end = lines.len().min(panic + REPORTED_LINES / 2);
        Some(lines[end.saturating_sub(REPORTED_LINES)..end].to_vec())
    }
}

/// Replaces control characters: a guest must not control the terminal that shows the report.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        state.tail.extend(bytes);
        let over = state.tail.len().saturating_sub(KEPT);
        state.tail.drain(..over);
        if let Some(file) = &mut state.file {
            // A full disk must not stop the guest.
            let result = file.write_all(bytes);
            state.written += bytes.len() as u64;
            if result.is_err() || state.written > FILE_LIMIT {
                state.file = None;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_reported_with_what_led_to_it_and_nothing_dangerous() {
        let mut console = Console::new(None);
        for n in 0..10_000 {
            writeln!(console, "line {n}").unwrap();
        }
        assert_eq!(console.panic(), None);
        write!(
            console,
            "last\x1b[2J words\r\nKernel panic - not syncing: Attempted to kill init!\n"
        )
        .unwrap();
        let report = console.panic().unwrap();
        assert!(report.len() <= REPORTED_LINES);
        assert!(report.last().unwrap().contains("Attempted to kill init"));
        assert!(report.iter().all(|line| !line.contains('\x1b')));
        assert!(console.state().tail.len() <= KEPT);
    }

    #[test]
    fn the_file_is_bounded() {
        let file = tempfile::tempfile().unwrap();
        let mut console = Console::new(Some(file.try_clone().unwrap()));
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            console.write_all(&chunk).unwrap();
        }
        assert!(file.metadata().unwrap().len() <= FILE_LIMIT + chunk.len() as u64);
    }
}
