//! What boxes need of a Mac: Apple silicon, macOS 15, its hypervisor, and an executable that may use it.
//!
//! `sys` asks the system; everything here is about its answers and compiles everywhere.

mod signature;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

pub use signature::{HYPERVISOR, Signature, SignatureError};

use crate::local::find_launcher;
use crate::sys;

/// The first release whose Hypervisor.framework has an interrupt controller.
pub const LEAST_VERSION: u32 = 15;

/// What is known about a Mac and the launcher on it.
#[derive(Debug)]
pub struct Facts {
    /// What the system reports.
    pub system: System,
    /// The executable of boxes, and its signature; none if there is no such executable.
    pub launcher: Option<(PathBuf, Result<Signature, SignatureError>)>,
}

/// What the system of a Mac reports (`sysctl`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// The release of macOS (`kern.osproductversion`).
    pub version: Option<String>,
    /// The name of the CPU (`machdep.cpu.brand_string`).
    pub cpu: Option<String>,
    /// Whether the CPU is Apple's (`hw.optional.arm64`).
    pub is_arm64: bool,
    /// Whether Rosetta translates this process (`sysctl.proc_translated`).
    pub is_translated: bool,
    /// Whether the CPU and the system can run guests (`kern.hv_support`).
    pub has_hypervisor: bool,
}

/// Why boxes cannot run on a Mac's own CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The release of macOS is older than [`LEAST_VERSION`].
    Version(String),
    /// The CPU is not Apple's.
    Cpu(String),
    /// Rosetta translates this process.
    Translated,
    /// The system has no hypervisor.
    NoHypervisor,
    /// The launcher is not signed, or not with the entitlement.
    NotEntitled(PathBuf),
    /// The launcher's signature cannot be read.
    Signature {
        /// The launcher.
        launcher: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Facts {
    /// Asks the system, and reads the launcher's signature. None on other systems than macOS.
    pub fn detect() -> Option<Self> {
        let system = sys::mac()?;
        let launcher = find_launcher(None).ok().map(|path| {
            let signature = File::open(&path).map_err(SignatureError::Io);
            (path, signature.and_then(|file| Signature::read(&file)))
        });
        Some(Self { system, launcher })
    }

    /// All reasons why boxes cannot run on this Mac's own CPU, the most fundamental first. What is unknown is none.
    pub fn problems(&self) -> Vec<Problem> {
        let launcher =
            self.launcher.as_ref().and_then(|(path, signature)| of_launcher(path, signature));
        self.system.problems().into_iter().chain(launcher).collect()
    }
}

impl System {
    fn problems(&self) -> Vec<Problem> {
        let cpu = || self.cpu.clone().unwrap_or_else(|| "unknown".to_owned());
        let is_old = |version: &&String| major(version).is_some_and(|major| major < LEAST_VERSION);
        // Another CPU has no hypervisor of this kind, whatever it reports.
        let cpu = match (self.is_translated, self.is_arm64) {
            (true, _) => Some(Problem::Translated),
            (false, false) => Some(Problem::Cpu(cpu())),
            (false, true) if !self.has_hypervisor => Some(Problem::NoHypervisor),
            _ => None,
        };
        let version = self.version.as_ref().filter(is_old).cloned().map(Problem::Version);
        cpu.into_iter().chain(version).collect()
    }
}

fn of_launcher(path: &Path, signature: &Result<Signature, SignatureError>) -> Option<Problem> {
    match signature {
        Ok(Signature::Entitled) => None,
        Ok(Signature::Signed | Signature::Missing) => Some(Problem::NotEntitled(path.to_owned())),
        Err(e) => Some(Problem::Signature { launcher: path.to_owned(), reason: e.to_string() }),
    }
}

/// The first number of a release.
fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

impl Problem {
    /// What to do about it, if there is anything.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Version(_) => format!("update macOS to {LEAST_VERSION} or later"),
            Self::Cpu(_) => return None,
            Self::Translated => {
                "use the launcher for arm64 (built for aarch64-apple-darwin), in a shell that is not started by \
                 `arch -x86_64`"
                    .to_owned()
            }
            Self::NoHypervisor => {
                "in a virtual machine, nested virtualization is needed (an M3 or later with macOS 15 as its host); \
                 otherwise use a real Mac"
                    .to_owned()
            }
            Self::NotEntitled(launcher) | Self::Signature { launcher, .. } => {
                let shown = launcher.display();
                format!("sign it: cargo xtask sign '{shown}'")
            }
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                write!(f, "macOS {version} is too old: boxes need macOS {LEAST_VERSION}")
            }
            Self::Cpu(name) => write!(f, "the CPU is not Apple silicon ({name})"),
            Self::Translated => {
                f.write_str("Rosetta translates this process, which is built for x86_64")
            }
            Self::NoHypervisor => f.write_str("this Mac has no hypervisor (kern.hv_support is 0)"),
            Self::NotEntitled(launcher) => {
                write!(f, "{} is not signed with the entitlement {HYPERVISOR}", launcher.display())
            }
            Self::Signature { launcher, reason } => {
                write!(f, "the signature of {} cannot be read: {reason}", launcher.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        let system = System {
            version: Some("15.1".into()),
            cpu: Some("Apple M2".into()),
            is_arm64: true,
            is_translated: false,
            has_hypervisor: true,
        };
        Facts { system, launcher: Some(("/opt/boxlite-vmm".into(), Ok(Signature::Entitled))) }
    }

    #[test]
    fn every_lack_has_its_message_and_remedy() {
        assert_eq!(good().problems(), []);
        let said = |change: fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            let problems = facts.problems();
            assert_eq!(problems.len(), 1, "{problems:?}");
            format!("{} -> {}", problems[0], problems[0].remedy().unwrap_or_default())
        };
        let old = said(|facts| facts.system.version = Some("14.6.1".into()));
        assert!(old.contains("14.6.1") && old.contains("update macOS to 15"), "{old}");
        let intel = said(|facts| {
            facts.system = System {
                cpu: Some("Intel(R) Core(TM) i9".into()),
                is_arm64: false,
                ..facts.system.clone()
            };
        });
        assert!(intel.contains("Intel") && intel.ends_with("-> "), "{intel}");
        let rosetta = said(|facts| {
            facts.system.is_translated = true;
            facts.system.has_hypervisor = false;
        });
        assert!(rosetta.contains("Rosetta") && rosetta.contains("arm64"), "{rosetta}");
        let guest = said(|facts| facts.system.has_hypervisor = false);
        assert!(guest.contains("kern.hv_support") && guest.contains("nested"), "{guest}");
        for signature in [Signature::Signed, Signature::Missing] {
            let mut facts = good();
            facts.launcher = Some(("/opt/boxlite-vmm".into(), Ok(signature)));
            let [problem] = &facts.problems()[..] else { panic!("{facts:?}") };
            assert!(problem.to_string().contains(HYPERVISOR), "{problem}");
            let remedy = problem.remedy().unwrap();
            assert_eq!(remedy, "sign it: cargo xtask sign '/opt/boxlite-vmm'");
        }
        let damaged = said(|facts| {
            facts.launcher = Some(("/opt/x".into(), Err(SignatureError::NotMachO)));
        });
        assert!(damaged.contains("/opt/x") && damaged.contains("sign"), "{damaged}");
    }

    #[test]
    fn what_is_unknown_is_no_problem() {
        let mut facts = good();
        facts.system.version = Some("next".into());
        facts.launcher = None;
        assert_eq!(facts.problems(), []);
        facts.system.version = None;
        assert_eq!(facts.problems(), []);
    }
}
