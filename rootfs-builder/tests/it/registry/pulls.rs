//! Names, tags, digests, platforms; which blobs are fetched.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use boxlite_rootfs_builder::{PullPolicy, RegistryConfig};

use super::proxy::{Fault, Proxy};
use super::server::free_address;
use super::*;

#[test]
fn a_pulled_image_is_the_one_that_was_pushed() {
    let fixture = Fixture::new();
    let Some(mut registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 300_000);
    registry.push(&reference, "some/thing:v1");
    let store = store(&fixture);
    let text = format!("docker://{}/some/thing:v1", registry.address);
    let notes = Notes::default();
    let image = store.resolve(&text.parse().unwrap(), &notes).unwrap();
    let pushed = fixture.resolve(&reference).unwrap();
    assert_eq!((image.chain_id(), image.config()), (pushed.chain_id(), pushed.config()));
    assert_eq!(image.digest(), pushed.digest());
    assert!(notes.has("Asking") && notes.has("Pulling(LayerProgress { layer: 1, layers: 2"));
    assert!(disk_of(&store, &image) == content);

    // From now on, the store has it.
    registry.stop();
    let again = store.resolve(&text.parse().unwrap(), &Silent).unwrap();
    assert_eq!(again.digest(), image.digest());
    let listed = store.list().unwrap().images;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        listed[0].imported_from.as_deref(),
        Some(&*format!("docker://{}", again.reference()))
    );
    let (problem, text) = problem(pull(&fixture, &again.reference().to_string()));
    assert!(matches!(problem, RegistryProblem::Unreachable { .. }), "{text}");
    assert!(text.contains("refused") && text.contains("check its name"), "{text}");
    store.remove(&again.reference().to_string()).unwrap();
    assert_eq!(fixture.store_files(), [""; 0]);
}

#[test]
fn policies_say_when_the_registry_is_asked() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (first, _) = two_layers(&fixture, "first", 1, 1000);
    let (second, _) = two_layers(&fixture, "second", 2, 1000);
    registry.push(&first, "x:v");
    let store = store(&fixture);
    let reference = format!("{}/x:v", registry.address).parse().unwrap();
    let resolve = |policy| store.resolve_with(&reference, policy, None, &Silent);
    let error = resolve(PullPolicy::Never).unwrap_err();
    assert!(matches!(error, Error::NotStored { .. }), "{error}");
    let one = resolve(PullPolicy::Missing).unwrap();
    disk_of(&store, &one);
    registry.push(&second, "x:v");
    assert_eq!(resolve(PullPolicy::Missing).unwrap().digest(), one.digest());
    assert_eq!(resolve(PullPolicy::Never).unwrap().digest(), one.digest());
    let two = resolve(PullPolicy::Always).unwrap();
    assert_ne!(two.digest(), one.digest());
    assert_eq!(resolve(PullPolicy::Missing).unwrap().digest(), two.digest());
    // The old image's disk and layer were removed with its name.
    assert_eq!(fixture.store_files().iter().filter(|file| file.starts_with("blobs")).count(), 4);
    assert!(fixture.store_files().iter().all(|file| !file.starts_with("disks")));
    // An unchanged image keeps its disk.
    disk_of(&store, &two);
    resolve(PullPolicy::Always).unwrap();
    assert_eq!(fixture.store_files().iter().filter(|file| file.starts_with("disks")).count(), 1);
}

#[test]
fn an_import_of_the_same_name_is_used_first() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (pushed, _) = two_layers(&fixture, "pushed", 1, 1000);
    let (imported, _) = two_layers(&fixture, "imported", 2, 1000);
    registry.push(&pushed, "x:v");
    let store = store(&fixture);
    let text = format!("{}/x:v", registry.address);
    let builder = Concatenate::default();
    let import = store.import(&imported.parse().unwrap(), &text, &builder, &Silent).unwrap();
    let resolve =
        |policy| store.resolve_with(&text.parse().unwrap(), policy, None, &Silent).unwrap();
    assert_eq!(resolve(PullPolicy::Missing).digest(), import.digest());
    assert_ne!(resolve(PullPolicy::Always).digest(), import.digest());
}

#[test]
fn digests_pin() {
    let fixture = Fixture::new();
    let Some(mut registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let digest = fixture.resolve(&reference).unwrap().digest().clone();
    let pinned = format!("{}/x:other-tag@{digest}", registry.address);
    assert_eq!(pull(&fixture, &pinned).unwrap().digest(), &digest);
    // By digest, whatever its name.
    registry.stop();
    let again = format!("{}/x@{digest}", registry.address).parse().unwrap();
    assert_eq!(store(&fixture).resolve(&again, &Silent).unwrap().digest(), &digest);
}

#[test]
fn the_platform_of_this_machine_is_selected() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let layout = Layout::new(fixture.path("oci"));
    let layer = |text: &str| TestLayer::gzip(&TestLayer::tar("arch", text.as_bytes()));
    let own = layout.image(HOST, &[layer(HOST)]);
    let foreign = layout.image(FOREIGN, &[layer(FOREIGN)]);
    let both =
        layout.index_blob(&[for_platform(foreign.clone(), FOREIGN), for_platform(own, HOST)]);
    let index = both["digest"].as_str().unwrap().to_owned();
    let other = layout.index_blob(&[for_platform(foreign, FOREIGN)]);
    layout.write_index(&[tagged(both, "both"), tagged(other, "other")]);
    for tag in ["both", "other"] {
        let from = format!("{}:{tag}", layout.reference());
        registry.push_as(&from, &format!("x:{tag}"), &["--all", "--preserve-digests"]);
    }
    let image = pull(&fixture, &format!("{}/x:both", registry.address)).unwrap();
    assert_eq!(image.config().architecture, HOST);
    // The digest that people see in registries is the index's.
    let pinned = format!("{}/x@{index}", registry.address);
    assert_eq!(pull(&fixture, &pinned).unwrap().digest(), image.digest());
    let error = pull(&fixture, &format!("{}/x:other", registry.address)).unwrap_err();
    assert!(matches!(error, Error::WrongPlatform { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(FOREIGN) && text.contains(HOST), "{text}");
}

#[test]
fn a_stored_image_of_another_variant_is_replaced() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let layout = Layout::new(fixture.path("oci"));
    let image = |variant: &str| {
        let layer = TestLayer::gzip(&TestLayer::tar("variant", variant.as_bytes()));
        let mut config = Layout::config(HOST, std::slice::from_ref(&layer));
        config["variant"] = variant.into();
        layout.image_with(&config, &[layer])
    };
    let store = store(&fixture);
    let text = format!("{}/x:v", registry.address);
    let platform = format!("linux/{HOST}/{LEAST}").parse().unwrap();
    let resolve =
        |policy| store.resolve_with(&text.parse().unwrap(), policy, Some(&platform), &Silent);
    // Docker and others write the variant into the config.
    layout.write_index(&[tagged(image("v99"), "above")]);
    registry.push(&format!("{}:above", layout.reference()), "x:v");
    let above = pull(&fixture, &text).unwrap();
    let error = resolve(PullPolicy::Never).unwrap_err();
    assert!(matches!(error, Error::WrongPlatform { .. }), "{error}");
    assert!(error.to_string().contains("/v99"), "{error}");
    // A pull refuses what would not be used afterwards.
    for policy in [PullPolicy::Missing, PullPolicy::Always] {
        let error = resolve(policy).unwrap_err();
        assert!(matches!(error, Error::WrongPlatform { .. }), "{error}");
        assert!(error.to_string().contains("/v99"), "{error}");
    }
    assert_eq!(store.resolve(&text.parse().unwrap(), &Silent).unwrap().digest(), above.digest());
    layout.write_index(&[tagged(image(LEAST), "least")]);
    registry.push(&format!("{}:least", layout.reference()), "x:v");
    let replaced = resolve(PullPolicy::Missing).unwrap();
    assert_ne!(replaced.digest(), above.digest());
    assert_eq!(resolve(PullPolicy::Never).unwrap().digest(), replaced.digest());
}

#[test]
fn an_import_of_another_variant_is_not_replaced() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let layout = Layout::new(fixture.path("oci"));
    let layer = [TestLayer::gzip(&TestLayer::tar("file", b"mine"))];
    let mut config = Layout::config(HOST, &layer);
    config["variant"] = "v99".into();
    layout.write_index(&[layout.image_with(&config, &layer)]);
    let (stranger, _) = two_layers(&fixture, "stranger", 2, 1000);
    let store = store(&fixture);
    let platform = format!("linux/{HOST}/{LEAST}").parse().unwrap();
    for name in ["x:v", "tagged:v"] {
        registry.push(&stranger, name);
    }
    let [name, tagged] = ["x:v", "tagged:v"].map(|name| format!("{}/{name}", registry.address));
    let builder = Concatenate::default();
    let import = store.import(&layout.reference().parse().unwrap(), &name, &builder, &Silent);
    let digest = import.unwrap().digest().clone();
    store.tag(&name, &tagged).unwrap();
    for name in [&name, &tagged] {
        let reference = name.parse().unwrap();
        let resolve =
            |platform| store.resolve_with(&reference, PullPolicy::Missing, platform, &Silent);
        let error = resolve(Some(&platform)).unwrap_err();
        assert!(matches!(error, Error::WrongPlatform { .. }), "{error}");
        assert_eq!(resolve(None).unwrap().digest(), &digest);
    }
}

#[test]
fn the_variant_that_only_the_index_names_is_kept() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let layout = Layout::new(fixture.path("oci"));
    let [least, second] = ["least", "second"].map(|text| {
        layout.image(HOST, &[TestLayer::gzip(&TestLayer::tar("variant", text.as_bytes()))])
    });
    let index = layout.index_blob(&[for_variant(&least, LEAST), for_variant(&second, "v2")]);
    layout.write_index(&[tagged(index, "both")]);
    let from = format!("{}:both", layout.reference());
    registry.push_as(&from, "x:v", &["--all", "--preserve-digests"]);
    let store = store(&fixture);
    let reference = format!("{}/x:v", registry.address).parse().unwrap();
    let resolve = |policy, variant: &str| {
        let platform = format!("linux/{HOST}/{variant}").parse().unwrap();
        store.resolve_with(&reference, policy, Some(&platform), &Silent)
    };
    let best = store.resolve(&reference, &Silent).unwrap();
    if matches!(resolve(PullPolicy::Never, "v2"), Err(Error::UnsupportedPlatform { .. })) {
        // Only the least variant runs here, and is the best.
        assert_eq!(best.config().variant, LEAST);
        assert_eq!(resolve(PullPolicy::Never, LEAST).unwrap().digest(), best.digest());
        return;
    }
    assert_eq!(best.config().variant, "v2");
    let error = resolve(PullPolicy::Never, LEAST).unwrap_err();
    assert!(error.to_string().contains(&format!("linux/{HOST}/v2")), "{error}");
    let lower = resolve(PullPolicy::Missing, LEAST).unwrap();
    assert_ne!(lower.digest(), best.digest());
    // A lower variant than the one asked for is used.
    for variant in [LEAST, "v2"] {
        assert_eq!(resolve(PullPolicy::Never, variant).unwrap().digest(), lower.digest());
    }
}

#[test]
fn shared_layers_are_fetched_once() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    for (dir, seed) in [("one", 1), ("two", 2)] {
        let (reference, _) = two_layers(&fixture, dir, seed, 10_000);
        registry.push(&reference, &format!("{dir}:v"));
    }
    let proxy = Proxy::start(&registry.address, |_, _| Fault::None);
    for dir in ["one", "two"] {
        pull(&fixture, &format!("{}/{dir}:v", proxy.address)).unwrap();
    }
    let mut blobs: Vec<String> = proxy.requests("/blobs/");
    blobs.iter_mut().for_each(|head| {
        *head = head.lines().next().unwrap().rsplit('/').nth(1).unwrap().to_owned();
    });
    let count = blobs.len();
    blobs.sort();
    blobs.dedup();
    assert_eq!((count, blobs.len()), (5, 5), "{:?}", proxy.heads());
}

#[test]
fn a_damaged_or_missing_blob_is_fetched_again() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 10_000);
    registry.push(&reference, "x:v");
    let text = format!("{}/x:v", registry.address);
    pull(&fixture, &text).unwrap();
    let blob = fixture.path("store/blobs").join(data_layer(&fixture, "oci").replace(':', "/"));
    let sound = std::fs::read(&blob).unwrap();
    std::fs::remove_file(&blob).unwrap();
    let store = store(&fixture);
    store.resolve(&text.parse().unwrap(), &Silent).unwrap();
    assert!(std::fs::read(&blob).unwrap() == sound);

    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, vec![0; sound.len()]).unwrap();
    let notes = Notes::default();
    let image = store.pull(&name(&text), &notes).unwrap();
    assert!(notes.has("damaged"));

    // The damage is detected on use: the blob counts as missing from then on.
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, vec![0; sound.len()]).unwrap();
    store.disk(&image, &Concatenate::default(), &Silent).unwrap_err();
    let image = store.resolve(&text.parse().unwrap(), &Silent).unwrap();
    assert!(disk_of(&store, &image) == content);
}

#[test]
fn a_damaged_record_of_a_pull_is_fetched_again() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let text = format!("{}/x:v", registry.address);
    let store = store(&fixture);
    let resolve = |policy| store.resolve_with(&text.parse().unwrap(), policy, None, &Silent);
    let record = || {
        let files = fixture.store_files();
        fixture.path("store").join(files.iter().find(|file| file.ends_with(".json")).unwrap())
    };
    let damage = |with: &dyn Fn(String) -> String| {
        let path = record();
        let json = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, with(json)).unwrap();
    };
    pull(&fixture, &text).unwrap();
    let damages: [&dyn Fn(String) -> String; 4] = [
        &|_| String::new(),
        &|json| "\0".repeat(json.len()),
        &|json| json[..json.len() / 2].to_owned(),
        &|json| json.replace("\"layers\"", "\"lawyers\""),
    ];
    for with in damages {
        damage(with);
        let error = resolve(PullPolicy::Never).unwrap_err();
        assert!(error.to_string().contains("the record"), "{error}");
        let image = resolve(PullPolicy::Missing).unwrap();
        assert!(disk_of(&store, &image) == content);
        assert!(store.list().unwrap().damaged.is_empty());
    }
    // Not for an import, as the registry's image of this name would be another one; nor for a record of a later release.
    let import = |json: String| json.replace(&format!("docker://{text}"), "oci:/mine") + "x";
    let newer =
        |json: String| json.trim_end_matches('x').replace("\"version\": 1", "\"version\": 2");
    for with in [&import as &dyn Fn(String) -> String, &newer] {
        damage(with);
        resolve(PullPolicy::Missing).unwrap_err();
    }
    resolve(PullPolicy::Always).unwrap();
}

#[test]
fn a_name_given_by_a_tag_is_not_looked_up_in_a_registry() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    let (stranger, _) = two_layers(&fixture, "stranger", 2, 1000);
    registry.push(&reference, "x:v");
    registry.push(&stranger, "mine:v");
    let (text, alias) =
        (format!("{}/x:v", registry.address), format!("{}/mine:v", registry.address));
    let digest = pull(&fixture, &text).unwrap().digest().clone();
    let store = store(&fixture);
    store.tag(&text, &alias).unwrap();
    store.remove(&text).unwrap();
    let resolve = || store.resolve(&alias.parse().unwrap(), &Silent).unwrap();
    assert_eq!(resolve().digest(), &digest);
    // Not even when it is damaged: the registry's image of this name is another one.
    std::fs::remove_dir_all(fixture.path("store/blobs/sha256")).unwrap();
    assert_eq!(resolve().digest(), &digest);
    let error = store.disk(&resolve(), &Concatenate::default(), &Silent).unwrap_err();
    assert!(error.to_string().contains("import it again"), "{error}");
}

#[test]
fn a_limited_number_of_layers_is_fetched_at_a_time() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let layers: Vec<_> =
        (0..7u8).map(|n| TestLayer::gzip(&TestLayer::tar("file", &[n; 100]))).collect();
    registry.push(&Layout::single(fixture.path("oci"), &layers).reference(), "x:v");
    let config = fixture.resolve(&format!("oci:{}", fixture.path("oci").display())).unwrap();
    assert_eq!(config.layer_count(), 7);
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (current, highest) = (now.clone(), most.clone());
    let proxy = Proxy::start(&registry.address, move |head, _| {
        if head.contains("/blobs/") {
            highest.fetch_max(current.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(300));
            current.fetch_sub(1, Ordering::SeqCst);
        }
        Fault::None
    });
    let mut options = options(&fixture);
    options.parallel_layers = 3;
    let store = fixture.store().with_registries(options);
    store.pull(&name(&format!("{}/x:v", proxy.address)), &Silent).unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(now.load(Ordering::SeqCst), 0);
}

#[test]
fn mirrors_are_asked_first_and_the_registry_last() {
    let fixture = Fixture::new();
    let (Some(mirror), Some(registry)) = (bare(), bare()) else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 10_000);
    mirror.push(&reference, "proxy/x:on-both");
    registry.push(&reference, "x:on-both");
    registry.push(&reference, "x:on-one");
    let (mirror, registry) = (
        Proxy::start(&mirror.address, |_, _| Fault::None),
        Proxy::start(&registry.address, |_, _| Fault::None),
    );
    let mut options = options(&fixture);
    let mut config = RegistryConfig::default();
    config.mirrors = vec![free_address(), format!("http://{}/proxy", mirror.address)];
    options.registries.insert(registry.address.clone(), config);
    let store = fixture.store().with_registries(options);
    let notes = Notes::default();
    store.pull(&name(&format!("{}/x:on-both", registry.address)), &notes).unwrap();
    assert_eq!(registry.heads(), [""; 0]);
    assert!(notes.has("Warning(\"skipping the mirror: cannot get"));
    store.pull(&name(&format!("{}/x:on-one", registry.address)), &Silent).unwrap();
    assert!(!registry.heads().is_empty());
    // Everything but the manifest is here already.
    assert_eq!(registry.requests("/blobs/"), [""; 0]);
}

#[test]
fn a_cancelled_pull_ends_soon_and_can_be_resumed() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, content) = two_layers(&fixture, "oci", 1, 4 << 20);
    registry.push(&reference, "x:v");
    let proxy = Proxy::start(&registry.address, |head, nth| match head.contains("/blobs/") {
        true if nth == 0 => Fault::Slow(Duration::from_millis(100)),
        _ => Fault::None,
    });
    let text = format!("{}/x:v", proxy.address);
    let progress = CancelAt { at: 1 << 20, reached: AtomicBool::new(false) };
    let begin = Instant::now();
    let error = store(&fixture).pull(&name(&text), &progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let image = pull(&fixture, &text).unwrap();
    let ranged = proxy.requests(&data_layer(&fixture, "oci")).pop().unwrap().to_lowercase();
    let from = ranged.split("range: bytes=").nth(1).unwrap().split('-').next().unwrap();
    assert!(from.parse::<u64>().unwrap() >= 1 << 20, "{ranged}");
    assert!(disk_of(&store(&fixture), &image) == content);
}

#[test]
fn pulls_may_be_called_from_an_async_task() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    let (reference, _) = two_layers(&fixture, "oci", 1, 1000);
    registry.push(&reference, "x:v");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let text = format!("{}/x:v", registry.address);
    runtime.block_on(async { pull(&fixture, &text).unwrap() });
}
