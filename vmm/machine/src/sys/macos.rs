//! macOS: process accounting, anonymous shared memory, the sandbox.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;

use boxlite_devices::GuestMemory;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use super::Paths;

/// The user ID of the process at the other end of a socket.
pub(in super::super) fn peer_uid(socket: &UnixStream) -> io::Result<u32> {
    let (mut uid, mut gid) = (0, 0);
    // SAFETY: the descriptor is open, and both results are written to variables of their type.
    match unsafe { libc::getpeereid(socket.as_raw_fd(), &mut uid, &mut gid) } {
        0 => Ok(uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Resident memory of this process in bytes, with its guest's; 0 if it is unknown.
pub(in super::super) fn resident() -> u64 {
    let pid = std::process::id().cast_signed();
    // SAFETY: all zeroes is a valid record of numbers.
    let mut usage: libc::rusage_info_v4 = unsafe { std::mem::zeroed() };
    let record = ptr::from_mut(&mut usage).cast();
    // SAFETY: the call writes a record of the version that it is asked for, which `usage` is.
    match unsafe { libc::proc_pid_rusage(pid, libc::RUSAGE_INFO_V4, record) } {
        0 => usage.ri_resident_size,
        _ => 0,
    }
}

/// Memory at these guest-physical addresses and of these lengths: anonymous, and shared, so that it stays one object
/// in the kernel, which the framework maps into the guest. macOS has no huge pages for it.
pub(in super::super) fn guest_memory(ranges: &[(GuestAddress, usize)]) -> io::Result<GuestMemory> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_ANON | libc::MAP_SHARED | libc::MAP_NORESERVE;
    let map = |(start, len): &(GuestAddress, usize)| {
        let region = MmapRegion::build(None, *len, rights, flags).map_err(io::Error::other)?;
        GuestRegionMmap::new(region, *start)
            .ok_or_else(|| io::Error::other("guest memory does not fit its addresses"))
    };
    let regions = ranges.iter().map(map).collect::<io::Result<_>>()?;
    GuestMemory::from_regions(regions).map_err(io::Error::other)
}

/// Does nothing: the kernel of macOS drops clean pages of code when it needs memory.
pub(in super::super) const fn release_startup_code() {}

/// What a VM process may do once its VM exists, in the sandbox's own language.
const PROFILE: &str = include_str!("machine.sb");

/// Takes from this process all rights that it does not need any more, for good. Called after the first VM was created;
/// a later call does nothing.
///
/// # Errors
/// The sandbox's message.
pub(in super::super) fn confine(paths: &Paths<'_>) -> io::Result<()> {
    static RESULT: OnceLock<Result<(), String>> = OnceLock::new();
    let result = RESULT.get_or_init(|| apply(paths).map_err(|e| e.to_string()));
    result.clone().map_err(io::Error::other)
}

fn apply(paths: &Paths<'_>) -> io::Result<()> {
    // A parameter that is not set would be an error. A path that does not exist allows nothing.
    let none = Path::new("/dev/null/none");
    let [kernel, initramfs] = paths.boot;
    let values = [
        (c"FOLDER", paths.folder.unwrap_or(none)),
        (c"REMOVED", paths.removed.unwrap_or(none)),
        (c"KERNEL", kernel),
        (c"INITRAMFS", initramfs),
    ];
    let mut parameters = Vec::new();
    for (name, path) in values {
        parameters.push(name.to_owned());
        parameters.push(CString::new(resolve(path).as_os_str().as_bytes())?);
    }
    init(PROFILE, &parameters)
}

/// The path without symbolic links, such as that of `/tmp`: the sandbox compares resolved paths. What does not exist
/// yet has a folder that does.
fn resolve(path: &Path) -> PathBuf {
    let resolved = path.canonicalize().or_else(|e| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map(|parent| parent.join(name)),
        _ => Err(e),
    });
    resolved.unwrap_or_else(|_| path.to_owned())
}

/// Applies a profile to this process. `parameters` are names, each followed by its value.
fn init(profile: &str, parameters: &[CString]) -> io::Result<()> {
    // In libSystem; not in Apple's headers, but what browsers have used for years to give a profile its parameters.
    unsafe extern "C" {
        fn sandbox_init_with_parameters(
            profile: *const c_char,
            flags: u64,
            parameters: *const *const c_char,
            error: *mut *mut c_char,
        ) -> c_int;
        fn sandbox_free_error(error: *mut c_char);
    }
    let profile = CString::new(profile)?;
    let mut pointers: Vec<*const c_char> = parameters.iter().map(|text| text.as_ptr()).collect();
    pointers.push(ptr::null());
    let mut error = ptr::null_mut();
    // SAFETY: all strings live until the call returns, and the array ends with a null pointer.
    let result =
        unsafe { sandbox_init_with_parameters(profile.as_ptr(), 0, pointers.as_ptr(), &mut error) };
    if result == 0 {
        return Ok(());
    }
    if error.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: after a failure the call has stored a string, which is freed once, after it was copied.
    let message = unsafe {
        let message = CStr::from_ptr(error).to_string_lossy().into_owned();
        sandbox_free_error(error);
        message
    };
    Err(io::Error::other(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_resolved_as_far_as_they_exist() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(resolve(dir.path()), real);
        assert_eq!(resolve(&dir.path().join("new")), real.join("new"));
        assert_eq!(resolve(Path::new("/none/at/all")), Path::new("/none/at/all"));
    }

    /// A profile that does not compile would keep every box from starting. It is applied to a child process.
    #[test]
    fn the_profile_denies_other_files() {
        if let Some(dir) = std::env::var_os("BOXLITE_TEST_SANDBOX") {
            let dir = PathBuf::from(dir);
            let (kernel, folder) = (dir.join("kernel"), dir.join("box"));
            let paths = Paths { folder: Some(&folder), removed: None, boot: [&kernel; 2] };
            confine(&paths).unwrap();
            std::fs::read(&kernel).unwrap();
            let status = std::fs::File::create(folder.join("status")).unwrap();
            status.sync_all().unwrap();
            std::fs::read("/etc/resolv.conf").unwrap();
            let published = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            published.set_nonblocking(true).unwrap();
            std::net::TcpStream::connect(published.local_addr().unwrap()).unwrap();
            std::fs::read(dir.join("secret")).unwrap_err();
            std::fs::write(&kernel, "x").unwrap_err();
            std::process::Command::new("/usr/bin/true").status().unwrap_err();
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("box")).unwrap();
        for name in ["kernel", "secret"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::macos::tests::the_profile_denies_other_files"])
            .env("BOXLITE_TEST_SANDBOX", dir.path().canonicalize().unwrap())
            .status();
        assert!(child.unwrap().success());
    }
}
