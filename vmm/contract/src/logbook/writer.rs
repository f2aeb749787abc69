//! The writing side: appends, rotates, and goes on whatever the host's disk says.

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

/// Writes the log of a box.
#[derive(Debug)]
pub struct Writer {
    folder: PathBuf,
    limit: u64,
    /// None while it cannot be made.
    open: Option<Open>,
    sequence: u64,
    /// Whether the last write failed, which is said once.
    failing: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Where the next record goes.
    end: u64,
}

impl Writer {
    /// Opens the log in a box's folder, after what is in it already.
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

    /// Appends what the command wrote. A log that cannot be written must not stop the box: what does
    /// not fit on the host's disk is left out, which is logged once.
    pub fn append(&mut self, stream: LogStream, bytes: &[u8]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.append_at(stream, bytes, now.as_nanos().try_into().unwrap_or(u64::MAX));
    }

    /// As [`append`](Self::append), at this time: nanoseconds since the Unix epoch.
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
            // Half a record would be taken for one that is being written.
            let _ = open.file.set_len(open.end);
            return Err(e);
        }
        open.end += record.len() as u64;
        Ok(())
    }

    /// Opens the file of an earlier writer behind its last whole record.
    fn resume(&mut self) -> io::Result<Option<Open>> {
        let old = numbered(&self.folder.join(OLD_FILE))?.map_or(0, |(_, number)| number);
        self.sequence = old;
        let path = self.folder.join(FILE);
        let Some((file, number)) = numbered(&path)? else {
            // Not a log: made anew with the first record, in its place.
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

/// A log file and its number; none if there is none, or something else.
fn numbered(path: &Path) -> io::Result<Option<(File, u64)>> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(sequence(&file)?.map(|number| (file, number))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a log file, which appears with its header whole.
fn create(folder: &Path, sequence: u64) -> io::Result<Open> {
    let header = [MAGIC, sequence.to_le_bytes()].concat();
    // The box's process is the only writer. What it wrote last may be lost with its host.
    let write = |file: &mut File| file.write_all_at(&header, 0);
    let file = durable::replace_with(&folder.join(FILE), Durability::Process, write)?;
    Ok(Open { file, end: FILE_HEADER })
}
