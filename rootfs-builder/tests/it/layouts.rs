//! OCI layouts: selection, verification, and invalid layouts.

use std::fs;

use boxlite_rootfs_builder::{Digest, Error, ImageStore, PullPolicy, Remedy, Silent};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::*;

fn three_layers() -> Vec<TestLayer> {
    vec![
        TestLayer::plain(&TestLayer::tar("plain", b"one")),
        TestLayer::gzip(&TestLayer::tar("gzip", &[2; 300_000])),
        TestLayer::zstd(&TestLayer::tar("zstd", &[3; 300_000])),
    ]
}

fn concatenated(layers: &[TestLayer]) -> Vec<u8> {
    on_disk(&layers.iter().map(|layer| &*layer.plain).collect::<Vec<_>>())
}

#[test]
fn layers_of_every_compression_arrive_in_order() {
    let fixture = Fixture::new();
    let layers = three_layers();
    let layout = Layout::single(fixture.path("oci"), &layers);
    let image = fixture.resolve(&layout.reference()).unwrap();
    assert_eq!(image.layer_count(), 3);
    assert_eq!(image.config().cmd, ["/bin/sh"]);
    let notes = Notes::default();
    let disk = fixture.store().disk(&image, &Concatenate::default(), &notes).unwrap();
    assert_eq!(fs::read(disk.path()).unwrap(), concatenated(&layers));
    assert!(notes.has("Unpacking(LayerProgress { layer: 2, layers: 3"));
    assert!(notes.has("Syncing"));
}

#[test]
fn the_content_decides_on_compression() {
    let fixture = Fixture::new();
    let lying =
        TestLayer { media_type: "application/vnd.oci.image.layer.v1.tar", ..TestLayer::gzip(b"x") };
    let layout = Layout::single(fixture.path("oci"), &[lying]);
    assert_eq!(fixture.build(&layout.reference()).unwrap(), on_disk(&[b"x"]));
}

#[test]
fn sha512_is_as_good() {
    let fixture = Fixture::new();
    let layout = Layout::new(fixture.path("oci"));
    fs::create_dir_all(layout.dir.join("blobs/sha512")).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = Digest::of(boxlite_rootfs_builder::Algorithm::Sha512, bytes).to_string();
        fs::write(layout.blob_path(&digest), bytes).unwrap();
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    };
    let diff_id = Digest::of(boxlite_rootfs_builder::Algorithm::Sha512, b"x").to_string();
    let config =
        json!({ "architecture": HOST, "os": "linux", "rootfs": { "diff_ids": [diff_id] } });
    let layer = blob(&gzip(b"x"), "application/vnd.oci.image.layer.v1.tar+gzip");
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    layout.write_index(&[blob(
        manifest.to_string().as_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    )]);
    assert_eq!(fixture.build(&layout.reference()).unwrap(), on_disk(&[b"x"]));
}

#[test]
fn tags_select() {
    let fixture = Fixture::new();
    let layout = Layout::new(fixture.path("oci"));
    let one = layout.image(HOST, &[TestLayer::plain(b"one")]);
    let two = layout.image(HOST, &[TestLayer::plain(b"two")]);
    layout.write_index(&[
        tagged(one.clone(), "v1"),
        tagged(two.clone(), "v2"),
        tagged(two, "latest"),
    ]);
    let reference = layout.reference();
    assert_eq!(fixture.build(&format!("{reference}:v1")).unwrap(), on_disk(&[b"one"]));
    assert_eq!(fixture.build(&format!("{reference}:latest")).unwrap(), on_disk(&[b"two"]));
    let by_digest = format!("{reference}:{}", one["digest"].as_str().unwrap());
    assert_eq!(fixture.build(&by_digest).unwrap(), on_disk(&[b"one"]));
    let error = fixture.resolve(&reference).unwrap_err();
    assert!(
        matches!(&error, Error::AmbiguousTag { tags, .. } if tags == &["latest", "v1", "v2"]),
        "{error}"
    );
    let error = fixture.resolve(&format!("{reference}:v3")).unwrap_err();
    assert!(error.to_string().contains("latest, v1, v2"), "{error}");
}

#[test]
fn platforms_select_in_nested_indexes() {
    let fixture = Fixture::new();
    let layout = Layout::new(fixture.path("oci"));
    let ours = layout.image(HOST, &[TestLayer::plain(b"ours")]);
    let theirs = layout.image(FOREIGN, &[TestLayer::plain(b"theirs")]);
    let mut attestation = for_platform(theirs.clone(), "unknown");
    attestation["platform"]["os"] = "unknown".into();
    let inner = layout.index_blob(&[
        attestation,
        for_platform(theirs.clone(), FOREIGN),
        for_platform(ours.clone(), HOST),
    ]);
    let outer = layout.index_blob(&[inner]);
    layout.write_index(&[tagged(outer, "latest")]);
    assert_eq!(fixture.build(&layout.reference()).unwrap(), on_disk(&[b"ours"]));

    // Several platforms in index.json itself, and platforms that only the configs name.
    layout.write_index(&[for_platform(theirs.clone(), FOREIGN), for_platform(ours.clone(), HOST)]);
    assert_eq!(fixture.build(&layout.reference()).unwrap(), on_disk(&[b"ours"]));
    layout.write_index(&[layout.index_blob(&[theirs.clone(), ours])]);
    assert_eq!(fixture.build(&layout.reference()).unwrap(), on_disk(&[b"ours"]));

    for only_theirs in [layout.index_blob(&[for_platform(theirs.clone(), FOREIGN)]), theirs] {
        layout.write_index(&[only_theirs]);
        let error = fixture.resolve(&layout.reference()).unwrap_err().to_string();
        assert!(error.contains(&format!("linux/{FOREIGN}")), "{error}");
        assert!(error.contains(&format!("linux/{HOST}")), "{error}");
    }
}

#[test]
fn the_platform_that_is_asked_for_is_selected_or_refused() {
    let fixture = Fixture::new();
    let layout = Layout::new(fixture.path("oci"));
    let ours = layout.image(HOST, &[TestLayer::plain(b"ours")]);
    let theirs = layout.image(FOREIGN, &[TestLayer::plain(b"theirs")]);
    let index = layout.index_blob(&[for_platform(theirs, FOREIGN), for_platform(ours, HOST)]);
    layout.write_index(&[index]);
    let resolve = |platform: &str| {
        let (reference, platform) =
            (layout.reference().parse().unwrap(), platform.parse().unwrap());
        fixture.store().resolve_with(&reference, PullPolicy::Missing, Some(&platform), &Silent)
    };
    for own in [format!("linux/{HOST}"), format!("linux/{HOST}/{LEAST}")] {
        assert_eq!(resolve(&own).unwrap().config().architecture, HOST);
    }
    let refused = |platform: &str| {
        let error = resolve(platform).unwrap_err();
        assert!(matches!(error, Error::UnsupportedPlatform { .. }), "{error}");
        error
    };
    let error = refused(&format!("linux/{FOREIGN}"));
    assert_eq!(error.remedy(), Some(Remedy::RunBoxesOf { architecture: FOREIGN.into() }));
    assert!(error.to_string().contains(&format!("run linux/{HOST}, not linux/{FOREIGN};")));
    assert!(refused(&format!("linux/{HOST}/v99")).to_string().contains("variant"));
    for other in [format!("windows/{HOST}"), "linux/s390x".into(), "linux/arm/v7".into()] {
        assert!(refused(&other).to_string().ends_with("linux/amd64 and linux/arm64 only"));
    }
}

#[test]
fn a_variant_that_no_cpu_has_is_not_selected() {
    let fixture = Fixture::new();
    let layout = Layout::new(fixture.path("oci"));
    let ours = layout.image(HOST, &[TestLayer::plain(b"ours")]);
    let above = layout.image(HOST, &[TestLayer::plain(b"above")]);
    for fits in [for_platform(ours.clone(), HOST), for_variant(&ours, LEAST)] {
        layout.write_index(&[layout.index_blob(&[for_variant(&above, "v99"), fits])]);
        assert_eq!(fixture.build(&layout.reference()).unwrap(), on_disk(&[b"ours"]));
    }
    layout.write_index(&[layout.index_blob(&[for_variant(&above, "v99")])]);
    let error = fixture.resolve(&layout.reference()).unwrap_err().to_string();
    assert!(error.contains(&format!("linux/{HOST}/v99")), "{error}");
}

#[test]
fn endless_indexes_end() {
    let fixture = Fixture::new();
    let layout = Layout::new(fixture.path("oci"));
    let mut index = layout.image(HOST, &[TestLayer::plain(b"x")]);
    for _ in 0..6 {
        index = layout.index_blob(&[index]);
    }
    layout.write_index(&[index]);
    assert!(matches!(fixture.resolve(&layout.reference()), Err(Error::TooMany { .. })));

    let foreign: Vec<Value> = (0..100)
        .map(|n: i32| layout.image(FOREIGN, &[TestLayer::plain(&n.to_le_bytes())]))
        .collect();
    layout.write_index(&[layout.index_blob(&foreign)]);
    assert!(matches!(fixture.resolve(&layout.reference()), Err(Error::TooMany { .. })));
}

/// A layout with a changed image, and parts of the expected message.
fn broken(change: impl FnOnce(&Layout), wanted: &[&str]) {
    let fixture = Fixture::new();
    let layout = Layout::single(fixture.path("oci"), &three_layers());
    change(&layout);
    let error = fixture.build(&layout.reference()).unwrap_err().to_string();
    for words in wanted {
        assert!(error.contains(words), "{words:?} in {error:?}");
    }
    // Nothing is left of the attempt, and the store is usable.
    assert_eq!(fixture.store_files(), [""; 0]);
    let sound = Layout::single(fixture.path("sound"), &three_layers());
    fixture.build(&sound.reference()).unwrap();
}

/// Changes the manifest and stores it again.
fn with_manifest(layout: &Layout, change: impl FnOnce(&mut Value)) {
    let index: Value =
        serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
    let path = layout.blob_path(index["manifests"][0]["digest"].as_str().unwrap());
    let mut manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut manifest);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    layout.write_index(&[layout.json_blob(media_type, &manifest)]);
}

fn with_config(layout: &Layout, change: impl FnOnce(&mut Value)) {
    with_manifest(layout, |manifest| {
        let path = layout.blob_path(manifest["config"]["digest"].as_str().unwrap());
        let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        change(&mut config);
        manifest["config"] = layout.json_blob("application/vnd.oci.image.config.v1+json", &config);
    });
}

fn layer_file(layout: &Layout, index: usize) -> std::path::PathBuf {
    layout.blob_path(&Digest::sha256(&three_layers()[index].blob).to_string())
}

#[test]
fn missing_files_are_named_with_a_remedy() {
    broken(|layout| fs::remove_dir_all(&layout.dir).unwrap(), &["oci-layout", "skopeo copy"]);
    broken(
        |layout| fs::remove_file(layout.dir.join("index.json")).unwrap(),
        &["index.json", "copy it again"],
    );
    broken(
        |layout| fs::remove_file(layer_file(layout, 1)).unwrap(),
        &["layer", "blobs/sha256/", "missing"],
    );
    broken(
        |layout| fs::remove_dir_all(layout.dir.join("blobs")).unwrap(),
        &["manifest", "missing"],
    );
}

#[test]
fn damaged_json_is_named() {
    broken(
        |layout| fs::write(layout.dir.join("index.json"), b"{").unwrap(),
        &["index.json", "EOF"],
    );
    broken(|layout| fs::write(layout.dir.join("oci-layout"), b"[]").unwrap(), &["oci-layout"]);
    broken(
        |layout| {
            fs::write(layout.dir.join("oci-layout"), br#"{"imageLayoutVersion":"2.0"}"#).unwrap()
        },
        &["version \"2.0\"", "not supported"],
    );
    broken(|layout| layout.write_index(&[]), &["lists none"]);
    broken(
        |layout| {
            let file = fs::File::create(layout.dir.join("index.json")).unwrap();
            file.set_len(5 << 20).unwrap();
        },
        &["index.json", "4.0 MiB"],
    );
    broken(
        |layout| {
            fs::remove_file(layout.dir.join("index.json")).unwrap();
            fs::create_dir(layout.dir.join("index.json")).unwrap();
        },
        &["index.json", "not a regular file"],
    );
}

#[test]
fn digests_cannot_name_other_paths() {
    for digest in
        ["sha256:../../../../etc/passwd", "sha256:/etc/passwd", "md5:00", "../index.json", ""]
    {
        broken(
            |layout| layout.write_index(&[json!({ "digest": digest, "size": 10 })]),
            &["index.json", "digest"],
        );
        broken(
            |layout| with_manifest(layout, |m| m["layers"][0]["digest"] = digest.into()),
            &["digest"],
        );
        broken(
            |layout| with_config(layout, |c| c["rootfs"]["diff_ids"][0] = digest.into()),
            &["digest"],
        );
    }
}

#[test]
fn every_digest_and_length_is_checked() {
    let other = Digest::sha256(b"other").to_string();
    let flip = |path: std::path::PathBuf| {
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    for index in 0..3 {
        broken(
            |layout| flip(layer_file(layout, index)),
            &["layer", &format!("{} of 3", index + 1)],
        );
        broken(
            |layout| {
                let file =
                    fs::OpenOptions::new().write(true).open(layer_file(layout, index)).unwrap();
                file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            },
            &["layer", "cut short"],
        );
        broken(
            |layout| with_config(layout, |c| c["rootfs"]["diff_ids"][index] = other.clone().into()),
            &["the content of layer", &other],
        );
        broken(
            |layout| with_manifest(layout, |m| m["layers"][index]["size"] = 1.into()),
            &["layer", "instead of 1"],
        );
    }
    // The length is right, the bytes are another layer's.
    broken(
        |layout| {
            with_manifest(layout, |manifest| {
                let swapped = manifest["layers"][1].clone();
                manifest["layers"][2] = swapped;
            });
        },
        &["the content of layer 3 of 3"],
    );
    broken(
        |layout| {
            let index: Value =
                serde_json::from_slice(&fs::read(layout.dir.join("index.json")).unwrap()).unwrap();
            flip(layout.blob_path(index["manifests"][0]["digest"].as_str().unwrap()));
        },
        &["the manifest", "expected sha256:"],
    );
    broken(
        |layout| with_manifest(layout, |m| m["config"]["size"] = (9 << 20).into()),
        &["the config", "8.0 MiB"],
    );
}

#[test]
fn counts_are_checked() {
    broken(
        |layout| {
            with_config(layout, |c| c["rootfs"]["diff_ids"].as_array_mut().unwrap().truncate(2))
        },
        &["lists 2 layers", "3"],
    );
    broken(
        |layout| {
            with_manifest(layout, |manifest| {
                let layer = manifest["layers"][0].clone();
                manifest["layers"] = Value::Array(vec![layer; 513]);
            });
        },
        &["513", "limit of 512"],
    );
    broken(
        |layout| {
            with_config(layout, |config| config["rootfs"]["diff_ids"] = json!([]));
            with_manifest(layout, |manifest| manifest["layers"] = Value::Null);
        },
        &["without layers"],
    );
}

#[test]
fn artifacts_that_are_not_container_images_are_refused() {
    broken(
        |layout| {
            with_manifest(layout, |m| {
                m["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into()
            })
        },
        &["helm", "not a container image"],
    );
    broken(
        |layout| {
            with_manifest(layout, |manifest| {
                manifest["layers"][0]["mediaType"] =
                    "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
            });
        },
        &["encrypted", "not supported"],
    );
    broken(|layout| with_config(layout, |c| c["os"] = "windows".into()), &["windows", "linux"]);
}

#[test]
fn a_decompression_bomb_stops_at_the_limit() {
    let fixture = Fixture::new();
    for layer in [TestLayer::gzip(&vec![0; 50 << 20]), TestLayer::zstd(&vec![0; 50 << 20])] {
        assert!(layer.blob.len() < 1 << 20);
        let layout = Layout::single(fixture.path("oci"), &[layer]);
        let image = fixture.resolve(&layout.reference()).unwrap();
        let store = ImageStore::open(fixture.path("store")).unwrap().with_layer_limit(10 << 20);
        let error = store.disk(&image, &Concatenate::default(), &Silent).unwrap_err();
        assert!(error.to_string().contains("10.0 MiB"), "{error}");
        assert_eq!(fixture.store_files(), [""; 0]);
    }
}

/// JSON pointers to all values in a JSON document.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(n, item)| pointers(item, &format!("{at}/{n}"), found));
        }
        Value::Object(items) => {
            items.iter().for_each(|(k, item)| {
                pointers(item, &format!("{at}/{}", k.replace('/', "~1")), found)
            });
        }
        _ => {}
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[a-z0-9:/.+]{0,40}".prop_map(Value::from),
        Just(Value::from("sha256:../../x")),
        Just(Value::from(Digest::sha256(b"").to_string())),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(
                "mediaType|digest|size|manifests|layers|config|rootfs|diff_ids|Env|platform",
                inner,
                0..4
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Mutated JSON of an image leads to an error or to the right bytes, never to a panic.
    #[test]
    fn mutated_images_never_panic(
        which in 0..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 1..3),
    ) {
        let fixture = Fixture::new();
        let layers = [TestLayer::gzip(b"layer")];
        let layout = Layout::single(fixture.path("oci"), &layers);
        let change = |value: &mut Value| {
            for (at, new) in &changes {
                let mut found = Vec::new();
                pointers(value, "", &mut found);
                let pointer = &found[at.index(found.len())];
                *value.pointer_mut(pointer).unwrap() = new.clone();
            }
        };
        match which {
            0 => {
                let path = layout.dir.join("index.json");
                let mut index = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                change(&mut index);
                fs::write(path, index.to_string()).unwrap();
            }
            1 => with_manifest(&layout, change),
            _ => with_config(&layout, change),
        }
        if let Ok(disk) = fixture.build(&layout.reference()) {
            prop_assert_eq!(disk, on_disk(&[b"layer"]));
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let fixture = Fixture::new();
        let layout = Layout::new(fixture.path("oci"));
        fs::write(layout.dir.join("index.json"), &bytes).unwrap();
        prop_assert!(fixture.resolve(&layout.reference()).is_err());
        fs::write(fixture.path("archive"), &bytes).unwrap();
        let archive = format!("docker-archive:{}", fixture.path("archive").display());
        prop_assert!(fixture.resolve(&archive).is_err());
    }
}
