//! Where a command runs: here, on hardware virtualization, or in the software host.

use std::ffi::OsString;

use anyhow::{Result, bail};
use boxlite_kernel::GuestFiles;

use super::args::{Accel, Global};
use crate::runtime::{self, Home, Runtime, RuntimeOptions};
use crate::softhost::{self, Command, Options};

impl Global {
    /// How the runtime of this command finds its things.
    pub(super) fn options(&self) -> RuntimeOptions {
        let mut options = RuntimeOptions::default().accel(match self.accel {
            Accel::Auto => runtime::Accel::Auto,
            Accel::Kvm => runtime::Accel::Kvm,
            Accel::Soft => runtime::Accel::Soft,
        });
        options.home.clone_from(&self.home);
        options.debug = self.debug;
        options.notice = Some(match self.accel {
            Accel::Soft => "boxlite-vmm: starting the software host".into(),
            _ => "boxlite-vmm: no hardware virtualization here: starting the software host, which is slower \
                (`boxlite-vmm doctor` says why)".into(),
        });
        options
    }

    /// The runtime of this command, here or in the software host.
    pub(super) async fn runtime(&self) -> Result<Runtime> {
        Ok(Runtime::open(self.options()).await?)
    }

    /// The home of this command.
    pub(super) fn home(&self) -> Result<Home> {
        Ok(Home::open(self.home.clone())?)
    }
}

/// Runs a command in the software host of the home.
pub(super) async fn run_in_softhost(global: &Global, argv: Vec<OsString>) -> Result<u8> {
    if softhost::is_inside() {
        bail!("this is the software host already");
    }
    let options = Options::new(global.home()?.path(), &GuestFiles::locate()?)?;
    Ok(softhost::run(&options, Command::here(argv)?).await?)
}
