//! The folder of a home's nested host: `<home>/softhost`.
//!
//! The disk image in it has boxes and images of one architecture, which the file `arch` names. An image of a release
//! before that file is of the machine's own architecture.
//!
//! The keeper and the QEMU that it started hold the lock in it: while either of them runs, no other process opens the
//! disk image.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use boxlite_durable::{self as durable, Durability};
use boxlite_kernel::Arch;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::net::{UnixListener, UnixStream};

use super::Error;
use crate::sys;

/// The socket for launchers.
const CONTROL_SOCKET: &str = "control.sock";

/// The socket for boxes that request ports of this host.
const PORTS_SOCKET: &str = "ports.sock";

/// The folder of the nested host.
#[derive(Debug)]
pub(super) struct HostFolder {
    home: PathBuf,
    path: PathBuf,
    /// For the addresses of sockets, which may have only 107 bytes on Linux; a home's path may have more.
    dir: File,
}

impl HostFolder {
    /// Opens the folder, and creates it if it does not exist.
    pub(super) fn open(home: &Path) -> Result<Self, Error> {
        let path = home.join("softhost");
        let open = || {
            durable::create_dir_all(&path, 0o700)?;
            File::open(&path)
        };
        let dir = open().map_err(|source| Error::Folder { path: path.clone(), source })?;
        Ok(Self { home: home.to_owned(), path, dir })
    }

    pub(super) fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn image(&self) -> PathBuf {
        self.path.join("home.ext4")
    }

    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> Error {
        let path = self.path.join(name);
        |source| Error::Folder { path, source }
    }

    /// Takes the lock; none if a keeper, or its QEMU, holds it.
    pub(super) fn lock(&self) -> Result<Option<File>, Error> {
        self.try_lock().map_err(self.failed("lock"))
    }

    fn try_lock(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(self.path.join("lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether `file` is the lock file and holds the lock.
    pub(super) fn is_our_lock(&self, file: &File) -> bool {
        let same = || -> io::Result<bool> {
            let (ours, theirs) = (fs::metadata(self.path.join("lock"))?, file.metadata()?);
            Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
        };
        same().unwrap_or(false) && flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    fn socket(&self) -> io::Result<PathBuf> {
        sys::socket_path(&self.dir, &self.path, CONTROL_SOCKET)
    }

    fn ports_socket(&self) -> io::Result<PathBuf> {
        sys::socket_path(&self.dir, &self.path, PORTS_SOCKET)
    }

    /// Listens for boxes that request ports of this host. Requires the lock.
    pub(super) fn listen_for_ports(&self) -> Result<UnixListener, Error> {
        let _ = fs::remove_file(self.path.join(PORTS_SOCKET));
        self.ports_socket().and_then(UnixListener::bind).map_err(self.failed(PORTS_SOCKET))
    }

    /// Connects to the keeper for a box that requests ports of this host.
    pub(super) fn connect_for_ports(&self) -> Result<std::os::unix::net::UnixStream, Error> {
        let connect = std::os::unix::net::UnixStream::connect;
        self.ports_socket().and_then(connect).map_err(self.failed(PORTS_SOCKET))
    }

    /// Listens for launchers. Requires the lock.
    pub(super) fn listen(&self) -> Result<UnixListener, Error> {
        self.stop_listening();
        self.socket().and_then(UnixListener::bind).map_err(self.failed(CONTROL_SOCKET))
    }

    /// Removes the sockets, so that new launchers find no keeper. Requires the lock.
    pub(super) fn stop_listening(&self) {
        for name in [CONTROL_SOCKET, PORTS_SOCKET] {
            let _ = fs::remove_file(self.path.join(name));
        }
    }

    /// Connects to the keeper; none if there is none.
    pub(super) async fn connect(&self) -> Result<Option<UnixStream>, Error> {
        let connect = async { UnixStream::connect(self.socket()?).await };
        match connect.await {
            Ok(stream) => Ok(Some(stream)),
            Err(e) => match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                // The backlog of a busy keeper is full.
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(self.failed(CONTROL_SOCKET)(e)),
            },
        }
    }

    /// Creates an empty log for the next keeper.
    pub(super) fn new_log(&self) -> Result<File, Error> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let log = options.open(self.log()).and_then(|log| log.set_len(0).map(|()| log));
        log.map_err(self.failed("log"))
    }

    /// The architecture of the disk image; none if there is no image.
    fn arch(&self) -> Result<Option<Arch>, Error> {
        if !self.image().exists() {
            return Ok(None);
        }
        match fs::read_to_string(self.path.join(ARCH_FILE)) {
            Ok(name) => {
                let unknown =
                    |e| self.failed(ARCH_FILE)(io::Error::new(io::ErrorKind::InvalidData, e));
                name.trim().parse().map(Some).map_err(unknown)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Some(Arch::HOST)),
            Err(e) => Err(self.failed(ARCH_FILE)(e)),
        }
    }

    /// Fails if the disk image is of another architecture. Without the lock, there may be an image a moment later.
    pub(super) fn check_arch(&self, arch: Arch) -> Result<(), Error> {
        match self.arch()? {
            Some(theirs) if theirs != arch => Err(Error::OtherArch {
                home: self.home.clone(),
                image: self.image(),
                theirs,
                ours: arch,
            }),
            _ => Ok(()),
        }
    }

    /// Creates the disk image of the box home for an architecture, if there is none. Requires the lock.
    ///
    /// # Errors
    /// There is one for another architecture, or the image cannot be created.
    pub(super) fn prepare_image(&self, arch: Arch, template: &Path) -> Result<(), Error> {
        self.check_arch(arch)?;
        if !self.image().exists() {
            // First, so that an image is never without its architecture.
            let path = self.path.join(ARCH_FILE);
            durable::replace(&path, format!("{arch}\n").as_bytes(), Durability::Power)
                .map_err(self.failed(ARCH_FILE))?;
        }
        self.ensure_image(template)
    }

    /// Creates the disk image of the box home, if there is none. Requires the lock.
    fn ensure_image(&self, template: &Path) -> Result<(), Error> {
        self.ensure_image_of(IMAGE_SIZE, template)
    }

    fn ensure_image_of(&self, size: u64, template: &Path) -> Result<(), Error> {
        let image = self.image();
        if image.exists() {
            return Ok(());
        }
        let write = |file: &mut File| {
            let mut source = zstd::Decoder::new(File::open(template)?)?;
            crate::sparse::copy(&mut source, file)?;
            file.set_len(size)
        };
        // Atomically: an incomplete image would never be replaced.
        durable::replace_with(&image, Durability::Power, write)
            .map(drop)
            .map_err(|source| Error::Image { path: image.clone(), source })
    }
}

/// The file with the name of the image's architecture.
const ARCH_FILE: &str = "arch";

/// Size of the file system for boxes in the nested host, in bytes. The file is sparse. A larger size slows down the
/// first start, which grows the file system.
const IMAGE_SIZE: u64 = 64 << 30;

/// The last lines of a text file, for an error message.
pub(super) fn last_lines(path: &Path, lines: usize) -> String {
    const ENOUGH: u64 = 8 << 10;
    let read = || -> io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(len.min(ENOUGH)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, len.saturating_sub(ENOUGH))?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let text: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    text[text.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use boxlite_durable::power_cut::{Cut, Watch};

    use super::*;

    #[test]
    fn one_holds_the_lock_until_all_its_copies_are_closed() {
        let home = tempfile::tempdir().unwrap();
        let folder = HostFolder::open(home.path()).unwrap();
        let lock = folder.lock().unwrap().unwrap();
        assert!(folder.lock().unwrap().is_none());
        assert!(folder.is_our_lock(&lock));
        let inherited = lock.try_clone().unwrap();
        drop(lock);
        assert!(folder.lock().unwrap().is_none());
        drop(inherited);
        let lock = folder.lock().unwrap().unwrap();
        assert!(!folder.is_our_lock(&File::open("/dev/null").unwrap()));
        drop(lock);
    }

    #[test]
    fn a_home_with_a_long_name_has_a_socket() {
        let home = tempfile::tempdir().unwrap();
        let folder = HostFolder::open(&home.path().join("x".repeat(120))).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(folder.connect().await.unwrap().is_none());
            let listener = folder.listen().unwrap();
            assert!(folder.connect().await.unwrap().is_some());
            drop(listener);
            assert!(folder.connect().await.unwrap().is_none(), "a stale socket is no keeper");
            let _listener = folder.listen().unwrap();
            assert!(folder.connect().await.unwrap().is_some());
        });
    }

    #[test]
    fn a_home_has_boxes_of_one_architecture() {
        let other = if Arch::HOST == Arch::X86_64 { Arch::Aarch64 } else { Arch::X86_64 };
        let home = tempfile::tempdir().unwrap();
        let template = home.path().join("template");
        fs::write(&template, zstd::encode_all(&[7; 5000][..], 0).unwrap()).unwrap();
        let folder = HostFolder::open(home.path()).unwrap();
        folder.check_arch(other).unwrap();
        folder.prepare_image(other, &template).unwrap();
        folder.check_arch(other).unwrap();
        for refused in [folder.check_arch(Arch::HOST), folder.prepare_image(Arch::HOST, &template)]
        {
            let message = refused.unwrap_err().to_string();
            assert!(message.contains(&format!(" is {other}, not {}", Arch::HOST)), "{message}");
        }
        // Without its image, the home is free again.
        fs::remove_file(folder.image()).unwrap();
        folder.check_arch(Arch::HOST).unwrap();
        folder.prepare_image(Arch::HOST, &template).unwrap();
        assert!(folder.check_arch(other).is_err());
        // Of an earlier release.
        fs::remove_file(home.path().join("softhost/arch")).unwrap();
        folder.check_arch(Arch::HOST).unwrap();
        assert!(folder.check_arch(other).is_err());
        // Of a later one.
        fs::write(home.path().join("softhost/arch"), "riscv64\n").unwrap();
        assert!(folder.check_arch(Arch::HOST).unwrap_err().to_string().contains("riscv64"));
    }

    #[test]
    fn a_power_failure_leaves_no_incomplete_image() {
        let home = tempfile::tempdir().unwrap();
        let template = home.path().join("template");
        fs::write(&template, zstd::encode_all(&[7; 5000][..], 0).unwrap()).unwrap();
        let folder = HostFolder::open(home.path()).unwrap();
        // Of a keeper that was killed.
        fs::write(home.path().join("softhost/.home.ext4.new"), [1; 9000]).unwrap();
        let watch = Watch::begin(home.path());
        folder.ensure_image_of(8192, &template).unwrap();
        let (during, after) = watch.end();
        let whole = [&[7; 5000][..], &[0; 3192]].concat();
        let image = |cut: &Cut| fs::read(cut.path().join("softhost/home.ext4")).ok();
        assert!(during.iter().map(image).all(|image| image.is_none_or(|image| image == whole)));
        assert!(after.iter().map(image).all(|image| image.as_ref() == Some(&whole)));
        assert!(!home.path().join("softhost/.home.ext4.new").exists());
    }

    #[test]
    fn the_last_lines_are_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "a\nb\r\n\nc\n").unwrap();
        assert_eq!(last_lines(&path, 2), "b\nc");
        assert_eq!(last_lines(&path, 9), "a\nb\nc");
        assert_eq!(last_lines(&dir.path().join("none"), 2), "");
        fs::write(&path, "x\n".repeat(10_000)).unwrap();
        assert_eq!(last_lines(&path, 3), "x\nx\nx");
    }
}
