//! Which image of an index a machine gets, for machines of other architectures than this one.

use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::format::Digest;

/// A layout on disk, with images that have no layers.
struct Layout {
    dir: tempfile::TempDir,
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        let version = json!({"imageLayoutVersion": "1.0.0"});
        fs::write(dir.path().join("oci-layout"), version.to_string()).unwrap();
        Self { dir }
    }

    /// Writes a blob. Returns its descriptor.
    fn blob(&self, media_type: &str, content: &Value) -> Value {
        let bytes = content.to_string();
        let digest = Digest::sha256(bytes.as_bytes());
        fs::write(self.dir.path().join(digest.blob_path()), &bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Writes an image. Returns its entry of an index. `name` makes the image another one than those with other names.
    fn image(&self, name: &str, platform: &Value) -> Value {
        let config = json!({
            "os": platform["os"],
            "architecture": platform["architecture"],
            "author": name,
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [],
        });
        let mut entry = self.blob("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["platform"] = platform.clone();
        entry
    }

    /// The digest of the image that a machine gets from an index with these entries.
    fn chosen(&self, entries: &[Value], host: &Platform) -> Result<String> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        });
        let index = self.blob("application/vnd.oci.image.index.v1+json", &index);
        let top = json!({"schemaVersion": 2, "manifests": [index]});
        fs::write(self.dir.path().join("index.json"), top.to_string()).unwrap();
        let resolved = resolve(&LayoutDir { dir: self.dir.path() }, None, host)?;
        Ok(resolved.digest.to_string())
    }
}

fn platform(architecture: &str, variant: &str) -> Value {
    let mut platform = json!({"os": "linux", "architecture": architecture});
    if !variant.is_empty() {
        platform["variant"] = variant.into();
    }
    platform
}

/// All orders of the entries.
fn orders(entries: &[Value]) -> Vec<Vec<Value>> {
    if entries.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |first: usize| {
        let mut rest = entries.to_vec();
        let first = rest.remove(first);
        orders(&rest).into_iter().map(move |rest| [vec![first.clone()], rest].concat())
    };
    (0..entries.len()).flat_map(with_first).collect()
}

#[test]
fn arm64_and_its_variant_v8_are_one_platform_and_32_bit_arm_another() {
    let layout = Layout::new();
    let arm64 = Platform::test("arm64", 8);
    let digest = |entry: &Value| entry["digest"].as_str().unwrap().to_owned();
    let plain = layout.image("same", &platform("arm64", ""));
    let mut v8 = plain.clone();
    v8["platform"]["variant"] = "v8".into();
    let others = [
        layout.image("32 bits", &platform("arm", "v7")),
        layout.image("32 bits, v8", &platform("arm", "v8")),
        layout.image("pc", &platform("amd64", "")),
        layout.image("next", &platform("arm64", "v9")),
    ];
    let mut attestation = layout.image("attestation", &platform("unknown", ""));
    attestation["platform"]["os"] = "unknown".into();
    let attestation = std::slice::from_ref(&attestation);
    // One image, listed with the variant, without it, or both.
    for ours in [vec![plain.clone()], vec![v8.clone()], vec![plain.clone(), v8.clone()]] {
        for entries in orders(&[&ours[..], &others[..2]].concat()) {
            let entries = [&entries[..], &others[2..], attestation].concat();
            assert_eq!(layout.chosen(&entries, &arm64).unwrap(), digest(&plain), "{entries:?}");
        }
    }
    let amd64 = Platform::test("amd64", 1);
    let all = [&[plain, v8][..], &others].concat();
    assert_eq!(layout.chosen(&all, &amd64).unwrap(), digest(&others[2]));
}

#[test]
fn of_two_images_for_arm64_the_first_is_chosen_whichever_has_the_variant() {
    let layout = Layout::new();
    let (with, without) =
        (layout.image("a", &platform("arm64", "v8")), layout.image("b", &platform("arm64", "")));
    for entries in orders(&[with, without]) {
        let chosen = layout.chosen(&entries, &Platform::test("arm64", 8)).unwrap();
        assert_eq!(chosen, entries[0]["digest"].as_str().unwrap());
    }
}

#[test]
fn an_index_of_32_bit_arm_has_nothing_for_arm64() {
    let layout = Layout::new();
    let entries =
        ["v6", "v7", "v8"].map(|variant| layout.image(variant, &platform("arm", variant)));
    let error = layout.chosen(&entries, &Platform::test("arm64", 8)).unwrap_err().to_string();
    assert!(error.contains("linux/arm/v7") && error.contains("linux/arm64"), "{error}");
}
