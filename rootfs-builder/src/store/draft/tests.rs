//! Tests of drafts: whole or absent, one maker at a time.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_dropped_draft_leaves_nothing_and_a_published_one_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x");
    let mut draft = Draft::begin(&target, || panic!("nobody to wait for")).unwrap();
    draft.write_all(b"half").unwrap();
    drop(draft);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    write_whole(&target, b"whole").unwrap();
    write_whole(&target, b"again").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"again");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_leftover_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x");
    let left_over = dir.path().join("x.part");
    fs::write(&left_over, b"dead").unwrap();
    let stray = OpenOptions::new().write(true).open(&left_over).unwrap();
    let draft = Draft::begin(&target, || panic!("its maker is dead")).unwrap();
    (&stray).write_all(b"zombie").unwrap();
    draft.seal().unwrap();
    draft.publish(&target).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"");
}

#[test]
fn a_replaced_draft_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x");
    let draft = Draft::begin(&target, || {}).unwrap();
    fs::remove_file(draft.path()).unwrap();
    fs::write(draft.path(), b"other").unwrap();
    assert!(draft.publish(&target).is_err());
    assert!(!target.exists());
}

#[test]
fn one_of_many_threads_makes_it() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("x");
    let made = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut draft = Draft::begin(&target, || {}).unwrap();
                if !target.exists() {
                    made.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    draft.write_all(b"made").unwrap();
                    draft.seal().unwrap();
                    draft.publish(&target).unwrap();
                }
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
