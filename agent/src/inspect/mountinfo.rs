//! The kernel's table of mounts, `/proc/self/mountinfo` (`man 5 proc_pid_mountinfo`).
//!
//! Used by copies, which skip the kernel's own file systems, and by the shutdown, which unmounts the others.
//!
//! **Invariant:** a line that is not a mount is skipped, and mount points are bytes. The crate `procfs` refuses
//! the whole table for one mount point that is not UTF-8, so a box could make copies descend into `/proc`; it
//! also adds 37 KiB to the agent, which every box loads.

/// File systems without stored files: the kernel generates their content, or their files are devices.
const KERNEL_TYPES: &[&[u8]] = &[
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

/// The table at the time of the read.
pub(crate) struct MountTable(Vec<u8>);

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount<'a> {
    /// `st_dev` of the files on it.
    pub(crate) device: u64,
    /// The mount point, escaped.
    point: &'a [u8],
    /// The file system's type.
    kind: &'a [u8],
}

impl MountTable {
    /// Reads the mounts of this process's namespace; none if `/proc` is not mounted.
    pub(crate) fn read() -> Self {
        Self(std::fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    #[cfg(test)]
    pub(crate) fn from_bytes(table: &[u8]) -> Self {
        Self(table.to_vec())
    }

    /// The mounts, each after those that it is mounted on.
    pub(crate) fn mounts(&self) -> impl DoubleEndedIterator<Item = Mount<'_>> {
        self.0.split(|b| *b == b'\n').filter_map(Mount::parse)
    }
}

impl<'a> Mount<'a> {
    /// Parses `ID PARENT DEVICE ROOT POINT OPTIONS [OPTIONAL…] - TYPE …`.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ');
        let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
        let point = fields.nth(1)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(Self { device, point, kind })
    }

    /// Whether the file system is one of the kernel's own.
    pub(crate) fn is_kernel(&self) -> bool {
        KERNEL_TYPES.contains(&self.kind)
    }

    /// The path of the mount point.
    pub(crate) fn point(&self) -> Vec<u8> {
        unescape(self.point)
    }
}

/// Decodes space, tab, newline and backslash, which the kernel writes as a backslash and three octal digits.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let code = (byte == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|octal| std::str::from_utf8(octal).ok())
            .and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            None => bytes.push(byte),
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
