//! Several processes, and processes that are killed.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::proxy::{Fault, Proxy};
use super::*;

/// This test binary again, pulling this image.
fn spawn_child(place: &Place, text: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::processes::child_process", "--ignored", "--nocapture"])
        .env("CHILD_IMAGE", text)
        .env("CHILD_DIR", place.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The body of the processes that the tests here start.
#[test]
#[ignore = "a part of other tests, run in processes of its own"]
fn child_process() {
    let Ok(text) = std::env::var("CHILD_IMAGE") else { return };
    let dir = std::path::PathBuf::from(std::env::var("CHILD_DIR").unwrap());
    let mut options = RegistryOptions::default();
    options.docker_config = Some(dir.join("docker"));
    let store = ImageStore::open(dir.join("store")).unwrap().with_registries(options);
    let notes = Notes::default();
    let image = store.resolve(&text.parse().unwrap(), &notes).unwrap();
    println!("\nRESULT {} waited={}", image.digest(), notes.has("Waiting"));
}

#[test]
fn of_many_processes_one_fetches() {
    let place = Place::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&place, "oci", 1, 2 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&place, "oci");
    let slow = layer.clone();
    let proxy = Proxy::start(&registry.address, move |head, _| match head.contains(&slow) {
        true => Fault::Slow(Duration::from_millis(60)),
        false => Fault::None,
    });
    let text = format!("{}/x:v", proxy.address);
    let children: Vec<_> = (0..5).map(|_| spawn_child(&place, &text)).collect();
    let outputs: Vec<String> = children
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let digest = place.resolve(&reference).unwrap().digest().to_string();
    let count = |words: &str| outputs.iter().filter(|output| output.contains(words)).count();
    assert_eq!(count(&format!("RESULT {digest}")), 5, "{outputs:?}");
    assert!(count("waited=true") >= 1, "{outputs:?}");
    assert_eq!(proxy.requests(&layer).len(), 1);
    let store = store(&place);
    let image = store.resolve(&text.parse().unwrap(), &Silent).unwrap();
    assert!(disk_of(&store, &image) == content);
}

#[test]
fn a_killed_pull_is_gone_on_with() {
    let place = Place::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&place, "oci", 1, 4 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&place, "oci");
    let slow = layer.clone();
    let proxy =
        Proxy::start(&registry.address, move |head, nth| match head.contains(&slow) && nth == 0 {
            true => Fault::Slow(Duration::from_millis(100)),
            false => Fault::None,
        });
    let text = format!("{}/x:v", proxy.address);
    let mut child = spawn_child(&place, &text);
    let partial = place.path("store/blobs").join(layer.replace(':', "/") + ".partial");
    let deadline = Instant::now() + Duration::from_secs(30);
    while partial.metadata().map_or(0, |file| file.len()) < 1 << 20 {
        assert!(Instant::now() < deadline, "{:?}", place.store_files());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Others come and go.
    place.store();
    let kept = partial.metadata().unwrap().len();
    let image = pull(&place, &text).unwrap();
    let range = proxy.requests(&layer).pop().unwrap().to_lowercase();
    assert!(range.contains(&format!("range: bytes={kept}-")), "{range}");
    assert!(disk_of(&store(&place), &image) == content);
}

#[test]
fn kill_at_any_moment_leaves_a_store_that_pulls() {
    let place = Place::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&place, "oci", 1, 2 << 20);
    registry.push(&reference, "x:v");
    let text = format!("{}/x:v", registry.address);
    for step in 0..20u64 {
        let mut child = spawn_child(&place, &text);
        std::thread::sleep(Duration::from_millis(10 + step * 8));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = store(&place);
        assert!(store.list().unwrap().damaged.is_empty());
        if step % 3 == 0 {
            let image = store.resolve(&text.parse().unwrap(), &Silent).unwrap();
            assert!(disk_of(&store, &image) == content);
            store.prune(true, &|_| false).unwrap();
            assert_eq!(place.store_files(), [""; 0]);
        }
    }
}
