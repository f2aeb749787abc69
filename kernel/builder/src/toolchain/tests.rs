//! Tests of the search for tools, and the environment of make.

use super::*;

#[test]
fn absent_programs_and_headers_are_seen() {
    assert!(runs("sh"));
    assert!(!runs("boxlite-no-such-program"));
    assert!(!has_header("boxlite-no-such-header.h"));
}

#[test]
fn the_error_says_what_to_install() {
    let missing = vec![tool("gelf.h", "libelf-dev"), tool("bc", "bc"), tool("x", "bc")];
    assert_eq!(
        BuildError::MissingTools(missing).to_string(),
        "the kernel build needs gelf.h, bc, x; install with: apt-get install bc libelf-dev"
    );
}

#[test]
fn the_callers_environment_does_not_reach_kbuild() {
    for name in ["MAKEFLAGS", "KCONFIG_ALLCONFIG", "KBUILD_OUTPUT", "CC", "ARCH"] {
        assert!(steers_kbuild(name), "{name}");
    }
    assert!(!steers_kbuild("PATH"));
}
