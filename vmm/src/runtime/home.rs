//! The home folder.
//!
//! ```text
//! boxlite.db              which boxes there are, and their names
//! events.jsonl            what happened to them
//! events.old.jsonl        and before that
//! boxes/.lock             held by whoever makes, renames or removes boxes
//! boxes/.new-<id>/        a box that is being made    ─┐ cleared away when nobody
//! boxes/.gone-<id>/       a box that is being removed ─┘ holds boxes/.lock any more
//! boxes/<id>/lock         held by the box's process: while it is, the box lives
//! boxes/<id>/config.json  what the box is
//! boxes/<id>/base.img     its image's disk, a hard link
//! boxes/<id>/disk.qcow2   what it has written over that
//! boxes/<id>/status.json  what its process does, or how that ended
//! boxes/<id>/{machine,vsock}.sock, main.log*, machine.log, console.log
//! images/                 see boxlite-rootfs-builder
//! registries.json         how registries are reached, if somebody wrote that down
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, Result};
use crate::events;
use crate::machine::GONE;

pub(super) const CONFIG: &str = "config.json";
pub(super) const BASE: &str = "base.img";
pub(super) const DISK: &str = "disk.qcow2";
pub(super) const CONSOLE_LOG: &str = "console.log";
pub(super) const MACHINE_LOG: &str = "machine.log";
pub(super) const CONTROL_SOCKET: &str = "machine.sock";
pub(super) const VSOCK_SOCKET: &str = "vsock.sock";
const LOCK: &str = "lock";
/// Held by the process that made a box that removes itself, until the box is started.
const MAKER: &str = "maker";
const NEW: &str = ".new-";

/// Bytes of events before they are moved aside.
const MAX_EVENTS: u64 = 8 << 20;

/// The folder of boxes and images.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Opens `path`, or the default; makes it if it does not exist.
    pub fn open(path: Option<PathBuf>) -> Result<Self> {
        let path = match path {
            Some(path) => path,
            None => Self::default_path().ok_or(Error::NoHome)?,
        };
        let path = std::path::absolute(&path).map_err(Error::home("cannot be used", &path))?;
        let home = Self { path };
        create_private(&home.boxes())?;
        Ok(home)
    }

    /// `$BOXLITE_HOME`, else `~/.boxlite`.
    pub fn default_path() -> Option<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        set("BOXLITE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".boxlite")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn boxes(&self) -> PathBuf {
        self.path.join("boxes")
    }

    /// The folder of the images.
    pub(crate) fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// How registries are reached: `$BOXLITE_REGISTRIES`; in the home, which the software host has on a disk of its
    /// own; or among the user's settings. It need not exist.
    pub(crate) fn registries(&self) -> PathBuf {
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

    /// The log of events, to append to.
    pub(super) fn open_events(&self) -> Result<File> {
        let path = self.events();
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        if let Err(e) = events::move_aside(&path, MAX_EVENTS)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: cannot be moved aside: {e}", path.display());
        }
        options.open(&path).map_err(Error::home("cannot be written", path))
    }

    /// Keeps others from making, renaming and removing boxes until it is dropped. Blocks.
    pub(super) fn lock_boxes(&self) -> Result<File> {
        let path = self.boxes().join(".lock");
        let lock = File::create(&path).map_err(Error::home("cannot be written", &path))?;
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .map_err(|e| Error::home("cannot be locked", path)(e.into()))?;
        Ok(lock)
    }

    /// The folder of a box, which need not exist.
    pub(super) fn folder(&self, id: &str) -> BoxFolder {
        BoxFolder { path: self.boxes().join(id) }
    }

    /// The folder of a box that is being made. Only with the boxes' lock.
    pub(super) fn new_folder(&self, id: &str) -> Result<BoxFolder> {
        let path = self.boxes().join(format!("{NEW}{id}"));
        create_private(&path)?;
        Ok(BoxFolder { path })
    }

    /// Gives a folder that is complete its place; for good, even if power is lost then, if `durable`.
    /// Only with the boxes' lock.
    pub(super) fn settle(&self, new: BoxFolder, id: &str, durable: bool) -> Result<BoxFolder> {
        let folder = self.folder(id);
        if durable {
            sync(&new.path).map_err(Error::home("cannot be written", &new.path))?;
        }
        fs::rename(&new.path, &folder.path).map_err(Error::home("cannot be made", &folder.path))?;
        if durable {
            sync(&self.boxes()).map_err(Error::home("cannot be written", self.boxes()))?;
        }
        Ok(folder)
    }

    /// Takes a box's folder out of its place, for [`sweep`](Self::sweep). Only with the boxes' lock.
    pub(super) fn retire(&self, id: &str) -> Result<()> {
        let (from, to) = (self.folder(id).path, self.boxes().join(format!("{GONE}{id}")));
        match fs::rename(&from, to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::home("cannot be removed", from)(e))
            }
            _ => Ok(()),
        }
    }

    /// Clears away what is left of boxes that were being made or removed. Only with the boxes'
    /// lock. What cannot be removed now is tried again next time.
    pub(super) fn sweep(&self) -> Result<()> {
        for name in self.entries()? {
            if name.starts_with(NEW) || name.starts_with(GONE) {
                let path = self.boxes().join(&name);
                if let Err(e) = fs::remove_dir_all(&path) {
                    tracing::warn!("{} cannot be removed: {e}", path.display());
                }
            }
        }
        Ok(())
    }

    /// Waits until no box lives. Blocks.
    pub(crate) fn wait_for_boxes(&self) -> Result<()> {
        while let Some(id) = self.ids()?.into_iter().find(|id| self.folder(id).is_live()) {
            self.folder(&id).wait_until_dead()?;
        }
        Ok(())
    }

    /// The IDs of the boxes that have a folder.
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

/// The folder of a box.
#[derive(Clone, Debug)]
pub(super) struct BoxFolder {
    path: PathBuf,
}

impl BoxFolder {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether the box has a process: it holds the lock.
    pub(super) fn is_live(&self) -> bool {
        // Shared, so that two who look do not take each other for the box.
        match File::open(self.file(LOCK)) {
            Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockShared).is_err(),
            Err(_) => false,
        }
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

    /// Takes the lock of the box's maker.
    pub(super) fn lock_as_maker(&self) -> Result<File> {
        let lock = self.create(MAKER)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| Error::home("cannot be locked", self.file(MAKER))(e.into()))?;
        Ok(lock)
    }

    /// Whether the process that made the box lives and has not started it.
    pub(super) fn is_in_the_making(&self) -> bool {
        File::open(self.file(MAKER))
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// Takes the lock; none if the box lives.
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

    /// Reads a file of JSON.
    pub(super) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name);
        let read = || -> io::Result<T> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
        read().map_err(Error::home("cannot be read", &path))
    }

    /// Writes a file of JSON, as a whole or not at all; for good if `durable`.
    pub(super) fn write_json(
        &self,
        name: &str,
        value: &impl Serialize,
        durable: bool,
    ) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
            serde_json::to_writer_pretty(&mut file, value)?;
            if durable {
                file.as_file().sync_all()?;
            }
            file.persist(self.file(name))?;
            Ok(())
        };
        write().map_err(Error::home("cannot be written", self.file(name)))
    }

    /// Makes a file anew.
    pub(super) fn create(&self, name: &str) -> Result<File> {
        let path = self.file(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        options.open(&path).map_err(Error::home("cannot be written", path))
    }

    /// Makes a log anew, to which its writer appends.
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

    /// Removes a file that may not be there.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::home("cannot be removed", path)(e))
            }
            _ => Ok(()),
        }
    }

    /// Listens on a socket in it. Only for who has the lock.
    pub(super) fn listen(&self, name: &str) -> Result<UnixListener> {
        self.remove(name)?;
        self.at_socket(name, |path| UnixListener::bind(path))
    }

    /// Connects to a socket in it; an error of kind `NotFound` or `ConnectionRefused` if nobody
    /// listens.
    pub(super) fn connect(&self, name: &str) -> Result<UnixStream> {
        self.at_socket(name, |path| UnixStream::connect(path))
    }

    /// A socket's name may have only 107 bytes, a home's more: it is reached through the folder.
    fn at_socket<T>(&self, name: &str, f: impl FnOnce(&Path) -> io::Result<T>) -> Result<T> {
        let reach = || {
            let dir = File::open(&self.path)?;
            f(&socket_path(&dir, &self.path, name))
        };
        reach().map_err(Error::home("cannot be reached", self.file(name)))
    }
}

#[cfg(target_os = "linux")]
fn socket_path(dir: &File, _: &Path, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd()).into()
}

#[cfg(not(target_os = "linux"))]
fn socket_path(_: &File, dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

fn create_private(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::home("cannot be made", path))
}

/// Makes a folder's entries durable.
fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_being_made_or_removed_is_swept_away_and_boxes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("new/home"))).unwrap();
        let _guard = home.lock_boxes().unwrap();
        let new = home.new_folder("a").unwrap();
        home.settle(new, "a", true).unwrap();
        home.new_folder("b").unwrap();
        let new = home.new_folder("c").unwrap();
        home.settle(new, "c", false).unwrap();
        home.retire("c").unwrap();
        home.retire("never there").unwrap();
        assert_eq!(home.ids().unwrap(), ["a"]);
        home.sweep().unwrap();
        assert_eq!(home.entries().unwrap(), ["a"]);
    }

    #[test]
    fn a_box_lives_while_its_lock_is_held_and_looking_does_no_harm() {
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
