//! Records the output of a program, and waits for a text in it.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The bytes that a thread has read from a stream. Clones share them.
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
                    // A read from a terminal whose other end is closed fails with EIO.
                    Ok(0) | Err(_) => break state.ended = true,
                    Ok(n) => state.bytes.extend_from_slice(&chunk[..n]),
                }
                shared.0.changed.notify_all();
            }
            shared.0.changed.notify_all();
        });
        transcript
    }

    /// An empty stream that has ended.
    pub(crate) fn empty() -> Self {
        let transcript = Self::default();
        transcript.state().ended = true;
        transcript
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the stream has ended or `deadline` has passed. Returns whether it has ended.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        self.wait(deadline, |state| state.ended)
    }

    /// Waits until `text` has been written or `deadline` has passed. Returns whether it has been written.
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

    /// What has been written so far, as text; only the beginning of a long output.
    pub(crate) fn text(&self) -> String {
        let state = self.state();
        let shown = state.bytes.len().min(16 << 10);
        String::from_utf8_lossy(&state.bytes[..shown]).into_owned()
    }

    /// Discards what has been written so far.
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
    fn waits_for_text_and_not_beyond_the_end_or_the_deadline() {
        let soon = || Instant::now() + Duration::from_secs(20);
        let transcript = Transcript::of(&b"one two"[..], Duration::ZERO);
        assert!(transcript.wait_for("e t", soon()));
        assert!(transcript.wait_for_end(soon()));
        assert!(!transcript.wait_for("three", soon()), "the stream has ended without the text");
        let (reader, _writer) = std::io::pipe().unwrap();
        let silent = Transcript::of(reader, Duration::ZERO);
        assert!(!silent.wait_for("x", Instant::now() + Duration::from_millis(20)));
    }
}
