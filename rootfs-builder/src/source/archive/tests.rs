//! Tests of how archives name their configs.

use super::*;

#[test]
fn configs_are_named_by_their_digest() {
    let digest = Digest::sha256(b"x");
    assert_eq!(named_digest(&format!("{}.json", digest.hex())), Some(digest.clone()));
    assert_eq!(named_digest(&format!("blobs/sha256/{}", digest.hex())), Some(digest));
    assert_eq!(named_digest("config.json"), None);
}
