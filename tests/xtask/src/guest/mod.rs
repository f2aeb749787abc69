//! `cargo xtask guest`: the guest files, built into `target/guest`.
//!
//! Each part is known by its content, so a second run only compares. The manifest goes away before
//! anything changes and comes back last: a launcher never sees half of one set and half of another.

mod agent;
mod initramfs;
mod template;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use boxlite_kernel::{Arch, INITRAMFS_FILE, MANIFEST_FILE, Manifest, TEMPLATE_FILE};
use boxlite_kernel_builder::{BuildError, Builder, Cache, Event, Kernel, Lts, PageSize, Toolchain};

use crate::ui::Step;
use crate::{apt, build};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The architecture of the boxes: x86_64 or aarch64
    #[arg(long, default_value_t = Arch::HOST)]
    arch: Arch,
    /// The kernel's long-term series: 6.12 or 6.1
    #[arg(long, value_name = "SERIES", default_value_t = Lts::default())]
    kernel_version: Lts,
    /// A kernel source tarball or clean source folder, instead of a pinned one
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
}

impl Options {
    /// What boxes of an architecture boot from.
    pub(crate) fn for_arch(arch: Arch) -> Self {
        Self { arch, kernel_version: Lts::default(), source: None }
    }
}

/// Builds the guest files and returns their folder.
pub(crate) fn build(options: &Options) -> Result<PathBuf> {
    let arch = options.arch;
    let mut dir = build::target_dir().join("guest");
    if arch != Arch::HOST {
        dir.push(arch.name());
    }
    let kernel = kernel(options)?;
    let (agent, agent_version) = agent::build(arch)?;

    let step = Step::start("guest");
    step.say("comparing with what is there");
    let kernel_image =
        fs::read(&kernel.path).with_context(|| format!("cannot read {}", kernel.path.display()))?;
    let files = [
        (arch.kernel_file(), kernel_image),
        (INITRAMFS_FILE, initramfs::archive(&agent)?),
        (TEMPLATE_FILE, template::make()?),
    ];
    let manifest_file = dir.join(MANIFEST_FILE);
    let mut changed = Vec::new();
    for (name, contents) in &files {
        let path = dir.join(name);
        if fs::read(&path).is_ok_and(|old| old == *contents) {
            continue;
        }
        if manifest_file.exists() {
            fs::remove_file(&manifest_file).context("cannot remove the old manifest")?;
        }
        build::write(&path, contents)?;
        changed.push(*name);
    }
    let manifest = Manifest::describe(&dir, arch, &kernel.release, kernel.source, &agent_version)?;
    if build::write(&manifest_file, manifest.to_json().as_bytes())? {
        changed.push(MANIFEST_FILE);
    }
    let what = if changed.is_empty() { "nothing changed".to_owned() } else { changed.join(", ") };
    step.done(format!("{}: {what}", dir.display()));
    Ok(dir)
}

/// The kernel of boxes, from the cache or built.
fn kernel(options: &Options) -> Result<Kernel> {
    let mut builder = Builder::new(options.arch);
    builder.series = options.kernel_version;
    builder.source = options.source.clone();
    kernel_of(&builder)
}

/// A kernel for a software host with pages of another size than those of boxes, from the cache or built.
pub(crate) fn host_kernel(arch: Arch, pages: PageSize) -> Result<PathBuf> {
    Ok(kernel_of(&Builder { pages, ..Builder::new(arch) })?.path)
}

fn kernel_of(builder: &Builder) -> Result<Kernel> {
    let missing = Toolchain::missing(builder.arch);
    apt::install(&missing.iter().map(|tool| tool.package).collect::<Vec<_>>())?;

    let step = Step::start("kernel");
    step.say("looking for its source");
    let built = builder.build(&Cache::open()?, |event| match event {
        Event::Note(text) => step.note(text),
        Event::Waiting => step.note("another build of it is running: waiting for that"),
        Event::Downloading { what, bytes, total } => step.bytes(what, bytes, total),
        Event::Unpacking(path) => step.say(format!("unpacking {}", path.display())),
        Event::Configuring => step.say("configuring"),
        Event::Compiling { steps, expected } => {
            if steps == 1 {
                step.note("compiling the kernel: some minutes, once; it is kept in the cache");
            }
            step.count("compiling", steps, expected);
        }
        _ => {}
    });
    let kernel = match built {
        Err(error @ BuildError::NoSource { .. }) => {
            bail!("{error}\nGive one with --source TARBALL|FOLDER.")
        }
        built => built?,
    };
    step.done(format!(
        "{} {} from {}{}",
        builder.arch,
        kernel.release,
        kernel.source.origin,
        if kernel.cached { ", cached" } else { "" }
    ));
    Ok(kernel)
}
