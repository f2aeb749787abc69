//! The log of a VM process: its standard error, with a bounded length. Guests can cause log lines, so the log is
//! bounded here as well: a file that is too long is cut to its last part, and anything else gets no more at the limit.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// The largest log, in bytes.
const MAX: u64 = 4 << 20;
/// Bytes that are kept when a log is cut.
const KEPT: u64 = 1 << 20;

/// A log of bounded length. To be cut, it must be a file that is open for reading and appending.
#[derive(Debug)]
pub struct BoundedLog {
    file: File,
    /// Bytes in the log.
    len: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The log is a file, which can be cut.
    Cuttable,
    /// The log cannot be cut: it ends at the limit.
    Ends,
    /// The log has reached its limit.
    Ended,
}

impl BoundedLog {
    /// The log that is this process's standard error.
    pub fn of_stderr() -> io::Result<Self> {
        Ok(Self::new(io::stderr().as_fd().try_clone_to_owned()?.into()))
    }

    fn new(file: File) -> Self {
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file);
        let len = metadata.as_ref().map_or(0, std::fs::Metadata::len);
        // The first cut finds out whether the file can be read.
        let state = if metadata.is_some() { State::Cuttable } else { State::Ends };
        Self { file, len, state }
    }

    /// Cuts a log that is full, or ends it.
    fn make_room(&mut self) -> io::Result<()> {
        if self.state == State::Cuttable && self.cut().is_ok() || self.state == State::Ended {
            return Ok(());
        }
        self.state = State::Ended;
        self.file.write_all(b"the log is full: nothing more is written to it\n")
    }

    /// Replaces the file's content by its last lines.
    fn cut(&mut self) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        let from = len.saturating_sub(KEPT);
        let mut tail = vec![0; usize::try_from(len - from).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut tail, from)?;
        let line = tail.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut text =
            format!("the log was cut: {} bytes are gone\n", from + line as u64).into_bytes();
        text.extend_from_slice(tail.get(line..).unwrap_or_default());
        self.file.set_len(0)?;
        self.len = text.len() as u64;
        self.file.write_all(&text)
    }
}

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len.saturating_add(bytes.len() as u64) > MAX {
            self.make_room()?;
        }
        // Messages are much shorter than this; a longer one is truncated.
        let bytes = bytes.get(..bytes.len().min(KEPT as usize)).unwrap_or_default();
        if self.state != State::Ended {
            self.file.write_all(bytes)?;
            self.len += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use super::*;

    const LINE: &str = "a guest wants this line to fill the disk of its host, and number ";

    fn fill(log: &mut BoundedLog) {
        for n in 0..200_000 {
            writeln!(log, "{LINE}{n}").unwrap();
        }
    }

    #[test]
    fn a_file_keeps_its_last_part_and_says_that_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.log");
        let open = || File::options().read(true).append(true).create(true).open(&path).unwrap();
        let mut log = BoundedLog::new(open());
        fill(&mut log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= MAX, "{}", text.len());
        assert!(text.starts_with("the log was cut: "), "{}", &text[..60]);
        assert!(text.ends_with(&format!("{LINE}199999\n")));
        assert!(text.lines().skip(1).all(|line| line.starts_with(LINE)), "whole lines only");
        // The length of an existing log counts.
        BoundedLog::new(open()).write_all(&vec![b'x'; MAX as usize]).unwrap();
        assert!(path.metadata().unwrap().len() <= MAX);
    }

    #[test]
    fn what_cannot_be_cut_ends_at_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.log");
        let write_only = File::options().append(true).create(true).open(&path).unwrap();
        let mut log = BoundedLog::new(write_only);
        fill(&mut log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= MAX + 100, "{}", text.len());
        assert!(text.ends_with("the log is full: nothing more is written to it\n"));

        let (mut reader, writer) = io::pipe().unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).unwrap();
            text.len() as u64
        });
        let mut log = BoundedLog::new(File::from(OwnedFd::from(writer)));
        fill(&mut log);
        drop(log);
        assert!(reader.join().unwrap() <= MAX + 100);
    }
}
