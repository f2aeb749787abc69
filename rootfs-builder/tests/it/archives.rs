//! Archives of `docker save`, old and new, and the errors about invalid ones.

use std::fs;
use std::path::Path;

use boxlite_rootfs_builder::{Digest, Error, ImageStore, PullPolicy, Silent};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::support::*;

/// A tar of these members; a target makes it a symbolic link.
fn tar_of(members: &[(&str, Member<'_>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, member) in members {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        match member {
            Member::File(content) => {
                header.set_size(content.len() as u64);
                builder.append_data(&mut header, path, *content).unwrap();
            }
            Member::Link(target) => {
                header.set_size(0);
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

enum Member<'a> {
    File(&'a [u8]),
    Link(&'a str),
}
use Member::{File, Link};

fn config_of(layers: &[&[u8]]) -> (String, String) {
    let layers: Vec<_> = layers.iter().map(|layer| TestLayer::plain(layer)).collect();
    let config = Layout::config(HOST, &layers).to_string();
    (Digest::sha256(config.as_bytes()).hex().to_owned(), config)
}

/// As Docker wrote it up to version 24: the second image shares a layer by a link.
fn old_archive() -> Vec<u8> {
    let (one, one_config) = config_of(&[b"base"]);
    let (two, two_config) = config_of(&[b"base", b"top"]);
    let manifest = json!([
        { "Config": format!("{one}.json"), "RepoTags": ["one:latest", "one:1.0"], "Layers": ["aa/layer.tar"] },
        { "Config": format!("{two}.json"), "RepoTags": ["example.com/two:2.0"],
          "Layers": ["bb/layer.tar", "cc/layer.tar"] },
    ]);
    tar_of(&[
        ("aa/VERSION", File(b"1.0")),
        ("aa/layer.tar", File(b"base")),
        ("bb/layer.tar", Link("../aa/layer.tar")),
        ("cc/layer.tar", File(b"top")),
        (&format!("{one}.json"), File(one_config.as_bytes())),
        (&format!("{two}.json"), File(two_config.as_bytes())),
        ("manifest.json", File(manifest.to_string().as_bytes())),
        ("repositories", File(b"{}")),
    ])
}

fn reference(path: &Path) -> String {
    format!("docker-archive:{}", path.display())
}

#[test]
fn old_archives_with_several_images() {
    let fixture = Fixture::new();
    let path = fixture.path("a.tar");
    fs::write(&path, old_archive()).unwrap();
    let build = |tag: &str| fixture.build(&format!("{}:{tag}", reference(&path)));
    for tag in ["one", "1.0", "one:1.0", "docker.io/library/one"] {
        assert_eq!(build(tag).unwrap(), on_disk(&[b"base"]), "{tag}");
    }
    for tag in ["2.0", "example.com/two:2.0"] {
        assert_eq!(build(tag).unwrap(), on_disk(&[b"base", b"top"]), "{tag}");
    }
    let error = build("three").unwrap_err().to_string();
    assert!(error.contains("one:latest, one:1.0, example.com/two:2.0"), "{error}");
    assert!(matches!(fixture.build(&reference(&path)), Err(Error::AmbiguousTag { .. })));
}

#[test]
fn archives_compressed_as_a_whole() {
    let fixture = Fixture::new();
    let plain = old_archive();
    for whole in [gzip(&plain), zstd::encode_all(&plain[..], 3).unwrap()] {
        let path = fixture.path("a.tar.x");
        fs::write(&path, &whole).unwrap();
        let store = fixture.store();
        let notes = Notes::default();
        let tagged = format!("{}:2.0", reference(&path)).parse().unwrap();
        let image = store.resolve(&tagged, &notes).unwrap();
        assert!(notes.has("Expanding"));
        // The layers are read from the decompressed file, which has no name.
        fs::remove_file(&path).unwrap();
        let builder = Concatenate { key: format!("{}", whole.len()), ..Default::default() };
        let disk = store.disk(&image, &builder, &Silent).unwrap();
        assert_eq!(fs::read(disk.path()).unwrap(), on_disk(&[b"base", b"top"]));
        assert!(fixture.store_files().iter().all(|file| !file.starts_with("blobs")));

        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = fixture.resolve(&format!("{}:2.0", reference(&path))).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
        fs::write(&path, &whole).unwrap();
        let small = ImageStore::open(fixture.path("store")).unwrap().with_layer_limit(1000);
        let error = small.resolve(&tagged, &Silent).unwrap_err().to_string();
        assert!(error.contains("1000 bytes"), "{error}");
    }
}

#[test]
fn new_archives_verify_their_blobs() {
    let fixture = Fixture::new();
    let layer = gzip(b"layer");
    let layer_path = format!("blobs/sha256/{}", Digest::sha256(&layer).hex());
    let (config, config_json) = config_of(&[b"layer"]);
    let config_path = format!("blobs/sha256/{config}");
    let manifest =
        json!([{ "Config": config_path, "RepoTags": null, "Layers": [layer_path] }]).to_string();
    let archive = |config: &str, layer: &[u8]| {
        let path = fixture.path("a.tar");
        let tar = tar_of(&[
            ("oci-layout", File(br#"{"imageLayoutVersion":"1.0.0"}"#)),
            (&config_path, File(config.as_bytes())),
            (&layer_path, File(layer)),
            ("manifest.json", File(manifest.as_bytes())),
        ]);
        fs::write(&path, tar).unwrap();
        fixture.build(&reference(&path))
    };
    assert!(matches!(archive(&config_json, b"other"), Err(Error::DigestMismatch { .. })));
    let other_config = config_json.replace("/bin/sh", "/bin/ls");
    assert!(matches!(archive(&other_config, &layer), Err(Error::DigestMismatch { .. })));
    assert_eq!(archive(&config_json, &layer).unwrap(), on_disk(&[b"layer"]));
}

#[test]
fn a_layout_inside_a_tar() {
    let fixture = Fixture::new();
    let layout = Layout::single(fixture.path("oci"), &[TestLayer::zstd(b"layer")]);
    let mut builder = tar::Builder::new(fs::File::create(fixture.path("a.tar")).unwrap());
    builder.append_dir_all(".", &layout.dir).unwrap();
    builder.finish().unwrap();
    let path = fixture.path("a.tar");
    assert_eq!(fixture.build(&reference(&path)).unwrap(), on_disk(&[b"layer"]));
    assert_eq!(
        fixture.build(&format!("{}:latest", reference(&path))).unwrap(),
        on_disk(&[b"layer"])
    );
    assert!(fixture.build(&format!("{}:other", reference(&path))).is_err());
}

#[test]
fn errors_name_the_fault() {
    let fixture = Fixture::new();
    let path = fixture.path("a.tar");
    let (config, config_json) = config_of(&[b"base"]);
    let config_path = format!("{config}.json");
    let check = |manifest: Value, wanted: &[&str]| {
        let manifest = manifest.to_string();
        let tar = tar_of(&[
            ("aa/layer.tar", File(b"base")),
            ("up", Link("../../../etc/passwd")),
            (&config_path, File(config_json.as_bytes())),
            ("manifest.json", File(manifest.as_bytes())),
        ]);
        fs::write(&path, tar).unwrap();
        let error = fixture.build(&reference(&path)).unwrap_err().to_string();
        wanted.iter().for_each(|words| assert!(error.contains(words), "{words:?} in {error:?}"));
    };
    let image = |config: &str, layers: Value| json!([{ "Config": config, "Layers": layers }]);
    check(json!({}), &["manifest.json", "damaged"]);
    check(json!([]), &["lists none"]);
    check(image("none.json", json!(["aa/layer.tar"])), &["the config \"none.json\"", "missing"]);
    check(image(&config_path, json!(["bb/layer.tar"])), &["the layer \"bb/layer.tar\"", "missing"]);
    check(image(&config_path, json!(["up"])), &["the layer \"up\"", "missing"]);
    check(image(&config_path, json!(["../../../../etc/passwd"])), &["etc/passwd", "missing"]);
    check(image(&config_path, json!([])), &["lists 1 layers, the manifest lists 0"]);
    check(image(&config_path, json!([config_path])), &["the content of layer 1 of 1", "expected"]);

    for (content, wanted) in [
        (&b"not a tar"[..], "middle of a member"),
        (&[7; 2000], "not a tar archive"),
        (&tar_of(&[("x", File(b"y"))]), "docker save"),
    ] {
        fs::write(&path, content).unwrap();
        let error = fixture.build(&reference(&path)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let error = fixture.resolve("docker-archive:/nowhere.tar").unwrap_err().to_string();
    assert!(error.contains("/nowhere.tar"), "{error}");
}

#[test]
fn a_saved_image_of_a_higher_variant_is_refused_where_a_variant_is_asked_for() {
    let fixture = Fixture::new();
    let path = fixture.path("a.tar");
    let mut config = Layout::config(HOST, &[TestLayer::plain(b"base")]);
    config["variant"] = "v99".into();
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["one:latest"], "Layers": ["l.tar"] }]);
    let archive = tar_of(&[
        ("l.tar", File(b"base")),
        ("c.json", File(config.to_string().as_bytes())),
        ("manifest.json", File(manifest.to_string().as_bytes())),
    ]);
    fs::write(&path, archive).unwrap();
    fixture.resolve(&reference(&path)).unwrap();
    let platform = format!("linux/{HOST}/{LEAST}").parse().unwrap();
    let reference = reference(&path).parse().unwrap();
    let resolve =
        fixture.store().resolve_with(&reference, PullPolicy::Never, Some(&platform), &Silent);
    let error = resolve.unwrap_err();
    assert!(matches!(error, Error::WrongPlatform { .. }), "{error}");
}
