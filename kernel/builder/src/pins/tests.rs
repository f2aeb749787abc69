//! Tests of the form of the pins.

use super::*;
use crate::version::Version;

#[test]
fn pins_are_of_their_series_and_well_formed() {
    for lts in [Lts::V6_12, Lts::V6_1] {
        let pins = lts.pins();
        for version in [pins.kernel_org.version, pins.debian.version] {
            assert!(lts.contains(version.parse::<Version>().unwrap()), "{version} in {lts}");
        }
        assert_eq!(pins.debian.package, format!("linux-source-{lts}"));
        for hash in [pins.kernel_org.sha256, pins.debian.deb_sha256, pins.debian.tarball_sha256] {
            assert_eq!(hash.len(), 64);
            assert!(hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{hash}");
        }
    }
}
