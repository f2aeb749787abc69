//! Tests with a loss of power between any two syncs.

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
