//! Tests of how messages show numbers and lists.

use super::*;

#[test]
fn byte_counts_read_well() {
    assert_eq!(ByteCount(0).to_string(), "0 bytes");
    assert_eq!(ByteCount(1023).to_string(), "1023 bytes");
    assert_eq!(ByteCount(1536).to_string(), "1.5 KiB (1536 bytes)");
    assert!(ByteCount(u64::MAX).to_string().contains("TiB"));
}

#[test]
fn long_lists_are_cut() {
    let tags: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    assert!(list(&tags).ends_with("19 and 5 more"));
    assert_eq!(list(&[]), "(none)");
}
