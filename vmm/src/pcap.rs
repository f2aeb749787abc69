//! `--pcap`: the packets of a box's network, recorded in a file.

use std::path::PathBuf;

use anyhow::{Result, bail};
use boxlite_runtime::{Attached, BoxHandle, Error, Place, StartOptions, TerminalSize};
use clap::Args;

use crate::global::Global;
use crate::{out, words};

#[derive(Debug, Default, Args)]
pub(crate) struct PcapArgs {
    /// Record the packets of the box's network in this file (replaced; 1G at most), for Wireshark and tcpdump
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

impl PcapArgs {
    /// Whether packets are to be recorded.
    pub(crate) fn is_given(&self) -> bool {
        self.pcap.is_some()
    }

    /// Refuses what cannot be recorded, before a box is made: a box in the background of the software
    /// host, where only this process could write the file.
    pub(crate) fn check(&self, global: &Global, background: bool) -> Result<()> {
        if background && self.ends_with_this_process(global)? {
            bail!(
                "--pcap: boxes run in the software host, which cannot write files of this machine; this \
                 process writes the file, so the box has to be in the foreground (`run` without -d, \
                 `start --attach`)"
            );
        }
        Ok(())
    }

    /// The start of a box whose packets are recorded if that was asked for.
    pub(crate) fn start_options(&self) -> StartOptions {
        let mut options = StartOptions::default();
        options.capture.clone_from(&self.pcap);
        options
    }

    /// Boots a box with its main command attached.
    pub(crate) async fn start_attached(
        &self,
        sandbox: &BoxHandle,
        size: Option<TerminalSize>,
    ) -> Result<Attached, Error> {
        sandbox.start_with(self.start_options().wait_for_attach(size)).await?;
        sandbox.attach().await
    }

    /// Reports what is missing in a file that this process has written: packets, or those of a box that goes on without
    /// this process.
    pub(crate) async fn report_end(&self, sandbox: &BoxHandle, global: &Global) {
        let (Some(file), Ok(true)) = (&self.pcap, self.ends_with_this_process(global)) else {
            return;
        };
        let is_live = sandbox.info().await.is_ok_and(|info| info.state.is_live());
        if !is_live {
            // Returns when the file is written. Other callers report why a box has failed.
            let _ = sandbox.wait().await;
        }
        if let Some(error) = sandbox.capture_error() {
            out::note(format_args!("boxlite-vmm: warning: {}", words::error(&error)));
        } else if is_live {
            out::note(format_args!(
                "boxlite-vmm: the capture {} ends here: the software host cannot write it",
                file.display()
            ));
        }
    }

    fn ends_with_this_process(&self, global: &Global) -> Result<bool> {
        if !self.is_given() {
            return Ok(false);
        }
        Ok(matches!(Place::choose(global.options().accel)?, Place::SoftHost { .. }))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use crate::args::{Cli, Subcommand};

    #[test]
    fn in_the_software_host_it_takes_a_process_that_stays() {
        let refused = |args: &[&str], background| {
            let cli = Cli::parse_from([&["x", "--accel", "soft", "start", "box"], args].concat());
            let Subcommand::Start(start) = cli.command else { panic!() };
            start.pcap.check(&cli.global, background).is_err()
        };
        assert!(refused(&["--pcap", "file"], true));
        assert!(!refused(&["--pcap", "file"], false) && !refused(&[], true));
    }

    #[test]
    fn the_file_belongs_to_the_start() {
        let cli = Cli::parse_from(["x", "start", "--pcap", "file", "box"]);
        let Subcommand::Start(start) = cli.command else { panic!() };
        assert_eq!(start.pcap.start_options().capture.as_deref(), Some(Path::new("file")));
    }
}
