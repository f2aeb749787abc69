//! `pidfd_open(2)` and `inotify(7)`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;

use super::{no_process, readable};

/// The end of a process, whoever its parent is (`pidfd_open(2)`).
#[derive(Debug)]
pub(crate) struct ProcessEnd(AsyncFd<OwnedFd>);

impl ProcessEnd {
    /// Watches the process that has this ID now. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `NotFound` if there is no such process.
    pub(crate) fn watch(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_process)?;
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Err(no_process()),
            opened => opened?,
        };
        readable(fd).map(Self)
    }

    /// Waits for the process to exit. Cancel safe.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

/// Changes of files and folders (`inotify(7)`).
#[derive(Debug)]
pub(crate) struct Changes(AsyncFd<OwnedFd>);

/// A file or folder whose changes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Watched(i32);

/// Buffer size for events, in bytes: enough for a few hundred.
const BUFFER: usize = 8 << 10;

impl Changes {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        readable(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?).map(Self)
    }

    /// Watches writes to a file, or names that are added to a folder and its removal. The same path again has the
    /// same value.
    pub(crate) fn watch(&self, path: &Path) -> io::Result<Watched> {
        let of_files = WatchFlags::MODIFY | WatchFlags::MOVE_SELF | WatchFlags::ATTRIB;
        let of_folders = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        let flags = if path.is_dir() { of_folders } else { of_files };
        Ok(Watched(inotify::add_watch(&self.0, path, flags)?))
    }

    /// Removes a watch.
    pub(crate) fn forget(&self, watched: Watched) {
        // The kernel has removed the watch of a deleted file already.
        let _ = inotify::remove_watch(&self.0, watched.0);
    }

    /// Waits for changes. `None` if notifications were lost. Cancel safe.
    pub(crate) async fn next(&self) -> io::Result<Option<Vec<Watched>>> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.read() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                changed => return changed,
            }
        }
    }

    fn read(&self) -> io::Result<Option<Vec<Watched>>> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let mut changed = Vec::new();
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    return Ok(None);
                }
                Ok(event) => changed.push(Watched(event.wd())),
                Err(_) if !changed.is_empty() => return Ok(Some(changed)),
                Err(e) => return Err(e.into()),
            }
            if reader.is_buffer_empty() {
                return Ok(Some(changed));
            }
        }
    }
}
