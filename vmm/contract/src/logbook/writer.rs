//! The writer: appends and rotates. A write error drops output and never stops the box.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use boxlite_durable::{self as durable, Durability};

use super::{
    FILE, FILE_HEADER, FILE_LIMIT, Found, Header, LogStream, MAGIC, MAX_RECORD, OLD_FILE,
    RECORD_HEADER, record_at, sequence,
};

/// Writes the log of a box's main command.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    limit: u64,
    /// `None` while the file cannot be created.
    open: Option<Open>,
    sequence: u64,
    /// Whether the last write failed; only the first failure in a row is logged.
    failing: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Where the next record goes.
    end: u64,
}

impl Writer {
    /// Opens the log in a box's folder, to append to it.
    pub fn open(folder: &Path) -> Self {
        Self::with_limit(folder, FILE_LIMIT)
    }

    /// As [`open`](Self::open), with files of `limit` bytes.
    pub(super) fn with_limit(folder: &Path, limit: u64) -> Self {
        let mut writer =
            Self { folder: folder.to_owned(), limit, open: None, sequence: 0, failing: false };
        match writer.resume() {
            Ok(open) => writer.open = open,
            Err(e) => writer.complain(&e),
        }
        writer
    }

    /// Appends output of the command. A log that cannot be written must not stop the box: output that
    /// cannot be written is dropped, which is logged once.
    pub fn append(&mut self, stream: LogStream, bytes: &[u8]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.append_at(stream, bytes, now.as_nanos().try_into().unwrap_or(u64::MAX));
    }

    /// As [`append`](Self::append), with the time in nanoseconds since the Unix epoch.
    pub fn append_at(&mut self, stream: LogStream, bytes: &[u8], at_ns: u64) {
        for bytes in bytes.chunks(MAX_RECORD) {
            match self.try_append(stream, bytes, at_ns) {
                Ok(()) => self.failing = false,
                Err(e) => self.complain(&e),
            }
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            let folder = self.folder.display();
            tracing::warn!("{folder}/{FILE}: output of the box is not kept: {error}");
        }
    }

    fn try_append(&mut self, stream: LogStream, bytes: &[u8], at_ns: u64) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| open.end >= self.limit) {
            fs::rename(self.folder.join(FILE), self.folder.join(OLD_FILE))?;
            self.open = None;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let open = create(&self.folder, self.sequence + 1)?;
                self.sequence += 1;
                self.open.insert(open)
            }
        };
        let header = Header { len: bytes.len(), stream, at_ns }.encode();
        let record = [&header[..], bytes].concat();
        let written = open.file.write_all_at(&record, open.end);
        if let Err(e) = written {
            // A reader would take half a record for one that is still being written.
            let _ = open.file.set_len(open.end);
            return Err(e);
        }
        open.end += record.len() as u64;
        Ok(())
    }

    /// Opens the file of an earlier writer, and truncates it after the last whole record.
    fn resume(&mut self) -> io::Result<Option<Open>> {
        let old = numbered(&self.folder.join(OLD_FILE))?.map_or(0, |(_, number)| number);
        self.sequence = old;
        let path = self.folder.join(FILE);
        let Some((file, number)) = numbered(&path)? else {
            // Not a log: the first record's `create` replaces the file.
            return Ok(None);
        };
        self.sequence = number.max(old);
        let mut end = FILE_HEADER;
        while let Found::Record(record) = record_at(&file, end)? {
            end += (RECORD_HEADER + record.bytes.len()) as u64;
        }
        file.set_len(end)?;
        Ok(Some(Open { file, end }))
    }
}

/// A log file and its sequence number; `None` if the file does not exist or is not a log.
fn numbered(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(sequence(&file)?.map(|number| (file, number))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Creates a log file, which appears with its whole header.
fn create(folder: &Path, sequence: u64) -> io::Result<Open> {
    let header = [MAGIC, sequence.to_le_bytes()].concat();
    // The VM process is the only writer. Its last output may be lost when the host crashes.
    let write = |file: &mut File| file.write_all_at(&header, 0);
    let file = durable::replace_with(&folder.join(FILE), Durability::Process, write)?;
    Ok(Open { file, end: FILE_HEADER })
}
