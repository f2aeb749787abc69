//! Test support: replays a loss of power between any two syncs.
//!
//! While a [`Watch`] of a folder lives, each sync below it through [this crate](crate) is recorded: the bytes of
//! the file, or the names in the folder, at that moment. Of each moment between two syncs, the watch makes folders
//! as a loss of power may leave them, by POSIX's few promises: a file has the bytes that it had when it was last
//! synced, none if it never was; a folder has the entries of its last sync, or those that were visible.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sys;

/// Maximum number of folders with unsynced entries whose combinations are tried at one moment.
const MAX_UNSYNCED: usize = 5;

/// The watches of this process.
static WATCHED: Mutex<Vec<Recorder>> = Mutex::new(Vec::new());

fn watched() -> MutexGuard<'static, Vec<Recorder>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

type Inode = u64;

/// A folder as a loss of power may leave it.
#[derive(Debug)]
pub struct Cut {
    dir: tempfile::TempDir,
    /// The moment, and which folders had their unsynced entries.
    pub moment: String,
}

impl Cut {
    /// Path of the folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Records the syncs of this process below a folder, until ended or dropped.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
}

impl Watch {
    /// Starts with everything below `root` on stable storage.
    ///
    /// # Panics
    /// The folder cannot be read.
    pub fn begin(root: &Path) -> Self {
        let root = fs::canonicalize(root).unwrap();
        let mut recorder = Recorder { root: root.clone(), ..Recorder::default() };
        recorder.record_all(&root);
        watched().push(recorder);
        Self { root }
    }

    /// The states in which a loss of power may leave the folder at any moment so far, and those in which one
    /// may leave it from now on.
    ///
    /// # Panics
    /// A folder cannot be copied.
    pub fn end(self) -> (Vec<Cut>, Vec<Cut>) {
        let mut recorder = self.take().expect("it was begun");
        let during = std::mem::take(&mut recorder.cuts);
        recorder.cut("when it was done");
        (during, recorder.cuts)
    }
}

impl Watch {
    fn take(&self) -> Option<Recorder> {
        let mut all = watched();
        let found = all.iter().position(|recorder| recorder.root == self.root)?;
        Some(all.swap_remove(found))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.take();
    }
}

/// A file was synced.
pub(super) fn on_file_synced(file: &File) {
    if let Some(path) = sys::path_of(file) {
        on_synced(&path, Recorder::record_file);
    }
}

/// A folder was synced.
pub(super) fn on_dir_synced(dir: &Path) {
    on_synced(dir, Recorder::record_dir);
}

fn on_synced(path: &Path, record: fn(&mut Recorder, &Path)) {
    let Ok(name) = fs::canonicalize(path) else { return };
    for recorder in watched().iter_mut().filter(|recorder| name.starts_with(&recorder.root)) {
        recorder.cut(&format!("before the sync of {}", name.display()));
        record(recorder, path);
        recorder.cut(&format!("after the sync of {}", name.display()));
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    File(Inode),
    Dir(Inode),
}

type Entries = BTreeMap<OsString, Node>;

#[derive(Debug, Default)]
struct Recorder {
    root: PathBuf,
    /// Contents of stable storage. The open files keep their inode numbers from being reused.
    files: HashMap<Inode, (Vec<u8>, File)>,
    dirs: HashMap<Inode, (Entries, File)>,
    cuts: Vec<Cut>,
}

impl Recorder {
    fn record_all(&mut self, dir: &Path) {
        self.record_dir(dir);
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match node(&path) {
                Some(Node::Dir(_)) => self.record_all(&path),
                Some(Node::File(_)) => self.record_file(&path),
                None => {}
            }
        }
    }

    fn record_file(&mut self, path: &Path) {
        let file = File::open(path).unwrap();
        let number = file.metadata().unwrap().ino();
        self.files.insert(number, (fs::read(path).unwrap(), file));
    }

    fn record_dir(&mut self, dir: &Path) {
        let file = File::open(dir).unwrap();
        let number = file.metadata().unwrap().ino();
        self.dirs.insert(number, (entries(dir), file));
    }

    /// Makes the states that a loss of power may leave now.
    fn cut(&mut self, moment: &str) {
        let visible = visible_dirs(&self.root);
        let is_unsynced = |(number, now): &(&Inode, &Entries)| {
            self.dirs.get(number).map_or(!now.is_empty(), |(synced, _)| synced != *now)
        };
        let mut unsynced: Vec<Inode> =
            visible.iter().filter(is_unsynced).map(|(number, _)| *number).collect();
        unsynced.sort_unstable();
        assert!(unsynced.len() <= MAX_UNSYNCED, "{moment}: too many folders have unsynced entries");
        for chosen in 0_u32..1 << unsynced.len() {
            let as_visible = |number: Inode| {
                unsynced.iter().position(|n| *n == number).is_none_or(|n| chosen & (1 << n) != 0)
            };
            let dir = tempfile::tempdir().unwrap();
            let root = fs::metadata(&self.root).unwrap().ino();
            self.restore(root, dir.path(), &visible, &as_visible);
            let moment = format!("{moment} (unsynced folders {chosen:b} of {unsynced:?} kept)");
            self.cuts.push(Cut { dir, moment });
        }
    }

    fn restore(
        &self,
        number: Inode,
        to: &Path,
        visible: &HashMap<Inode, Entries>,
        as_visible: &dyn Fn(Inode) -> bool,
    ) {
        let synced = self.dirs.get(&number).map(|(entries, _)| entries);
        let entries = visible.get(&number).filter(|_| as_visible(number)).or(synced);
        for (name, node) in entries.into_iter().flatten() {
            let path = to.join(name);
            match node {
                Node::Dir(number) => {
                    fs::create_dir(&path).unwrap();
                    self.restore(*number, &path, visible, as_visible);
                }
                Node::File(number) => {
                    let bytes = self.files.get(number).map_or(&[][..], |(bytes, _)| bytes);
                    fs::write(&path, bytes).unwrap();
                }
            }
        }
    }
}

fn node(path: &Path) -> Option<Node> {
    let metadata = fs::symlink_metadata(path).ok()?;
    match metadata.file_type() {
        kind if kind.is_dir() => Some(Node::Dir(metadata.ino())),
        kind if kind.is_file() => Some(Node::File(metadata.ino())),
        _ => None,
    }
}

fn entries(dir: &Path) -> Entries {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| Some((name.clone(), node(&dir.join(&name))?))).collect()
}

fn visible_dirs(root: &Path) -> HashMap<Inode, Entries> {
    let mut dirs = HashMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        let Some(Node::Dir(number)) = node(&dir) else { continue };
        let found = entries(&dir);
        left.extend(found.keys().map(|name| dir.join(name)));
        dirs.insert(number, found);
    }
    dirs
}
