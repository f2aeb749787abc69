//! Tests of Debian's packages: which version, from which mirror.

use super::*;

fn offer(version: &str, sha256: &str) -> Offer {
    Offer { version: version.to_owned(), size: 1, sha256: sha256.to_owned() }
}

#[test]
fn reads_what_the_archive_offers() {
    let text = "Package: linux-source-6.12\nVersion: 6.12.117-1~deb12u1\nSize: 153476148\nSHA256: e849\n\n\
                    Package: linux-source-6.12\nVersion: 6.12.95-1~bpo12+1\nDescription: text\n more: text\nSize: 7\nSHA256: a7fe\n\n\
                    Package: broken\nVersion: 1\n";
    let mut second = offer("6.12.95-1~bpo12+1", "a7fe");
    second.size = 7;
    let mut first = offer("6.12.117-1~deb12u1", "e849");
    first.size = 153_476_148;
    assert_eq!(parse_offers(text), [first, second]);
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

#[test]
fn the_machines_own_mirror_is_preferred() {
    let own =
        ["http://mirror.example/debian/".to_owned(), "http://other.example/ubuntu/".to_owned()];
    let list = sources(&own);
    assert!(list.contains("URIs: http://mirror.example/debian/\n"), "{list}");
    assert!(list.contains("URIs: http://deb.debian.org/debian-security\n"), "{list}");
    assert!(!list.contains("ubuntu"), "{list}");
}
