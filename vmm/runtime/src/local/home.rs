//! The home folder.
//!
//! ```text
//! boxlite.db              an index of boxes and their names
//! events.jsonl            events of boxes
//! events.old.jsonl        earlier events
//! boxes/.lock             held while boxes are created, renamed or removed
//! boxes/.new-<id>/        a box that is being created ─┐ removed once no process
//! boxes/.gone-<id>/       a box that is being removed ─┘ holds boxes/.lock or the folder
//! boxes/<id>/lock         held by the box's process: the box is live
//! boxes/<id>/config.json  the box's configuration
//! boxes/<id>/base.img     the image's disk, a hard link
//! boxes/<id>/disk.qcow2   the box's overlay of it
//! boxes/<id>/status.json  the state of the box's process, or how it ended
//! boxes/<id>/{machine,vsock}.sock, main.log*, machine.log, console.log
//! images/                 see boxlite-rootfs-builder
//! registries.json         access to registries, written by the user
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_contract::events;
use boxlite_contract::spec::REMOVED_PREFIX;
use boxlite_durable::{self as durable, Durability};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result, sys};

pub(super) const CONFIG: &str = "config.json";
pub(super) const BASE: &str = "base.img";
pub(super) const DISK: &str = "disk.qcow2";
pub(super) const CONSOLE_LOG: &str = "console.log";
pub(super) const MACHINE_LOG: &str = "machine.log";
pub(super) const CONTROL_SOCKET: &str = "machine.sock";
pub(super) const VSOCK_SOCKET: &str = "vsock.sock";
/// The mode of folders.
const PRIVATE: u32 = 0o700;
const LOCK: &str = "lock";
/// Held by the process that created a box that removes itself, until the box is started.
const MAKER: &str = "maker";
const NEW: &str = ".new-";

/// Timeout for the boxes' lock. Its holder releases it in a moment, unless the disk hangs.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// Time between two attempts to take the boxes' lock.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Timeout for a connection to a socket of a box.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Size of the event log in bytes at which it is moved aside.
const MAX_EVENTS: u64 = 8 << 20;

/// The folder of boxes and images.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Opens `path`, or the default. Creates the folder if it does not exist.
    pub fn open(path: Option<PathBuf>) -> Result<Self> {
        let path = match path {
            Some(path) => path,
            None => Self::default_path().ok_or_else(Error::no_home)?,
        };
        let path = std::path::absolute(&path).map_err(Error::home("cannot be used", &path))?;
        let home = Self { path };
        // Otherwise a power failure could lose the folder, and all that is created in it.
        durable::create_dir_all(&home.boxes(), PRIVATE)
            .map_err(Error::home("cannot be created", home.boxes()))?;
        Ok(home)
    }

    /// `$BOXLITE_HOME`, else `~/.boxlite`.
    pub fn default_path() -> Option<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        set("BOXLITE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".boxlite")))
    }

    /// The path of the home.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn boxes(&self) -> PathBuf {
        self.path.join("boxes")
    }

    /// The folder of the images.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// The file of registry options: `$BOXLITE_REGISTRIES`, else the one in the home (which the software host has on a
    /// disk of its own), else the one among the user's settings. It may not exist.
    pub fn registries(&self) -> PathBuf {
        const NAME: &str = "registries.json";
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(path) = set("BOXLITE_REGISTRIES") {
            return path.into();
        }
        let own = self.path.join(NAME);
        let settings = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".config")));
        match settings {
            Some(settings) if !own.exists() => settings.join("boxlite").join(NAME),
            _ => own,
        }
    }

    /// The database.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("boxlite.db")
    }

    /// The log of events.
    pub(super) fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// Opens the log of events for appending.
    pub(super) fn open_events(&self) -> Result<File> {
        let path = self.events();
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        if let Err(e) = events::rotate(&path, MAX_EVENTS)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: cannot be moved aside: {e}", path.display());
        }
        options.open(&path).map_err(Error::home("cannot be written", path))
    }

    /// Takes the lock for creating, renaming and removing boxes, released on drop. Its holder never waits for a box and
    /// deletes nothing but names. Blocks for [`LOCK_LIMIT`] at most.
    pub(super) fn lock_boxes(&self) -> Result<File> {
        let path = self.boxes().join(".lock");
        let lock = File::create(&path).map_err(Error::home("cannot be written", &path))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    let what = format!("the release of {} by another process", path.display());
                    return Err(Error::timed_out(&what, LOCK_LIMIT));
                }
                Err(e) => return Err(Error::home("cannot be locked", path)(e.into())),
            }
        }
    }

    /// The folder of a box. It may not exist.
    pub(super) fn folder(&self, id: &str) -> BoxFolder {
        BoxFolder { path: self.boxes().join(id) }
    }

    /// Creates the folder of a box that is being created. Requires the boxes' lock.
    pub(super) fn new_folder(&self, id: &str) -> Result<BoxFolder> {
        let path = self.boxes().join(format!("{NEW}{id}"));
        let made = DirBuilder::new().mode(PRIVATE).create(&path);
        made.map_err(Error::home("cannot be created", &path))?;
        Ok(BoxFolder { path })
    }

    /// Renames a complete folder to its final name. Requires the boxes' lock.
    pub(super) fn settle(
        &self,
        new: BoxFolder,
        id: &str,
        durability: Durability,
    ) -> Result<BoxFolder> {
        let folder = self.folder(id);
        if durability == Durability::Power {
            durable::sync_dir(&new.path).map_err(Error::home("cannot be written", &new.path))?;
        }
        rename(&new.path, &folder.path, durability)
            .map_err(Error::home("cannot be created", &folder.path))?;
        Ok(folder)
    }

    /// Renames a box's folder, for [`leftovers`](Self::leftovers) to remove. Requires the boxes' lock. The new name is
    /// on stable storage before any content is removed, so that a power failure does not bring back half a box.
    pub(super) fn retire(&self, id: &str, durability: Durability) -> Result<()> {
        self.move_aside(&self.folder(id).path, id, durability)
    }

    /// Collects what is left of boxes that were being created or removed. Requires the boxes' lock. Deleting the
    /// leftovers takes longer, and is done without the lock.
    pub(super) fn leftovers(&self) -> Result<Leftovers> {
        let mut leftovers = Vec::new();
        for name in self.entries()? {
            let path = self.boxes().join(&name);
            if let Some(id) = name.strip_prefix(NEW) {
                self.move_aside(&path, id, Durability::Process)?;
                leftovers.push(self.removed_path(id));
            } else if name.starts_with(REMOVED_PREFIX) {
                leftovers.push(path);
            }
        }
        Ok(Leftovers(leftovers))
    }

    fn removed_path(&self, id: &str) -> PathBuf {
        self.boxes().join(format!("{REMOVED_PREFIX}{id}"))
    }

    fn move_aside(&self, from: &Path, id: &str, durability: Durability) -> Result<()> {
        match rename(from, &self.removed_path(id), durability) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::home("cannot be removed", from)(e))
            }
            _ => Ok(()),
        }
    }

    /// Waits until no box is live. Blocks.
    pub fn wait_for_boxes(&self) -> Result<()> {
        while let Some(id) = self.ids()?.into_iter().find(|id| self.folder(id).is_live()) {
            self.folder(&id).wait_until_dead()?;
        }
        Ok(())
    }

    /// The IDs of all boxes with a folder.
    pub(super) fn ids(&self) -> Result<Vec<String>> {
        let names = self.entries()?.into_iter();
        Ok(names.filter(|name| !name.starts_with('.')).collect())
    }

    fn entries(&self) -> Result<Vec<String>> {
        let boxes = self.boxes();
        let entries = fs::read_dir(&boxes).map_err(Error::home("cannot be read", &boxes))?;
        Ok(entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }
}

/// Folders of removed and incomplete boxes.
#[derive(Debug)]
#[must_use = "the folders stay until they are deleted"]
pub(super) struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    /// Deletes the folders, except those that another process deletes. Failed deletions are retried next time.
    pub(super) fn delete(self) {
        for path in self.0 {
            let Ok(folder) = File::open(&path) else { continue };
            if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("{} cannot be removed: {e}", path.display());
                }
                _ => {}
            }
        }
    }
}

/// The folder of a box.
#[derive(Clone, Debug)]
pub(super) struct BoxFolder {
    path: PathBuf,
}

impl BoxFolder {
    /// The path of the folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in the folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether the box has a process, which holds the lock. A lock that cannot be tested (too many open files) counts as
    /// held.
    pub(super) fn is_live(&self) -> bool {
        is_held(&self.file(LOCK))
    }

    fn wait_until_dead(&self) -> Result<()> {
        let path = self.file(LOCK);
        let wait = || -> io::Result<()> {
            let lock = File::open(&path)?;
            rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockShared))?;
            Ok(())
        };
        match wait() {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::home("cannot be locked", path)(e))
            }
            _ => Ok(()),
        }
    }

    /// Takes the creator's lock of the box.
    pub(super) fn lock_as_maker(&self) -> Result<File> {
        let lock = self.create(MAKER)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| Error::home("cannot be locked", self.file(MAKER))(e.into()))?;
        Ok(lock)
    }

    /// Whether the process that created the box is alive and has not started the box.
    pub(super) fn is_in_the_making(&self) -> bool {
        is_held(&self.file(MAKER))
    }

    /// Takes the lock. None if the box is live.
    pub(super) fn lock(&self) -> Result<Option<File>> {
        let path = self.file(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(&path).map_err(Error::home("cannot be opened", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::home("cannot be locked", path)(e.into())),
        }
    }

    /// Reads a JSON file.
    pub(super) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let read = || -> io::Result<T> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
        read().map_err(Error::home("cannot be read", &path))
    }

    /// Writes a JSON file atomically. Only for its sole writer.
    pub(super) fn write_json(
        &self,
        name: &str,
        value: &impl Serialize,
        durability: Durability,
    ) -> Result<()> {
        let write = || -> io::Result<()> {
            let json = serde_json::to_vec_pretty(value)?;
            durable::replace(&self.file(name), &json, durability)
        };
        write().map_err(Error::home("cannot be written", self.file(name)))
    }

    /// Creates a file, or empties it.
    pub(super) fn create(&self, name: &str) -> Result<File> {
        let path = self.file(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        options.open(&path).map_err(Error::home("cannot be written", path))
    }

    /// Creates a log, or empties it, and opens it for appending.
    pub(super) fn create_log(&self, name: &str) -> Result<File> {
        self.create(name)?;
        let path = self.file(name);
        let mut options = OpenOptions::new();
        options.read(true).append(true);
        options.open(&path).map_err(Error::home("cannot be written", path))
    }

    /// Opens a file for reading, and for writing if `write`.
    pub(super) fn open(&self, name: &str, write: bool) -> Result<File> {
        let path = self.file(name);
        let mut options = OpenOptions::new();
        options.read(true).write(write);
        options.open(&path).map_err(Error::home("cannot be opened", path))
    }

    /// Removes a file, if it exists.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::home("cannot be removed", path)(e))
            }
            _ => Ok(()),
        }
    }

    /// Listens on a socket in the folder. Requires the box's lock.
    pub(super) fn listen(&self, name: &str) -> Result<UnixListener> {
        self.remove(name)?;
        self.at_socket(name, |path| UnixListener::bind(path))
    }

    /// Connects to a socket in the folder. If no process listens, the error's kind is `NotFound` or `ConnectionRefused`.
    pub(super) fn connect(&self, name: &str) -> Result<UnixStream> {
        self.at_socket(name, connect_in_time)
    }

    /// Calls `f` with a short path of a socket in the folder.
    fn at_socket<T>(&self, name: &str, f: impl FnOnce(&Path) -> io::Result<T>) -> Result<T> {
        let reach = || {
            let dir = File::open(&self.path)?;
            f(&sys::socket_path(&dir, &self.path, name)?)
        };
        reach().map_err(Error::home("cannot be reached", self.file(name)))
    }
}

/// Connects to a socket. Connecting and later writes fail after [`CONNECT_LIMIT`]; without a timeout, a process that
/// hangs with a full backlog would block all further callers.
fn connect_in_time(path: &Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
    let socket = UnixStream::from(socket(AddressFamily::UNIX, SocketType::STREAM, None)?);
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    socket.set_write_timeout(Some(CONNECT_LIMIT))?;
    rustix::io::retry_on_intr(|| connect(&socket, &SocketAddrUnix::new(path)?))?;
    Ok(socket)
}

fn rename(from: &Path, to: &Path, durability: Durability) -> io::Result<()> {
    match durability {
        Durability::Process => fs::rename(from, to),
        Durability::Power => durable::rename(from, to),
    }
}

/// Whether a process holds the lock at `path`. Only a lock that is missing or can be taken is not held.
fn is_held(path: &Path) -> bool {
    // Shared, so that two processes that test the lock do not take each other for its holder.
    match File::open(path) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockShared).is_err(),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_boxes_are_removed_and_complete_ones_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("new/home"))).unwrap();
        let _guard = home.lock_boxes().unwrap();
        let new = home.new_folder("a").unwrap();
        home.settle(new, "a", Durability::Power).unwrap();
        home.new_folder("b").unwrap();
        let new = home.new_folder("c").unwrap();
        home.settle(new, "c", Durability::Process).unwrap();
        home.retire("c", Durability::Power).unwrap();
        home.retire("never there", Durability::Power).unwrap();
        assert_eq!(home.ids().unwrap(), ["a"]);
        home.leftovers().unwrap().delete();
        assert_eq!(home.entries().unwrap(), ["a"]);
    }

    #[test]
    fn a_box_is_live_while_its_lock_is_held_and_testing_it_is_harmless() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().to_owned())).unwrap();
        let folder = home.new_folder("a").unwrap();
        assert!(!folder.is_live());
        let lock = folder.lock().unwrap().unwrap();
        assert!(folder.is_live() && folder.is_live() && folder.lock().unwrap().is_none());
        drop(lock);
        assert!(!folder.is_live());
    }

    #[test]
    fn a_folder_with_a_long_name_has_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("x".repeat(150)))).unwrap();
        let folder = home.new_folder("a").unwrap();
        assert!(folder.connect("s").is_err());
        let listener = folder.listen("s").unwrap();
        folder.connect("s").unwrap();
        drop(listener);
        assert!(folder.connect("s").is_err());
        let _listener = folder.listen("s").unwrap();
        folder.connect("s").unwrap();
    }
}
