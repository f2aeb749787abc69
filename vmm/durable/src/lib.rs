//! Files and folders that survive a loss of power: write, sync, rename, sync the folder.
//!
//! A rename is atomic, but neither it nor the bytes of the file are on the disk before both the file and its
//! folder were synced. Everything on which an answer depends ("the box was created") goes through this
//! crate. Under the feature `power-cut`, a test watches these calls and replays a loss of power after each of them.

#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[cfg(any(test, feature = "power-cut"))]
pub mod power_cut;

/// Whether a change must survive a loss of power, or only the death of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The change survives the death of the process. Costs no sync.
    Process,
    /// The change survives a loss of power once the call returns.
    Power,
}

impl Durability {
    /// [`Power`](Self::Power) if `yes`.
    pub fn power_if(yes: bool) -> Self {
        if yes { Self::Power } else { Self::Process }
    }
}

/// Writes the content and the metadata of a file to stable storage.
///
/// # Errors
/// The system's error; the content may be lost then.
pub fn sync_file(file: &File) -> io::Result<()> {
    file.sync_all()?;
    #[cfg(any(test, feature = "power-cut"))]
    power_cut::on_file_synced(file);
    Ok(())
}

/// Writes the entries of a folder to stable storage.
///
/// # Errors
/// The system's error.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()?;
    #[cfg(any(test, feature = "power-cut"))]
    power_cut::on_dir_synced(dir);
    Ok(())
}

/// Writes the entries of the folder that holds `path` to stable storage.
///
/// # Errors
/// The system's error.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent(path))
}

/// Renames within a file system, for good. The content must have been synced before.
///
/// # Errors
/// The system's error. After a failed sync the new name is visible, but may not survive a loss of power.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)?;
    if parent(from) != parent(to) {
        sync_parent(from)?;
    }
    Ok(())
}

/// Replaces a file as a whole or not at all; only the owner may read it.
///
/// The bytes are first in the file `.NAME.new` beside it. One process at a time may replace a file: a lock of
/// the caller's has to see to that. A left-over of a killed process is overwritten by the next replacement.
///
/// # Errors
/// The system's error; the old file is still there then, unless only the sync of its folder failed.
pub fn replace(target: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    replace_with(target, durability, |file| file.write_all(bytes)).map(drop)
}

/// As [`replace`], with a file that `write` fills, and which is returned; it is open for reading, too.
///
/// # Errors
/// Those of `write`, and as [`replace`].
pub fn replace_with(
    target: &Path,
    durability: Durability,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<File> {
    let new = new_name(target)?;
    let replaced = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&new)?;
        write(&mut file)?;
        match durability {
            Durability::Process => fs::rename(&new, target)?,
            Durability::Power => sync_file(&file).and_then(|()| rename(&new, target))?,
        }
        Ok(file)
    };
    replaced().inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Makes a folder that only its owner may use, and all above it that are missing, for good.
///
/// # Errors
/// The system's error; it is none that the folder exists.
pub fn create_dir_all(dir: &Path, mode: u32) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|dir| is_missing(dir)).collect();
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    // From the innermost, so that a folder that is found after a loss of power holds what it should.
    missing.into_iter().try_for_each(sync_parent)
}

fn is_missing(dir: &Path) -> bool {
    !dir.as_os_str().is_empty() && !dir.exists()
}

fn new_name(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".new");
    Ok(target.with_file_name(new))
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
        Some(dir) => dir,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::power_cut::{Cut, Watch};
    use super::*;

    /// What a loss of power may leave of `f`'s work in a folder that holds `x` with the content "old": what
    /// `read` says of each state that is possible while `f` runs, and after it.
    fn replay<T: PartialEq>(f: impl FnOnce(&Path), read: impl Fn(&Path) -> T) -> (Vec<T>, Vec<T>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "old").unwrap();
        let watch = Watch::begin(dir.path());
        f(dir.path());
        let (during, after) = watch.end();
        let read_all = |cuts: Vec<Cut>| {
            let mut all = Vec::new();
            for cut in cuts {
                let state = read(cut.path());
                if !all.contains(&state) {
                    all.push(state);
                }
            }
            all
        };
        (read_all(during), read_all(after))
    }

    fn read_x(dir: &Path) -> Option<String> {
        fs::read_to_string(dir.join("x")).ok()
    }

    #[test]
    fn a_replaced_file_is_old_or_new_and_new_once_that_was_answered() {
        let (during, after) =
            replay(|dir| replace(&dir.join("x"), b"new", Durability::Power).unwrap(), read_x);
        assert!(during.iter().all(|x| [Some("old"), Some("new")].contains(&x.as_deref())));
        assert_eq!(after, [Some("new".to_owned())]);
    }

    #[test]
    fn the_replay_finds_what_was_not_synced() {
        let unsynced = |dir: &Path| replace(&dir.join("x"), b"new", Durability::Process).unwrap();
        let (_, after) = replay(unsynced, read_x);
        assert!(after.contains(&Some(String::new())), "a name without its bytes: {after:?}");
        assert!(after.contains(&Some("old".to_owned())), "a rename that is lost: {after:?}");
        let no_folder = |dir: &Path| {
            fs::write(dir.join("y"), "new").unwrap();
            sync_file(&File::open(dir.join("y")).unwrap()).unwrap();
            fs::rename(dir.join("y"), dir.join("x")).unwrap();
        };
        let (_, after) = replay(no_folder, read_x);
        assert!(after.contains(&Some("old".to_owned())), "{after:?}");
    }

    #[test]
    fn folders_are_there_with_all_above_them() {
        let make = |dir: &Path| create_dir_all(&dir.join("a/b/c"), 0o700).unwrap();
        let (_, after) = replay(make, |dir| dir.join("a/b/c").is_dir());
        assert_eq!(after, [true]);
        let make = |dir: &Path| fs::create_dir_all(dir.join("a/b/c")).unwrap();
        let (_, after) = replay(make, |dir| dir.join("a/b/c").is_dir());
        assert!(after.contains(&false));
    }

    #[test]
    fn a_failed_or_killed_replacement_leaves_the_old_file_and_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        fs::write(&target, "old").unwrap();
        // Of a process that was killed.
        fs::write(dir.path().join(".x.new"), "something much longer").unwrap();
        let failing = |file: &mut File| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        assert!(replace_with(&target, Durability::Power, failing).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join(".x.new"), "something much longer").unwrap();
        replace(&target, b"new", Durability::Process).unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
