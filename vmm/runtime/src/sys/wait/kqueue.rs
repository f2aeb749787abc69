//! `kqueue(2)`: `EVFILT_PROC` and `EVFILT_VNODE`. A queue with events is readable itself, so the async runtime waits for
//! it as for any descriptor.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::kqueue::{
    Event, EventFilter, EventFlags, ProcessEvents, VnodeEvents, kevent, kqueue,
};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

use super::{no_process, readable};

/// The end of a process, whoever its parent is.
#[derive(Debug)]
pub(crate) struct ProcessEnd(AsyncFd<OwnedFd>);

impl ProcessEnd {
    /// Watches the process that has this ID now. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `NotFound` if there is no such process, or if it has exited and is not reaped yet.
    pub(crate) fn watch(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_process)?;
        let queue = new_queue()?;
        // The event stays in the queue, and the queue readable: nothing takes it.
        match change(&queue, EventFilter::Proc { pid, flags: ProcessEvents::EXIT }) {
            Err(Errno::SRCH) => return Err(no_process()),
            added => added?,
        }
        readable(queue).map(Self)
    }

    /// Waits for the process to exit. Cancel safe.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

/// Changes of files and folders. Each has a descriptor, which is open for notifications only and keeps no file system
/// from being unmounted.
#[derive(Debug)]
pub(crate) struct Changes {
    queue: AsyncFd<OwnedFd>,
    watched: Mutex<HashMap<FileId, File>>,
}

/// A file or folder whose changes are told: the number of its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Watched(RawFd);

/// Device and inode.
type FileId = (u64, u64);

/// The most events of one call.
const EVENTS: usize = 64;

impl Changes {
    /// Must be called within a tokio runtime.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { queue: readable(new_queue()?)?, watched: Mutex::default() })
    }

    /// Watches writes to a file, or names that are added to a folder and its removal. The same path again has the
    /// same value.
    pub(crate) fn watch(&self, path: &Path) -> io::Result<Watched> {
        let file = File::options().read(true).custom_flags(libc::O_EVTONLY).open(path)?;
        let metadata = file.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        let mut watched = self.watched();
        if let Some(file) = watched.get(&id) {
            return Ok(Watched(file.as_raw_fd()));
        }
        let of_files = VnodeEvents::WRITE
            | VnodeEvents::EXTEND
            | VnodeEvents::ATTRIBUTES
            | VnodeEvents::LINK
            | VnodeEvents::RENAME
            | VnodeEvents::DELETE;
        // A folder is written to whenever a name is added or removed.
        let of_folders = VnodeEvents::WRITE | VnodeEvents::DELETE;
        let flags = if metadata.is_dir() { of_folders } else { of_files };
        let number = file.as_raw_fd();
        change(self.queue.get_ref(), EventFilter::Vnode { vnode: number, flags })?;
        watched.insert(id, file);
        Ok(Watched(number))
    }

    /// Removes a watch.
    pub(crate) fn forget(&self, watched: Watched) {
        // Closing the descriptor takes its events out of the queue.
        self.watched().retain(|_, file| file.as_raw_fd() != watched.0);
    }

    /// Waits for changes. `None` if notifications were lost, which a queue never does. Cancel safe.
    pub(crate) async fn next(&self) -> io::Result<Option<Vec<Watched>>> {
        loop {
            let mut ready = self.queue.readable().await?;
            let changed = self.read()?;
            if !changed.is_empty() {
                return Ok(Some(changed));
            }
            ready.clear_ready();
        }
    }

    #[allow(unsafe_code)]
    fn read(&self) -> io::Result<Vec<Watched>> {
        let mut events = Vec::with_capacity(EVENTS);
        let room = spare_capacity(&mut events);
        // SAFETY: nothing is registered by this call.
        unsafe { kevent(self.queue.get_ref(), &[], room, Some(Duration::ZERO)) }?;
        let changed = events.iter().filter_map(|event| match event.filter() {
            EventFilter::Vnode { vnode, .. } => Some(Watched(vnode)),
            _ => None,
        });
        Ok(changed.collect())
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<FileId, File>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn new_queue() -> io::Result<OwnedFd> {
    let queue = kqueue()?;
    fcntl_setfd(&queue, FdFlags::CLOEXEC)?;
    Ok(queue)
}

/// Registers a filter that reports each event once. Takes no event from the queue.
#[allow(unsafe_code)]
fn change(queue: &OwnedFd, filter: EventFilter) -> rustix::io::Result<()> {
    let event = Event::new(filter, EventFlags::ADD | EventFlags::CLEAR, std::ptr::null_mut());
    let mut no_events: [Event; 0] = [];
    // SAFETY: a process filter names no descriptor. That of a file filter is open; when it is closed, the kernel removes
    // the filter, so that the number never means another file.
    unsafe { kevent(queue, &[event], &mut no_events[..], Some(Duration::ZERO)) }.map(drop)
}
