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
