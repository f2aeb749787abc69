//! Pulls by several processes, and by processes that are killed.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::proxy::{Fault, Proxy};
use super::*;

/// Runs this test binary again, to pull this image.
fn spawn_child(fixture: &Fixture, text: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::processes::child_process", "--ignored", "--nocapture"])
        .env("CHILD_IMAGE", text)
        .env("CHILD_DIR", fixture.dir.path())
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
fn one_of_many_processes_fetches() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 2 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let slow = layer.clone();
    let proxy = Proxy::start(&registry.address, move |head, _| match head.contains(&slow) {
        true => Fault::Slow(Duration::from_millis(60)),
        false => Fault::None,
    });
    let text = format!("{}/x:v", proxy.address);
    let children: Vec<_> = (0..5).map(|_| spawn_child(&fixture, &text)).collect();
    let outputs: Vec<String> = children
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let digest = fixture.resolve(&reference).unwrap().digest().to_string();
    let count = |words: &str| outputs.iter().filter(|output| output.contains(words)).count();
    assert_eq!(count(&format!("RESULT {digest}")), 5, "{outputs:?}");
    assert!(count("waited=true") >= 1, "{outputs:?}");
    assert_eq!(proxy.requests(&layer).len(), 1);
    let store = store(&fixture);
    let image = store.resolve(&text.parse().unwrap(), &Silent).unwrap();
    assert!(disk_of(&store, &image) == content);
}

#[test]
fn a_killed_pull_is_resumed() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 4 << 20);
    registry.push(&reference, "x:v");
    let layer = data_layer(&fixture, "oci");
    let slow = layer.clone();
    let proxy =
        Proxy::start(&registry.address, move |head, nth| match head.contains(&slow) && nth == 0 {
            true => Fault::Slow(Duration::from_millis(100)),
            false => Fault::None,
        });
    let text = format!("{}/x:v", proxy.address);
    let mut child = spawn_child(&fixture, &text);
    let partial = fixture.path("store/blobs").join(layer.replace(':', "/") + ".partial");
    let deadline = Instant::now() + Duration::from_secs(30);
    while partial.metadata().map_or(0, |file| file.len()) < 1 << 20 {
        assert!(Instant::now() < deadline, "{:?}", fixture.store_files());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Other processes open and close the store.
    fixture.store();
    let kept = partial.metadata().unwrap().len();
    let image = pull(&fixture, &text).unwrap();
    let range = proxy.requests(&layer).pop().unwrap().to_lowercase();
    assert!(range.contains(&format!("range: bytes={kept}-")), "{range}");
    assert!(disk_of(&store(&fixture), &image) == content);
}

#[test]
fn kill_at_any_moment_leaves_a_store_that_pulls() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 2 << 20);
    registry.push(&reference, "x:v");
    let text = format!("{}/x:v", registry.address);
    for step in 0..20u64 {
        let mut child = spawn_child(&fixture, &text);
        std::thread::sleep(Duration::from_millis(10 + step * 8));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = store(&fixture);
        assert!(store.list().unwrap().damaged.is_empty());
        if step % 3 == 0 {
            let image = store.resolve(&text.parse().unwrap(), &Silent).unwrap();
            assert!(disk_of(&store, &image) == content);
            store.prune(true, &|_| false).unwrap();
            assert_eq!(fixture.store_files(), [""; 0]);
        }
    }
}
