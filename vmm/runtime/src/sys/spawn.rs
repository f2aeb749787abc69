//! Code of a child between fork and exec, which has no safe interface.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Number of descriptors that are handled one by one where the system cannot handle a range.
const MOST_FILES: u64 = 1 << 16;

/// Makes the child the leader of a new session, so that it has no controlling terminal and gets no signals from one.
pub(crate) fn in_new_session(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?)) };
}

/// Lets the child inherit only its standard streams and `keep`, whatever this process inherited or opened without
/// `O_CLOEXEC`. Otherwise the child would keep locks, pipes and mount points in use.
pub(crate) fn inherit_only(command: &mut Command, keep: Vec<RawFd>) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.unwrap_or(MOST_FILES).min(MOST_FILES) as RawFd;
    let close_others = move || {
        close_from_3_at_exec(limit)?;
        keep.iter().try_for_each(|file| set_descriptor_flags(*file, 0))
    };
    // SAFETY: close_range and fcntl are async-signal-safe, and nothing is allocated. Nothing is closed before exec.
    unsafe { command.pre_exec(close_others) };
}

#[cfg(target_os = "linux")]
fn close_from_3_at_exec(limit: RawFd) -> io::Result<()> {
    // SAFETY: it only sets a flag of descriptors.
    let closed = unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    match closed {
        0 => Ok(()),
        // Linux before 5.11, or a seccomp filter.
        _ => one_by_one(limit),
    }
}

#[cfg(not(target_os = "linux"))]
fn close_from_3_at_exec(limit: RawFd) -> io::Result<()> {
    one_by_one(limit)
}

fn one_by_one(limit: RawFd) -> io::Result<()> {
    for file in 3..limit {
        match set_descriptor_flags(file, libc::FD_CLOEXEC) {
            Err(e) if e.raw_os_error() != Some(libc::EBADF) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn set_descriptor_flags(file: RawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: it only sets flags of a descriptor, if there is one of that number.
    match unsafe { libc::fcntl(file, libc::F_SETFD, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

    use super::*;

    /// The descriptors of a shell that was started so, and its session.
    fn started(change: impl FnOnce(&mut Command)) -> (Vec<RawFd>, bool) {
        let mut shell = Command::new("/bin/sh");
        // Two fields behind the parenthesis of the name, and the session.
        let script = "for f in /proc/$$/fd/*; do echo ${f##*/}; done; \
                      set -- $(sed 's/.*) //' /proc/$$/stat); [ $4 = $$ ] && echo leader";
        shell.args(["-c", script]);
        change(&mut shell);
        let output = String::from_utf8(shell.output().unwrap().stdout).unwrap();
        (output.lines().filter_map(|line| line.parse().ok()).collect(), output.contains("leader"))
    }

    #[test]
    fn a_child_inherits_only_the_given_descriptors() {
        let null = File::open("/dev/null").unwrap();
        // Above the numbers that a shell uses itself.
        let files = [50, 60].map(|least| fcntl_dupfd_cloexec(&null, least).unwrap());
        for file in &files {
            fcntl_setfd(file, FdFlags::empty()).unwrap();
        }
        let [stray, given] = [files[0].as_raw_fd(), files[1].as_raw_fd()];
        let (inherited, leads) = started(|_| {});
        assert!(inherited.contains(&stray) && !leads, "the test is sound: {inherited:?}");
        let (inherited, leads) = started(|command| {
            in_new_session(command);
            inherit_only(command, vec![given]);
        });
        assert!(inherited.contains(&given) && !inherited.contains(&stray), "{inherited:?}");
        assert!(leads);
        // On systems that close no ranges. (Last, since it is about all of this process's descriptors.)
        one_by_one(1024).unwrap();
        assert!(!started(|_| {}).0.contains(&stray));
    }
}
