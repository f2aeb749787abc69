//! The builder: from source and configuration to a kernel in the cache.
//!
//! A kernel is cached by a key: the hash of its settings, source, architecture and compiler. A
//! cached kernel is not built again, from whichever clone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde::{Deserialize, Serialize};

use boxlite_kernel::{Arch, SourceInfo, sha256_bytes};

use crate::cache::{self, Cache};
use crate::command;
use crate::config::{Config, PageSize};
use crate::error::{BuildError, IoContext};
use crate::progress::{Event, Progress};
use crate::source::{Location, Source, version_of};
use crate::toolchain::Toolchain;
use crate::version::Lts;

/// Part of every key: raise it when the builder makes another kernel from the same input.
const BUILDER_VERSION: u32 = 1;
/// Description of a finished kernel; written last.
const DESCRIPTION: &str = "kernel.json";
/// Approximate number of lines that make prints; only for progress bars.
const X86_64_STEPS: u64 = 2100;
const AARCH64_STEPS: u64 = 2000;

/// The kernel to build.
#[derive(Clone, Debug)]
pub struct Builder {
    /// Architecture.
    pub arch: Arch,
    /// Series.
    pub series: Lts,
    /// Size of its pages.
    pub pages: PageSize,
    /// A tarball or clean source folder to use instead of the pinned source.
    pub source: Option<PathBuf>,
    /// Number of parallel compilers.
    pub jobs: usize,
}

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel to boot: see [`Arch::kernel_file`].
    pub path: PathBuf,
    /// Kernel release, as `uname -r` prints it.
    pub release: String,
    /// Source.
    pub source: SourceInfo,
    /// Key in the cache.
    pub key: String,
    /// Whether it was in the cache before.
    pub cached: bool,
}

/// [`DESCRIPTION`] in the cache.
#[derive(Serialize, Deserialize)]
struct Description {
    release: String,
    source: SourceInfo,
    compiler: String,
}

impl Builder {
    /// A builder of the default series for `arch`, on all processors.
    pub fn new(arch: Arch) -> Self {
        let jobs = thread::available_parallelism().map_or(1, Into::into);
        Self { arch, series: Lts::default(), pages: PageSize::default(), source: None, jobs }
    }

    /// Returns the kernel from the cache, or fetches its source and builds it.
    ///
    /// # Errors
    /// Missing tools, unreachable sources, settings that kconfig dropped, or the last output of the
    /// compiler.
    pub fn build(
        &self,
        cache: &Cache,
        mut progress: impl FnMut(Event<'_>),
    ) -> Result<Kernel, BuildError> {
        self.build_dyn(cache, &mut progress)
    }

    fn build_dyn(&self, cache: &Cache, progress: Progress<'_>) -> Result<Kernel, BuildError> {
        let (arch, pages) = (self.arch, self.pages);
        let config = Config::for_arch(arch)?;
        let config =
            config.with_pages(arch, pages).ok_or(BuildError::NoSuchPages { arch, pages })?;
        let toolchain = Toolchain::find(self.arch)?;
        let source = match &self.source {
            Some(path) => Source::given(path, self.series)?,
            None => Source::obtain(cache, self.series, progress)?,
        };
        let key = self.key(&config, &source.info, &toolchain);
        let finished = cache.dir("kernels")?.join(&key);
        if let Some(kernel) = self.open(&finished, &key, true) {
            return Ok(kernel);
        }
        let _lock = cache.lock(&format!("kernel-{key}"), || progress(Event::Waiting))?;
        // Another process may have built it while this one waited.
        if let Some(kernel) = self.open(&finished, &key, true) {
            return Ok(kernel);
        }
        let work = cache.dir("build")?.join(&key);
        cache::remove(&work)?;
        fs::create_dir(&work).context("make", &work)?;
        self.compile(&config, &toolchain, &source, &work, &finished, progress)?;
        cache::remove(&work)?;
        self.open(&finished, &key, false).ok_or_else(|| BuildError::BadSource {
            path: finished,
            problem: "the finished kernel cannot be read back".to_owned(),
        })
    }

    fn key(&self, config: &Config, source: &SourceInfo, toolchain: &Toolchain) -> String {
        let identity = format!(
            "builder {BUILDER_VERSION}\narch {}\nsource {}\ncompiler {}\n{}",
            self.arch,
            source.sha256,
            toolchain.identity,
            config.identity()
        );
        let mut key = sha256_bytes(identity);
        key.truncate(24);
        key
    }

    /// Opens a finished kernel in the cache.
    fn open(&self, dir: &Path, key: &str, cached: bool) -> Option<Kernel> {
        let text = fs::read(dir.join(DESCRIPTION)).ok()?;
        let description: Description = serde_json::from_slice(&text).ok()?;
        let path = dir.join(self.arch.kernel_file());
        path.is_file().then(|| Kernel {
            path,
            release: description.release,
            source: description.source,
            key: key.to_owned(),
            cached,
        })
    }

    fn compile(
        &self,
        config: &Config,
        toolchain: &Toolchain,
        source: &Source,
        work: &Path,
        finished: &Path,
        progress: Progress<'_>,
    ) -> Result<(), BuildError> {
        let tree = unpack(source, work, progress)?;
        let build = work.join("out");
        fs::create_dir(&build).context("make", &build)?;
        progress(Event::Configuring);
        configure(config, toolchain, self.arch, &tree, &build)?;

        let expected = match self.arch {
            Arch::X86_64 => X86_64_STEPS,
            Arch::Aarch64 => AARCH64_STEPS,
        };
        let (target, built) = image_target(self.arch);
        let mut steps = 0;
        let mut make = toolchain.make(&tree, &build);
        make.arg(format!("-j{}", self.jobs.max(1))).arg(target);
        command::lines(&mut make, |_| {
            steps += 1;
            progress(Event::Compiling { steps, expected });
        })?;

        let release = build.join("include/config/kernel.release");
        let release = fs::read_to_string(&release).context("read", &release)?.trim().to_owned();
        let built = build.join(built);
        let parent = finished.parent().unwrap_or(work);
        let out = cache::temp_dir(parent)?;
        let kernel = out.path().join(self.arch.kernel_file());
        match self.arch {
            // Only what is loaded; the symbols are in System.map beside it.
            Arch::X86_64 => {
                let mut strip = toolchain.strip();
                strip.args(["--strip-all", "--remove-section=.comment", "-o"]);
                command::output(strip.arg(&kernel).arg(&built))?;
            }
            Arch::Aarch64 => drop(fs::copy(&built, &kernel).context("copy", &built)?),
        }
        for (from, to) in [("System.map", "System.map"), (".config", "config")] {
            let from = build.join(from);
            fs::copy(&from, out.path().join(to)).context("copy", &from)?;
        }
        let compiler = toolchain.identity.clone();
        let description = Description { release, source: source.info.clone(), compiler };
        cache::write_json(&out.path().join(DESCRIPTION), &description)?;
        cache::publish_dir(out, finished)
    }
}

/// The make target of an architecture's kernel, and the path of its output.
const fn image_target(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::X86_64 => ("vmlinux", "vmlinux"),
        Arch::Aarch64 => ("Image", "arch/arm64/boot/Image"),
    }
}

/// The source folder: the caller's, or the tarball's, unpacked in `work`.
fn unpack(source: &Source, work: &Path, progress: Progress<'_>) -> Result<PathBuf, BuildError> {
    let tarball = match &source.location {
        Location::Tree(tree) => return Ok(tree.clone()),
        Location::Tarball(tarball) => tarball,
    };
    progress(Event::Unpacking(tarball));
    let tree = work.join("source");
    fs::create_dir(&tree).context("make", &tree)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(tarball).arg("--directory").arg(&tree);
    command::output(tar.args(["--strip-components=1", "--no-same-owner"]))?;
    Ok(tree)
}

/// Makes `.config` in `build` from the fragments only, and checks that each setting took effect.
fn configure(
    config: &Config,
    toolchain: &Toolchain,
    arch: Arch,
    tree: &Path,
    build: &Path,
) -> Result<(), BuildError> {
    let makefile = tree.join("Makefile");
    let version = version_of(&fs::read_to_string(&makefile).context("read", &makefile)?, tree)?;
    let fragment = build.join("boxlite.config");
    fs::write(&fragment, config.render(version)).context("write", &fragment)?;
    let mut make = toolchain.make(tree, build);
    make.arg(format!("KCONFIG_ALLCONFIG={}", fragment.display())).arg("allnoconfig");
    command::lines(&mut make, |_| {})?;
    let dot_config = build.join(".config");
    let mismatches =
        config.verify(version, &fs::read_to_string(&dot_config).context("read", &dot_config)?);
    if mismatches.is_empty() {
        return Ok(());
    }
    Err(BuildError::Dropped { version: version.to_string(), arch, mismatches })
}

#[cfg(test)]
mod tests;
