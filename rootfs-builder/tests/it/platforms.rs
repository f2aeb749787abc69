//! The variant of a platform that is asked for, in layouts, archives and the store.

use std::fs;
use std::process::Command;

use boxlite_rootfs_builder::{Error, Image, ImageStore, PullPolicy, Silent};

use crate::support::*;

/// A layout whose only image names a variant in its config, in its entry, or in both.
fn image_of(fixture: &Fixture, dir: &str, config: Option<&str>, entry: Option<&str>) -> Layout {
    let layout = Layout::new(fixture.path(dir));
    let layers = [TestLayer::plain(&TestLayer::tar("file", dir.as_bytes()))];
    let mut json = Layout::config(HOST, &layers);
    if let Some(variant) = config {
        json["variant"] = variant.into();
    }
    let image = layout.image_with(&json, &layers);
    let image = entry.map_or(image.clone(), |variant| for_variant(&image, variant));
    layout.write_index(&[tagged(image, "latest")]);
    layout
}

/// Resolves for the variant that every CPU has.
fn narrowed(store: &ImageStore, reference: &str) -> Result<Image, Error> {
    let platform = format!("linux/{HOST}/{LEAST}").parse().unwrap();
    let reference = reference.parse().unwrap();
    store.resolve_with(&reference, PullPolicy::Never, Some(&platform), &Silent)
}

fn refuses(store: &ImageStore, reference: &str) {
    let error = narrowed(store, reference).unwrap_err();
    assert!(matches!(error, Error::WrongPlatform { .. }), "{reference}: {error}");
    assert!(error.to_string().contains(&format!("linux/{HOST}/v99")), "{error}");
}

#[test]
fn a_single_image_of_a_higher_variant_is_refused_where_a_variant_is_asked_for() {
    let fixture = Fixture::new();
    let store = fixture.store();
    let variants = [(Some("v99"), None), (None, Some("v99")), (Some(LEAST), Some("v99"))];
    for (index, (config, entry)) in variants.into_iter().enumerate() {
        let name = format!("above{index}");
        let layout = image_of(&fixture, &name, config, entry);
        let archive = fixture.path(&format!("{name}.tar"));
        run(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout.dir).arg("."));
        let archive = format!("docker-archive:{}", archive.display());
        // Without a variant, it is what the user names.
        fixture.resolve(&archive).unwrap();
        let source = layout.reference().parse().unwrap();
        store.import(&source, &name, &Concatenate::default(), &Silent).unwrap();
        for reference in [&layout.reference(), &archive, &name] {
            refuses(&store, reference);
        }
    }
    let entry_decides = image_of(&fixture, "least", Some("v99"), Some(LEAST));
    let images = [image_of(&fixture, "none", None, None), entry_decides];
    for (name, layout) in ["none", "least"].into_iter().zip(images) {
        let source = layout.reference().parse().unwrap();
        store.import(&source, name, &Concatenate::default(), &Silent).unwrap();
        for reference in [&layout.reference(), name] {
            narrowed(&store, reference).unwrap();
        }
    }
}

#[test]
fn a_record_without_a_variant_is_read() {
    let fixture = Fixture::new();
    let layout = image_of(&fixture, "oci", None, Some(LEAST));
    let source = layout.reference().parse().unwrap();
    fixture.store().import(&source, "x", &Concatenate::default(), &Silent).unwrap();
    let files = fixture.store_files();
    let record = files.iter().find(|file| file.ends_with(".json")).unwrap();
    let record = fixture.path("store").join(record);
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let variant = json["config"].as_object_mut().unwrap().remove("variant");
    assert_eq!(variant, Some(LEAST.into()));
    fs::remove_file(&record).unwrap();
    fs::write(&record, json.to_string()).unwrap();
    assert_eq!(narrowed(&fixture.store(), "x").unwrap().config().variant, "");
}
