//! Where a command runs: here, on hardware virtualization, or in the software host.

use std::ffi::OsString;
use std::future::Future;

use anyhow::{Result, bail};
use boxlite_runtime::nested::{self, Command, HostEnvironment, Options};
use boxlite_runtime::{GuestFiles, Home, Place, Runtime, RuntimeOptions};

use crate::args::{Accel, Global};
use crate::progress::Spinner;

impl Global {
    /// How the runtime of this command finds its things.
    pub(crate) fn options(&self) -> RuntimeOptions {
        let mut options = RuntimeOptions::default().accel(match self.accel {
            Accel::Auto => boxlite_runtime::Accel::Auto,
            Accel::Kvm => boxlite_runtime::Accel::Kvm,
            Accel::Soft => boxlite_runtime::Accel::Soft,
        });
        options.home.clone_from(&self.home);
        options.debug(self.debug).notice(match self.accel {
            Accel::Soft => "boxlite-vmm: starting the software host",
            _ => {
                "boxlite-vmm: no hardware virtualization here: starting the software host, which is \
                 slower (`boxlite-vmm doctor` says why)"
            }
        })
    }

    /// The runtime of this command, here or in the software host.
    pub(crate) async fn runtime(&self) -> Result<Runtime> {
        let options = self.options();
        let opening = Runtime::open(options.clone());
        Ok(match Place::choose(options.accel)? {
            Place::SoftHost { .. } => starting(opening).await?,
            _ => opening.await?,
        })
    }

    /// The home of this command.
    pub(crate) fn home(&self) -> Result<Home> {
        Ok(Home::open(self.home.clone())?)
    }
}

/// Runs a command in the software host of the home.
pub(crate) async fn run_in_softhost(global: &Global, argv: Vec<OsString>) -> Result<u8> {
    if HostEnvironment::detect().is_nested() {
        bail!("this is the software host already");
    }
    let options = Options::new(global.home()?.path(), &GuestFiles::locate()?)?;
    let connecting = starting(nested::connect(&options));
    Ok(nested::run(&options, connecting, Command::here(argv)?).await?)
}

/// Shows that something happens while the software host starts.
async fn starting<T>(work: impl Future<Output = T>) -> T {
    Spinner::while_waiting("starting the software host", work).await
}
