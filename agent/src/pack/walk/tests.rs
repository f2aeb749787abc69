use super::*;

#[test]
fn entries_are_named_by_the_last_component() {
    for (path, name) in [
        ("/", "."),
        ("//", "."),
        ("/etc", "etc"),
        ("/etc/", "etc"),
        ("/etc/hosts", "hosts"),
        ("/etc/.", "."),
        ("/etc/./", "."),
        ("/etc/..", "."),
        ("/etc/...", "..."),
    ] {
        assert_eq!(last_component(path.as_bytes()), name.as_bytes(), "{path}");
    }
}
