//! What a program has written so far, and waiting for it to write more.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a thread has read from a stream. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Transcript {
    /// Reads `from` to its end on a thread of its own, which begins after `delay`.
    pub(crate) fn of(mut from: impl Read + Send + 'static, delay: Duration) -> Self {
        let transcript = Self::default();
        let shared = transcript.clone();
        thread::spawn(move || {
            thread::sleep(delay);
            let mut chunk = vec![0; 64 << 10];
            loop {
                let read = from.read(&mut chunk);
                let mut state = shared.state();
                match read {
                    // A terminal whose other end is closed says EIO.
                    Ok(0) | Err(_) => break state.ended = true,
                    Ok(n) => state.bytes.extend_from_slice(&chunk[..n]),
                }
                shared.0.changed.notify_all();
            }
            shared.0.changed.notify_all();
        });
        transcript
    }

    /// A stream that has ended, with nothing in it.
    pub(crate) fn empty() -> Self {
        let transcript = Self::default();
        transcript.state().ended = true;
        transcript
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the stream has ended, `deadline` at the latest. Returns whether it has.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        self.wait(deadline, |state| state.ended)
    }

    /// Waits until `text` has been written, `deadline` at the latest. Returns whether it has.
    pub(crate) fn wait_for(&self, text: &str, deadline: Instant) -> bool {
        let found = |state: &State| contains(&state.bytes, text.as_bytes());
        self.wait(deadline, |state| state.ended || found(state)) && found(&self.state())
    }

    fn wait(&self, deadline: Instant, done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What has been written so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// What has been written so far, as text; the beginning of it if there is much.
    pub(crate) fn text(&self) -> String {
        let state = self.state();
        let shown = state.bytes.len().min(16 << 10);
        String::from_utf8_lossy(&state.bytes[..shown]).into_owned()
    }

    /// Forgets what has been written so far.
    pub(crate) fn clear(&self) {
        self.state().bytes.clear();
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_what_is_written_and_no_longer_than_told() {
        let soon = || Instant::now() + Duration::from_secs(20);
        let transcript = Transcript::of(&b"one two"[..], Duration::ZERO);
        assert!(transcript.wait_for("e t", soon()));
        assert!(transcript.wait_for_end(soon()));
        assert!(!transcript.wait_for("three", soon()), "the end is not waited beyond");
        let (reader, _writer) = std::io::pipe().unwrap();
        let silent = Transcript::of(reader, Duration::ZERO);
        assert!(!silent.wait_for("x", Instant::now() + Duration::from_millis(20)));
    }
}
