//! Pulls from a real docker-registry, filled by skopeo.

mod faults;
mod logins;
mod odd;
mod processes;
mod proxy;
mod pulls;
mod server;

use std::sync::atomic::{AtomicBool, Ordering};

use boxlite_rootfs_builder::{
    Error, Event, Image, ImageName, ImageStore, Progress, RegistryOptions, RegistryProblem, Silent,
};

use crate::support::*;
use server::{Registry, Setup};

/// Options without this user's configuration.
fn options(fixture: &Fixture) -> RegistryOptions {
    let mut options = RegistryOptions::default();
    options.docker_config = Some(fixture.path("docker"));
    options.certs_dirs = vec![fixture.path("certs.d")];
    options
}

fn store(fixture: &Fixture) -> ImageStore {
    fixture.store().with_registries(options(fixture))
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn pull(fixture: &Fixture, text: &str) -> Result<Image, Error> {
    store(fixture).pull(&name(text), &Silent)
}

/// The problem of a registry error.
fn problem(result: Result<Image, Error>) -> (RegistryProblem, String) {
    let error = result.expect_err("this cannot be pulled");
    let text = error.to_string();
    match error {
        Error::Registry { problem, .. } => (*problem, text),
        other => panic!("{other}"),
    }
}

/// An image of two layers, one of them of noise; returns its reference and the expected disk.
fn two_layers(fixture: &Fixture, dir: &str, seed: u64, len: usize) -> (String, Vec<u8>) {
    let layers = [
        TestLayer::tar("etc/base", b"the base"),
        TestLayer::tar("data", &server::noise(seed, len)),
    ];
    let compressed: Vec<_> = layers.iter().map(|layer| TestLayer::gzip(layer)).collect();
    let layout = Layout::single(fixture.path(dir), &compressed);
    (layout.reference(), on_disk(&[&layers[0], &layers[1]]))
}

/// The digest of the second layer of the only image in a layout.
fn data_layer(fixture: &Fixture, dir: &str) -> String {
    let read = |path: std::path::PathBuf| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let layout = fixture.path(dir);
    let digest = |value: &serde_json::Value| value["digest"].as_str().unwrap().replace(':', "/");
    let index = read(layout.join("index.json"));
    let manifest = read(layout.join("blobs").join(digest(&index["manifests"][0])));
    manifest["layers"][1]["digest"].as_str().unwrap().to_owned()
}

/// Cancels once this number of bytes of a layer has arrived.
struct CancelAt {
    at: u64,
    reached: AtomicBool,
}

impl Progress for CancelAt {
    fn report(&self, event: Event<'_>) {
        if let Event::Pulling(progress) = event
            && progress.done >= self.at
        {
            self.reached.store(true, Ordering::Relaxed);
        }
    }
    fn is_cancelled(&self) -> bool {
        self.reached.load(Ordering::Relaxed)
    }
}

fn disk_of(store: &ImageStore, image: &Image) -> Vec<u8> {
    let disk = store.disk(image, &Concatenate::default(), &Silent).unwrap();
    std::fs::read(disk.path()).unwrap()
}

fn bare() -> Option<Registry> {
    Registry::start(&Setup::default())
}
