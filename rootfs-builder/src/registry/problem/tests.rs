//! Tests of how a registry's words are shown.

use super::*;

#[test]
fn text_of_registries_is_cut_and_cleaned() {
    assert_eq!(printable(" a\x1b[31m\nb "), "a [31m b");
    let long = printable(&"é".repeat(500));
    assert_eq!(long.chars().count(), 201);
}
