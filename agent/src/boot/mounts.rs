//! Mounts the file systems of each role: what the initramfs needs, the root, the kernel's API file systems.
//!
//! May use `disk`, `unpack` (to make directories) and the log. A mount that the guest cannot run without is
//! an error, every other failure a warning.

use std::ffi::CStr;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_move};

use super::disk::{self, DiskError};
use crate::{log, unpack};

/// Where the new root is assembled, in the initramfs.
const NEW_ROOT: &str = "/newroot";

/// Mount point of a builder's disk.
pub(crate) const BUILDER_DISK: &str = "/disk";

/// `discard` hands freed blocks back to the host. `noinit_itable`: the disk reads as zeros where it
/// was never written, so writing zeros to its inode tables would only make every box's disk larger.
const BOX_OPTIONS: &CStr = c"discard,noinit_itable";

/// A builder's disk is thrown away if anything goes wrong, and synced at the end: no barriers, no
/// ordering of data before metadata.
const BUILDER_OPTIONS: &CStr = c"data=writeback,nobarrier,noauto_da_alloc,noinit_itable";

/// A mount that failed, and that the guest cannot run without.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("cannot mount {kind} on {at}: {errno}")]
    Mount { kind: &'static str, at: String, errno: Errno },
    #[error("cannot share what is mounted below {at} with other namespaces: {errno}")]
    Share { at: String, errno: Errno },
    #[error("cannot make {path}: {errno}")]
    Make { path: String, errno: Errno },
    #[error("cannot make {NEW_ROOT} the root: {0}")]
    SwitchRoot(#[source] Errno),
}

/// An API file system of the kernel (`proc`, `sysfs`, …) and its mount point.
struct Api {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    data: &'static CStr,
}

const STRICT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

const PROC: Api = Api { kind: "proc", at: "/proc", flags: STRICT, data: c"" };
const SYS: Api = Api { kind: "sysfs", at: "/sys", flags: STRICT, data: c"" };
const DEV: Api =
    Api { kind: "devtmpfs", at: "/dev", flags: MountFlags::NOSUID, data: c"mode=0755" };
const PTS: Api = Api {
    kind: "devpts",
    at: "/dev/pts",
    flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
    data: c"gid=5,mode=620,ptmxmode=666",
};
const SHM: Api = Api {
    kind: "tmpfs",
    at: "/dev/shm",
    flags: MountFlags::NOSUID.union(MountFlags::NODEV),
    data: c"mode=1777",
};
const MQUEUE: Api = Api { kind: "mqueue", at: "/dev/mqueue", flags: STRICT, data: c"" };
const CGROUP: Api = Api {
    kind: "cgroup2",
    at: "/sys/fs/cgroup",
    flags: STRICT,
    data: c"nsdelegate,memory_recursiveprot",
};
const BPF: Api = Api { kind: "bpf", at: "/sys/fs/bpf", flags: STRICT, data: c"mode=700" };
const RUN: Api = Api {
    kind: "tmpfs",
    at: "/run",
    flags: MountFlags::NOSUID.union(MountFlags::NODEV),
    data: c"mode=0755",
};

impl Api {
    fn mount(&self) -> Result<(), MountError> {
        make_dir(self.at)?;
        mount(self.kind, self.at, self.kind, self.flags, self.data)
            .map_err(|errno| MountError::Mount { kind: self.kind, at: self.at.to_owned(), errno })
    }

    /// Mounts it and only logs a failure: a kernel may lack the file system, an image the mount point.
    fn mount_if_possible(&self) {
        if let Err(e) = self.mount() {
            crate::log::warn(format_args!("{e}"));
        }
    }
}

/// Mounts what the start in the initramfs needs to read the kernel command line and to find devices.
pub(crate) fn early() -> Result<(), MountError> {
    PROC.mount()?;
    SYS.mount()?;
    // The kernel may have mounted devtmpfs already (CONFIG_DEVTMPFS_MOUNT).
    match DEV.mount() {
        Err(MountError::Mount { errno: Errno::BUSY, .. }) => Ok(()),
        result => result,
    }
}

/// Makes the disk the root of a box.
pub(crate) fn box_root() -> Result<(), MountError> {
    make_dir(NEW_ROOT)?;
    disk::mount_grown(NEW_ROOT, BOX_OPTIONS)?;
    switch_root()?;
    kernel_file_systems()?;
    if is_empty_dir("/run") {
        RUN.mount_if_possible();
    }
    // The main command has a mount namespace of its own. Its mounts must be visible to copies, and to the
    // shutdown, which unmounts them.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change("/", shared).map_err(|errno| MountError::Share { at: "/".to_owned(), errno })?;
    Ok(())
}

/// Mounts the disk that layers are unpacked onto.
pub(crate) fn builder_disk() -> Result<(), MountError> {
    make_dir(BUILDER_DISK)?;
    Ok(disk::mount_grown(BUILDER_DISK, BUILDER_OPTIONS)?)
}

/// Drops the caches of the host's files, so that a new command sees their current content. They change
/// without this kernel's knowledge, and neither 9p nor the overlay over it revalidates.
pub(crate) fn drop_host_file_caches() {
    const PAGES_AND_NAMES: &str = "3";
    if let Err(e) = std::fs::write("/proc/sys/vm/drop_caches", PAGES_AND_NAMES) {
        log::warn(format_args!("commands may see old files of the host: {e}"));
    }
}

/// Makes the host's root, read-only over 9p and under a tmpfs, the root of the nested host; mounts the box
/// home from the disk, if there is one.
pub(crate) fn soft_host_root(home: Option<&str>) -> Result<(), MountError> {
    const LOWER: &str = "/lower";
    const UPPER: &str = "/upper";
    let mount_at = |kind: &'static str, source: &str, at: &str, flags, data: &CStr| {
        make_dir(at)?;
        mount(source, at, kind, flags, data).map_err(|errno| MountError::Mount {
            kind,
            at: at.to_owned(),
            errno,
        })
    };
    mount_at(
        "9p",
        "root",
        LOWER,
        MountFlags::RDONLY,
        c"trans=virtio,version=9p2000.L,msize=512000,cache=loose",
    )?;
    mount_at("tmpfs", "upper", UPPER, MountFlags::empty(), c"mode=0755,size=80%")?;
    make_dir("/upper/data")?;
    make_dir("/upper/work")?;
    let overlay = c"lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work";
    mount_at("overlay", "root", NEW_ROOT, MountFlags::empty(), overlay)?;
    switch_root()?;
    kernel_file_systems()?;
    let has_disk = rustix::fs::stat(disk::DEVICE).is_ok();
    if let Some(home) = home.filter(|_| has_disk) {
        make_dirs(home)?;
        disk::mount_grown(home, BOX_OPTIONS)?;
    }
    Ok(())
}

/// Makes [`NEW_ROOT`] the root, and removes the initramfs's `/init`, which frees its memory. The mounts of
/// [`early`] stay below the new root, out of reach.
fn switch_root() -> Result<(), MountError> {
    let switch = || -> io::Result<()> {
        rustix::process::chdir(NEW_ROOT)?;
        let _ = rustix::fs::unlink("/init");
        mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    switch().map_err(MountError::SwitchRoot)
}

/// Mounts the API file systems that programs expect.
fn kernel_file_systems() -> Result<(), MountError> {
    PROC.mount()?;
    SYS.mount()?;
    DEV.mount()?;
    PTS.mount()?;
    SHM.mount()?;
    MQUEUE.mount_if_possible();
    BPF.mount_if_possible();
    CGROUP.mount_if_possible();
    enable_controllers();
    make_device_links();
    Ok(())
}

/// Enables every controller for the children of the root group, so that container engines in the box can
/// use them.
fn enable_controllers() {
    let Ok(controllers) = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") else {
        return;
    };
    let enable: String = controllers.split_whitespace().map(|name| format!("+{name} ")).collect();
    if let Err(e) = std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", enable.trim_end()) {
        crate::log::warn(format_args!("cannot enable the cgroup controllers {controllers}: {e}"));
    }
}

/// Makes the links in `/dev` that shells and programs use.
fn make_device_links() {
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ];
    for (target, link) in links {
        match rustix::fs::symlink(target, link) {
            // A `ptmx` of devtmpfs serves the devpts beside it as well.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => crate::log::warn(format_args!("cannot link {link}: {e}")),
        }
    }
}

/// Whether a directory is empty or missing.
///
/// An image with content in `/run` (directories of its services, with their owners) keeps it, as under a
/// container engine. An empty `/run` becomes a tmpfs, which is fresh at each boot.
fn is_empty_dir(path: &str) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Makes the missing ones of the directories that the image declares as volumes. As in a container engine,
/// new ones belong to root, and existing ones stay as they are.
pub(crate) fn make_volumes(volumes: &[String]) {
    for path in volumes {
        let path = [b"/", path.as_bytes()].concat();
        if let Err(e) = make_volume(&path) {
            log::warn(format_args!("cannot make the volume {}: {e}", path.escape_ascii()));
        }
    }
}

fn make_volume(path: &[u8]) -> io::Result<()> {
    match rustix::fs::stat(path) {
        Err(Errno::NOENT) => unpack::make_directories(path, None),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
            Err(Errno::NOTDIR)
        }
        result => result.map(drop),
    }
}

fn make_dir(path: &str) -> Result<(), MountError> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(MountError::Make { path: path.to_owned(), errno }),
    }
}

fn make_dirs(path: &str) -> Result<(), MountError> {
    std::fs::create_dir_all(path).map_err(|e| MountError::Make {
        path: path.to_owned(),
        errno: Errno::from_io_error(&e).unwrap_or(Errno::IO),
    })
}

/// Lets every user of the nested host use `/dev/kvm`, as a host's udev rules let members of its group.
pub(crate) fn open_kvm_to_all() {
    let mode = Mode::from_raw_mode(0o666);
    match rustix::fs::chmod("/dev/kvm", mode) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => crate::log::warn(format_args!("cannot open /dev/kvm to all users: {e}")),
    }
}

/// Replaces a file of the nested host. A symlink is replaced, not followed.
pub(crate) fn replace_file(path: &str, content: &[u8]) -> io::Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    rustix::io::write(fd, content).map(drop)
}

#[cfg(test)]
mod tests;
