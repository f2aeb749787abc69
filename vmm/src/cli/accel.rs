//! Where a command runs: here, on hardware virtualization, or in the software host.

use std::ffi::OsString;

use anyhow::{Context, Result, bail};
use boxlite_kernel::GuestFiles;

use super::args::{Accel, Global};
use crate::runtime::Home;
use crate::softhost::detect::Virtualization;
use crate::softhost::{self, Command, Options};

/// Whether boxes run in this process's own machine.
enum Place {
    Here,
    /// In the software host, and why.
    SoftHost(String),
}

impl Global {
    /// Runs this whole command line again in the software host, if boxes cannot run here. Returns
    /// its exit code then.
    pub(super) async fn elsewhere(&self) -> Result<Option<u8>> {
        match self.place()? {
            Place::Here => Ok(None),
            Place::SoftHost(why) => {
                eprintln!("boxlite-vmm: {why}; using the software host, which is slower");
                let argv = std::env::args_os().skip(1);
                let this = std::env::current_exe().context("cannot find this executable")?;
                let argv = std::iter::once(this.into_os_string()).chain(argv);
                run_in_softhost(self, argv.collect()).await.map(Some)
            }
        }
    }

    fn place(&self) -> Result<Place> {
        let found = Virtualization::detect();
        let remedy = || match found.remedy() {
            Some(remedy) => format!(" ({remedy})"),
            None => String::new(),
        };
        if softhost::is_inside() {
            if !found.is_usable() {
                bail!("the software host has {found}: its QEMU does not emulate AMD's SVM");
            }
            return Ok(Place::Here);
        }
        Ok(match self.accel {
            Accel::Soft => Place::SoftHost("--accel soft".into()),
            Accel::Auto | Accel::Kvm if found.is_usable() => Place::Here,
            Accel::Auto => Place::SoftHost(format!("{found}{}", remedy())),
            Accel::Kvm => bail!("--accel kvm: {found}{}", remedy()),
        })
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
