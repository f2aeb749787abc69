//! The reader: reads from the start, from the last lines or from a point in time, and then follows the log.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::{
    FILE, FILE_HEADER, Found, LogStream, OLD_FILE, RECORD_HEADER, Record, record_at, sequence,
};

/// Selects a part of a log. The default is all of it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Query {
    /// Of the lines that exist already, only this many of the last.
    pub tail: Option<u64>,
    /// Only output from this time on: nanoseconds since the Unix epoch.
    pub since_ns: Option<u64>,
    /// Only output up to this time: nanoseconds since the Unix epoch.
    pub until_ns: Option<u64>,
    /// Only output to this stream.
    pub stream: Option<LogStream>,
    /// Only output that exists when the log is opened, so that reading ends although more is written.
    pub existing: bool,
}

impl Query {
    fn wants(&self, record: &Record) -> bool {
        self.since_ns.is_none_or(|since| record.at_ns >= since)
            && self.until_ns.is_none_or(|until| record.at_ns <= until)
            && self.stream.is_none_or(|stream| record.stream == stream)
    }
}

/// Reads a log, also while it is being written.
///
/// This [`Iterator`] returns `None` at the current end of the log, and continues when more has been written. A
/// follower calls it again after each change of the folder, and stops when the box has ended and the reader
/// returns `None` once more. Only file reads block; asynchronous code calls it in `spawn_blocking`.
#[derive(Debug)]
pub struct Reader {
    cursor: Cursor,
    query: Query,
    /// Where reading ends; none: it continues when more has been written.
    end: Option<Position>,
    /// The number of lines to leave out at the beginning.
    skip: u64,
    lines: Lines,
}

impl Reader {
    /// Opens the log in a box's folder. The log need not exist yet.
    pub fn open(folder: &Path, query: Query) -> io::Result<Self> {
        let is_bounded = query.existing || query.tail.is_some();
        let now = is_bounded.then(|| Cursor::new(folder).end()).transpose()?;
        let mut skip = 0;
        if let Some(tail) = query.tail {
            let mut cursor = Cursor::new(folder);
            let mut lines = Lines::default();
            while let Some(record) = cursor.next_before(now)? {
                if query.wants(&record) {
                    lines.pass(record.stream, &record.bytes, |_, _| {});
                }
            }
            skip = lines.begun.saturating_sub(tail);
        }
        let end = now.filter(|_| query.existing);
        Ok(Self { cursor: Cursor::new(folder), query, end, skip, lines: Lines::default() })
    }

    /// The next record; `None` if there is no further one yet.
    pub fn poll(&mut self) -> io::Result<Option<Record>> {
        while let Some(mut record) = self.cursor.next_before(self.end)? {
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
    /// The number of lines that have begun.
    begun: u64,
    /// The unfinished line of each stream.
    current: [Option<u64>; 2],
}

impl Lines {
    /// Calls `f` with each piece of a line in `bytes` and the line's number.
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

/// The sequence number of a file, and an offset in it.
type Position = (u64, u64);

/// A reader's place in the files of a log.
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

    /// The current end of the log.
    fn end(&self) -> io::Result<Position> {
        let mut end = (0, 0);
        // In this order, as in `successor`.
        for name in [FILE, OLD_FILE] {
            if let Some((file, sequence)) = self.open(name)? {
                end = end.max((sequence, file.metadata()?.len()));
            }
        }
        Ok(end)
    }

    /// The next record, whether selected or not, if it ends at or before `end`. Returns none from there on.
    fn next_before(&mut self, end: Option<Position>) -> io::Result<Option<Record>> {
        let place = |open: &Option<Open>| open.as_ref().map(|open| (open.sequence, open.offset));
        if end.is_some_and(|end| place(&self.file).is_some_and(|place| place >= end)) {
            return Ok(None);
        }
        let record = self.next()?;
        Ok(record.filter(|_| end.is_none() || place(&self.file) <= end))
    }

    /// The next record.
    fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.file.as_mut().map_or(Ok(None), Open::next)? {
                return Ok(Some(record));
            }
            let Some(successor) = self.successor()? else { return Ok(None) };
            // A file with a successor no longer grows, but may have grown since the read above.
            if let Some(record) = self.file.as_mut().map_or(Ok(None), Open::next)? {
                return Ok(Some(record));
            }
            self.file = Some(successor);
        }
    }

    /// A file of the log with its sequence number. None if there is none, or if it has no whole header yet.
    fn open(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        match File::open(self.folder.join(name)) {
            Ok(file) => Ok(sequence(&file)?.map(|sequence| (file, sequence))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The oldest file after the current one.
    fn successor(&self) -> io::Result<Option<Open>> {
        let after = self.file.as_ref().map_or(0, |open| open.sequence);
        let mut found: Option<Open> = None;
        // In this order, a file that is renamed in between is seen twice rather than not at all.
        for name in [FILE, OLD_FILE] {
            let Some((file, sequence)) = self.open(name)? else { continue };
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
            // Nothing after garbage can be located: the file ends here.
            Found::End | Found::Garbage => Ok(None),
        }
    }
}
