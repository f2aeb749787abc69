//! Which file systems are the kernel's own.

use std::collections::BTreeSet;

/// Their content is not anybody's files: it is made up when it is read, or stands for devices.
const OF_THE_KERNEL: &[&[u8]] = &[
    b"autofs",
    b"binfmt_misc",
    b"bpf",
    b"cgroup",
    b"cgroup2",
    b"configfs",
    b"debugfs",
    b"devpts",
    b"devtmpfs",
    b"efivarfs",
    b"fusectl",
    b"mqueue",
    b"nsfs",
    b"proc",
    b"pstore",
    b"rpc_pipefs",
    b"securityfs",
    b"selinuxfs",
    b"sysfs",
    b"tracefs",
];

/// The devices (`st_dev`) of the kernel's file systems that are mounted.
pub(super) struct KernelFileSystems(BTreeSet<u64>);

impl KernelFileSystems {
    /// Those that are mounted now.
    pub(super) fn mounted() -> Self {
        Self::parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    fn parse(mountinfo: &[u8]) -> Self {
        let devices = mountinfo.split(|b| *b == b'\n').filter_map(|line| {
            // ID, parent, device, root, mount point, options, optional fields, "-", type, …
            let mut fields = line.split(|b| *b == b' ');
            let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
            OF_THE_KERNEL.contains(&kind).then_some(device)
        });
        Self(devices.collect())
    }

    /// Whether the file with this status is on one of them.
    pub(super) fn have(&self, stat: &rustix::fs::Stat) -> bool {
        self.0.contains(&stat.st_dev)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_are_told_from_those_with_files() {
        let table = b"\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:4 / /proc rw shared:1 - proc proc rw
23 21 0:22 / /dev/shm rw - tmpfs tmpfs rw
25 24 0:5 / /dev rw shared:3 master:1 - devtmpfs devtmpfs rw
garbage
26 21 x:y / /x rw - proc proc rw
26 21 0:5";
        let devices = KernelFileSystems::parse(table).0;
        let want = [(0, 4), (0, 5)].map(|(major, minor)| rustix::fs::makedev(major, minor));
        assert_eq!(devices, BTreeSet::from(want));
    }

    #[test]
    fn proc_is_one_here() {
        let kernel = KernelFileSystems::mounted();
        assert!(kernel.have(&rustix::fs::stat("/proc/self").unwrap()));
        assert!(!kernel.have(&rustix::fs::stat(std::env::current_exe().unwrap()).unwrap()));
    }
}
