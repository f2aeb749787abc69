//! A hostile OCI layout: any index resolves to an image or an error.
//!
//! `cargo fuzz run --fuzz-dir tests/fuzz layout`

#![no_main]

use std::fs;

use boxlite_rootfs_builder::{ImageReference, ImageStore, Silent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|index: &[u8]| {
    let dir = tempfile::tempdir().expect("a folder");
    let layout = dir.path().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a folder");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
    fs::write(layout.join("index.json"), index).expect("a file");
    let store = ImageStore::open(dir.path().join("store")).expect("a store");
    let reference = ImageReference::OciLayout { dir: layout, tag: None };
    let _ = store.resolve(&reference, &Silent);
});
