//! Tests of the choice among variants of an architecture.

use super::*;

#[test]
fn the_best_variant_is_the_highest_that_the_cpu_has() {
    let amd64 = Platform::test("amd64", 3);
    for (variant, suits) in [
        ("", Some(1)),
        ("v1", Some(1)),
        ("v2", Some(2)),
        ("V3", Some(3)),
        ("v4", None),
        ("v9", None),
        ("v0", None),
        ("v", None),
        ("v999", None),
        ("sse", None),
        ("2", None),
    ] {
        assert_eq!(amd64.suits(variant), suits, "{variant}");
    }
    let arm64 = Platform::test("arm64", 8);
    for (variant, suits) in
        [("", Some(8)), ("v8", Some(8)), ("v8.2", None), ("v9", None), ("v7", None)]
    {
        assert_eq!(arm64.suits(variant), suits, "{variant}");
    }
    assert!(Platform::host().suits("").is_some());
}

#[test]
fn a_platform_has_two_or_three_words() {
    for (text, shown) in [
        ("linux/arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("Linux/AARCH64/V8", "linux/arm64/v8"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/arm/v7", "linux/arm/v7"),
        ("windows/amd64", "windows/amd64"),
    ] {
        let platform: ImagePlatform = text.parse().unwrap();
        assert_eq!(platform.to_string(), shown);
        let json = serde_json::to_string(&platform).unwrap();
        assert_eq!(serde_json::from_str::<ImagePlatform>(&json).unwrap(), platform);
    }
    let long = format!("linux/{}", "x".repeat(1000));
    for bad in [
        "",
        "linux",
        "arm64",
        "/",
        "linux/",
        "/arm64",
        "linux//v8",
        "linux/arm64/",
        "linux/arm64/v8/x",
        "linux/arm 64",
        "linux/\u{e4}rm",
        &long,
    ] {
        assert_eq!(bad.parse::<ImagePlatform>(), Err(InvalidPlatform), "{bad}");
    }
    assert!(serde_json::from_str::<ImagePlatform>("\"linux\"").is_err());
}

#[test]
fn a_platform_limits_the_variants() {
    let narrowed = |host: &Platform, wanted: &str| host.narrowed(&wanted.parse().unwrap());
    let amd64 = Platform::test("amd64", 3);
    assert_eq!(narrowed(&amd64, "linux/amd64").unwrap(), amd64);
    let second = narrowed(&amd64, "linux/amd64/v2").unwrap();
    assert_eq!(second.to_string(), "linux/amd64/v2");
    assert_eq!(["", "v1", "v2", "v3"].map(|v| second.suits(v)), [Some(1), Some(1), Some(2), None]);
    for other in ["linux/amd64/v4", "linux/amd64/x", "linux/arm64", "windows/amd64", "linux/386"] {
        assert_eq!(narrowed(&amd64, other), None, "{other}");
    }
    let arm64 = Platform::test("arm64", 8);
    for same in ["linux/arm64", "linux/arm64/v8", "linux/aarch64"] {
        let same = narrowed(&arm64, same).unwrap();
        assert_eq!((same.suits(""), same.suits("v8")), (Some(8), Some(8)));
    }
    for other in ["linux/arm64/v9", "linux/arm/v7", "linux/arm/v8", "linux/amd64"] {
        assert_eq!(narrowed(&arm64, other), None, "{other}");
    }
}
