//! The reading side: from the start, the last lines or a moment on, and after that what comes.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{
    FILE, FILE_HEADER, Found, LogStream, OLD_FILE, RECORD_HEADER, Record, record_at, sequence,
};

/// Which part of a log is wanted. The default is all of it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Query {
    /// Only the last so many lines of what is there, before what comes.
    pub tail: Option<u64>,
    /// Only what was written at this moment or later: nanoseconds since the Unix epoch.
    pub since_ns: Option<u64>,
    /// Only what was written at this moment or earlier: nanoseconds since the Unix epoch.
    pub until_ns: Option<u64>,
    /// Only what was written there.
    pub stream: Option<LogStream>,
}

impl Query {
    fn wants(&self, record: &Record) -> bool {
        self.since_ns.is_none_or(|since| record.at_ns >= since)
            && self.until_ns.is_none_or(|until| record.at_ns <= until)
            && self.stream.is_none_or(|stream| record.stream == stream)
    }
}

/// Reads a log while it may be written.
///
/// An [`Iterator`] that says `None` where the log ends at the moment, and goes on when it is asked
/// later: whoever follows a log asks again every some hundred milliseconds, until told that the box
/// has ended and there is `None` once more. It blocks for file reads only; asynchronous code calls
/// it in `spawn_blocking`.
#[derive(Debug)]
pub struct Reader {
    cursor: Cursor,
    query: Query,
    /// Lines that are left out at the beginning, and where the lines are.
    skip: u64,
    lines: Lines,
}

impl Reader {
    /// Opens the log in a box's folder. Without a log, it waits for one.
    pub fn open(folder: &Path, query: Query) -> io::Result<Self> {
        let mut skip = 0;
        if let Some(tail) = query.tail {
            let mut cursor = Cursor::new(folder);
            let mut lines = Lines::default();
            while let Some(record) = cursor.next()? {
                if query.wants(&record) {
                    lines.pass(record.stream, &record.bytes, |_, _| {});
                }
            }
            skip = lines.begun.saturating_sub(tail);
        }
        Ok(Self { cursor: Cursor::new(folder), query, skip, lines: Lines::default() })
    }

    /// The next record; none if there is none yet.
    pub fn poll(&mut self) -> io::Result<Option<Record>> {
        while let Some(mut record) = self.cursor.next()? {
            if !self.query.wants(&record) {
                continue;
            }
            if self.skip > 0 {
                let mut kept = Vec::new();
                self.lines.pass(record.stream, &record.bytes, |line, bytes| {
                    if line >= self.skip {
                        kept.extend_from_slice(bytes);
                    }
                });
                if kept.is_empty() {
                    continue;
                }
                record.bytes = kept;
            }
            return Ok(Some(record));
        }
        Ok(None)
    }
}

impl Iterator for Reader {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.poll().transpose()
    }
}

/// Numbers the lines of both streams in the order of their first bytes.
#[derive(Debug, Default)]
struct Lines {
    /// Lines that have begun.
    begun: u64,
    /// The line that each stream is in, if it is in one.
    current: [Option<u64>; 2],
}

impl Lines {
    /// Calls `f` with each piece of a line and the line's number.
    fn pass(&mut self, stream: LogStream, bytes: &[u8], mut f: impl FnMut(u64, &[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(current) = self.current.get_mut(stream.index()) else { return };
            let line = *current.get_or_insert_with(|| {
                self.begun += 1;
                self.begun - 1
            });
            f(line, piece);
            if piece.ends_with(b"\n") {
                *current = None;
            }
        }
    }
}

/// A position in the files of a log.
#[derive(Debug)]
struct Cursor {
    folder: PathBuf,
    file: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    sequence: u64,
    offset: u64,
}

impl Cursor {
    fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), file: None }
    }

    /// The next record of all, if it is there.
    fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.file.as_mut().map_or(Ok(None), Open::next)? {
                return Ok(Some(record));
            }
            let Some(successor) = self.successor()? else { return Ok(None) };
            // A file that has a successor does not grow any more; it may have until now.
            if let Some(record) = self.file.as_mut().map_or(Ok(None), Open::next)? {
                return Ok(Some(record));
            }
            self.file = Some(successor);
        }
    }

    /// The oldest file after the one that is read.
    fn successor(&self) -> io::Result<Option<Open>> {
        let after = self.file.as_ref().map_or(0, |open| open.sequence);
        let mut found: Option<Open> = None;
        // This order: what is renamed in between is seen twice rather than not at all.
        for name in [FILE, OLD_FILE] {
            let file = match File::open(self.folder.join(name)) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let Some(sequence) = sequence(&file)? else { continue };
            let better = found.as_ref().is_none_or(|found| sequence < found.sequence);
            if sequence > after && better {
                found = Some(Open { file, sequence, offset: FILE_HEADER });
            }
        }
        Ok(found)
    }
}

impl Open {
    fn next(&mut self) -> io::Result<Option<Record>> {
        match record_at(&self.file, self.offset)? {
            Found::Record(record) => {
                self.offset += (RECORD_HEADER + record.bytes.len()) as u64;
                Ok(Some(record))
            }
            // What follows garbage cannot be found: it is the end of this file.
            Found::End | Found::Garbage => Ok(None),
        }
    }
}
