//! `boxlite-vmm softhost`: runs a command in the software host.

use std::ffi::OsString;

use anyhow::{Result, bail};
use boxlite_runtime::nested::{self, HostEnvironment, NestedCommand, Options};

use crate::global::{Global, starting};

/// Runs a command in the software host of the home.
pub(crate) async fn softhost(global: &Global, argv: Vec<OsString>) -> Result<u8> {
    if HostEnvironment::detect().is_nested() {
        bail!("this is the software host already");
    }
    let options = Options::locate(global.home()?.path())?;
    let connecting = starting(nested::connect(&options));
    Ok(nested::run(&options, connecting, NestedCommand::new(argv, &options)?).await?)
}
