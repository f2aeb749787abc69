use super::*;

#[test]
fn names_are_entries_or_whiteouts() {
    let of = |path: &'static str| Meaning::of(path.as_bytes()).map_err(|e| e.to_string());
    assert_eq!(of("a/b"), Ok(Meaning::Entry));
    assert_eq!(of("a/.wh.b"), Ok(Meaning::Whiteout(b"b")));
    assert_eq!(of(".wh..hidden"), Ok(Meaning::Whiteout(b".hidden")));
    assert_eq!(of(".wh...."), Ok(Meaning::Whiteout(b"...")));
    assert_eq!(of("a/.wh..wh..opq"), Ok(Meaning::Opaque));
    assert_eq!(of(".wh..wh.plnk"), Ok(Meaning::Ignored));
    assert_eq!(of(".wh..wh.plnk/123.456"), Ok(Meaning::Ignored));
    assert_eq!(of("a/.whatever"), Ok(Meaning::Entry));
    assert_eq!(of("a.wh.b"), Ok(Meaning::Entry));
    for bad in [".wh.", "a/.wh..", ".wh...", ".wh.a/b", "x/.wh.a/b/c"] {
        assert!(of(bad).is_err(), "{bad}");
    }
}
