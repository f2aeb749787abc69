//! `boxlite-vmm softhost`: runs a command in the software host.

use std::ffi::OsString;

use anyhow::{Result, bail};
use boxlite_runtime::nested::{self, HostEnvironment, NestedCommand, Options};
use boxlite_runtime::{Error, GuestFiles};

use crate::global::{Global, starting};

/// Runs a command in the software host of the home.
pub(crate) async fn softhost(global: &Global, argv: Vec<OsString>) -> Result<u8> {
    if HostEnvironment::detect().is_nested() {
        bail!("this is the software host already");
    }
    let options = Options::new(global.home()?.path(), &GuestFiles::locate().map_err(Error::from)?)?;
    let connecting = starting(nested::connect(&options));
    Ok(nested::run(&options, connecting, NestedCommand::new(argv)?).await?)
}
