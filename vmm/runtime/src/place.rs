//! The choice of where boxes run: on this machine's virtualization, or in the nested host.

use std::fmt;

use boxlite_contract::nested::HostEnvironment;
use boxlite_kernel::Arch;

use super::{Error, Result};
use crate::nested::InnerLauncher;
use crate::nested::detect::Virtualization;

/// A request for where boxes run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accel {
    /// On this machine if it has hardware virtualization, otherwise in the software host.
    #[default]
    Auto,
    /// On this machine.
    Kvm,
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
        if let Some(inner) = InnerLauncher::from_env().map_err(Error::soft_host)?
            && inner.is_foreign()
        {
            return Self::for_foreign(&inner, accel);
        }
        let found = Virtualization::detect();
        if HostEnvironment::detect().is_nested() {
            return match found.is_usable() {
                true => Ok(Self::Local),
                false => Err(Error::no_virtualization(format!(
                    "the software host has {found}: its QEMU does not emulate virtualization"
                ))),
            };
        }
        Ok(match accel {
            Accel::Soft => Self::SoftHost { reason: "the software host was asked for".into() },
            _ if found.is_usable() => Self::Local,
            Accel::Auto => Self::SoftHost { reason: Described(&found).to_string() },
            Accel::Kvm => {
                return Err(Error::no_virtualization(Described(&found).to_string()));
            }
        })
    }

    /// Where boxes of another architecture than this machine's run.
    fn for_foreign(inner: &InnerLauncher, accel: Accel) -> Result<Self> {
        let reason = format!("{inner}, and this machine is {}", Arch::HOST);
        match accel {
            Accel::Kvm => Err(Error::no_virtualization(format!(
                "{reason}: hardware virtualization cannot run its boxes, only the software host can"
            ))),
            Accel::Auto | Accel::Soft => Ok(Self::SoftHost { reason }),
        }
    }
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
