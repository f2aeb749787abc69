//! Global options: the home, and where boxes run.

// The doc comments are help texts, where brackets mark optional parts.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

use std::path::PathBuf;

use anyhow::{Context, Result};
use boxlite_runtime::nested::InnerLauncher;
use boxlite_runtime::{Home, Place, Runtime, RuntimeOptions};
use clap::{Args, ValueEnum};

use crate::progress::Spinner;

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Folder of boxes and images [default: $BOXLITE_HOME, else ~/.boxlite]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Where boxes run
    #[arg(long, global = true, value_enum, default_value_t, env = "BOXLITE_ACCEL")]
    pub(crate) accel: Accel,
    /// Log more, to stderr and machine.log, and write the guest's console to console.log (both in boxes/<id>/)
    #[arg(long, global = true)]
    pub(crate) debug: bool,
}

/// Where boxes run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accel {
    /// Use hardware virtualization if this machine has it, otherwise the software host
    #[default]
    Auto,
    /// Use KVM (Linux), or fail
    Kvm,
    /// Use Hypervisor.framework of macOS, or fail
    Hvf,
    /// Use the software host: QEMU emulates a machine that has virtualization (slow)
    Soft,
}

impl Global {
    /// The options of this command's runtime.
    pub(crate) fn options(&self) -> RuntimeOptions {
        let mut options = RuntimeOptions::default().accel(match self.accel {
            Accel::Auto => boxlite_runtime::Accel::Auto,
            Accel::Kvm => boxlite_runtime::Accel::Kvm,
            Accel::Hvf => boxlite_runtime::Accel::Hvf,
            Accel::Soft => boxlite_runtime::Accel::Soft,
        });
        options.home.clone_from(&self.home);
        options.debug(self.debug).notice(self.notice())
    }

    /// The line for standard error when the software host is started.
    fn notice(&self) -> String {
        // Opening the runtime reports an unusable launcher.
        match InnerLauncher::from_env() {
            Ok(Some(inner)) if inner.is_foreign() => {
                format!("boxlite-vmm: starting the software host for {} boxes", inner.arch)
            }
            _ if self.accel == Accel::Soft => "boxlite-vmm: starting the software host".to_owned(),
            _ => "boxlite-vmm: no hardware virtualization here: starting the software host, which is \
                  slower (`boxlite-vmm doctor` explains why)"
                .to_owned(),
        }
    }

    /// Opens this command's runtime, on this machine or in the software host.
    pub(crate) async fn runtime(&self) -> Result<Runtime> {
        let options = self.options();
        let opening = Runtime::open(options.clone());
        let place = Place::choose(options.accel);
        let place = match self.accel {
            Accel::Kvm => place.context("--accel kvm")?,
            Accel::Hvf => place.context("--accel hvf")?,
            _ => place?,
        };
        Ok(match place {
            Place::SoftHost { .. } => starting(opening).await?,
            _ => opening.await?,
        })
    }

    /// Opens this command's home.
    pub(crate) fn home(&self) -> Result<Home> {
        Ok(Home::open(self.home.clone())?)
    }
}

/// Shows a spinner while the software host starts.
pub(crate) async fn starting<T>(work: impl Future<Output = T>) -> T {
    Spinner::while_waiting("starting the software host", work).await
}
