//! The home folder: `boxes/`, `images/`. A box's folder belongs to whoever holds the lock in it: a
//! lock that nobody holds means the box is gone, and what is left of it is cleared away.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{Error, Result};

const LOCK: &str = "lock";
const RECORD: &str = "config.json";

/// The folder of boxes and images.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
}

/// What is written down of a box.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    image: String,
}

/// The folder of a box. Dropping it clears it away; the box's process holds the lock as well and
/// does the same if this process is killed.
#[derive(Debug)]
pub(crate) struct BoxDir {
    path: PathBuf,
    lock: File,
    keep: bool,
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
        home.clear_away_dead()?;
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

    /// The folder of the boxes.
    pub(crate) fn boxes(&self) -> PathBuf {
        self.path.join("boxes")
    }

    /// The folder of the images.
    pub(crate) fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Makes the folder of a new box. A name that a running box has is refused.
    pub(crate) fn create_box(
        &self,
        id: &str,
        name: &str,
        image: &str,
        keep: bool,
    ) -> Result<BoxDir> {
        let _guard = self.lock_boxes()?;
        for dir in self.box_dirs()? {
            let record = fs::read(dir.join(RECORD)).ok();
            let record = record.and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            if record.is_some_and(|record| record.name == name) && !is_dead(&dir) {
                return Err(Error::NameInUse(name.to_owned()));
            }
        }
        let path = self.boxes().join(id);
        create_private(&path)?;
        let record = Record { name: name.to_owned(), image: image.to_owned() };
        let write = || -> io::Result<File> {
            let lock = File::create(path.join(LOCK))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            fs::write(path.join(RECORD), serde_json::to_vec_pretty(&record)?)?;
            Ok(lock)
        };
        match write() {
            Ok(lock) => Ok(BoxDir { path, lock, keep }),
            Err(e) => {
                let _ = fs::remove_dir_all(&path);
                Err(Error::home("cannot be written", path)(e))
            }
        }
    }

    /// Removes the folders of boxes whose processes are gone.
    fn clear_away_dead(&self) -> Result<()> {
        let _guard = self.lock_boxes()?;
        for dir in self.box_dirs()? {
            // A console log that was asked for is what its box was run for.
            let kept = dir.join(CONSOLE_LOG).exists();
            if is_dead(&dir) && !kept {
                let _ = fs::remove_dir_all(&dir);
            }
        }
        Ok(())
    }

    /// Keeps others from making or clearing away boxes until it is dropped.
    fn lock_boxes(&self) -> Result<File> {
        let path = self.boxes().join(".lock");
        let lock = File::create(&path).map_err(Error::home("cannot be written", &path))?;
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .map_err(|e| Error::home("cannot be locked", path)(e.into()))?;
        Ok(lock)
    }

    fn box_dirs(&self) -> Result<Vec<PathBuf>> {
        let boxes = self.boxes();
        let entries = fs::read_dir(&boxes).map_err(Error::home("cannot be read", &boxes))?;
        Ok(entries
            .filter_map(|entry| entry.ok())
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect())
    }
}

/// The name of the console log in a box's folder.
pub(crate) const CONSOLE_LOG: &str = "console.log";

/// Whether nobody holds the lock of a box.
fn is_dead(dir: &Path) -> bool {
    match File::open(dir.join(LOCK)) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

fn create_private(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::home("cannot be made", path))
}

impl BoxDir {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The held lock, to be shared with the box's process.
    pub(crate) fn lock(&self) -> &File {
        &self.lock
    }

    /// Whether it outlives the box, for what is in it.
    pub(crate) fn is_kept(&self) -> bool {
        self.keep
    }
}

impl Drop for BoxDir {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_free_again_when_their_box_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().join("new/home"))).unwrap();
        let first = home.create_box("1", "web", "x", false).unwrap();
        assert!(matches!(home.create_box("2", "web", "x", false), Err(Error::NameInUse(_))));
        let other = home.create_box("2", "db", "x", false).unwrap();
        drop(first);
        home.create_box("3", "web", "x", false).unwrap();
        drop(other);
    }

    #[test]
    fn what_a_killed_process_left_is_cleared_away_and_what_runs_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(Some(dir.path().to_owned())).unwrap();
        let running = home.create_box("running", "a", "x", false).unwrap();
        let killed = home.create_box("killed", "b", "x", true).unwrap();
        let logged = home.create_box("logged", "c", "x", true).unwrap();
        fs::write(logged.path().join(CONSOLE_LOG), "words").unwrap();
        fs::create_dir(home.boxes().join("half-made")).unwrap();
        // Their locks go with them.
        let [killed, logged] = [killed, logged].map(|folder| folder.path().to_owned());
        Home::open(Some(dir.path().to_owned())).unwrap();
        assert!(running.path().exists() && logged.exists());
        assert!(!killed.exists() && !home.boxes().join("half-made").exists());
    }
}
