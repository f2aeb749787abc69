//! Images in and out of the store as archives, under other names, and out of it for good.

use std::fs;
use std::path::Path;
use std::process::Command;

use boxlite_rootfs_builder::{Error, ImageStore, Silent, StoredImage};

use crate::support::*;

/// A store with an image `my/image:1` of one compressed and one plain layer (which the store compresses).
fn filled(place: &Place) -> (ImageStore, Vec<u8>) {
    filled_with(place, TestLayer::plain)
}

fn filled_with(place: &Place, top: fn(&[u8]) -> TestLayer) -> (ImageStore, Vec<u8>) {
    let layers = [TestLayer::tar("etc/base", b"the base"), TestLayer::tar("top", b"the top")];
    let stored = [TestLayer::gzip(&layers[0]), top(&layers[1])];
    let source = Layout::single(place.path("oci"), &stored).reference().parse().unwrap();
    let store = place.store();
    store.import(&source, "my/image:1", &Concatenate::default(), &Silent).unwrap();
    (store, on_disk(&[&layers[0], &layers[1]]))
}

fn save(store: &ImageStore, names: &[&str], file: &Path) {
    let mut output = fs::File::create(file).unwrap();
    store.save(names, &mut output, &Silent).unwrap();
}

fn disk_of(store: &ImageStore, name: &str) -> Vec<u8> {
    let image = store.resolve(&name.parse().unwrap(), &Silent).unwrap();
    let disk = store.disk(&image, &Concatenate::default(), &Silent).unwrap();
    fs::read(disk.path()).unwrap()
}

#[test]
fn what_is_saved_can_be_loaded() {
    let place = Place::new();
    let (store, content) = filled(&place);
    store.tag("my/image:1", "localhost:5000/other").unwrap();
    let file = place.path("saved.tar");
    save(&store, &["my/image:1", "localhost:5000/other"], &file);
    let other = Place::new();
    let loaded = other.store().load(&file, &Silent).unwrap();
    let names: Vec<_> = loaded.iter().map(|image| image.reference().to_string()).collect();
    assert_eq!(names, ["my/image:1", "localhost:5000/other:latest"]);
    assert!(other.store_files().iter().all(|file| !file.starts_with("disks")));
    for name in names {
        assert!(disk_of(&other.store(), &name) == content);
    }
    // The manifest speaks of the layers as they are now, so it is the same from here on.
    let again = place.path("again.tar");
    save(&other.store(), &["my/image:1"], &again);
    let third = Place::new();
    let loaded = third.store().load(&again, &Silent).unwrap();
    let digest = other.resolve("my/image:1").unwrap().digest().clone();
    assert_eq!(loaded[0].digest(), &digest);
    assert_eq!(loaded[0].config().env, ["PATH=/bin"]);
}

#[test]
fn skopeo_reads_what_is_saved_and_writes_what_is_loaded() {
    if !has_tool("skopeo") {
        return;
    }
    let place = Place::new();
    // Docker's archives know no zstd.
    let (store, content) = filled_with(&place, TestLayer::gzip);
    let file = place.path("saved.tar");
    save(&store, &["my/image:1"], &file);
    let skopeo = |from: &str, to: &str| {
        run(Command::new("skopeo").args(["--insecure-policy", "copy", "-q", from, to]));
    };
    let copy = format!("oci:{}:v1", place.path("copy").display());
    skopeo(&format!("oci-archive:{}:docker.io/my/image:1", file.display()), &copy);
    assert_eq!(
        place.resolve(&copy).unwrap().chain_id(),
        place.resolve("my/image:1").unwrap().chain_id()
    );

    for (kind, name) in
        [("docker-archive", "a/b:1"), ("oci-archive", "c/d:2"), ("oci-archive", "v3")]
    {
        let file = place.path(&format!("{kind}-{}.tar", name.replace(['/', ':'], "-")));
        skopeo(&copy, &format!("{kind}:{}:{name}", file.display()));
        run(Command::new("gzip").arg("-k").arg(&file));
        for suffix in ["", ".gz"] {
            let other = Place::new();
            let loaded =
                other.store().load(Path::new(&format!("{}{suffix}", file.display())), &Silent);
            let loaded = loaded.unwrap();
            let loaded = loaded[0].reference().to_string();
            assert!(loaded == name || loaded.ends_with(":v3"), "{loaded}");
            assert!(disk_of(&other.store(), &loaded) == content);
        }
    }
}

#[test]
fn what_cannot_be_saved_or_loaded_is_named() {
    let place = Place::new();
    let (store, _) = filled(&place);
    let used = Layout::single(place.path("used"), &[TestLayer::plain(b"used")]).reference();
    place.build(&used).unwrap();
    let mut sink = Vec::new();
    let mut save = |name: &str| store.save(&[name], &mut sink, &Silent).unwrap_err();
    assert!(matches!(save("nothing"), Error::NotFound { .. }));
    let error = save(&used);
    assert!(error.to_string().contains("import it under a name"), "{error}");
    assert!(matches!(store.tag(&used, "x"), Err(Error::Unsupported { .. })));
    assert!(matches!(store.tag("my/image:1", "Bad Name"), Err(Error::InvalidReference { .. })));
    fs::remove_dir_all(place.path("store/blobs/sha256")).unwrap();
    let error = save("my/image:1");
    assert!(matches!(error, Error::Io { .. }), "{error}");

    let layers = [TestLayer::plain(b"x")];
    let layout = Layout::new(place.path("nameless"));
    layout.write_index(&[layout.image(HOST, &layers)]);
    let file = place.path("nameless.tar");
    run(Command::new("tar").arg("-cf").arg(&file).arg("-C").arg(&layout.dir).arg("."));
    let error = store.load(&file, &Silent).unwrap_err();
    assert!(error.to_string().contains("the name of an image"), "{error}");
}

#[test]
fn inspection_tells_layers_names_and_config() {
    let place = Place::new();
    let (store, _) = filled(&place);
    store.tag("my/image:1", "other").unwrap();
    let details = store.inspect("my/image:1").unwrap();
    assert_eq!(details.names, ["my/image:1", "other:latest"]);
    assert_eq!(details.layers.len(), 2);
    let blobs: u64 = details.layers.iter().map(|layer| layer.size).sum();
    assert!(details.image.size > blobs && details.image.disk.is_some());
    let config: serde_json::Value = serde_json::from_slice(&details.config_json.unwrap()).unwrap();
    assert_eq!(config["config"]["Cmd"][0], "/bin/sh");
    let prefix = &details.image.digest.hex()[..12];
    assert_eq!(store.inspect(prefix).unwrap().names.len(), 2);
    assert!(matches!(store.inspect("nothing"), Err(Error::NotFound { .. })));
}

#[test]
fn images_that_boxes_need_are_removed_by_force_only() {
    let place = Place::new();
    let (store, _) = filled(&place);
    let stopped = |image: &StoredImage| image.name == "my/image:1";
    let error = store.remove_with("my/image:1", false, &stopped).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    // A box that is not running has a link to its disk.
    let disk = store.inspect("my/image:1").unwrap().image.disk.unwrap();
    fs::hard_link(&disk, place.path("link")).unwrap();
    assert!(matches!(store.remove("my/image:1"), Err(Error::InUse { .. })));
    assert!(store.prune(true, &|_| false).unwrap().removed.is_empty());
    store.tag("my/image:1", "second").unwrap();
    let digest = store.inspect("second").unwrap().image.digest.to_string();
    assert!(matches!(store.remove(&digest), Err(Error::Ambiguous { .. })));
    let removed = store.remove_with(&digest, true, &stopped).unwrap();
    assert_eq!(removed.name, "my/image:1, second:latest");
    assert_eq!(place.store_files(), [""; 0]);
    assert!(fs::metadata(place.path("link")).unwrap().len() > 0);
}

#[test]
fn pruning_spares_what_has_a_name_unless_asked_for_all() {
    let place = Place::new();
    let (store, content) = filled(&place);
    let used = Layout::single(place.path("used"), &[TestLayer::plain(b"used")]).reference();
    place.build(&used).unwrap();
    let pruned = store.prune(false, &|_| false).unwrap();
    assert_eq!(pruned.removed, [used]);
    assert!(disk_of(&store, "my/image:1") == content);
    assert!(store.prune(true, &|image| image.name == "my/image:1").unwrap().removed.is_empty());
    let pruned = store.prune(true, &|_| false).unwrap();
    assert_eq!(pruned.removed, ["my/image:1"]);
    assert!(pruned.freed > 0);
    assert_eq!(place.store_files(), [""; 0]);
}
