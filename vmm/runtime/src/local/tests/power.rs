//! A power failure between any two syncs of each operation on the home: the home opens, each box exists completely or
//! not at all, and acknowledged operations persist. The database may have lost its last changes, or all of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use boxlite_contract::status::{BoxEnd, EndCause, Phase};
use boxlite_durable::power_cut::{Cut, Watch};
use boxlite_durable::{self as durable, Durability};

use super::model::open;
use crate::BoxOptions;
use crate::local::home::BASE;
use crate::local::*;

const BASE_BYTES: [u8; 1024] = [7; 1024];

/// A home on a disk with simulated power failures.
struct Lab {
    dir: tempfile::TempDir,
    local: Local,
}

type Database = Vec<(&'static str, Vec<u8>)>;

/// The content of a home after a power failure: the names of its boxes by ID.
type Names = BTreeMap<String, String>;

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("base"), BASE_BYTES).unwrap();
        let local = open(dir.path());
        Self { dir, local }
    }

    fn make(&self, id: u32, name: &str, options: BoxOptions) -> String {
        let config = BoxConfig {
            id: format!("{id:032x}"),
            name: name.to_owned(),
            created_ms: id.into(),
            options,
            image_digest: "sha256:0".into(),
            image: Default::default(),
        };
        let base = self.dir.path().join("base");
        self.local.settle(&config, &base, BASE_BYTES.len() as u64).unwrap();
        config.id
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// All states that a power failure during `act` may leave, and those that one afterwards may leave.
    fn replay(&self, act: impl FnOnce()) -> (Vec<Names>, Vec<Names>) {
        let past = database(&self.home());
        let watch = Watch::begin(self.dir.path());
        act();
        let (during, after) = watch.end();
        let databases = [past, database(&self.home()), Vec::new()];
        let disks = disks(&self.home());
        let open_all = |cuts: Vec<Cut>| {
            assert!(!cuts.is_empty());
            let mut found = Vec::new();
            for cut in &cuts {
                for database in &databases {
                    let names = open_after(cut, database, &disks);
                    if !found.contains(&names) {
                        found.push(names);
                    }
                }
            }
            found
        };
        (open_all(during), open_all(after))
    }
}

fn database(home: &Path) -> Database {
    let files = ["boxlite.db", "boxlite.db-wal"];
    files.into_iter().filter_map(|name| Some((name, fs::read(home.join(name)).ok()?))).collect()
}

/// The disks of all boxes.
fn disks(home: &Path) -> BTreeMap<String, Vec<u8>> {
    let folders = fs::read_dir(home.join("boxes")).unwrap().map(|entry| entry.unwrap());
    let disk = |path: PathBuf| fs::read(path.join(DISK)).ok();
    folders
        .filter_map(|entry| Some((entry.file_name().into_string().unwrap(), disk(entry.path())?)))
        .collect()
}

/// Opens the home of a cut, and checks that each box is complete and there is nothing else.
fn open_after(cut: &Cut, database: &Database, disks: &BTreeMap<String, Vec<u8>>) -> Names {
    let home = cut.path().join("home");
    fs::create_dir_all(&home).unwrap();
    for name in ["boxlite.db", "boxlite.db-wal", "boxlite.db-shm"] {
        let _ = fs::remove_file(home.join(name));
    }
    for (name, bytes) in database {
        fs::write(home.join(name), bytes).unwrap();
    }
    let local = open(cut.path());
    let ids = local.home.ids().unwrap();
    let names: Names =
        local.store.list().unwrap().into_iter().map(|entry| (entry.id, entry.name)).collect();
    assert!(
        names.keys().eq(ids.iter().collect::<std::collections::BTreeSet<_>>()),
        "{}",
        cut.moment
    );
    let listed = local.list().unwrap();
    assert_eq!(listed.len(), ids.len(), "{}: a box cannot be told of", cut.moment);
    for id in &ids {
        let folder = local.home.folder(id);
        assert_eq!(fs::read(folder.file(BASE)).unwrap(), BASE_BYTES, "{}", cut.moment);
        let disk = fs::read(folder.file(DISK)).unwrap();
        // A box that was removed since has no counterpart to compare with.
        assert!(disks.get(id).is_none_or(|whole| *whole == disk), "{}", cut.moment);
        assert!(!disk.is_empty(), "{}", cut.moment);
    }
    let boxes = fs::read_dir(home.join("boxes")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = boxes.filter(|name| name.to_string_lossy().starts_with(".n")).collect();
    assert!(left.is_empty(), "{}: {left:?}", cut.moment);
    names
}

fn names<const N: usize>(boxes: [(&str, &str); N]) -> Names {
    boxes.into_iter().map(|(id, name)| (id.to_owned(), name.to_owned())).collect()
}

fn kept() -> BoxOptions {
    BoxOptions::new("image")
}

#[test]
fn a_box_is_created_completely_or_not_at_all() {
    let lab = Lab::new();
    let old = lab.make(1, "old", kept());
    let mut new = String::new();
    let (during, after) = lab.replay(|| new = lab.make(2, "new", kept()));
    let (without, with) = (names([(&old, "old")]), names([(&old, "old"), (&new, "new")]));
    assert!(during.iter().all(|found| [&without, &with].contains(&found)), "{during:?}");
    assert!(during.contains(&without) && during.contains(&with));
    assert_eq!(after, [with]);
}

#[test]
fn the_first_box_of_a_new_home_stays() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base"), BASE_BYTES).unwrap();
    let watch = Watch::begin(dir.path());
    let lab = Lab { local: open(dir.path()), dir };
    let id = lab.make(1, "first", kept());
    let (_, after) = watch.end();
    for cut in after {
        let found = open_after(&cut, &Vec::new(), &disks(&lab.home()));
        assert_eq!(found, names([(&id, "first")]), "{}", cut.moment);
    }
}

#[test]
fn a_name_is_the_old_or_the_new_one() {
    let lab = Lab::new();
    let (a, b) = (lab.make(1, "a", kept()), lab.make(2, "b", kept()));
    let (during, after) = lab.replay(|| lab.local.rename(&a, "c").unwrap());
    let (old, new) = (names([(&a, "a"), (&b, "b")]), names([(&a, "c"), (&b, "b")]));
    assert!(during.iter().all(|found| [&old, &new].contains(&found)), "{during:?}");
    assert_eq!(after, [new]);
    // A database that lost all of this finds each name taken by another box.
    let (_, after) = lab.replay(|| {
        for (id, name) in [(&b, "x"), (&a, "b"), (&b, "c")] {
            lab.local.rename(id, name).unwrap();
        }
    });
    assert_eq!(after, [names([(&a, "b"), (&b, "c")])]);
}

#[test]
fn a_box_is_removed_completely_or_not_at_all() {
    let lab = Lab::new();
    let (a, b) = (lab.make(1, "a", kept()), lab.make(2, "b", kept()));
    let (during, after) = lab.replay(|| assert!(lab.local.try_remove(&a).unwrap()));
    let (both, one) = (names([(&a, "a"), (&b, "b")]), names([(&b, "b")]));
    assert!(during.iter().all(|found| [&both, &one].contains(&found)), "{during:?}");
    assert_eq!(after, [one]);
}

#[test]
fn a_temporary_box_leaves_nothing_and_syncs_nothing() {
    let lab = Lab::new();
    let old = lab.make(1, "old", kept());
    let (during, after) = {
        let watch = Watch::begin(lab.dir.path());
        lab.make(2, "new", kept().auto_remove(true));
        watch.end()
    };
    assert!(during.is_empty(), "a sync is slow: {}", during[0].moment);
    for database in [database(&lab.home()), Vec::new()] {
        for cut in &after {
            let found = open_after(cut, &database, &disks(&lab.home()));
            assert_eq!(found, names([(&old, "old")]), "{}", cut.moment);
        }
    }
}

#[test]
fn a_disk_in_use_is_never_taken_for_clean() {
    let lab = Lab::new();
    let id = lab.make(1, "a", kept());
    let folder = lab.local.home.folder(&id);
    let ended = BoxEnd { cause: EndCause::Stopped, at_ms: 1, main: None };
    let ended =
        Status { phase: Phase::Ended, ended: Some(ended), disk_synced: true, ..Status::starting() };
    let statuses = |cuts: Vec<Cut>| -> Vec<Option<bool>> {
        let read = |cut: &Cut| {
            let folder = cut.path().join("home/boxes").join(&id);
            Status::read(&folder).unwrap().map(|status| status.was_cut_off())
        };
        cuts.iter().map(read).collect()
    };
    // The first start, then one after an orderly end.
    for before in [None, Some(ended.clone())] {
        if let Some(status) = before {
            status.write(folder.path(), Durability::Power).unwrap();
        }
        let watch = Watch::begin(lab.dir.path());
        Local::begin_status(&folder, &kept()).unwrap();
        // The guest runs from here on.
        let running = Status { phase: Phase::Running, ..Status::starting() };
        running.write(folder.path(), Durability::Process).unwrap();
        let (_, after) = watch.end();
        let after = statuses(after);
        assert!(after.iter().all(|cut_off| *cut_off == Some(true)), "{after:?}");
    }
    // The end: the status must not be on disk before the guest's data.
    ended.write(folder.path(), Durability::Power).unwrap();
    assert!(!Status::read(folder.path()).unwrap().unwrap().was_cut_off());
    let old = br#"{"phase":"Ended","pid":1,"started_ms":0,"stages":[],"main_pid":null,"restarts":0,
        "health":null,"ended":{"end":"Stopped","at_ms":1,"main":null}}"#;
    durable::replace(&folder.file("status.json"), old, Durability::Process).unwrap();
    let old = Status::read(folder.path()).unwrap().unwrap();
    assert!(old.ended.is_some() && old.was_cut_off(), "an earlier release synced nothing");
}

#[test]
fn a_folder_that_cannot_be_read_now_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let local = open(dir.path());
    // Unlike after a power failure, the file has content that cannot be read.
    let unreadable = local.home.folder(&format!("{:032x}", 7));
    fs::create_dir_all(unreadable.file(CONFIG)).unwrap();
    let empty = local.home.folder(&format!("{:032x}", 8));
    fs::create_dir_all(empty.path()).unwrap();
    local.reconcile().unwrap();
    assert!(unreadable.path().exists() && !empty.path().exists());
}
