//! Unusual images, valid and invalid, from a handmade registry.

use boxlite_rootfs_builder::{Algorithm, Digest};
use serde_json::{Value, json};

use super::proxy::{Fault, Proxy};
use super::*;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The contents of a registry's repository `x`: content type and body by path.
struct Content {
    algorithm: Algorithm,
    answers: Vec<(String, String, String)>,
}

impl Content {
    fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, answers: Vec::new() }
    }

    fn put(&mut self, kind: &str, media_type: &str, text: &str) -> Value {
        let digest = Digest::of(self.algorithm, text.as_bytes()).to_string();
        self.answers.push((format!("/v2/x/{kind}/{digest}"), media_type.into(), text.into()));
        json!({ "mediaType": media_type, "digest": digest, "size": text.len() })
    }

    /// An image of plain layers; returns its descriptor.
    fn image(&mut self, layers: &[(&str, &str)]) -> Value {
        let plain: Vec<_> =
            layers.iter().map(|(_, text)| TestLayer::plain(text.as_bytes())).collect();
        let config = self.put("blobs", CONFIG, &Layout::config(HOST, &plain).to_string());
        let layers: Vec<_> =
            layers.iter().map(|(kind, text)| self.put("blobs", kind, text)).collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        self.put("manifests", MANIFEST, &manifest.to_string())
    }

    fn index(&mut self, entries: &[&Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "manifests": entries }).to_string();
        self.put("manifests", INDEX, &index)
    }

    /// Sets the target of a tag.
    fn tag(&mut self, tag: &str, descriptor: &Value) {
        let path = format!("/v2/x/manifests/{}", descriptor["digest"].as_str().unwrap());
        let answer = self.answers.iter().find(|(known, ..)| *known == path).unwrap().clone();
        self.answers.push((format!("/v2/x/manifests/{tag}"), answer.1, answer.2));
    }

    fn serve(self, header: &'static str, is_chunked: bool) -> Proxy {
        Proxy::start("127.0.0.1:1", move |head, _| {
            let path = head.split(' ').nth(1).unwrap_or_default();
            let found = self.answers.iter().find(|(known, ..)| known == path);
            let Some((_, media_type, text)) = found else {
                return Fault::Instead("HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n".into());
            };
            let length = text.len();
            let (how, body) = match is_chunked && length > 0 {
                true => {
                    let (one, two) = text.split_at(length / 2);
                    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
                    let first = if one.is_empty() { String::new() } else { chunk(one) };
                    ("Transfer-Encoding: chunked".to_owned(), first + &chunk(two) + "0\r\n\r\n")
                }
                false => (format!("Content-Length: {length}"), text.clone()),
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\n{header}{how}");
            Fault::Instead(format!("{head}\r\n\r\n{body}"))
        })
    }
}

/// Pulls `x:v`, and returns its disk.
fn disk_at(fixture: &Fixture, proxy: &Proxy) -> Result<Vec<u8>, Error> {
    let image = pull(fixture, &format!("{}/x:v", proxy.address))?;
    Ok(disk_of(&store(fixture), &image))
}

#[test]
fn layers_of_every_kind_twice_or_empty() {
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar";
    let foreign_oci = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let layers =
        [(LAYER, "one"), (LAYER, ""), (LAYER, "one"), (foreign, "two"), (foreign_oci, "three")];
    let expected = on_disk(&[b"one", b"", b"one", b"two", b"three"]);
    for (algorithm, is_chunked) in
        [(Algorithm::Sha256, false), (Algorithm::Sha512, false), (Algorithm::Sha256, true)]
    {
        let fixture = Fixture::new();
        let mut content = Content::new(algorithm);
        let image = content.image(&layers);
        content.tag("v", &image);
        let pinned = image["digest"].as_str().unwrap().to_owned();
        let proxy = content.serve("", is_chunked);
        assert!(disk_at(&fixture, &proxy).unwrap() == expected);
        assert_eq!(proxy.requests(&Digest::of(algorithm, b"one").to_string()).len(), 1);
        let by_digest = format!("{}/x:other@{pinned}", proxy.address);
        assert_eq!(pull(&fixture, &by_digest).unwrap().digest().to_string(), pinned);
        // Such an image can be saved and loaded.
        let mut saved = Vec::new();
        store(&fixture).save(&[&by_digest], &mut saved, &Silent).unwrap();
        let other = Fixture::new();
        let loaded = other.store().load_from(&mut &saved[..], &Silent).unwrap();
        assert_eq!(loaded[0].digest().to_string(), pinned);
        assert!(disk_of(&other.store(), &loaded[0]) == expected);
    }
}

#[test]
fn a_false_digest_header_is_detected() {
    let fixture = Fixture::new();
    let header = "Docker-Content-Digest: \
        sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\r\n";
    for (header, is_refused) in [(header, true), ("Docker-Content-Digest: md5:00\r\n", false)] {
        let mut content = Content::new(Algorithm::Sha256);
        let image = content.image(&[(LAYER, "one")]);
        content.tag("v", &image);
        let proxy = content.serve(header, false);
        let result = pull(&fixture, &format!("{}/x:v", proxy.address));
        match is_refused {
            true => assert!(matches!(problem(result).0, RegistryProblem::WrongDigest { .. })),
            false => assert_eq!(result.unwrap().digest().to_string(), image["digest"]),
        }
    }
}

#[test]
fn artifacts_in_an_index_are_skipped() {
    let fixture = Fixture::new();
    let artifact = |content: &mut Content| {
        let empty = content.put("blobs", "application/vnd.oci.empty.v1+json", "{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/x.sbom",
            "config": empty, "layers": [empty],
        });
        content.put("manifests", MANIFEST, &manifest.to_string())
    };
    let mut content = Content::new(Algorithm::Sha256);
    let plain = artifact(&mut content);
    let mut typed = plain.clone();
    typed["artifactType"] = json!("application/x.sbom");
    let image = content.image(&[(LAYER, "one")]);
    let index = content.index(&[&typed, &plain, &image]);
    content.tag("v", &index);
    let nothing = content.index(&[&plain]);
    content.tag("nothing", &nothing);
    content.tag("artifact", &plain);
    let proxy = content.serve("", false);
    assert!(disk_at(&fixture, &proxy).unwrap() == on_disk(&[b"one"]));
    for tag in ["nothing", "artifact"] {
        let error = pull(&fixture, &format!("{}/x:{tag}", proxy.address)).unwrap_err().to_string();
        assert!(error.contains("not a container image"), "{error}");
    }
}

#[test]
fn false_lengths_and_missing_foreign_layers_are_named() {
    let fixture = Fixture::new();
    for (change, words) in [
        (json!({ "size": 2 }), "has not the 2 bytes"),
        (json!({ "size": 5 }), "ended after 3 bytes"),
        (
            json!({ "urls": ["http://127.0.0.1:1/x"], "digest": Digest::sha256(b"gone").to_string() }),
            "no longer has",
        ),
    ] {
        let mut content = Content::new(Algorithm::Sha256);
        let image = content.image(&[(LAYER, "one")]);
        let manifest = content.answers.pop().unwrap().2;
        let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
        let layer = manifest["layers"][0].as_object_mut().unwrap();
        layer.extend(change.as_object().unwrap().clone());
        let changed = content.put("manifests", MANIFEST, &manifest.to_string());
        assert_ne!(changed, image);
        content.tag("v", &changed);
        let proxy = content.serve("", false);
        let (_, message) = problem(pull(&fixture, &format!("{}/x:v", proxy.address)));
        assert!(message.contains(words), "{message}");
    }
    assert!(store(&fixture).list().unwrap().images.is_empty());
}

#[test]
fn zstd_chunked_layers_are_read_as_zstd() {
    let fixture = Fixture::new();
    let Some(registry) = bare() else { return };
    // A table of contents in skippable frames behind the data, as containers/storage writes it.
    let mut layer = TestLayer::zstd(&TestLayer::tar("etc/base", b"the base"));
    let frame = |bytes: &[u8]| {
        let length = (bytes.len() as u32).to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18][..], &length, bytes].concat()
    };
    layer.blob.extend(frame(&zstd::encode_all(&b"{\"version\":1}"[..], 1).unwrap()));
    layer.blob.extend(frame(&[0; 64]));
    let layout = Layout::single(fixture.path("oci"), &[layer.clone()]);
    registry.push_as(&layout.reference(), "x:v", &["--preserve-digests"]);
    let image = pull(&fixture, &format!("{}/x:v", registry.address)).unwrap();
    assert!(disk_of(&store(&fixture), &image) == on_disk(&[&layer.plain]));
}
