//! Tests of keys in docker's configuration.

use super::*;

#[test]
fn keys_name_registries_or_parts_of_them() {
    for (key, host, path) in [
        ("reg.lan:5000", "reg.lan:5000", ""),
        ("reg.lan/", "reg.lan", ""),
        ("reg.lan/v2/", "reg.lan", ""),
        ("reg.lan/v2/team", "reg.lan", "v2/team"),
        ("reg.lan/team/app/", "reg.lan", "team/app"),
        ("https://reg.lan/team", "reg.lan", ""),
        ("https://index.docker.io/v1/", "docker.io", ""),
        ("index.docker.io/v1/", "docker.io", ""),
        ("docker.io/me", "docker.io", "me"),
        ("http://reg.lan", "reg.lan", ""),
        ("", "", ""),
    ] {
        assert_eq!(Scope::of(key), Scope { host, path }, "{key}");
    }
    assert_eq!(Scope::of("docker.io").key(), DOCKER_HUB_KEY);
    assert_eq!(Scope::of("docker.io/me").key(), "docker.io/me");
}

#[test]
fn a_path_includes_what_is_below_it() {
    let includes = |key, repository| Scope::of(key).includes(Scope::of(repository));
    for key in ["reg.lan", "https://reg.lan/x", "reg.lan/team", "reg.lan/team/app"] {
        assert!(includes(key, "reg.lan/team/app"), "{key}");
    }
    for key in ["reg.lan:1", "reg.lan/tea", "reg.lan/team/app/x", "reg.lan/app", "other/team"] {
        assert!(!includes(key, "reg.lan/team/app"), "{key}");
    }
    assert!(!includes("reg.lan/team", "reg.lan"));
}
