//! Tests of versions and series.

use super::*;

#[test]
fn parses_and_orders_by_number() {
    let parse = |text: &str| text.parse::<Version>().unwrap();
    assert_eq!(parse("6.12.117-1~deb12u1"), Version(6, 12, 117));
    assert_eq!(parse("6.12"), Version(6, 12, 0));
    assert_eq!(parse("6.12.0-rc3"), Version(6, 12, 0));
    assert!(parse("6.9") < parse("6.12"), "minor numbers are numbers, not text");
    for bad in ["", "6", "six.one", "6.12.1.1", "6.", "-6.1", "6.99999"] {
        assert!(bad.parse::<Version>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_series_holds_its_own_versions_only() {
    assert!(Lts::V6_12.contains(Version(6, 12, 64)));
    assert!(!Lts::V6_1.contains(Version(6, 12, 64)));
    assert!(Lts::V6_1.contains(Version(6, 1, 159)));
    assert_eq!("6.1".parse::<Lts>().unwrap(), Lts::V6_1);
    assert!("6.6".parse::<Lts>().is_err());
}
