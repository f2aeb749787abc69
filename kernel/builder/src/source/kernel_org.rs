//! Releases from kernel.org, with `curl` or `wget`: a machine that builds kernels has one of them,
//! and a TLS stack would be most of this crate.

use std::path::Path;
use std::process::Command;

use boxlite_kernel::SourceInfo;

use crate::cache::{self, check_hash};
use crate::command;
use crate::error::BuildError;
use crate::progress::{Event, Progress};
use crate::source::{Source, store};
use crate::version::Lts;

/// Enough for a slow link; short, so that a machine without one falls back soon.
const CONNECT_SECONDS: &str = "5";
/// Timeout of a transfer without data.
const STALL_SECONDS: &str = "30";

/// Downloads the pinned release of `series` into `dir` and checks its hash.
pub(super) fn fetch(dir: &Path, series: Lts, progress: Progress<'_>) -> Result<Source, BuildError> {
    let pin = series.pins().kernel_org;
    let file = format!("linux-{}.tar.xz", pin.version);
    let major = pin.version.split('.').next().unwrap_or_default();
    let url = format!("https://cdn.kernel.org/pub/linux/kernel/v{major}.x/{file}");

    let temp = cache::temp_dir(dir)?;
    let download = temp.path().join(&file);
    let attempt = |mut command: Command, progress: Progress<'_>| {
        command::watch(&mut command, &download, |bytes| {
            progress(Event::Downloading { what: &url, bytes, total: None });
        })
    };
    match attempt(curl(&url, &download), progress) {
        Err(BuildError::Spawn { .. }) => attempt(wget(&url, &download), progress)?,
        result => result?,
    }
    check_hash(&download, pin.sha256)?;
    store(
        dir,
        &download,
        SourceInfo {
            version: pin.version.to_owned(),
            origin: url.clone(),
            sha256: pin.sha256.to_owned(),
            pinned: true,
        },
    )
}

fn curl(url: &str, file: &Path) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--silent", "--show-error", "--location"])
        .args(["--connect-timeout", CONNECT_SECONDS])
        .args(["--speed-limit", "1024", "--speed-time", STALL_SECONDS])
        .arg("--output")
        .arg(file)
        .arg(url);
    curl
}

fn wget(url: &str, file: &Path) -> Command {
    let mut wget = Command::new("wget");
    wget.args(["--no-verbose", "--tries=1"])
        .arg(format!("--connect-timeout={CONNECT_SECONDS}"))
        .arg(format!("--dns-timeout={CONNECT_SECONDS}"))
        .arg(format!("--read-timeout={STALL_SECONDS}"))
        .arg("--output-document")
        .arg(file)
        .arg(url);
    wget
}
