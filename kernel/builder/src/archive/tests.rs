//! Tests of Debian's archive: what it offers, and from which mirror.

use super::*;

#[test]
fn reads_what_the_archive_offers() {
    let text = "Package: linux-source-6.12\nVersion: 6.12.117-1~deb12u1\nSize: 153476148\nSHA256: e849\n\n\
                    Package: linux-source-6.12\nVersion: 6.12.95-1~bpo12+1\nDescription: text\n more: text\nSize: 7\nSHA256: a7fe\n\n\
                    Package: broken\nVersion: 1\n";
    let offer = |version: &str, size, sha256: &str| Offer {
        version: version.to_owned(),
        size,
        sha256: sha256.to_owned(),
    };
    assert_eq!(
        parse_offers(text),
        [offer("6.12.117-1~deb12u1", 153_476_148, "e849"), offer("6.12.95-1~bpo12+1", 7, "a7fe")]
    );
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

#[test]
fn an_architecture_sees_its_own_packages() {
    let text = configuration(Path::new("/cache/apt-arm64"), Arch::Aarch64);
    assert!(text.contains("APT::Architecture \"arm64\";"), "{text}");
    assert!(!text.contains("amd64"), "{text}");
}
