//! Operations on files that rustix lacks.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{AtFlags, Mode, chmodat};
use rustix::io::{self, Errno};

/// `fchmodat2`, the same number on every architecture; libc does not have it for all.
const SYS_FCHMODAT2: libc::c_long = 452;

/// Sets the mode of the entry `name` of `dir`. Fails for a symlink.
pub(crate) fn chmod_nofollow(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
    // SAFETY: the name is a C string that outlives the call; the rest are integers.
    let result = unsafe {
        libc::syscall(
            SYS_FCHMODAT2,
            dir.as_fd().as_raw_fd(),
            c_name.as_ptr(),
            mode,
            libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    if result == 0 {
        return Ok(());
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL) {
        // A kernel before 6.6 only has the call that follows symlinks.
        Errno::NOSYS => chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty()),
        errno => Err(errno),
    }
}
