//! Tests of chain IDs.

use super::*;

#[test]
fn chain_ids_are_those_of_the_spec() {
    let (a, b) = (Digest::sha256(b"a"), Digest::sha256(b"b"));
    assert_eq!(chain_id([]), None);
    assert_eq!(chain_id([&a]), Some(a.clone()));
    let both = Digest::sha256(format!("{a} {b}").as_bytes());
    assert_eq!(chain_id([&a, &b]), Some(both.clone()));
    let three = Digest::sha256(format!("{both} {a}").as_bytes());
    assert_eq!(chain_id([&a, &b, &a]), Some(three));
}
