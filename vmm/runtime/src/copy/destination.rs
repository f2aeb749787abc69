//! The destination of a copy, by the rules of `docker cp`.

/// The source of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source<'a> {
    /// Whether the source is a directory.
    pub(super) is_dir: bool,
    /// The source's name; none if only its content is copied (`SRC/.`).
    pub(super) name: Option<&'a [u8]>,
}

/// What exists at the destination, with symlinks followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    File,
    Directory,
    /// A device, a pipe or a socket.
    Special,
}

/// Where the source goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// An existing directory.
    pub(super) dir: Vec<u8>,
    /// The name in the directory; none if the content of the source goes into the directory itself.
    pub(super) name: Option<Vec<u8>>,
}

/// The parts of a path, as docker parses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spelling<'a> {
    /// The last component; none if there is none, or it is `.` or `..`.
    pub(super) name: Option<&'a [u8]>,
    /// The path before the name, with its slash; may be empty.
    pub(super) parent: &'a [u8],
    /// Whether the path must be a directory: it ends in a slash, `.` or `..`.
    pub(super) is_dir: bool,
}

impl<'a> Spelling<'a> {
    pub(super) fn of(path: &'a [u8]) -> Self {
        let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
        let bare = path.get(..end).unwrap_or_default();
        let start = bare.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = bare.split_at(start);
        match name {
            b"" | b"." | b".." => Self { name: None, parent: path, is_dir: true },
            name => Self { name: Some(name), parent, is_dir: end < path.len() },
        }
    }
}

/// Decides where `source` goes when it is copied to `to`, at which `found` exists. The error says why it cannot be
/// copied.
pub(super) fn destination(
    source: Source<'_>,
    to: &[u8],
    found: Found,
) -> Result<Destination, &'static str> {
    let spelling = Spelling::of(to);
    let beside =
        |name: &[u8]| Destination { dir: spelling.parent.to_vec(), name: Some(name.to_vec()) };
    match (found, spelling.name) {
        (Found::Directory, _) => {
            let name = source.name.map(<[u8]>::to_vec);
            Ok(Destination { dir: to.to_vec(), name })
        }
        (Found::Special, _) => Err("it is a device, a pipe or a socket"),
        (Found::File, _) if source.is_dir => Err("it is a file, and the source is a directory"),
        (Found::File, _) if spelling.is_dir => Err("it is not a directory"),
        (Found::Nothing, _) if spelling.is_dir && !source.is_dir => {
            Err("there is no such directory")
        }
        (Found::File | Found::Nothing, Some(name)) => Ok(beside(name)),
        (Found::File | Found::Nothing, None) => Err("there is no such directory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Source<'static> = Source { is_dir: false, name: Some(b"src") };
    const DIR: Source<'static> = Source { is_dir: true, name: Some(b"src") };
    const CONTENT: Source<'static> = Source { is_dir: true, name: None };

    fn placed(source: Source<'_>, to: &str, found: Found) -> Result<String, &'static str> {
        destination(source, to.as_bytes(), found).map(|to| {
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            format!("{} | {}", text(to.dir), to.name.map_or(".".into(), text))
        })
    }

    #[test]
    fn a_file_goes_where_docker_puts_it() {
        assert_eq!(placed(FILE, "/d/new", Found::Nothing).unwrap(), "/d/ | new");
        assert_eq!(placed(FILE, "new", Found::Nothing).unwrap(), " | new");
        assert_eq!(placed(FILE, "/d/old", Found::File).unwrap(), "/d/ | old");
        assert_eq!(placed(FILE, "/d", Found::Directory).unwrap(), "/d | src");
        assert_eq!(placed(FILE, "/d/", Found::Directory).unwrap(), "/d/ | src");
        for (to, found) in [
            ("/d/new/", Found::Nothing),
            ("/d/new/.", Found::Nothing),
            ("/d/old/", Found::File),
            ("/dev/null", Found::Special),
        ] {
            assert!(placed(FILE, to, found).is_err(), "{to}");
        }
    }

    #[test]
    fn a_directory_goes_where_docker_puts_it() {
        assert_eq!(placed(DIR, "/d/new", Found::Nothing).unwrap(), "/d/ | new");
        assert_eq!(placed(DIR, "/d/new/", Found::Nothing).unwrap(), "/d/ | new");
        assert_eq!(placed(CONTENT, "/d/new", Found::Nothing).unwrap(), "/d/ | new");
        assert_eq!(placed(DIR, "/d", Found::Directory).unwrap(), "/d | src");
        assert_eq!(placed(CONTENT, "/d", Found::Directory).unwrap(), "/d | .");
        assert!(placed(DIR, "/d/old", Found::File).is_err());
        assert!(placed(CONTENT, "/d/old", Found::File).is_err());
        assert!(placed(DIR, "/nowhere/..", Found::Nothing).is_err());
    }

    #[test]
    fn paths_are_parsed_as_by_docker() {
        let of = |path: &'static str| {
            let Spelling { name, parent, is_dir } = Spelling::of(path.as_bytes());
            (name.map(|name| std::str::from_utf8(name).unwrap()), parent, is_dir)
        };
        assert_eq!(of("a"), (Some("a"), &b""[..], false));
        assert_eq!(of("/a"), (Some("a"), &b"/"[..], false));
        assert_eq!(of("/a/b//"), (Some("b"), &b"/a/"[..], true));
        assert_eq!(of("/a/."), (None, &b"/a/."[..], true));
        assert_eq!(of("/a/./"), (None, &b"/a/./"[..], true));
        assert_eq!(of(".."), (None, &b".."[..], true));
        assert_eq!(of("/"), (None, &b"/"[..], true));
        assert_eq!(of(""), (None, &b""[..], true));
    }
}
