//! The machine's name, in the kernel and in the files that programs look it up in.
//!
//! `/etc/hostname` and `/etc/hosts` are written where they are missing or empty, which is how images
//! ship them. A file that somebody filled is left as it is.

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{self, Errno};

/// Names a box.
pub(crate) fn name_box(hostname: &str) {
    name(hostname);
    let hosts = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"
    );
    for (path, content) in [("/etc/hostname", format!("{hostname}\n")), ("/etc/hosts", hosts)] {
        if let Err(e) = fill(path, content.as_bytes()) {
            crate::log::warn(format_args!("cannot write {path}: {e}"));
        }
    }
}

/// Names the machine in the kernel only.
pub(crate) fn name(hostname: &str) {
    if let Err(e) = rustix::system::sethostname(hostname.as_bytes()) {
        crate::log::warn(format_args!("cannot set the host name {hostname:?}: {e}"));
    }
}

/// Writes a file that is missing or empty. An image may have anything there: never wait for a FIFO
/// or write to a device.
fn fill(path: &str, content: &[u8]) -> io::Result<()> {
    let create = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
    let existing = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match rustix::fs::open(path, create, Mode::from_raw_mode(0o644)) {
        // No /etc: an image that does not care.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(Errno::EXIST) => {
            let stat = rustix::fs::stat(path)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size > 0 {
                return Ok(());
            }
            rustix::fs::open(path, existing, Mode::empty())?
        }
        result => result?,
    };
    rustix::io::write(file, content).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_missing_and_empty_files_are_filled() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("full"), "mine\n").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        for name in ["missing", "empty", "full", "fifo"] {
            fill(&path(name), b"ours\n").unwrap();
        }
        fill(&path("no/such/dir"), b"ours\n").unwrap();
        let read = |name| std::fs::read_to_string(path(name)).unwrap();
        assert_eq!(
            (&*read("missing"), &*read("empty"), &*read("full")),
            ("ours\n", "ours\n", "mine\n")
        );
    }
}
