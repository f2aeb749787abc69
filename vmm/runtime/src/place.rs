//! The choice of where boxes run: on this machine's virtualization, or in the nested host.

use std::fmt;

use boxlite_contract::nested::HostEnvironment;

use super::{Error, Result};
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
        let found = Virtualization::detect();
        if HostEnvironment::detect().is_nested() {
            return match found.is_usable() {
                true => Ok(Self::Local),
                false => Err(Error::no_virtualization(format!(
                    "the software host has {found}: its QEMU does not emulate AMD's SVM"
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
