//! Expansion of compressed or streamed archives into an unnamed file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::layer::Decoder;
use crate::progress::{Event, Pace, Progress};

/// Where archives are expanded to, and their maximum length.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    pub(crate) dir: PathBuf,
    /// In bytes.
    pub(crate) limit: u64,
}

/// The expansion of an archive.
pub(super) struct Expansion<'a> {
    pub(super) path: &'a Path,
    pub(super) place: &'a str,
    /// Length of the input, if known.
    pub(super) total: Option<u64>,
    pub(super) scratch: &'a Scratch,
}

impl Expansion<'_> {
    pub(super) fn run(&self, input: impl Read, progress: &dyn Progress) -> Result<File> {
        let damaged = |error: io::Error| Error::from_io(error, || self.place.to_owned());
        let expanded = tempfile::tempfile_in(&self.scratch.dir);
        let mut expanded = expanded.map_err(Error::io("create a file in", &self.scratch.dir))?;
        let mut decoder =
            Decoder::new(CountingReader { inner: input, count: 0 }).map_err(damaged)?;
        let is_compressed = decoder.is_compressed();
        let mut buffer = vec![0; 128 << 10];
        let mut pace = Pace::default();
        let mut written = 0;
        loop {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let count = decoder.read(&mut buffer).map_err(damaged)?;
            let done = decoder.input().count;
            if pace.is_due(done) || count == 0 {
                progress.report(Event::Expanding { file: self.path, done, total: self.total });
            }
            if count == 0 {
                return Ok(expanded);
            }
            written += count as u64;
            // Only compressed input can grow.
            if is_compressed && written > self.scratch.limit {
                let what = format!("{}, expanded,", self.place);
                return Err(Error::TooLarge { what, limit: self.scratch.limit });
            }
            // The file name is only for the message, which shows the folder.
            expanded
                .write_all(buffer.get(..count).unwrap_or_default())
                .map_err(Error::write(&self.scratch.dir.join("expanded"), written))?;
        }
    }
}

struct CountingReader<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.count += count as u64;
        Ok(count)
    }
}
