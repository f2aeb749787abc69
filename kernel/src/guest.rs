//! The guest files: one folder with everything a box boots from, and how a launcher finds it.
//!
//! The manifest is written last, so a folder that has one is complete. Locating is cheap, because
//! it happens at every start: sizes are compared, hashes only by [`GuestFiles::verify`].

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::error::LocateError;
use crate::hash::sha256_file;

/// The manifest's file name.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The initramfs' file name: an uncompressed cpio archive (newc) that holds the agent.
pub const INITRAMFS_FILE: &str = "initramfs.cpio";
/// The empty disk's file name: an ext4 file system, compressed with zstd.
pub const TEMPLATE_FILE: &str = "template.ext4.zst";
/// The size of the template, decompressed, in bytes.
pub const TEMPLATE_SIZE: u64 = 32 << 20;

/// The form of manifest that this version writes and reads.
const FORMAT: u32 = 1;
/// The largest manifest that is read, in bytes.
const MANIFEST_LIMIT: u64 = 64 << 10;
/// Names the folder of the guest files outright.
const GUEST_DIR_VARIABLE: &str = "BOXLITE_GUEST_DIR";

/// What a folder of guest files holds and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The manifest's own form.
    format: u32,
    /// The architecture of kernel and agent.
    pub arch: Arch,
    /// What `uname -r` says in a box.
    pub kernel_release: String,
    /// What the kernel was built from.
    pub kernel_source: SourceInfo,
    /// The agent's package version.
    pub agent_version: String,
    /// Each file by name.
    files: BTreeMap<String, FileInfo>,
}

/// What a kernel was built from, as its manifest records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// The kernel's version: `6.12.64` from kernel.org, `6.12.117-1~deb12u1` from Debian.
    pub version: String,
    /// Where it came from, in words.
    pub origin: String,
    /// SHA-256 of the tarball; of the names, sizes and times of all files for a folder.
    pub sha256: String,
    /// Whether `sha256` is one of the pinned ones.
    pub pinned: bool,
}

/// One file as the manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// The three files beside the manifest.
    fn names(arch: Arch) -> [&'static str; 3] {
        [arch.kernel_file(), INITRAMFS_FILE, TEMPLATE_FILE]
    }

    /// What is said of a file, by its name.
    pub fn file(&self, name: &str) -> Option<&FileInfo> {
        self.files.get(name)
    }

    /// Describes the files in `dir`: reads and hashes each of them.
    pub fn describe(
        dir: &Path,
        arch: Arch,
        kernel_release: &str,
        kernel_source: SourceInfo,
        agent_version: &str,
    ) -> Result<Self, LocateError> {
        let mut files = BTreeMap::new();
        for name in Self::names(arch) {
            let path = dir.join(name);
            let error = |source| LocateError::Io { path: path.clone(), source };
            let size = path.metadata().map_err(error)?.len();
            let sha256 = sha256_file(&path).map_err(error)?;
            files.insert(name.to_owned(), FileInfo { size, sha256 });
        }
        Ok(Self {
            format: FORMAT,
            arch,
            kernel_release: kernel_release.to_owned(),
            kernel_source,
            agent_version: agent_version.to_owned(),
            files,
        })
    }

    /// The manifest as it is stored.
    pub fn to_json(&self) -> String {
        // Strings, numbers and a map with string keys: nothing in it can fail to serialize.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    fn read(path: &Path) -> Result<Self, LocateError> {
        let bad = |problem| LocateError::BadManifest { path: path.to_owned(), problem };
        let io = |source| LocateError::Io { path: path.to_owned(), source };
        if path.metadata().map_err(io)?.len() > MANIFEST_LIMIT {
            return Err(bad("too large for a manifest".to_owned()));
        }
        let text = fs::read(path).map_err(io)?;
        // Its form first: that of another version may have other fields.
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let form: Form = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if form.format != FORMAT {
            return Err(bad(format!("its format is {}, this version reads {FORMAT}", form.format)));
        }
        serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))
    }
}

/// The guest files of one architecture, found and of the right sizes.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The folder that holds them.
    pub dir: PathBuf,
    /// The kernel: an ELF `vmlinux` on x86_64, a raw `Image` on aarch64.
    pub kernel: PathBuf,
    /// The initramfs with the agent as `/init`.
    pub initramfs: PathBuf,
    /// The empty ext4 disk of [`TEMPLATE_SIZE`], compressed with zstd.
    pub template: PathBuf,
    /// What they are.
    pub manifest: Manifest,
}

impl GuestFiles {
    /// Finds the guest files for boxes on this machine.
    ///
    /// Looks in `$BOXLITE_GUEST_DIR` alone if that is set; else beside the executable (`guest/`,
    /// `../guest/`), then in `$XDG_DATA_HOME/boxlite/guest` or `~/.local/share/boxlite/guest`. In
    /// each place a folder named after the architecture counts too.
    ///
    /// # Errors
    /// [`LocateError::NotFound`] lists every folder looked at; other errors name a damaged file.
    pub fn locate() -> Result<Self, LocateError> {
        Self::locate_for(Arch::HOST)
    }

    /// Finds the guest files of another architecture than this machine's, in the same places.
    pub fn locate_for(arch: Arch) -> Result<Self, LocateError> {
        Self::locate_in(arch, places())
    }

    fn locate_in(
        arch: Arch,
        places: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self, LocateError> {
        let mut searched = Vec::new();
        for place in places {
            let own = place.join(arch.name());
            for dir in [place, own] {
                match Self::open(&dir) {
                    Ok(files) if files.manifest.arch == arch => return Ok(files),
                    Ok(_) => {}
                    Err(LocateError::Io { path, source })
                        if path.ends_with(MANIFEST_FILE)
                            && matches!(
                                source.kind(),
                                ErrorKind::NotFound | ErrorKind::NotADirectory
                            ) => {}
                    Err(error) => return Err(error),
                }
                searched.push(dir);
            }
        }
        Err(LocateError::NotFound { arch, searched })
    }

    /// Opens the guest files in `dir`, of whatever architecture; compares sizes, not hashes.
    pub fn open(dir: &Path) -> Result<Self, LocateError> {
        // The files are opened by processes with other working directories, too.
        let dir = std::path::absolute(dir)
            .map_err(|source| LocateError::Io { path: dir.to_owned(), source })?;
        let manifest = Manifest::read(&dir.join(MANIFEST_FILE))?;
        let files = Self {
            kernel: dir.join(manifest.arch.kernel_file()),
            initramfs: dir.join(INITRAMFS_FILE),
            template: dir.join(TEMPLATE_FILE),
            dir,
            manifest,
        };
        files.check(|path, info| {
            let size = path.metadata()?.len();
            Ok((size != info.size).then(|| ("size", info.size.to_string(), size.to_string())))
        })?;
        Ok(files)
    }

    /// Reads every file and compares its hash with the manifest's.
    pub fn verify(&self) -> Result<(), LocateError> {
        self.check(|path, info| {
            let actual = sha256_file(path)?;
            Ok((actual != info.sha256).then(|| ("SHA-256", info.sha256.clone(), actual)))
        })
    }

    /// Calls `differs` on each file.
    fn check(
        &self,
        differs: impl Fn(&Path, &FileInfo) -> std::io::Result<Option<Difference>>,
    ) -> Result<(), LocateError> {
        for name in Manifest::names(self.manifest.arch) {
            let path = self.dir.join(name);
            let info = self.manifest.files.get(name).ok_or_else(|| LocateError::BadManifest {
                path: self.dir.join(MANIFEST_FILE),
                problem: format!("does not describe {name}"),
            })?;
            match differs(&path, info) {
                Ok(None) => {}
                Ok(Some((what, expected, actual))) => {
                    return Err(LocateError::Damaged { path, what, expected, actual });
                }
                Err(source) => return Err(LocateError::Io { path, source }),
            }
        }
        Ok(())
    }
}

/// What of a file differs, what it should be, and what it is.
type Difference = (&'static str, String, String);

/// Where guest files may be, in the order of search.
fn places() -> Vec<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set(GUEST_DIR_VARIABLE) {
        return vec![dir];
    }
    let mut places = Vec::new();
    // The executable itself, not a link to it.
    let exe = env::current_exe().and_then(fs::canonicalize);
    if let Some(dir) = exe.ok().as_deref().and_then(Path::parent) {
        places.push(dir.join("guest"));
        places.extend(dir.parent().map(|parent| parent.join("guest")));
    }
    let data = set("XDG_DATA_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".local/share")));
    places.extend(data.map(|data| data.join("boxlite/guest")));
    places
}

#[cfg(test)]
mod tests;
