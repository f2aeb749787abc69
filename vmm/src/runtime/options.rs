//! What a box is to be.

use std::fmt;
use std::time::Duration;

use super::{Error, Result};
use crate::machine::{MEMORY_MIB, VCPUS};

/// Sizes of a box's disk in GiB.
const DISK_GB: std::ops::RangeInclusive<u64> = 1..=1024;

/// The longest host name of Linux.
const NAME_MAX: usize = 63;

/// A box to be made.
///
/// ```
/// use boxlite_vmm::runtime::BoxOptions;
///
/// let options = BoxOptions::new("oci:alpine").cpus(2).memory_mib(512).env("LANG", "C.UTF-8");
/// assert_eq!(options.memory_mib, 512);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BoxOptions {
    /// The image: `oci:DIR[:tag]`, `docker-archive:FILE`, `rootfs:DIR` or an imported name.
    pub image: String,
    /// The box's name, which is its host name too; default: made up.
    pub name: Option<String>,
    /// Number of vCPUs, 1 to 64; default 1.
    pub cpus: u8,
    /// Memory in MiB, 128 to 65536; default 2048.
    pub memory_mib: u64,
    /// Size of the disk in GiB, 1 to 1024; default: as the image's disk was made, 10.
    pub disk_size_gb: Option<u64>,
    /// Environment variables of every command, over those of the image.
    pub env: Vec<(String, String)>,
    /// The working directory; default: the image's.
    pub working_dir: Option<String>,
    /// The user, as `name`, `uid`, `name:group` or `uid:gid`; default: the image's.
    pub user: Option<String>,
    /// In place of the image's entry point; empty: none.
    pub entrypoint: Option<Vec<String>>,
    /// How long the box may take to boot; default 2 minutes, for hosts that emulate.
    pub ready_timeout: Duration,
    /// Whether the guest's console goes to `boxes/<id>/console.log`; slows the boot down.
    pub console: bool,
}

impl BoxOptions {
    /// A box of this image, and the defaults for the rest.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            name: None,
            cpus: 1,
            memory_mib: 2048,
            disk_size_gb: None,
            env: Vec::new(),
            working_dir: None,
            user: None,
            entrypoint: None,
            ready_timeout: Duration::from_secs(120),
            console: false,
        }
    }

    /// Names the box.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the number of vCPUs.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the memory in MiB.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Sets the size of the disk in GiB.
    pub fn disk_size_gb(mut self, gb: u64) -> Self {
        self.disk_size_gb = Some(gb);
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the working directory.
    pub fn working_dir(mut self, dir: impl Into<String>) -> Self {
        self.working_dir = Some(dir.into());
        self
    }

    /// Sets the user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Replaces the image's entry point.
    pub fn entrypoint(mut self, entrypoint: Vec<String>) -> Self {
        self.entrypoint = Some(entrypoint);
        self
    }

    /// Sets how long the box may take to boot.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// Keeps the guest's console.
    pub fn console(mut self, keep: bool) -> Self {
        self.console = keep;
        self
    }

    /// Checks everything at once: the error lists every problem.
    pub fn validate(&self) -> Result<()> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, option: &'static str, message: String| {
            if !ok {
                problems.push(Problem { option, message });
            }
        };
        check(VCPUS.contains(&self.cpus), "cpus", format!("{}: a box has 1 to 64", self.cpus));
        check(
            MEMORY_MIB.contains(&self.memory_mib),
            "memory",
            format!("{} MiB: a box has 128 MiB to 64 GiB", self.memory_mib),
        );
        if let Some(gb) = self.disk_size_gb {
            check(
                DISK_GB.contains(&gb),
                "disk-size",
                format!("{gb} GiB: a disk has 1 GiB to 1 TiB"),
            );
        }
        if let Some(name) = &self.name {
            check(
                is_name(name),
                "name",
                format!(
                    "{name:?}: a name has 1 to {NAME_MAX} letters, digits, '.', '_' or '-', and \
                     begins with a letter or digit"
                ),
            );
        }
        for (name, value) in &self.env {
            check(
                !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'),
                "env",
                format!("{name:?}: a variable's name is not empty and holds no '='"),
            );
        }
        if let Some(dir) = &self.working_dir {
            check(
                dir.starts_with('/') && !dir.contains('\0'),
                "workdir",
                format!("{dir:?}: the working directory is an absolute path"),
            );
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Options(problems)) }
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// One thing that is wrong with [`BoxOptions`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The option, as the command line calls it.
    pub option: &'static str,
    /// What is wrong, and what it may be.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{} {}", self.option, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_told_at_once() {
        let options = BoxOptions::new("x")
            .cpus(0)
            .memory_mib(64)
            .disk_size_gb(0)
            .name("-x y")
            .env("A=B", "c")
            .working_dir("relative");
        let Err(Error::Options(problems)) = options.validate() else { panic!("accepted") };
        let options: Vec<_> = problems.iter().map(|problem| problem.option).collect();
        assert_eq!(options, ["cpus", "memory", "disk-size", "name", "env", "workdir"]);
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        for (cpus, mib, gb) in [(1, 128, 1), (64, 65536, 1024)] {
            let options = BoxOptions::new("x").cpus(cpus).memory_mib(mib).disk_size_gb(gb);
            options.name("a-b.c_1").working_dir("/").validate().unwrap();
        }
    }
}
