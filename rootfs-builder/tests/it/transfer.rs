//! Loading, saving, tagging, inspecting, removing and pruning images.

use std::fs;
use std::path::Path;
use std::process::Command;

use boxlite_rootfs_builder::{Error, Image, ImageStore, Silent, StoredImage};

use crate::support::*;

/// A store with an image `my/image:1` of one compressed and one plain layer (which the store compresses).
fn filled(fixture: &Fixture) -> (ImageStore, Vec<u8>) {
    filled_with(fixture, TestLayer::plain)
}

fn filled_with(fixture: &Fixture, top: fn(&[u8]) -> TestLayer) -> (ImageStore, Vec<u8>) {
    let layers = [TestLayer::tar("etc/base", b"the base"), TestLayer::tar("top", b"the top")];
    let stored = [TestLayer::gzip(&layers[0]), top(&layers[1])];
    let source = Layout::single(fixture.path("oci"), &stored).reference().parse().unwrap();
    let store = fixture.store();
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
fn saved_images_can_be_loaded() {
    let fixture = Fixture::new();
    let (store, content) = filled(&fixture);
    store.tag("my/image:1", "localhost:5000/other").unwrap();
    let file = fixture.path("saved.tar");
    save(&store, &["my/image:1", "localhost:5000/other"], &file);
    let other = Fixture::new();
    let loaded = other.store().load(&file, &Silent).unwrap();
    let names: Vec<_> = loaded.iter().map(|image| image.reference().to_string()).collect();
    assert_eq!(names, ["my/image:1", "localhost:5000/other:latest"]);
    assert!(other.store_files().iter().all(|file| !file.starts_with("disks")));
    for name in names {
        assert!(disk_of(&other.store(), &name) == content);
    }
    // The manifest now names the layers as saved, so it is the same from here on.
    let again = fixture.path("again.tar");
    save(&other.store(), &["my/image:1"], &again);
    let third = Fixture::new();
    let loaded = third.store().load(&again, &Silent).unwrap();
    let digest = other.resolve("my/image:1").unwrap().digest().clone();
    assert_eq!(loaded[0].digest(), &digest);
    assert_eq!(loaded[0].config().env, ["PATH=/bin"]);
}

/// All names of the images that were loaded.
fn names(loaded: &[Image]) -> Vec<String> {
    loaded.iter().map(|image| image.reference().to_string()).collect()
}

#[test]
fn a_stream_is_loaded_like_a_file() {
    let fixture = Fixture::new();
    let (store, content) = filled(&fixture);
    store.tag("my/image:1", "localhost:5000/other").unwrap();
    let mut saved = Vec::new();
    store.save(&["my/image:1", "localhost:5000/other"], &mut saved, &Silent).unwrap();
    for stream in [saved.clone(), gzip(&saved), zstd::encode_all(&saved[..], 1).unwrap()] {
        let other = Fixture::new();
        let loaded = other.store().load_from(&mut &stream[..], &Silent).unwrap();
        assert_eq!(names(&loaded), ["my/image:1", "localhost:5000/other:latest"]);
        for name in names(&loaded) {
            assert!(disk_of(&other.store(), &name) == content);
        }
        // A truncated stream leaves nothing, and a decompression bomb is stopped.
        let broken = Fixture::new();
        let half = &stream[..stream.len() / 2];
        broken.store().load_from(&mut &*half, &Silent).unwrap_err();
        assert_eq!(broken.store_files(), [""; 0]);
    }
    for (stream, words) in [(&b""[..], "no archive of an image"), (b"text", "damaged")] {
        let error = fixture.store().load_from(&mut &*stream, &Silent).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let small = fixture.store().with_layer_limit(1000);
    let error = small.load_from(&mut &gzip(&saved)[..], &Silent).unwrap_err();
    assert!(error.to_string().contains("1000 bytes"), "{error}");
    // A tag alone does not give the name of an image.
    let layout = Layout::single(fixture.path("tagged"), &[TestLayer::plain(b"x")]);
    let file = fixture.path("tagged.tar");
    run(Command::new("tar").arg("-cf").arg(&file).arg("-C").arg(&layout.dir).arg("."));
    assert_eq!(names(&store.load(&file, &Silent).unwrap()), ["tagged:latest"]);
    let mut stream = fs::File::open(&file).unwrap();
    let error = store.load_from(&mut stream, &Silent).unwrap_err();
    assert!(error.to_string().contains("the image tagged \"latest\""), "{error}");
}

#[test]
fn an_archive_is_loaded_completely_or_not_at_all() {
    let fixture = Fixture::new();
    let path = fixture.path("a:b.tar");
    let config = |layers: &[&[u8]], architecture: &str| {
        let layers: Vec<_> = layers.iter().map(|layer| TestLayer::plain(layer)).collect();
        Layout::config(architecture, &layers).to_string()
    };
    let archive = |architecture: &str, top: &[u8]| {
        let (one, two) = (config(&[b"base"], HOST), config(&[b"base", b"top"], architecture));
        let manifest = serde_json::json!([
            { "Config": "1.json", "RepoTags": ["one:latest", "one:1.0"], "Layers": ["a/layer.tar"] },
            { "Config": "2.json", "RepoTags": ["example.com/two:2"], "Layers": ["a/layer.tar", "b/layer.tar"] },
        ]);
        let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
        for (name, content) in [
            ("1.json", one.as_bytes()),
            ("2.json", two.as_bytes()),
            ("a/layer.tar", b"base"),
            ("b/layer.tar", top),
            ("manifest.json", manifest.to_string().as_bytes()),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        }
        builder.finish().unwrap();
    };
    for (architecture, top) in [(FOREIGN, &b"top"[..]), (HOST, b"another")] {
        archive(architecture, top);
        fixture.store().load(&path, &Silent).unwrap_err();
        assert!(fixture.store().list().unwrap().images.is_empty());
    }
    archive(HOST, b"top");
    let notes = Notes::default();
    let loaded = fixture.store().load(&path, &notes).unwrap();
    assert_eq!(names(&loaded), ["example.com/two:2", "one:1.0", "one:latest"]);
    // A layer that images or names share is compressed once.
    let copied = notes.0.lock().unwrap().iter().filter(|note| note.contains("Copying")).count();
    assert_eq!(copied, 2);
    assert!(disk_of(&fixture.store(), "example.com/two:2") == on_disk(&[b"base", b"top"]));
    assert!(disk_of(&fixture.store(), "one") == on_disk(&[b"base"]));
}

#[test]
fn skopeo_reads_saved_archives_and_writes_loadable_ones() {
    if !has_tool("skopeo") {
        return;
    }
    let fixture = Fixture::new();
    // Docker's archives do not support zstd.
    let (store, content) = filled_with(&fixture, TestLayer::gzip);
    let file = fixture.path("saved.tar");
    save(&store, &["my/image:1"], &file);
    let skopeo = |from: &str, to: &str| {
        run(Command::new("skopeo").args(["--insecure-policy", "copy", "-q", from, to]));
    };
    let copy = format!("oci:{}:v1", fixture.path("copy").display());
    skopeo(&format!("oci-archive:{}:docker.io/my/image:1", file.display()), &copy);
    assert_eq!(
        fixture.resolve(&copy).unwrap().chain_id(),
        fixture.resolve("my/image:1").unwrap().chain_id()
    );

    for (kind, name) in
        [("docker-archive", "a/b:1"), ("oci-archive", "c/d:2"), ("oci-archive", "v3")]
    {
        let file = fixture.path(&format!("{kind}-{}.tar", name.replace(['/', ':'], "-")));
        skopeo(&copy, &format!("{kind}:{}:{name}", file.display()));
        run(Command::new("gzip").arg("-k").arg(&file));
        for suffix in ["", ".gz"] {
            let other = Fixture::new();
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
fn errors_of_save_and_load_name_the_image() {
    let fixture = Fixture::new();
    let (store, _) = filled(&fixture);
    let used = Layout::single(fixture.path("used"), &[TestLayer::plain(b"used")]).reference();
    fixture.build(&used).unwrap();
    let mut sink = Vec::new();
    let mut save = |name: &str| store.save(&[name], &mut sink, &Silent).unwrap_err();
    assert!(matches!(save("nothing"), Error::NotFound { .. }));
    let error = save(&used);
    assert!(error.to_string().contains("import it under a name"), "{error}");
    assert!(matches!(store.tag(&used, "x"), Err(Error::Unsupported { .. })));
    assert!(matches!(store.tag("my/image:1", "Bad Name"), Err(Error::InvalidReference { .. })));
    fs::remove_dir_all(fixture.path("store/blobs/sha256")).unwrap();
    let error = save("my/image:1");
    assert!(matches!(error, Error::Io { .. }), "{error}");

    let layers = [TestLayer::plain(b"x")];
    let layout = Layout::new(fixture.path("nameless"));
    layout.write_index(&[layout.image(HOST, &layers)]);
    let file = fixture.path("nameless.tar");
    run(Command::new("tar").arg("-cf").arg(&file).arg("-C").arg(&layout.dir).arg("."));
    let error = store.load(&file, &Silent).unwrap_err();
    assert!(error.to_string().contains("the name of an image"), "{error}");
}

/// A pipe whose reader first removes an image.
struct Removing<'a> {
    fixture: &'a Fixture,
    removed: Option<std::sync::mpsc::Receiver<u64>>,
    written: Vec<u8>,
}

impl std::io::Write for Removing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.removed.is_none() {
            let (done, removed) = std::sync::mpsc::channel();
            let store = self.fixture.store();
            std::thread::spawn(move || done.send(store.remove("my/image:1").unwrap().freed));
            removed.recv_timeout(std::time::Duration::from_secs(120)).expect("it waits");
            self.removed = Some(removed);
        }
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_reader_of_an_archive_does_not_block_removal() {
    let fixture = Fixture::new();
    let (store, content) = filled(&fixture);
    let mut output = Removing { fixture: &fixture, removed: None, written: Vec::new() };
    store.save(&["my/image:1"], &mut output, &Silent).unwrap();
    // The archive is complete, and the image is removed after that.
    fixture.until("it is swept away", || {
        assert!(fixture.store().list().unwrap().images.is_empty());
        fixture.store_files().is_empty()
    });
    fixture.store().load_from(&mut &output.written[..], &Silent).unwrap();
    assert!(disk_of(&fixture.store(), "my/image:1") == content);
}

#[test]
fn inspection_lists_layers_names_and_config() {
    let fixture = Fixture::new();
    let (store, _) = filled(&fixture);
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
    let fixture = Fixture::new();
    let (store, _) = filled(&fixture);
    let stopped = |image: &StoredImage| image.name == "my/image:1";
    let error = store.remove_with("my/image:1", false, &stopped).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    // A box that is not running has a link to its disk.
    let disk = store.inspect("my/image:1").unwrap().image.disk.unwrap();
    fs::hard_link(&disk, fixture.path("link")).unwrap();
    assert!(matches!(store.remove("my/image:1"), Err(Error::InUse { .. })));
    assert!(store.prune(true, &|_| false).unwrap().removed.is_empty());
    store.tag("my/image:1", "second").unwrap();
    let digest = store.inspect("second").unwrap().image.digest.to_string();
    assert!(matches!(store.remove(&digest), Err(Error::Ambiguous { .. })));
    let removed = store.remove_with(&digest, true, &stopped).unwrap();
    assert_eq!(removed.name, "my/image:1, second:latest");
    assert_eq!(fixture.store_files(), [""; 0]);
    assert!(fs::metadata(fixture.path("link")).unwrap().len() > 0);
}

#[test]
fn pruning_keeps_named_images_unless_all_are_pruned() {
    let fixture = Fixture::new();
    let (store, content) = filled(&fixture);
    let used = Layout::single(fixture.path("used"), &[TestLayer::plain(b"used")]).reference();
    fixture.build(&used).unwrap();
    let pruned = store.prune(false, &|_| false).unwrap();
    assert_eq!(pruned.removed, [used]);
    assert!(disk_of(&store, "my/image:1") == content);
    assert!(store.prune(true, &|image| image.name == "my/image:1").unwrap().removed.is_empty());
    let pruned = store.prune(true, &|_| false).unwrap();
    assert_eq!(pruned.removed, ["my/image:1"]);
    assert!(pruned.freed > 0);
    assert_eq!(fixture.store_files(), [""; 0]);
}
