//! Tests of digests: published vectors, invalid digests.

use super::*;

#[test]
fn knows_the_published_vectors() {
    assert_eq!(
        Digest::sha256(b"abc").to_string(),
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
    let sha512 = Digest::of(Algorithm::Sha512, b"abc").to_string();
    assert!(sha512.starts_with("sha512:ddaf35a193617abacc417349ae204131"), "{sha512}");
    assert_eq!(sha512.parse::<Digest>().unwrap().to_string(), sha512);
}

#[test]
fn refuses_everything_that_is_not_exactly_a_digest() {
    let good = Digest::sha256(b"").to_string();
    let hex = good.strip_prefix("sha256:").unwrap();
    for bad in [
        "",
        "sha256",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "sha256:/etc/passwd",
        &format!("sha512:{hex}"),
        &format!("md5:{hex}"),
        &format!("SHA256:{hex}"),
        &format!("sha256:{}", hex.to_uppercase()),
        &format!("sha256:{hex}0"),
        &format!("sha256:{}", &hex[1..]),
        &format!("sha256:{}/", &hex[1..]),
        &format!(" {good}"),
    ] {
        assert!(bad.parse::<Digest>().is_err(), "{bad}");
    }
    assert!(Digest::from_blob_path(&format!("blobs/sha256/{hex}")).is_some());
    assert!(Digest::from_blob_path(&format!("blobs/sha256/../sha256/{hex}")).is_none());
}
