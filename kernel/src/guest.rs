//! The guest files, the folder that a box boots from: manifest and locator.
//!
//! The manifest is written last, so a folder with one is complete. Every start locates the files,
//! so that is cheap: sizes are compared, hashes only by [`GuestFiles::verify`].

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::error::LocateError;
use crate::hash::sha256_file;

/// File name of the manifest.
pub const MANIFEST_FILE: &str = "manifest.json";
/// File name of the initramfs: an uncompressed cpio archive (newc) with the agent.
pub const INITRAMFS_FILE: &str = "initramfs.cpio";
/// File name of the empty disk: an ext4 file system, compressed with zstd.
pub const TEMPLATE_FILE: &str = "template.ext4.zst";
/// Size of the decompressed template, in bytes.
pub const TEMPLATE_SIZE: u64 = 32 << 20;

/// The manifest format of this version.
const FORMAT: u32 = 1;
/// Maximum length of a manifest, in bytes.
const MANIFEST_LIMIT: u64 = 64 << 10;
/// The variable for the folder of the guest files; no other is searched then.
pub const GUEST_DIR_VARIABLE: &str = "BOXLITE_GUEST_DIR";

/// Contents and origin of a folder of guest files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of the manifest.
    format: u32,
    /// Architecture of kernel and agent.
    pub arch: Arch,
    /// Kernel release, as `uname -r` prints it in a box.
    pub kernel_release: String,
    /// Source of the kernel.
    pub kernel_source: SourceInfo,
    /// Package version of the agent.
    pub agent_version: String,
    /// Files by name.
    files: BTreeMap<String, FileInfo>,
}

/// The source of a kernel, as recorded in its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceInfo {
    /// Version: `6.12.64` from kernel.org, `6.12.117-1~deb12u1` from Debian.
    pub version: String,
    /// Where it came from, for people.
    pub origin: String,
    /// SHA-256 of the tarball; for a folder, of the names, sizes and times of its files.
    pub sha256: String,
    /// Whether `sha256` is one of the pinned ones.
    pub pinned: bool,
}

/// A file's entry in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// The three files beside the manifest.
    fn names(arch: Arch) -> [&'static str; 3] {
        [arch.kernel_file(), INITRAMFS_FILE, TEMPLATE_FILE]
    }

    /// The entry of a file.
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

    /// The manifest as JSON.
    pub fn to_json(&self) -> String {
        // Strings, numbers and a map with string keys: serialization cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    fn read(path: &Path) -> Result<Self, LocateError> {
        let bad = |problem| LocateError::BadManifest { path: path.to_owned(), problem };
        let io = |source| LocateError::Io { path: path.to_owned(), source };
        if path.metadata().map_err(io)?.len() > MANIFEST_LIMIT {
            return Err(bad("too large for a manifest".to_owned()));
        }
        let text = fs::read(path).map_err(io)?;
        // The format first: another version may have other fields.
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

/// The guest files of one architecture, with the sizes that the manifest says.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The folder.
    pub dir: PathBuf,
    /// The kernel: an ELF `vmlinux` on x86_64, a raw `Image` on aarch64.
    pub kernel: PathBuf,
    /// The initramfs with the agent as `/init`.
    pub initramfs: PathBuf,
    /// The empty ext4 disk of [`TEMPLATE_SIZE`], compressed with zstd.
    pub template: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
}

impl GuestFiles {
    /// Locates the guest files for boxes on this machine.
    ///
    /// Searches `$BOXLITE_GUEST_DIR` alone if that is set; else `guest/` and `../guest/` beside the
    /// executable, then `$XDG_DATA_HOME/boxlite/guest` or `~/.local/share/boxlite/guest`. In each,
    /// a subfolder named after the architecture counts, too.
    ///
    /// # Errors
    /// [`LocateError::NotFound`] lists the searched folders; other errors name a damaged file.
    pub fn locate() -> Result<Self, LocateError> {
        Self::locate_for(Arch::HOST)
    }

    /// Locates the guest files of an architecture, in the same folders.
    ///
    /// # Errors
    /// As [`locate`](Self::locate).
    pub fn locate_for(arch: Arch) -> Result<Self, LocateError> {
        Self::locate_in(arch, places(None))
    }

    /// Locates the guest files of an architecture for another executable than this one: first in the folders beside it.
    ///
    /// # Errors
    /// As [`locate`](Self::locate).
    pub fn locate_for_launcher(arch: Arch, launcher: &Path) -> Result<Self, LocateError> {
        Self::locate_in(arch, places(Some(launcher)))
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

    /// Opens the guest files in `dir`, of any architecture; compares sizes, not hashes.
    pub fn open(dir: &Path) -> Result<Self, LocateError> {
        // Absolute, because processes with other working directories open the files, too.
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

    /// Compares the hash of every file with the manifest's.
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

/// A property that differs, its expected value, its value.
type Difference = (&'static str, String, String);

/// The folders to search, in order.
fn places(launcher: Option<&Path>) -> Vec<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set(GUEST_DIR_VARIABLE) {
        return vec![dir];
    }
    let mut places = Vec::new();
    let executables = launcher.map(Path::to_owned).into_iter().chain(env::current_exe().ok());
    // The executable itself, not a link to it.
    for exe in executables.filter_map(|exe| fs::canonicalize(exe).ok()) {
        if let Some(dir) = exe.parent() {
            places.push(dir.join("guest"));
            places.extend(dir.parent().map(|parent| parent.join("guest")));
        }
    }
    let data = set("XDG_DATA_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".local/share")));
    places.extend(data.map(|data| data.join("boxlite/guest")));
    places
}

#[cfg(test)]
mod tests;
