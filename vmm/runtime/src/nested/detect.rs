//! Detection of this machine's virtualization.

use std::borrow::Cow;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;

use boxlite_kernel::Arch;

use crate::mac::{Facts, Problem};
use crate::place::Accel;
use crate::sys::kvm;

/// The KVM device.
const DEVICE: &str = "/dev/kvm";

/// The interface of this system's hypervisor, and the request for it.
pub(crate) const NATIVE: (&str, Accel) = if cfg!(target_os = "macos") {
    ("Hypervisor.framework", Accel::Hvf)
} else {
    ("KVM", Accel::Kvm)
};

/// Whether the nested host can run this machine's own launcher.
pub(super) const RUNS_ITSELF: bool = cfg!(target_os = "linux");

/// This machine's virtualization.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Virtualization {
    /// Boxes can run on this machine's CPU.
    Hardware,
    /// `/dev/kvm` exists, but the CPU has no virtualization (`vmx`, `svm`): KVM is paravirtual there, and *emulates*
    /// some of the instructions of an unmodified guest. Only on x86.
    ///
    /// The CPU's flags decide for this reason: such a device opens, has the right version and creates VMs, but an
    /// unmodified kernel stops at the first instruction that the emulator does not know.
    Paravirtual,
    /// `/dev/kvm` exists, and this user may not open it.
    NoPermission,
    /// There is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` exists and does not work.
    Broken(String),
    /// This Mac, or the launcher on it, lacks something that Hypervisor.framework needs.
    Mac(Problem),
}

impl Virtualization {
    /// Detects this machine's virtualization. Cheap: opens the device and creates an empty VM; on a Mac, asks the system
    /// and reads the launcher's signature.
    pub fn detect() -> Self {
        if let Some(mac) = Facts::detect() {
            return Self::judge_mac(&mac);
        }
        let device = OpenOptions::new().read(true).write(true).open(DEVICE);
        let flags = if cfg!(target_arch = "x86_64") {
            let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            has_virtualization(&cpuinfo)
        } else {
            true
        };
        Self::judge(device, flags, kvm::create_vm)
    }

    fn judge_mac(mac: &Facts) -> Self {
        mac.problems().into_iter().next().map_or(Self::Hardware, Self::Mac)
    }

    fn judge(
        device: io::Result<File>,
        flags: bool,
        create_vm: impl FnOnce(&File) -> Result<(), String>,
    ) -> Self {
        match device {
            Ok(_) if !flags => Self::Paravirtual,
            Ok(device) => match create_vm(&device) {
                Ok(()) => Self::Hardware,
                Err(problem) => Self::Broken(problem),
            },
            Err(e) => match e.kind() {
                io::ErrorKind::NotFound => Self::Missing,
                // A permission would not help.
                io::ErrorKind::PermissionDenied if !flags => Self::Paravirtual,
                io::ErrorKind::PermissionDenied => Self::NoPermission,
                // The device node exists, but its driver does not.
                _ => Self::Broken(format!("cannot open {DEVICE}: {e}")),
            },
        }
    }

    /// Whether boxes can run on this machine without the nested host.
    pub fn is_usable(&self) -> bool {
        *self == Self::Hardware
    }

    /// How to get hardware virtualization, if there is a way.
    pub fn remedy(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Mac(problem) => problem.remedy().map(Cow::Owned),
            _ => self.remedy_on(Arch::HOST).map(Cow::Borrowed),
        }
    }

    fn remedy_on(&self, arch: Arch) -> Option<&'static str> {
        Some(match self {
            Self::Hardware | Self::Mac(_) => return None,
            Self::Paravirtual => {
                "in a virtual machine, enable nested virtualization for it; on a real machine, enable \
                 virtualization (VT-x, AMD-V) in the firmware's settings"
            }
            Self::NoPermission => {
                "add yourself to the group of /dev/kvm and log in again: sudo usermod -aG kvm $USER"
            }
            // Distributions build KVM into their kernels.
            Self::Missing if arch == Arch::Aarch64 => {
                "KVM needs a kernel that was started at EL2 (`dmesg | grep -i kvm` says whether it was): in a virtual \
                 machine, enable nested virtualization for it; in a container, pass --device /dev/kvm"
            }
            Self::Missing => {
                "load the module (sudo modprobe kvm_intel, or kvm_amd); in a virtual machine, enable \
                 nested virtualization for it; in a container, pass --device /dev/kvm"
            }
            Self::Broken(_) => "see dmesg for messages of KVM; another hypervisor may use the CPU",
        })
    }
}

impl fmt::Display for Virtualization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => write!(f, "hardware virtualization ({})", NATIVE.0),
            Self::Paravirtual => write!(
                f,
                "no hardware virtualization: the CPU has neither vmx nor svm, so {DEVICE}, if it \
                 exists, cannot run an unmodified kernel"
            ),
            Self::NoPermission => write!(f, "no permission to open {DEVICE}"),
            Self::Missing => write!(f, "no {DEVICE}"),
            Self::Broken(problem) => write!(f, "{DEVICE} does not work: {problem}"),
            Self::Mac(problem) => problem.fmt(f),
        }
    }
}

/// Whether an x86 CPU can run guests, by the flags in `/proc/cpuinfo`.
fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .any(|(_, flags)| flags.split_ascii_whitespace().any(|f| f == "vmx" || f == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_whole_words_of_the_flags_line() {
        assert!(has_virtualization("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags\t\t: fpu svm\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock vmxe\nmodel name\t: vmx svm\n"));
        assert!(!has_virtualization("vmx flags\t: vnmi ept\n"));
        assert!(!has_virtualization(""));
    }

    #[test]
    fn remedies_fit_the_cpu() {
        let remedy = |arch| Virtualization::Missing.remedy_on(arch).unwrap();
        assert!(remedy(Arch::X86_64).contains("modprobe kvm_intel"));
        let arm = remedy(Arch::Aarch64);
        assert!(arm.contains("EL2") && !arm.contains("modprobe"), "{arm}");
    }

    #[test]
    fn every_kind_of_virtualization_is_detected() {
        let device = || Ok(File::open("/dev/null").unwrap());
        let error = |kind: io::ErrorKind| Err(kind.into());
        let works = |_: &File| Ok(());
        let fails = |_: &File| Err("no".to_owned());
        let never = |_: &File| unreachable!("nothing to create a machine on");
        use Virtualization as V;
        assert_eq!(V::judge(device(), true, works), V::Hardware);
        assert_eq!(V::judge(device(), true, fails), V::Broken("no".into()));
        assert_eq!(V::judge(device(), false, never), V::Paravirtual);
        assert_eq!(V::judge(error(io::ErrorKind::NotFound), true, never), V::Missing);
        assert_eq!(V::judge(error(io::ErrorKind::PermissionDenied), true, never), V::NoPermission);
        assert_eq!(V::judge(error(io::ErrorKind::PermissionDenied), false, never), V::Paravirtual);
        assert!(matches!(V::judge(error(io::ErrorKind::Other), true, never), V::Broken(_)));
    }
}
