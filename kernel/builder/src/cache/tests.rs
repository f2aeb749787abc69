//! Tests of locks and publication in the cache.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

#[test]
fn the_second_builder_waits_for_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path()).unwrap();
    let first = cache.lock("k", || panic!("nobody holds it")).unwrap();
    let other = cache.lock("another", || panic!("another key")).unwrap();
    let (notify, waits) = mpsc::channel();
    thread::scope(|scope| {
        let second = scope.spawn(|| cache.lock("k", || notify.send(()).unwrap()).unwrap());
        waits.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap();
    });
    drop(other);
}

#[test]
fn publishing_replaces_and_an_unpublished_folder_vanishes() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    for text in ["one", "two"] {
        let temp = temp_dir(dir.path()).unwrap();
        fs::write(temp.path().join("file"), text).unwrap();
        publish_dir(temp, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), text);
    }
    drop(temp_dir(dir.path()).unwrap());
    assert_eq!(dir.path().read_dir().unwrap().count(), 1, "only `out` is left");
}

#[test]
fn a_wrong_hash_names_both() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    check_hash(&file, empty).unwrap();
    let error = check_hash(&file, "00").unwrap_err().to_string();
    assert!(error.contains(empty) && error.contains("expected 00"), "{error}");
}
