//! The choice of where boxes run: on this machine's virtualization, or in the nested host.

use std::fmt;

use boxlite_contract::nested::HostEnvironment;
use boxlite_kernel::Arch;

use super::{Error, Result};
use crate::nested::detect::{NATIVE, Virtualization};
use crate::nested::{self, InnerLauncher, LAUNCHER_VARIABLE};

/// A request for where boxes run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accel {
    /// On this machine if it has hardware virtualization, otherwise in the software host.
    #[default]
    Auto,
    /// On this machine, by KVM of Linux.
    Kvm,
    /// On this machine, by Hypervisor.framework of macOS.
    Hvf,
    /// In the software host.
    Soft,
}

/// Where boxes run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// On this machine.
    Local,
    /// In the software host.
    SoftHost {
        /// Why boxes do not run on this machine.
        reason: String,
    },
}

impl Place {
    /// Detects this machine's virtualization and decides where boxes run.
    ///
    /// # Errors
    /// This machine was requested and cannot run boxes.
    pub fn choose(accel: Accel) -> Result<Self> {
        let inner = InnerLauncher::from_env().map_err(Error::soft_host)?;
        if let Some(inner) = inner.as_ref().filter(|inner| inner.is_foreign()) {
            return Self::for_foreign(inner, accel);
        }
        check_native(accel, NATIVE)?;
        let found = Virtualization::detect();
        if HostEnvironment::detect().is_nested() {
            return match found.is_usable() {
                true => Ok(Self::Local),
                false => Err(Error::no_virtualization(format!(
                    "the software host has {found}: its QEMU does not emulate virtualization"
                ))),
            };
        }
        Self::by_request(accel, &found, nested::has_launcher(inner.as_ref()))
    }

    /// Decides by what was found. The software host is chosen only if it has a launcher for Linux.
    fn by_request(accel: Accel, found: &Virtualization, has_launcher: bool) -> Result<Self> {
        let reason = || Described(found).to_string();
        match accel {
            Accel::Soft if has_launcher => {
                Ok(Self::SoftHost { reason: "the software host was asked for".into() })
            }
            Accel::Soft => Err(Error::no_virtualization(no_linux_launcher())),
            _ if found.is_usable() => Ok(Self::Local),
            Accel::Auto if has_launcher => Ok(Self::SoftHost { reason: reason() }),
            Accel::Auto => {
                let software = no_linux_launcher();
                Err(Error::no_virtualization(format!("{}; {software}", reason())))
            }
            Accel::Kvm | Accel::Hvf => Err(Error::no_virtualization(reason())),
        }
    }

    /// Where boxes of another architecture than this machine's run.
    fn for_foreign(inner: &InnerLauncher, accel: Accel) -> Result<Self> {
        let reason = format!("{inner}, and this machine is {}", Arch::HOST);
        match accel {
            Accel::Kvm | Accel::Hvf => Err(Error::no_virtualization(format!(
                "{reason}: hardware virtualization cannot run its boxes, only the software host can"
            ))),
            Accel::Auto | Accel::Soft => Ok(Self::SoftHost { reason }),
        }
    }
}

/// Refuses a request for the hypervisor of another system.
fn check_native(accel: Accel, (name, native): (&str, Accel)) -> Result<()> {
    let other = match accel {
        Accel::Kvm => "KVM exists on Linux only",
        Accel::Hvf => "Hypervisor.framework exists on macOS only",
        Accel::Auto | Accel::Soft => return Ok(()),
    };
    match accel == native {
        true => Ok(()),
        false => {
            Err(Error::no_virtualization(format!("{other}; this system's hypervisor is {name}")))
        }
    }
}

/// Why the software host has no launcher for Linux on another system.
fn no_linux_launcher() -> String {
    format!(
        "the software host runs Linux, so it needs a launcher that is built for Linux: name one by {LAUNCHER_VARIABLE}"
    )
}

/// A finding with its remedy.
struct Described<'a>(&'a Virtualization);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        match self.0.remedy() {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mac::Problem;

    #[test]
    fn a_request_for_the_hypervisor_of_another_system_is_refused() {
        let (linux, mac) = (("KVM", Accel::Kvm), ("Hypervisor.framework", Accel::Hvf));
        for (accel, native, fits) in [
            (Accel::Kvm, linux, true),
            (Accel::Hvf, mac, true),
            (Accel::Kvm, mac, false),
            (Accel::Hvf, linux, false),
            (Accel::Auto, linux, true),
            (Accel::Soft, mac, true),
        ] {
            let checked = check_native(accel, native);
            assert_eq!(checked.is_ok(), fits, "{accel:?} {native:?}");
            if let Err(e) = checked {
                assert!(e.to_string().ends_with(native.0), "{e}");
            }
        }
    }

    #[test]
    fn without_a_launcher_for_linux_there_is_no_software_host() {
        let found = Virtualization::Mac(Problem::NotEntitled("/opt/boxlite-vmm".into()));
        let soft = |accel| Place::by_request(accel, &found, true).unwrap();
        assert!(matches!(soft(Accel::Soft), Place::SoftHost { .. }));
        assert!(
            matches!(soft(Accel::Auto), Place::SoftHost { reason } if reason.contains("xtask sign"))
        );
        let refused = |accel| Place::by_request(accel, &found, false).unwrap_err().to_string();
        assert!(refused(Accel::Soft).contains(LAUNCHER_VARIABLE));
        let auto = refused(Accel::Auto);
        assert!(auto.contains("xtask sign") && auto.contains(LAUNCHER_VARIABLE), "{auto}");
        assert!(!refused(Accel::Hvf).contains(LAUNCHER_VARIABLE));
        let hardware = Virtualization::Hardware;
        let local = Place::by_request(Accel::Auto, &hardware, false).unwrap();
        assert_eq!(local, Place::Local);
        assert!(Place::by_request(Accel::Soft, &hardware, false).is_err());
    }

    #[test]
    fn boxes_of_another_architecture_run_in_the_software_host_only() {
        let arch = if Arch::HOST == Arch::X86_64 { Arch::Aarch64 } else { Arch::X86_64 };
        let inner = InnerLauncher { path: "/opt/boxlite-vmm".into(), arch };
        for accel in [Accel::Auto, Accel::Soft] {
            let Place::SoftHost { reason } = Place::for_foreign(&inner, accel).unwrap() else {
                panic!("{accel:?}")
            };
            assert!(reason.contains(arch.name()) && reason.contains(Arch::HOST.name()), "{reason}");
        }
        let refused = Place::for_foreign(&inner, Accel::Kvm).unwrap_err().to_string();
        assert!(refused.contains("BOXLITE_SOFTHOST_LAUNCHER"), "{refused}");
    }
}
