use super::*;

fn at(path: &str, follow: bool) -> Result<FileStat, FailureKind> {
    stat(&Stat { path: path.into(), follow }).map_err(|failure| {
        assert!(failure.message.contains(path), "{failure}");
        failure.kind
    })
}

#[test]
fn links_are_reported_or_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), b"12345").unwrap();
    std::os::unix::fs::symlink("file", path("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
    let link = at(&path("link"), false).unwrap();
    assert_eq!((link.kind, &link.link_target[..]), (FileKind::Symlink, &b"file"[..]));
    let file = at(&path("link"), true).unwrap();
    assert_eq!((file.kind, file.size, file.link_target.len()), (FileKind::File, 5, 0));
    assert_eq!(at(path("file").trim_start_matches('/'), false), Ok(file));
    assert_eq!(at("/", false).unwrap().kind, FileKind::Directory);
    assert_eq!(at("/dev/null", false).unwrap().kind, FileKind::Character);
    assert_eq!(at(&path("dangling"), true), Err(FailureKind::NoSuchPath));
    assert_eq!(at(&path("file/below"), false), Err(FailureKind::NotADirectory));
    assert!(stat(&Stat { path: b"a\0b".to_vec(), follow: false }).is_err());
}
