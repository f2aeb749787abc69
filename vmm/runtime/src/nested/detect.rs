//! What virtualization this machine has.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;

use crate::sys::kvm;

/// The kernel's device for virtual machines.
const DEVICE: &str = "/dev/kvm";

/// Whether boxes can run on this machine's CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Virtualization {
    /// They can.
    Hardware,
    /// There is a `/dev/kvm`, but the CPU has no virtualization (`vmx`, `svm`): KVM serves its own
    /// kind of guest there and *emulates* the instructions of any other, some of them.
    ///
    /// That is why the CPU's flags decide on x86: such a device opens, has the right version and
    /// creates virtual machines, and a kernel in one stops at the first instruction that the
    /// emulator does not know.
    Paravirtual,
    /// `/dev/kvm` is there and this user may not open it.
    NoPermission,
    /// There is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` is there and does not work.
    Broken(String),
}

impl Virtualization {
    /// Looks at this machine. Cheap: opens the device and creates an empty virtual machine.
    pub fn detect() -> Self {
        if !cfg!(target_os = "linux") {
            return Self::Missing;
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
                // Permission would not help.
                io::ErrorKind::PermissionDenied if !flags => Self::Paravirtual,
                io::ErrorKind::PermissionDenied => Self::NoPermission,
                // The device node is there and its driver is not.
                _ => Self::Broken(format!("cannot open {DEVICE}: {e}")),
            },
        }
    }

    /// Whether boxes can run here without the software host.
    pub fn is_usable(&self) -> bool {
        *self == Self::Hardware
    }

    /// What to do to get hardware virtualization, if there is something to do.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Hardware => return None,
            Self::Paravirtual => {
                "in a virtual machine, turn nested virtualization on for it; on a real machine, turn \
                 virtualization (VT-x, AMD-V) on in the firmware's settings"
            }
            Self::NoPermission => {
                "add yourself to the group of /dev/kvm and log in again: sudo usermod -aG kvm $USER"
            }
            Self::Missing => {
                "load the module (sudo modprobe kvm_intel, or kvm_amd); in a virtual machine, turn \
                 nested virtualization on for it; in a container, pass --device /dev/kvm"
            }
            Self::Broken(_) => "see dmesg for what KVM says; another hypervisor may hold the CPU",
        })
    }
}

impl fmt::Display for Virtualization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => write!(f, "hardware virtualization (KVM)"),
            Self::Paravirtual => write!(
                f,
                "no hardware virtualization: the CPU has neither vmx nor svm, so {DEVICE}, if it is \
                 there, cannot run an unmodified kernel"
            ),
            Self::NoPermission => write!(f, "no permission to open {DEVICE}"),
            Self::Missing => write!(f, "no {DEVICE}"),
            Self::Broken(problem) => write!(f, "{DEVICE} does not work: {problem}"),
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
    fn every_kind_of_machine_is_told_apart() {
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
