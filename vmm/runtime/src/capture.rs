//! The file that records the packets of a box's network.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, fcntl_getfl, fcntl_setfl, flock};
use rustix::io::Errno;

use crate::{Error, Result};

/// The open file. A regular file is locked: two boxes would write over each other's packets.
#[derive(Debug)]
pub(crate) struct CaptureFile {
    file: File,
    path: PathBuf,
    is_regular: bool,
}

impl CaptureFile {
    /// Opens the file, which is made if there is none, and changes nothing in it. Blocks, shortly: a
    /// named pipe that nothing reads is an error.
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let (file, is_regular) =
            open(&path).map_err(|e| match is_pipe_without_reader(&e, &path) {
                true => Error::capture_refused(&path, NO_READER),
                false => Error::capture(&path)(e),
            })?;
        let capture = Self { file, path, is_regular };
        if is_regular {
            capture.lock()?;
        }
        Ok(capture)
    }

    fn lock(&self) -> Result<()> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            // Some network file systems have no locks.
            Ok(()) | Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK) => Ok(()),
            Err(Errno::WOULDBLOCK) => {
                Err(Error::capture_refused(&self.path, "the packets of another box go there"))
            }
            Err(e) => Err(Error::capture(&self.path)(e.into())),
        }
    }

    /// Empties the file.
    pub(crate) fn truncate(&self) -> Result<()> {
        match self.is_regular {
            true => self.file.set_len(0).map_err(Error::capture(&self.path)),
            false => Ok(()),
        }
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }
}

impl From<CaptureFile> for OwnedFd {
    fn from(capture: CaptureFile) -> Self {
        capture.file.into()
    }
}

const NO_READER: &str = "it is a named pipe that nothing reads; start its reader first";

/// Whether a file could not be opened because it is such a pipe. Devices and sockets may cause the same error number.
fn is_pipe_without_reader(error: &io::Error, path: &Path) -> bool {
    error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
        && path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo())
}

fn open(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    // Packets hold secrets, hence the mode. The flag is for pipes, and only while they are opened.
    let file = options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    let is_regular = file.metadata()?.is_file();
    Ok((file, is_regular))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_file_is_one_boxs_and_is_emptied_when_that_starts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        std::fs::write(&path, "of before").unwrap();
        let first = CaptureFile::open(path.clone()).unwrap();
        let second = CaptureFile::open(path.clone()).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::Invalid);
        assert!(second.message().contains("another box"), "{second}");
        assert_eq!(std::fs::read(&path).unwrap(), b"of before");
        first.truncate().unwrap();
        first.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        drop(first);
        CaptureFile::open(path).unwrap();
    }

    #[test]
    fn a_pipe_needs_a_reader_and_is_written_with_patience() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = CaptureFile::open(path.clone()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains("pipe: it is a named pipe that nothing reads"), "{error}");
        let _reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let capture = CaptureFile::open(path).unwrap();
        capture.truncate().unwrap();
        capture.write_all(b"packet").unwrap();
        assert!(!fcntl_getfl(OwnedFd::from(capture)).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = CaptureFile::open("/nowhere/at/all.pcap".into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.message().contains("/nowhere/at/all.pcap"), "{error}");
    }
}
