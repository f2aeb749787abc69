//! The detach keys: typed at the terminal, they detach this process from a command, which keeps running.

use std::str::FromStr;

/// A sequence of keys in docker's syntax: characters and `ctrl-X`, separated by commas. An empty sequence never
/// matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// The text is not a sequence of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a key: keys are single characters or ctrl- with a letter, @, [, \\, ], ^ or _, separated by \
     commas, as in ctrl-p,ctrl-q"
)]
pub struct InvalidKey(String);

impl Default for DetachKeys {
    /// `ctrl-p,ctrl-q`
    fn default() -> Self {
        Self(vec![0x10, 0x11])
    }
}

impl FromStr for DetachKeys {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let keys =
            text.split(',').map(|key| byte_of(key).ok_or_else(|| InvalidKey(key.to_owned())));
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }
}

/// The byte that a terminal sends for a key.
fn byte_of(key: &str) -> Option<u8> {
    if let [byte] = *key.as_bytes() {
        return byte.is_ascii().then_some(byte);
    }
    if key.eq_ignore_ascii_case("del") {
        return Some(0x7f);
    }
    let (ctrl, letter) = key.split_at_checked(5)?;
    match letter.as_bytes() {
        [letter @ (b'a'..=b'z' | b'A'..=b'Z' | b'@' | b'['..=b'_')]
            if ctrl.eq_ignore_ascii_case("ctrl-") =>
        {
            Some(letter.to_ascii_uppercase() - b'@')
        }
        _ => None,
    }
}

/// Finds the sequence in typed input.
///
/// Keys that may start the sequence are held back until the next key decides. The caller releases them after a pause;
/// the sequence can still be completed then.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    keys: Vec<u8>,
    /// Number of keys of the sequence that have been typed.
    typed: usize,
    /// Number of those that have been released.
    passed: usize,
}

impl Scanner {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, typed: 0, passed: 0 }
    }

    /// Scans typed input, and adds the command's part of it to `pass`. True once the sequence is complete; input after
    /// it is dropped.
    pub(super) fn scan(&mut self, bytes: &[u8], pass: &mut Vec<u8>) -> bool {
        if self.keys.is_empty() {
            pass.extend_from_slice(bytes);
            return false;
        }
        for &byte in bytes {
            let window: Vec<u8> =
                self.keys.iter().copied().take(self.typed).chain([byte]).collect();
            // The longest suffix of the input that is a prefix of the sequence.
            let start = (0..=window.len()).find(|&at| self.keys.starts_with(&window[at..]));
            let start = start.unwrap_or(window.len());
            pass.extend(window.iter().take(start).skip(self.passed));
            self.typed = window.len() - start;
            self.passed = self.passed.saturating_sub(start);
            if self.typed == self.keys.len() {
                return true;
            }
        }
        false
    }

    /// Whether keys are held back.
    pub(super) fn holds(&self) -> bool {
        self.passed < self.typed
    }

    /// Adds the keys that are held back to `pass`.
    pub(super) fn release(&mut self, pass: &mut Vec<u8>) {
        pass.extend(self.keys.iter().take(self.typed).skip(self.passed));
        self.passed = self.typed;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(text: &str) -> DetachKeys {
        text.parse().unwrap()
    }

    #[test]
    fn keys_have_dockers_syntax() {
        assert_eq!(keys("ctrl-p,ctrl-q"), DetachKeys::default());
        assert_eq!(
            keys("a,ctrl-a,Ctrl-Z,ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_,DEL").0,
            [b'a', 1, 26, 0, 27, 28, 29, 30, 31, 127]
        );
        assert!(keys("").0.is_empty());
        for bad in ["ctrl-", "ctrl-1", "ctrl-pq", "ab", "a,,b", "ü", "alt-x", "ctrl-ü"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_that_could_start_the_sequence_is_held_back_and_not_lost() {
        let mut scanner = Scanner::new(DetachKeys::default());
        let mut pass = Vec::new();
        assert!(!scanner.scan(b"ls\x10", &mut pass));
        assert_eq!((&*pass, scanner.holds()), (&b"ls"[..], true));
        assert!(!scanner.scan(b"x", &mut pass));
        assert_eq!((&*pass, scanner.holds()), (&b"ls\x10x"[..], false));
        // Typed twice: the second one may still start the sequence.
        assert!(!scanner.scan(b"\x10\x10", &mut pass));
        assert_eq!(pass, b"ls\x10x\x10");
        assert!(scanner.scan(b"\x11rest", &mut pass));
        assert_eq!(pass, b"ls\x10x\x10");
    }

    #[test]
    fn released_keys_still_count() {
        let mut scanner = Scanner::new(keys("a,a,b"));
        let mut pass = Vec::new();
        scanner.scan(b"a", &mut pass);
        scanner.release(&mut pass);
        assert_eq!((&*pass, scanner.holds()), (&b"a"[..], false));
        assert!(!scanner.scan(b"aa", &mut pass));
        assert_eq!(pass, b"a");
        assert!(scanner.scan(b"b", &mut pass));
        assert_eq!(pass, b"a");
    }

    proptest! {
        /// Against a search in the whole: whatever is typed, in whatever pieces, is passed on up to
        /// the first place where the sequence stands.
        #[test]
        fn nothing_is_lost_and_the_first_sequence_is_found(
            sequence in prop::collection::vec(0_u8..3, 1..5),
            pieces in prop::collection::vec(prop::collection::vec(0_u8..3, 0..6), 0..12),
            release in any::<bool>(),
        ) {
            let typed = pieces.concat();
            let found = typed.windows(sequence.len()).position(|window| window == sequence);
            let mut scanner = Scanner::new(DetachKeys(sequence.clone()));
            let mut pass = Vec::new();
            let mut left = false;
            for piece in &pieces {
                left = scanner.scan(piece, &mut pass);
                if left {
                    break;
                }
                if release {
                    scanner.release(&mut pass);
                    prop_assert!(!scanner.holds());
                }
                prop_assert!(typed.starts_with(&pass));
            }
            prop_assert_eq!(left, found.is_some());
            match found {
                // Released keys of the sequence itself have been passed on.
                Some(at) if release => {
                    prop_assert!(pass.len() >= at && pass.len() < at + sequence.len());
                }
                Some(at) => prop_assert_eq!(&*pass, &typed[..at]),
                None => {
                    scanner.release(&mut pass);
                    prop_assert_eq!(pass, typed);
                }
            }
        }
    }
}
