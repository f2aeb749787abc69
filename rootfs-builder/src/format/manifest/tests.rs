//! Tests of manifests and indexes, and the types of layers.

use super::*;

#[test]
fn documents_are_told_apart_by_their_members() {
    let digest = Digest::sha256(b"");
    let descriptor = format!(r#"{{"digest":"{digest}","size":3,"annotations":null}}"#);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
    assert!(
        matches!(Document::parse(index.as_bytes()), Ok(Document::Index(list)) if list.len() == 1)
    );
    let manifest = format!(r#"{{"config":{descriptor},"layers":null}}"#);
    assert!(matches!(Document::parse(manifest.as_bytes()), Ok(Document::Manifest { .. })));
    let both = format!(r#"{{"config":{descriptor},"layers":[],"manifests":[]}}"#);
    assert!(Document::parse(both.as_bytes()).unwrap_err().contains("both"));
    assert!(Document::parse(b"{}").unwrap_err().contains("neither"));
    assert!(Document::parse(br#"{"schemaVersion":1}"#).unwrap_err().contains("schema"));
    let negative = format!(r#"{{"config":{{"digest":"{digest}","size":-1}}}}"#);
    assert!(Document::parse(negative.as_bytes()).is_err());
}

#[test]
fn layer_types() {
    for good in [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ] {
        assert!(is_layer_type(good), "{good}");
    }
    for bad in ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/json"] {
        assert!(!is_layer_type(bad), "{bad}");
    }
}
