//! `cargo xtask image`: OCI images made from Debian packages, without a registry.
//!
//! An image is made once for a recipe and kept in the cache; asking for it copies it.

pub(crate) mod busybox;
mod debian;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use boxlite_kernel::{Arch, sha256_bytes};
use boxlite_kernel_builder::{Cache, debian_name};
use clap::ValueEnum;

use crate::apt;
use crate::build::run;
use crate::ui::Step;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which image
    kind: Kind,
    /// The folder of the OCI layout; an OCI layout there is replaced
    out: PathBuf,
    /// The architecture of its programs: x86_64 or aarch64
    #[arg(long, default_value_t = Arch::HOST)]
    arch: Arch,
}

/// The images that can be made.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Debian's static busybox with all its applets: 1 MB
    Busybox,
    /// Debian 12 with python3 and its tests, perl, gcc and the C library
    Debian,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Debian => "debian",
        }
    }

    /// Text that changes when the image would: part of its name in the cache.
    fn recipe(self, arch: Arch) -> String {
        match self {
            Self::Busybox => busybox::recipe(arch),
            Self::Debian => debian::recipe(arch),
        }
    }

    /// Makes the image's only layer.
    fn layer(self, arch: Arch, work: &Path, tar: &Path, step: &Step) -> Result<()> {
        match self {
            Self::Busybox => busybox::layer(arch, work, tar),
            Self::Debian => debian::layer(arch, tar, step),
        }
    }

    /// What a container of it runs if nothing else is said.
    fn command(self) -> &'static str {
        match self {
            Self::Busybox => "sh",
            Self::Debian => "bash",
        }
    }
}

/// Makes the image that `options` ask for.
pub(crate) fn make(options: &Options) -> Result<()> {
    make_at(options.kind, options.arch, &options.out)
}

/// Puts the image of `kind` for `arch` into the folder `out` as an OCI layout.
pub(crate) fn make_at(kind: Kind, arch: Arch, out: &Path) -> Result<()> {
    let step = Step::start(kind.name());
    if out.exists() && !out.join("oci-layout").exists() && out.read_dir()?.next().is_some() {
        bail!("{} is not empty and no OCI layout: not touched", out.display());
    }
    let images = Cache::open()?.dir("images")?;
    let cached = images.join(format!("{}-{}", kind.name(), &sha256_bytes(kind.recipe(arch))[..16]));
    let known = cached.exists();
    if !known {
        let work = tempfile::Builder::new().prefix(".tmp-").tempdir_in(&images)?;
        let tar = work.path().join("layer.tar");
        kind.layer(arch, work.path(), &tar, &step)?;
        step.say("writing the OCI layout");
        let layout = work.path().join("layout");
        layout_of(arch, &tar, &layout, kind.command())?;
        if let Err(error) = fs::rename(&layout, &cached)
            && !cached.exists()
        {
            return Err(error).context("cannot put the image into the cache");
        }
    }
    // The copy is finished before it takes the place of what is there.
    let parent =
        out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let copy = tempfile::Builder::new().prefix(".tmp-").tempdir_in(parent)?;
    copy_folder(&cached, &copy.path().join("layout"))?;
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("cannot replace {}", out.display()))?;
    }
    fs::rename(copy.path().join("layout"), out)
        .with_context(|| format!("cannot make {}", out.display()))?;
    step.done(format!("{}{}", out.display(), if known { ", cached" } else { "" }));
    Ok(())
}

/// Turns one layer into an OCI layout tagged `latest`. The layer goes in as it is: nothing is
/// unpacked, so no root is needed for its owners and devices.
fn layout_of(arch: Arch, tar: &Path, layout: &Path, command: &str) -> Result<()> {
    apt::ensure(&[("umoci", "umoci")])?;
    let image = format!("{}:latest", layout.display());
    run(apt::command("umoci").args(["init", "--layout"]).arg(layout))?;
    run(apt::command("umoci").args(["new", "--image", &image]))?;
    run(apt::command("umoci").args(["raw", "add-layer", "--image", &image]).arg(tar))?;
    run(apt::command("umoci").args(["config", "--image", &image, "--config.cmd", command]).args(
        [
            "--architecture",
            debian_name(arch),
            "--config.env",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ],
    ))?;
    // Each step above left its own configuration and manifest.
    run(apt::command("umoci").args(["gc", "--layout"]).arg(layout))
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}
