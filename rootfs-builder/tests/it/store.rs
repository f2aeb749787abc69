//! The store: caching, several processes at once, crashes, removal, damage, a full disk.

use std::error::Error as StdError;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use boxlite_rootfs_builder::{
    DiskBuilder, Error, ImageReference, ImageStore, LayerStreams, PullPolicy, Silent,
};

use crate::support::*;

fn image(fixture: &Fixture, name: &str) -> String {
    let layers = [TestLayer::gzip(name.as_bytes()), TestLayer::plain(b" top")];
    Layout::single(fixture.path(name), &layers).reference()
}

#[test]
fn a_disk_is_built_once_and_shared_by_equal_images() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let builder = Concatenate::default();
    let build = |reference: &str| {
        let image = store.resolve(&reference.parse().unwrap(), &Silent).unwrap();
        store.disk(&image, &builder, &Silent).unwrap()
    };
    let one = image(&fixture, "x");
    fs::create_dir(fixture.path("copy")).unwrap();
    run(Command::new("cp").arg("-r").arg(fixture.path("x")).arg(fixture.path("copy/x")));
    let copy = one.replace("/x", "/copy/x");
    let first = build(&one);
    let second = build(&copy);
    assert_eq!(builder.built.load(Ordering::Relaxed), 1);
    assert_eq!(first.path(), second.path());
    assert_eq!(fs::read(first.path()).unwrap(), on_disk(&[b"x", b" top"]));
    assert!(fs::metadata(first.path()).unwrap().permissions().readonly());
    let names: Vec<_> = store.list().unwrap().images.into_iter().map(|image| image.name).collect();
    assert_eq!(names.len(), 2, "{names:?}");

    // The disk stays until the last of the images is removed.
    drop((first, second));
    store.remove(&one).unwrap();
    build(&copy);
    assert_eq!(builder.built.load(Ordering::Relaxed), 1);
    store.remove(&copy).unwrap();
    assert_eq!(fixture.store_files(), [""; 0]);
}

#[test]
fn another_builder_makes_another_disk() {
    let fixture = Fixture::new();
    let reference = image(&fixture, "x");
    let image = fixture.resolve(&reference).unwrap();
    let path = |key: &str| {
        let builder = Concatenate { key: key.to_owned(), ..Default::default() };
        fixture.store().disk(&image, &builder, &Silent).unwrap().path().to_owned()
    };
    let (one, two) = (path("one"), path("two"));
    assert_ne!(one, two);
    // The record names the newer disk; nothing needs the older one any more.
    fixture.store();
    assert!(!one.exists() && two.exists());
}

#[test]
fn imports_do_not_need_their_source() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let source = image(&fixture, "x");
    let notes = Notes::default();
    let imported = store
        .import(&source.parse().unwrap(), "my/image:1", &Concatenate::default(), &notes)
        .unwrap();
    assert!(notes.has("Copying") && notes.has("Unpacking"));
    assert_eq!(imported.reference().to_string(), "my/image:1");
    fs::remove_dir_all(fixture.path("x")).unwrap();
    let again = fixture.resolve("docker://my/image:1").unwrap();
    assert_eq!(again.digest(), imported.digest());
    assert_eq!(again.config(), imported.config());
    // Also for new guest files: the layers are in the store.
    let builder = Concatenate { key: "new".into(), ..Default::default() };
    let disk = store.disk(&again, &builder, &Silent).unwrap();
    assert_eq!(fs::read(disk.path()).unwrap(), on_disk(&[b"x", b" top"]));
    let listed = &store.list().unwrap().images;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&*listed[0].name, listed[0].imported_from.as_deref()),
        ("my/image:1", Some(&*source))
    );
    assert!(listed[0].size > 0 && listed[0].disk_problem.is_none());

    // A second name, then both are removed.
    store.import(&"my/image:1".parse().unwrap(), "other", &builder, &Silent).unwrap();
    drop(disk);
    store.remove("my/image:1").unwrap();
    assert_eq!(fixture.build("other").unwrap(), on_disk(&[b"x", b" top"]));
    assert!(store.remove("other").unwrap().freed > 0);
    assert_eq!(fixture.store_files(), [""; 0]);
}

#[test]
fn importing_a_directory_keeps_it() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("root")).unwrap();
    fs::write(fixture.path("root/file"), vec![1; 1 << 20]).unwrap();
    let reference: ImageReference =
        format!("rootfs:{}", fixture.path("root").display()).parse().unwrap();
    fixture.store().import(&reference, "files", &Concatenate::default(), &Silent).unwrap();
    fs::remove_dir_all(fixture.path("root")).unwrap();
    let builder = Concatenate { key: "new".into(), ..Default::default() };
    let image = fixture.resolve("files").unwrap();
    let disk = fixture.store().disk(&image, &builder, &Silent).unwrap();
    assert_eq!(members(&fs::read(disk.path()).unwrap())[1], ("file".to_owned(), vec![1; 1 << 20]));
    let blob_bytes: u64 = fixture
        .store_files()
        .iter()
        .filter(|file| file.starts_with("blobs"))
        .map(|file| fs::metadata(fixture.path("store").join(file)).unwrap().len())
        .sum();
    assert!(blob_bytes < 10_000, "{blob_bytes}");
}

#[test]
fn a_missing_blob_in_the_store_is_named() {
    let fixture = Fixture::new();
    let source: ImageReference = image(&fixture, "x").parse().unwrap();
    let store = fixture.store();
    store.import(&source, "x", &Concatenate::default(), &Silent).unwrap();
    fs::remove_dir_all(fixture.path("store/blobs")).unwrap();
    let builder = Concatenate { key: "new".into(), ..Default::default() };
    let error = store.disk(&fixture.resolve("x").unwrap(), &builder, &Silent).unwrap_err();
    assert!(error.to_string().contains("import it"), "{error}");
}

#[test]
fn a_damaged_blob_in_the_store_is_copied_again() {
    let fixture = Fixture::new();
    let source: ImageReference = image(&fixture, "x").parse().unwrap();
    let store = fixture.store();
    store.import(&source, "x", &Concatenate::default(), &Silent).unwrap();
    for file in fixture.store_files().iter().filter(|file| file.starts_with("blobs")) {
        let path = fixture.path("store").join(file);
        let len = fs::metadata(&path).unwrap().len() as usize;
        fs::remove_file(&path).unwrap();
        fs::write(path, vec![0; len]).unwrap();
    }
    let builder = Concatenate { key: "new".into(), ..Default::default() };
    let image = fixture.resolve("x").unwrap();
    assert!(store.disk(&image, &builder, &Silent).is_err());
    store.import(&source, "x", &builder, &Silent).unwrap();
}

#[test]
fn errors_about_invalid_names_say_what_to_do() {
    let fixture = Fixture::new();
    let reference = "docker://alpine".parse().unwrap();
    let error =
        fixture.store().resolve_with(&reference, PullPolicy::Never, None, &Silent).unwrap_err();
    assert!(error.to_string().contains("image alpine:latest is not in the store"), "{error}");
    let source: ImageReference = image(&fixture, "x").parse().unwrap();
    let error = fixture.store().import(&source, "Bad Name", &Concatenate::default(), &Silent);
    assert!(matches!(error, Err(Error::InvalidReference { .. })));
    assert!(matches!(fixture.store().remove("nothing"), Err(Error::NotFound { .. })));
}

#[test]
fn a_disk_in_use_is_not_removed() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let reference = image(&fixture, "x");
    let image = fixture.resolve(&reference).unwrap();
    let disk = store.disk(&image, &Concatenate::default(), &Silent).unwrap();
    let path = disk.path().to_owned();
    let in_use = || {
        let error = store.remove(&reference).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert!(error.to_string().contains("in use by a box"));
    };
    in_use();
    // The lock is passed with the file, to another process too.
    let mut child =
        Command::new("sleep").arg("60").stdin(Stdio::from(disk.into_file())).spawn().unwrap();
    in_use();
    fixture.store();
    assert!(path.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let prefix = image.digest().hex()[..12].to_owned();
    store.remove(&prefix).unwrap();
    assert!(!path.exists());
}

#[test]
fn an_ambiguous_digest_is_not_removed() {
    let fixture = Fixture::new();
    let source: ImageReference = image(&fixture, "x").parse().unwrap();
    for name in ["one", "two"] {
        fixture.store().import(&source, name, &Concatenate::default(), &Silent).unwrap();
    }
    let digest = fixture.resolve("one").unwrap().digest().to_string();
    let error = fixture.store().remove(&digest).unwrap_err().to_string();
    assert!(error.contains("one:latest, two:latest"), "{error}");
}

#[test]
fn damage_is_reported_skipped_and_removable() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let source: ImageReference = image(&fixture, "x").parse().unwrap();
    // Nothing listens there, if the registry is asked for the damaged image.
    for name in ["good", "localhost:1/bad", "worse"] {
        store.import(&source, name, &Concatenate::default(), &Silent).unwrap();
    }
    let record = |name: &str| {
        let hash = boxlite_rootfs_builder::Digest::sha256(format!("{name}:latest").as_bytes());
        fixture.path("store/refs").join(format!("{}.json", hash.hex()))
    };
    let spoil = |path: &Path, bytes: &[u8]| {
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    spoil(&record("localhost:1/bad"), b"{");
    let hostile = fs::read_to_string(record("worse")).unwrap();
    let start = hostile.find("\"disk\": \"").unwrap() + 9;
    let end = start + hostile[start..].find('"').unwrap();
    let hostile = format!("{}../../precious{}", &hostile[..start], &hostile[end..]);
    spoil(&record("worse"), hostile.as_bytes());
    fs::write(fixture.path("precious"), "").unwrap();

    let store = fixture.store();
    let listing = store.list().unwrap();
    assert_eq!(listing.images.len(), 1);
    assert_eq!(listing.damaged.len(), 2);
    assert!(matches!(fixture.resolve("localhost:1/bad"), Err(Error::Corrupt { .. })));
    assert_eq!(fixture.build("good").unwrap(), on_disk(&[b"x", b" top"]));
    store.remove("localhost:1/bad").unwrap();
    store
        .remove(
            &listing
                .damaged
                .iter()
                .find(|d| record("worse").ends_with(format!("{}.json", d.id)))
                .unwrap()
                .id,
        )
        .unwrap();
    assert!(store.list().unwrap().damaged.is_empty());
    assert!(fixture.path("precious").exists());

    // A truncated disk is built again.
    let disk = fs::read_dir(fixture.path("store/disks")).unwrap().next().unwrap().unwrap().path();
    spoil(&disk, b"cut");
    let listing = store.list().unwrap();
    assert!(listing.images[0].disk_problem.as_ref().unwrap().contains("3 bytes"));
    let notes = Notes::default();
    let image = fixture.resolve("good").unwrap();
    let rebuilt = store.disk(&image, &Concatenate::default(), &notes).unwrap();
    assert!(notes.has("damaged"));
    assert_eq!(fs::read(rebuilt.path()).unwrap(), on_disk(&[b"x", b" top"]));
}

/// A builder that fails in a given way.
struct Failing(fn(&Path, &mut dyn LayerStreams) -> BuildResult);

type BuildResult = Result<(), Box<dyn StdError + Send + Sync>>;

impl DiskBuilder for Failing {
    fn key(&self) -> String {
        String::new()
    }
    fn build(&self, disk: &Path, layers: &mut dyn LayerStreams) -> BuildResult {
        (self.0)(disk, layers)
    }
}

#[test]
fn a_failed_build_leaves_nothing() {
    let fixture = Fixture::new();
    let reference = image(&fixture, "x");
    let image = fixture.resolve(&reference).unwrap();
    let fail = |builder: Failing| {
        let error = fixture.store().disk(&image, &builder, &Silent).unwrap_err();
        assert_eq!(fixture.store_files(), [""; 0]);
        error
    };
    let error = fail(Failing(|disk, _| {
        fs::write(disk, "half")?;
        Err("the guest gave up".into())
    }));
    assert!(error.to_string().contains("the guest gave up"), "{error}");
    let error = fail(Failing(|_, _| Err(io::Error::from(io::ErrorKind::StorageFull).into())));
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("store/disks"), "{error}");
    // A builder that did not read everything: not everything was verified.
    let error = fail(Failing(|disk, layers| {
        io::copy(
            &mut layers.next_layer()?.unwrap(),
            &mut OpenOptions::new().write(true).open(disk)?,
        )?;
        Ok(())
    }));
    assert!(matches!(error, Error::Unread { read: 1, layers: 2, .. }), "{error}");
    let error = fail(Failing(|_, layers| {
        layers.next_layer()?;
        layers.next_layer()?;
        Ok(())
    }));
    assert!(matches!(error, Error::Unread { read: 0, .. }), "{error}");
    let error = fail(Failing(|disk, layers| {
        while let Some(mut layer) = layers.next_layer()? {
            io::copy(&mut layer, &mut io::sink())?;
        }
        fs::remove_file(disk)?;
        fs::write(disk, "another file")?;
        Ok(())
    }));
    assert!(error.to_string().contains("replaced"), "{error}");
}

#[test]
fn a_full_disk_is_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can mount a small file system");
        return;
    }
    let fixture = Fixture::new();
    let small = fixture.path("store");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&small)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: mounting is not allowed here");
        return;
    }
    let noise: Vec<u8> =
        (0..1u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layout = Layout::single(fixture.path("oci"), &[TestLayer::plain(&noise)]);
    let disk = fixture.build(&layout.reference());
    let import = fixture.store().import(
        &layout.reference().parse().unwrap(),
        "x",
        &Concatenate::default(),
        &Silent,
    );
    let archive = fixture.path("a.tar.gz");
    fs::write(&archive, gzip(&TestLayer::tar("manifest.json", &noise))).unwrap();
    let expanded = fixture.resolve(&format!("docker-archive:{}", archive.display()));
    let left = fixture.store_files();
    run(Command::new("umount").arg(&small));
    assert_eq!(left, [""; 0]);
    for error in [disk.unwrap_err(), import.unwrap_err(), expanded.unwrap_err()] {
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert!(error.to_string().contains("/store/"), "{error}");
    }
}

/// This test binary again, running [`child_process`] with these arguments.
fn spawn_child(fixture: &Fixture, reference: &str, delay: Duration, import: bool) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::child_process", "--ignored", "--nocapture", "--test-threads=1"])
        .env("CHILD_STORE", fixture.path("store"))
        .env("CHILD_IMAGE", reference)
        .env("CHILD_DELAY", delay.as_millis().to_string())
        .env("CHILD_IMPORT", import.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The body of the processes that the tests here start.
#[test]
#[ignore = "a part of other tests, run in processes of its own"]
fn child_process() {
    let Ok(store) = std::env::var("CHILD_STORE") else { return };
    let var = |name: &str| std::env::var(name).unwrap();
    let store = ImageStore::open(store).unwrap();
    let delay = Duration::from_millis(var("CHILD_DELAY").parse().unwrap());
    let builder = Concatenate { delay, ..Default::default() };
    let reference = var("CHILD_IMAGE").parse().unwrap();
    let notes = Notes::default();
    let content = if var("CHILD_IMPORT") == "true" {
        store.import(&reference, "imported", &builder, &notes).unwrap();
        Vec::new()
    } else {
        let image = store.resolve(&reference, &notes).unwrap();
        let mut content = Vec::new();
        store.disk(&image, &builder, &notes).unwrap().file().read_to_end(&mut content).unwrap();
        content
    };
    println!(
        "\nRESULT built={} waited={} content={:?}",
        builder.built.load(Ordering::Relaxed),
        notes.has("Waiting"),
        String::from_utf8_lossy(&content).replace('\0', "")
    );
    io::stdout().flush().unwrap();
}

#[test]
fn one_of_many_processes_builds() {
    let fixture = Fixture::new();
    let reference = image(&fixture, "x");
    let children: Vec<_> = (0..6)
        .map(|_| spawn_child(&fixture, &reference, Duration::from_millis(1500), false))
        .collect();
    let outputs: Vec<String> = children
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let count = |words: &str| outputs.iter().filter(|output| output.contains(words)).count();
    assert_eq!(count("content=\"x top\""), 6, "{outputs:?}");
    assert_eq!(count("built=1"), 1, "{outputs:?}");
    assert!(count("waited=true") >= 1, "{outputs:?}");
    let files = fixture.store_files();
    assert_eq!(files.len(), 2, "{files:?}");
}

#[test]
fn a_killed_builder_leaves_nothing_for_long() {
    let fixture = Fixture::new();
    let reference = image(&fixture, "x");
    let mut child = spawn_child(&fixture, &reference, Duration::from_secs(60), false);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !fixture.path("store/disks").exists()
        || !fixture.store_files().iter().any(|f| f.ends_with(".part"))
    {
        assert!(Instant::now() < deadline, "{:?}", fixture.store_files());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The builder is alive: its draft is not touched.
    fixture.store();
    assert_eq!(fixture.store_files().len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    fixture.store();
    assert_eq!(fixture.store_files(), [""; 0]);
    assert_eq!(fixture.build(&reference).unwrap(), on_disk(&[b"x", b" top"]));
}

#[test]
fn kill_at_any_moment_leaves_a_store_that_works() {
    let fixture = Fixture::new();
    let noise: Vec<u8> =
        (0..1u32 << 19).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layers = [TestLayer::gzip(&noise), TestLayer::plain(&noise)];
    let reference = Layout::single(fixture.path("oci"), &layers).reference();
    for step in 0..20u64 {
        let mut child = spawn_child(&fixture, &reference, Duration::ZERO, true);
        std::thread::sleep(Duration::from_millis(5 + step * 12));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = fixture.store();
        let listing = store.list().unwrap();
        assert!(listing.damaged.is_empty());
        assert!(fixture.store_files().iter().all(|file| !file.ends_with(".part")));
        for image in &listing.images {
            store.remove(&image.name).unwrap();
        }
        assert_eq!(fixture.store_files(), [""; 0]);
    }
    fixture
        .store()
        .import(&reference.parse().unwrap(), "imported", &Concatenate::default(), &Silent)
        .unwrap();
    assert_eq!(fixture.build("imported").unwrap().len(), 2 * noise.len());
}

#[test]
fn building_and_removing_at_once() {
    let fixture = Fixture::new();
    let reference = image(&fixture, "x");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..30 {
                    assert_eq!(fixture.build(&reference).unwrap(), on_disk(&[b"x", b" top"]));
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..60 {
                match fixture.store().remove(&reference) {
                    Ok(_) | Err(Error::InUse { .. } | Error::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    });
    fixture.build(&reference).unwrap();
    fixture.store().remove(&reference).unwrap();
    assert_eq!(fixture.store_files(), [""; 0]);
}
