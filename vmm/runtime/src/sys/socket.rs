//! Unix sockets: one that another process opened, and paths that are too long for an address.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Takes the listening socket that this process inherited as descriptor `number`. To be called once.
///
/// # Errors
/// The descriptor is none, or no socket that listens.
#[cfg(target_os = "linux")]
pub(crate) fn inherited_listener(number: RawFd) -> io::Result<UnixListener> {
    use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

    use rustix::io::{FdFlags, fcntl_setfd};
    // SAFETY: it only reads flags of a descriptor, if there is one of that number.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nothing closes it: it is standard input, output or error, or an inherited one,
    // or belongs to a part of this process that lives as long.
    let looked_at = unsafe { BorrowedFd::borrow_raw(number) };
    if !rustix::net::sockopt::socket_acceptconn(looked_at)? {
        return Err(io::ErrorKind::NotConnected.into());
    }
    fcntl_setfd(looked_at, FdFlags::CLOEXEC)?;
    // SAFETY: nothing in this process listens before this call, so the socket is an inherited one, without an owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) }.into())
}

/// Every nested host runs Linux.
#[cfg(not(target_os = "linux"))]
pub(crate) fn inherited_listener(_: RawFd) -> io::Result<UnixListener> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The path of a socket in the folder `path`, which is open as `dir`. The address of a socket has at most 107 bytes, and
/// a home's path may have more, so the path goes through the descriptor.
#[cfg(target_os = "linux")]
pub(crate) fn socket_path(dir: &File, _path: &Path, name: &str) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    Ok(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()).into())
}

/// The path of a socket in the folder `path`.
///
/// # Errors
/// Without `/proc`, no descriptor leads to the folder, and the path is too long for the address of a socket.
#[cfg(not(target_os = "linux"))]
pub(crate) fn socket_path(_dir: &File, path: &Path, name: &str) -> io::Result<PathBuf> {
    short_enough(path.join(name))
}

/// Refuses a path that is too long for a socket's address on macOS.
#[cfg(any(test, not(target_os = "linux")))]
fn short_enough(path: PathBuf) -> io::Result<PathBuf> {
    /// `sun_path` has 104 bytes, with the zero at the end.
    const MOST: usize = 103;
    match path.as_os_str().len() {
        ..=MOST => Ok(path),
        len => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the path of this socket has {len} bytes, and this system allows {MOST}: choose a home with a \
                 shorter path"
            ),
        )),
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused() {
        let path = |len: usize| PathBuf::from(format!("/{}", "x".repeat(len - 1)));
        assert_eq!(short_enough(path(103)).unwrap(), path(103));
        let refused = short_enough(path(104)).unwrap_err().to_string();
        assert!(refused.contains("104 bytes") && refused.contains("shorter path"), "{refused}");
    }

    #[test]
    fn only_a_listening_socket_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let number = UnixListener::bind(&path).unwrap().into_raw_fd();
        let client = UnixStream::connect(&path).unwrap();
        let listener = inherited_listener(number).unwrap();
        assert_eq!(listener.as_raw_fd(), number);
        listener.accept().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for other in [client.as_raw_fd(), null.as_raw_fd(), 100_000] {
            inherited_listener(other).unwrap_err();
        }
    }
}
