//! Starts a process as `posix_spawn` does, with namespaces, a control group and a user of its own.
//!
//! The child borrows the agent's memory until it executes its program (`CLONE_VM | CLONE_VFORK`): nothing is
//! copied, and the child leaves an error in memory for the parent to read. Until then the child must not
//! allocate, panic or take a lock, so it only makes system calls on data that the parent has prepared.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    Gid, Pid, PidfdFlags, Resource, Rlimit, Uid, getrlimit, pidfd_open, setrlimit,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// Describes a process to start.
pub(crate) struct Plan<'a> {
    /// Paths to try in order, as `execvp` does.
    pub(crate) programs: &'a [&'a CStr],
    pub(crate) argv: &'a [&'a CStr],
    pub(crate) env: &'a [&'a CStr],
    pub(crate) working_dir: &'a CStr,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: &'a [Gid],
    /// Standard input, output and error, none of them numbered 0 to 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Another descriptor to inherit, and its number in the command, which must differ from its present one.
    pub(crate) inherited: Option<(BorrowedFd<'a>, c_int)>,
    /// Whether standard input becomes the controlling terminal.
    pub(crate) terminal: bool,
    /// `cgroup.procs` of the control group to enter.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) namespaces: Namespaces<'a>,
}

/// The PID namespace of a process, and the mount namespace that has the `/proc` for it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Namespaces<'a> {
    /// The agent's.
    Same,
    /// New ones, of which it is the first process.
    New,
    /// Those of the process of this pidfd.
    Join(BorrowedFd<'a>),
}

/// A started process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spawned {
    /// Its ID in the agent's namespace.
    pub(crate) pid: Pid,
    /// Its ID in its own namespace.
    pub(crate) inner_pid: Pid,
}

/// The step at which a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Clone,
    Namespaces,
    Session,
    Stdio,
    Cgroup,
    WorkingDir,
    User,
    Exec,
}

const STACK: usize = 32 << 10;

/// The soft limit on open files that processes start with; 0 for the agent's own.
static OPEN_FILES: AtomicU64 = AtomicU64::new(0);

/// Sets the limits on open files. The agent gets `hard` for both of its limits, because each command costs it
/// several descriptors; the processes that it starts get the soft limit `soft`.
pub(crate) fn limit_open_files(soft: u64, hard: u64) -> rustix::io::Result<()> {
    OPEN_FILES.store(soft, Ordering::Relaxed);
    setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) })
}

struct Child<'a> {
    plan: &'a Plan<'a>,
    argv: *const *const c_char,
    envp: *const *const c_char,
    inner_pid: Option<Pid>,
    failed: Option<(Step, Errno)>,
}

/// Starts the process, as leader of a session of its own. Returns once it executes its program, or
/// with the step that failed.
pub(crate) fn spawn(plan: &Plan<'_>) -> Result<Spawned, (Step, Errno)> {
    let pointers = |strings: &[&CStr]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(plan.argv), pointers(plan.env));
    let mut child =
        Child { plan, argv: argv.as_ptr(), envp: envp.as_ptr(), inner_pid: None, failed: None };
    let pid = match plan.namespaces {
        Namespaces::Same => clone(&mut child, 0),
        Namespaces::New => clone(&mut child, libc::CLONE_NEWPID | libc::CLONE_NEWNS),
        Namespaces::Join(first) => {
            let failed = |errno| (Step::Namespaces, errno);
            // Opened first, so that the way back to the agent's namespace exists.
            let own = pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).map_err(failed)?;
            children_into(first).map_err(failed)?;
            let pid = clone(&mut child, 0);
            // Later children of this thread belong in the agent's namespace.
            children_into(own.as_fd()).map_err(failed)?;
            pid
        }
    }
    .map_err(|errno| (Step::Clone, errno))?;
    // SAFETY: the child wrote them, if at all, before this thread continued.
    let (inner_pid, failed) = unsafe {
        (
            std::ptr::read_volatile(&raw const child.inner_pid),
            std::ptr::read_volatile(&raw const child.failed),
        )
    };
    match failed {
        None => Ok(Spawned { pid, inner_pid: inner_pid.unwrap_or(pid) }),
        Some(failed) => {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(failed)
        }
    }
}

/// Puts the next children of this thread into the PID namespace of `process`.
fn children_into(process: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_thread_name_spaces(process, ThreadNameSpaceType::PROCESS_ID)
}

/// Runs the child until it executes its program or has failed.
fn clone(child: &mut Child<'_>, namespaces: c_int) -> Result<Pid, Errno> {
    // u128 for the stack's alignment.
    let mut stack = Box::<[u128]>::new_uninit_slice(STACK / size_of::<u128>());
    // SAFETY: the stack outlives the call and nothing else uses it; CLONE_VFORK keeps this thread from
    // running until the child has its own memory or has exited, so `child` is never shared.
    let pid = unsafe {
        libc::clone(
            run_child,
            stack.as_mut_ptr_range().end.cast::<MaybeUninit<u8>>().cast::<c_void>(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD | namespaces,
            std::ptr::from_mut(child).cast(),
        )
    };
    Pid::from_raw(pid.max(0)).ok_or_else(|| {
        Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::AGAIN)
    })
}

extern "C" fn run_child(child: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a Child that outlives this process's use of the memory, and waits.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    child.inner_pid = Some(rustix::process::getpid());
    child.failed = Some(prepare_and_exec(child));
    // SAFETY: _exit does not return and runs no handlers of the parent's.
    unsafe { libc::_exit(127) }
}

/// Returns only on an error.
fn prepare_and_exec(child: &Child<'_>) -> (Step, Errno) {
    let plan = child.plan;
    if let Err(failed) = prepare(plan) {
        return failed;
    }
    // As execvp does: try the next path if there is no such file, and remember that one was denied.
    let mut error = Errno::NOENT;
    for program in plan.programs {
        // SAFETY: both arrays are null-terminated arrays of C strings that outlive the call.
        unsafe { libc::execve(program.as_ptr(), child.argv, child.envp) };
        match last_errno() {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => error = Errno::ACCESS,
            other => return (Step::Exec, other),
        }
    }
    (Step::Exec, error)
}

fn prepare(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    let at = |step| move |errno| (step, errno);
    enter(plan.namespaces).map_err(at(Step::Namespaces))?;
    rustix::process::setsid().map_err(at(Step::Session))?;
    for (number, fd) in (0..).zip(plan.stdio) {
        inherit_as(number, fd)?;
    }
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(at(Step::Session))?;
    }
    if let Some(cgroup) = plan.cgroup {
        // Outside the group, its descendants could not be found to be killed.
        rustix::io::write(cgroup, b"0").map_err(at(Step::Cgroup))?;
    }
    reset_inherited();
    if let Some((fd, number)) = plan.inherited {
        // After the last use of a descriptor that may have this number, and after all were marked to be closed.
        inherit_as(number, fd)?;
    }
    rustix::process::chdir(plan.working_dir).map_err(at(Step::WorkingDir))?;
    // These are the calls of the kernel, for this thread: glibc's would also change the agent's.
    rustix::thread::set_thread_groups(plan.groups)
        .and_then(|()| rustix::thread::set_thread_res_gid(plan.gid, plan.gid, plan.gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(plan.uid, plan.uid, plan.uid))
        .map_err(at(Step::User))
}

/// Makes the program inherit `fd` under another number.
fn inherit_as(number: c_int, fd: BorrowedFd<'_>) -> Result<(), (Step, Errno)> {
    // SAFETY: `number` belongs to the child, whose descriptors are a copy of the parent's, and the child uses no
    // descriptor that had the number before.
    let copied = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if copied < 0 { Err((Step::Stdio, last_errno())) } else { Ok(()) }
}

/// Enters the mount namespace that has the `/proc` for this process's PID namespace.
fn enter(namespaces: Namespaces<'_>) -> Result<(), Errno> {
    match namespaces {
        Namespaces::Same => Ok(()),
        Namespaces::New => {
            // All other mounts propagate to the agent's namespace.
            mount_change(c"/proc", MountPropagationFlags::PRIVATE)?;
            let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount(c"proc", c"/proc", c"proc", strict, c"")
        }
        Namespaces::Join(first) => move_into_thread_name_spaces(first, ThreadNameSpaceType::MOUNT),
    }
}

/// Resets what the agent has changed for itself.
fn reset_inherited() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let open_files = OPEN_FILES.load(Ordering::Relaxed);
    if open_files != 0 {
        // The limits are the child's own, although the memory is still the parent's.
        let limit = Rlimit { current: Some(open_files), ..getrlimit(Resource::Nofile) };
        let _ = setrlimit(Resource::Nofile, limit);
    }
    // SAFETY: plain system calls on valid arguments. The signal actions are the child's own
    // (no CLONE_SIGHAND); caught signals become default ones by themselves on exec.
    unsafe {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE, libc::SIGTERM] {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        // The agent is exempt from the OOM killer, its children are not.
        let score =
            libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, b"0".as_ptr().cast(), 1);
            libc::close(score);
        }
    }
}

fn last_errno() -> Errno {
    // SAFETY: errno of the parent's thread, which waits.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// Gives the calling thread its own working directory, and its own umask, set to 0.
pub(crate) fn unshare_working_directory() -> rustix::io::Result<()> {
    // SAFETY: unsharing CLONE_FS affects only where this thread resolves paths from, and its umask.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}

/// Makes `root` the root and the working directory of the calling thread alone.
pub(crate) fn chroot_this_thread(root: &std::path::Path) -> rustix::io::Result<()> {
    unshare_working_directory()?;
    rustix::process::chroot(root)?;
    rustix::process::chdir("/")
}
