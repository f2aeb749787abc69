//! Tests of references and names: spellings, mistakes, round trips.

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> ImageReference {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn places() {
    assert_eq!(
        parse("oci:/a/b:v1"),
        ImageReference::OciLayout { dir: "/a/b".into(), tag: Some("v1".into()) }
    );
    assert_eq!(
        parse("docker-archive:/a/b.tar:example.com:5000/x:v1"),
        ImageReference::DockerArchive {
            file: "/a/b.tar".into(),
            tag: Some("example.com:5000/x:v1".into())
        }
    );
    assert_eq!(parse("rootfs:/a:b"), ImageReference::Directory { dir: "/a:b".into() });
    let here = std::env::current_dir().unwrap();
    assert_eq!(parse("oci:x"), ImageReference::OciLayout { dir: here.join("x"), tag: None });
    assert_eq!(parse("rootfs:."), ImageReference::Directory { dir: here });
}

#[test]
fn a_path_may_have_colons() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    std::fs::create_dir_all(at("a:b/c")).unwrap();
    std::fs::write(at("a:b/x:y.tar"), "").unwrap();
    let (dir, file) = (at("a:b/c"), at("a:b/x:y.tar"));
    for tag in [None, Some("v1"), Some("example.com:5000/x:v1")] {
        let tag = tag.map(str::to_owned);
        let layout = ImageReference::OciLayout { dir: dir.clone().into(), tag: tag.clone() };
        assert_eq!(parse(&layout.to_string()), layout);
        let archive = ImageReference::DockerArchive { file: file.clone().into(), tag };
        assert_eq!(parse(&archive.to_string()), archive);
    }
    // A path that does not exist is split as in skopeo; of two existing paths, the shorter is meant.
    let split = |text: &str| match parse(text) {
        ImageReference::OciLayout { dir, tag } => (dir.display().to_string(), tag.unwrap()),
        other => panic!("{other}"),
    };
    let none = at("none");
    assert_eq!(split(&format!("oci:{none}:b/c:v1")), (none, "b/c:v1".into()));
    std::fs::create_dir(at("a")).unwrap();
    assert_eq!(split(&format!("oci:{dir}")), (at("a"), "b/c".into()));
}

#[test]
fn names_are_shortened_to_one_spelling() {
    for (text, name) in [
        ("alpine", "alpine:latest"),
        ("docker://alpine", "alpine:latest"),
        ("docker://docker.io/library/alpine:3.20", "alpine:3.20"),
        ("library/alpine", "alpine:latest"),
        ("docker.io/library/foo/bar", "library/foo/bar:latest"),
        ("docker.io/grafana/grafana", "grafana/grafana:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("quay.io:443/a/b-c__d.e_f---g:V1.2_-", "quay.io:443/a/b-c__d.e_f---g:V1.2_-"),
        ("index.docker.io/library/alpine", "alpine:latest"),
        ("docker.io/example.com/x", "docker.io/example.com/x:latest"),
        ("[::1]:5000/x:1", "[::1]:5000/x:1"),
    ] {
        assert_eq!(parse(text).to_string(), name);
    }
    let digest = Digest::sha256(b"");
    assert_eq!(parse(&format!("alpine@{digest}")).to_string(), format!("alpine@{digest}"));
}

#[test]
fn names_say_where_to_ask_for_what() {
    let digest = Digest::sha256(b"");
    let pinned = format!("ghcr.io/x/y:v1@{digest}");
    for (text, registry, repository, tag) in [
        ("alpine", "docker.io", "library/alpine", Some("latest")),
        ("grafana/grafana:1", "docker.io", "grafana/grafana", Some("1")),
        ("docker.io/example.com/x", "docker.io", "example.com/x", Some("latest")),
        ("localhost:5000/a:b", "localhost:5000", "a", Some("b")),
        ("[::1]:5000/a/b:c", "[::1]:5000", "a/b", Some("c")),
        (&pinned, "ghcr.io", "x/y", Some("v1")),
    ] {
        let name: ImageName = text.parse().unwrap();
        assert_eq!((name.registry(), &*name.repository(), name.tag()), (registry, repository, tag));
    }
    let name: ImageName = pinned.parse().unwrap();
    assert_eq!((name.full(), name.digest()), (pinned, Some(digest)));
    let name: ImageName = "alpine".parse().unwrap();
    assert_eq!(name.full(), "docker.io/library/alpine:latest");
    assert_eq!("alpine".parse::<ImageName>().unwrap().digest(), None);
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    for (text, reason) in [
        ("", "empty"),
        ("oci:", "path is missing"),
        ("oci:/x:", "tag behind the colon"),
        ("docker-archive::latest", "path is missing"),
        ("rootfs:", "path is missing"),
        ("rootfs:a\0b", "NUL"),
        ("./image", "this is a path"),
        ("/image", "this is a path"),
        ("oci-archive:x.tar", "cannot be read from oci-archive"),
        ("Alpine", "lower-case"),
        ("a//b", "lower-case"),
        ("a___b", "lower-case"),
        ("a..b", "lower-case"),
        ("a-", "lower-case"),
        ("alpine:", "tag"),
        ("alpine:-x", "tag"),
        ("alpine@sha256:12", "digest"),
        ("bad_host.com/x", "host"),
        ("localhost:99999/x", "host"),
        ("[::g]:5000/x", "host"),
        ("[::1]5000/x", "host"),
        ("docker://", "empty"),
        ("docker://oci:latest", "transport"),
        ("docker:latest", "transport"),
        ("rootfs", "transport"),
    ] {
        let error = text.parse::<ImageReference>().expect_err(text).to_string();
        assert!(error.contains(reason), "{text}: {error}");
        assert!(error.contains("oci:DIR"), "{error}");
    }
}

#[test]
fn tags_match_in_any_spelling() {
    for (name, tag) in [
        ("busybox:latest", "busybox:latest"),
        ("busybox:latest", "busybox"),
        ("busybox:1.36", "1.36"),
        ("docker.io/library/busybox:latest", "busybox"),
        ("busybox:latest", "docker.io/library/busybox:latest"),
        ("localhost:5000/x:v1", "v1"),
    ] {
        assert!(names_match(name, tag), "{name} {tag}");
    }
    for (name, tag) in [
        ("busybox:latest", "alpine"),
        ("busybox:1.36", "busybox"),
        ("localhost:5000/x", "5000/x"),
        ("a/busybox:1", "busybox:1"),
    ] {
        assert!(!names_match(name, tag), "{name} {tag}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in any::<String>()) {
        let _ = text.parse::<ImageReference>();
    }

    #[test]
    fn displayed_references_parse_to_the_same(
        transport in "oci:|docker-archive:|rootfs:|docker://|",
        rest in "[a-z0-9/._-]{0,12}(:[a-z0-9._-]{0,5}){0,2}",
    ) {
        if let Ok(reference) = format!("{transport}{rest}").parse::<ImageReference>() {
            prop_assert_eq!(reference.to_string().parse::<ImageReference>().unwrap(), reference);
        }
    }
}
