//! Tests of Debian's packages: which version.

use super::*;

fn offer(version: &str, sha256: &str) -> Offer {
    Offer { version: version.to_owned(), size: 1, sha256: sha256.to_owned() }
}

#[test]
fn the_pinned_version_wins_and_else_the_newest_of_the_series() {
    let pin = Lts::V6_12.pins().debian;
    let mut offers =
        vec![offer("6.12.95-1", "a"), offer("6.12.200-1", "b"), offer("6.13.1-1", "c")];
    assert_eq!(choose(&offers, Lts::V6_12, &pin).unwrap().version, "6.12.200-1");
    offers.push(offer(pin.version, pin.deb_sha256));
    assert_eq!(choose(&offers, Lts::V6_12, &pin).unwrap().version, pin.version);
    assert!(choose(&offers[2..3], Lts::V6_12, &pin).is_err());
}
