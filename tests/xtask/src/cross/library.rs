//! Rust's standard library for a target: the toolchain's own, one in the cache, rustup's, and else
//! built from its source.
//!
//! A built one is kept in the cache as `sysroots/TRIPLE-KEY`, which appears by one rename, and is used
//! by `--sysroot`. Its workspace is built as the makers of Rust build it for a release, with its profile
//! `dist`: optimized, and with bitcode for link-time optimization.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use boxlite_kernel::sha256_bytes;
use boxlite_kernel_builder::Cache;

use super::{Target, source};
use crate::ui::Step;
use crate::{apt, build};

/// Part of every key: raise it when another library is built from the same input.
const BUILDER_VERSION: u32 = 1;

/// Finds or builds the library; `None` means that the toolchain has it.
pub(super) fn find(target: Target, variables: &[(String, OsString)]) -> Result<Option<PathBuf>> {
    if toolchain_has(target)? {
        return Ok(None);
    }
    let rustc = Rustc::find()?;
    let cache = Cache::open()?;
    let finished = cache.dir("sysroots")?.join(rustc.key(target));
    if finished.exists() {
        return Ok(Some(finished));
    }
    let step = Step::start("rust-std");
    if rustup_adds(target, &step) && toolchain_has(target)? {
        step.done(format!("{}, by rustup", target.triple()));
        return Ok(None);
    }
    let key = rustc.key(target);
    let waiting = || step.say("another process builds it: waiting for that");
    let _lock = cache.lock(&format!("sysroot-{key}"), waiting)?;
    if !finished.exists() {
        make(&cache, &rustc, target, variables, &finished, &step).with_context(|| {
            let triple = target.triple();
            format!("no standard library for {triple}: rustup adds none, and building it failed")
        })?;
    }
    step.done(format!("{}: {}", target.triple(), finished.display()));
    Ok(Some(finished))
}

/// Whether the toolchain has the library for `target`.
fn toolchain_has(target: Target) -> Result<bool> {
    let mut rustc = build::at_root("rustc");
    rustc.args(["--print", "target-libdir", "--target", target.triple()]);
    let folder = String::from_utf8(build::output(&mut rustc)?).context("rustc prints no text")?;
    let Ok(entries) = fs::read_dir(folder.trim()) else {
        return Ok(false);
    };
    let is_core = |name: OsString| name.as_encoded_bytes().starts_with(b"libcore-");
    Ok(entries.flatten().any(|entry| is_core(entry.file_name())))
}

/// Whether rustup has installed it into the toolchain.
fn rustup_adds(target: Target, step: &Step) -> bool {
    if apt::find("rustup").is_none() {
        return false;
    }
    step.say(format!("rustup target add {}", target.triple()));
    let mut rustup = build::at_root("rustup");
    rustup.args(["target", "add", target.triple()]).env("RUSTUP_MAX_RETRIES", "1");
    let added = build::run(&mut rustup);
    if let Err(error) = &added {
        let text = format!("{error:#}");
        step.note(format!(
            "rustup cannot add {}: {}",
            target.triple(),
            text.lines().last().unwrap_or_default()
        ));
    }
    added.is_ok()
}

/// The compiler.
struct Rustc {
    /// `rustc -vV`.
    identity: String,
    release: String,
    commit: String,
}

impl Rustc {
    fn find() -> Result<Self> {
        let identity = String::from_utf8(build::output(build::at_root("rustc").arg("-vV"))?)
            .context("rustc -vV prints no text")?;
        Self::parse(identity)
    }

    fn parse(identity: String) -> Result<Self> {
        let field = |name: &str| {
            let mut lines = identity.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        let release = field("release").context("rustc -vV names no release")?;
        let commit = field("commit-hash").context("rustc -vV names no commit")?;
        if release.contains('-') {
            bail!("rustc {release} is no stable release: its source is in no archive");
        }
        Ok(Self { identity, release, commit })
    }

    /// The library's name in the cache.
    fn key(&self, target: Target) -> String {
        let pinned = source::PINNED;
        let identity = format!("builder {BUILDER_VERSION}\nsource {pinned}\n{}", self.identity);
        format!("{}-{}", target.triple(), &sha256_bytes(identity)[..16])
    }
}

/// Builds the library and puts it into the cache as `finished`.
fn make(
    cache: &Cache,
    rustc: &Rustc,
    target: Target,
    variables: &[(String, OsString)],
    finished: &Path,
    step: &Step,
) -> Result<()> {
    let work = tempfile::Builder::new().prefix(".tmp-").tempdir_in(cache.dir("sysroots")?)?;
    let (library, version) = source::unpack(cache, &rustc.release, work.path(), step)?;
    step.note(format!("building {} from Debian's rust-src {version}, once", target.triple()));
    let built = compile(rustc, target, variables, &library, &work.path().join("target"))?;

    let sysroot = work.path().join("sysroot");
    let folder = sysroot.join("lib/rustlib").join(target.triple()).join("lib");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for path in built {
        let name = path.file_name().context("a library has no name")?;
        fs::copy(&path, folder.join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    fs::write(sysroot.join("source"), format!("Debian rust-src {version}\n"))?;
    fs::rename(&sysroot, finished)
        .with_context(|| format!("cannot rename to {}", finished.display()))
}

/// Compiles the workspace in `library`; returns the libraries, or their metadata if nothing can be
/// linked for the target.
fn compile(
    rustc: &Rustc,
    target: Target,
    variables: &[(String, OsString)],
    library: &Path,
    out: &Path,
) -> Result<Vec<PathBuf>> {
    // Panics and debug information name the source as a release does, not by where it was unpacked.
    let mut remap = OsString::from("--remap-path-prefix=");
    remap.push(library.parent().unwrap_or(library));
    remap.push(format!("=/rustc/{}", rustc.commit));
    // What is not marked as stable is for the library alone.
    let flags = [OsString::from("-Zforce-unstable-if-unmarked"), remap];
    let mut cargo = build::cargo();
    cargo
        .arg(if target.links() { "build" } else { "check" })
        .args(["--quiet", "--locked", "--profile=dist", "--features=panic-unwind,backtrace"])
        .arg("--manifest-path")
        .arg(library.join("sysroot/Cargo.toml"))
        .args(["--target", target.triple()])
        .arg("--target-dir")
        .arg(out)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f".as_ref()))
        // A stable compiler compiles its own library only if told so.
        .env("RUSTC_BOOTSTRAP", "1");
    build::run(&mut cargo)?;
    let kind = if target.links() { "rlib" } else { "rmeta" };
    let deps = out.join(target.triple()).join("dist/deps");
    let listing = || format!("cannot list {}", deps.display());
    let mut built = Vec::new();
    for entry in fs::read_dir(&deps).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        if path.extension().is_some_and(|extension| extension == kind) {
            built.push(path);
        }
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use boxlite_kernel::Arch;

    use super::*;

    const IDENTITY: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
                            commit-hash: 59807616e1fa\nhost: x86_64-unknown-linux-gnu\n\
                            release: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn a_library_is_known_by_its_compiler_and_target() {
        let rustc = Rustc::parse(IDENTITY.to_owned()).unwrap();
        assert_eq!((rustc.release.as_str(), rustc.commit.as_str()), ("1.95.0", "59807616e1fa"));
        let other = Rustc::parse(IDENTITY.replace("59807616e", "48807616e")).unwrap();
        let linux = Target::Linux(Arch::Aarch64);
        assert_ne!(rustc.key(linux), other.key(linux));
        assert!(rustc.key(Target::Darwin).starts_with("aarch64-apple-darwin-"));
    }

    #[test]
    fn a_compiler_without_a_release_has_no_source() {
        assert!(Rustc::parse(IDENTITY.replace("1.95.0\nLLVM", "1.97.0-nightly\nLLVM")).is_err());
        assert!(Rustc::parse("rustc 1.95.0\n".to_owned()).is_err());
    }

    #[test]
    fn the_toolchain_has_the_library_of_this_machine() {
        assert!(toolchain_has(Target::Linux(Arch::HOST)).unwrap());
    }
}
