//! The host's resolver configuration, read again when it changes.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

/// The least time between two checks of the file.
const INTERVAL: Duration = Duration::from_secs(1);
/// The most bytes of the file that are read.
const MAX_LEN: u64 = 64 << 10;

/// Name servers and search domains of the host.
pub(crate) struct Config {
    path: PathBuf,
    /// The file's folder, and its name there: in a jail that this process enters later, the path does not
    /// exist any more, but the folder's descriptor works.
    folder: Option<(OwnedFd, OsString)>,
    version: Option<Version>,
    checked: Option<Instant>,
    pub(super) servers: Vec<SocketAddr>,
    search: Arc<Mutex<Vec<String>>>,
}

/// Identifies a version of the file: device, inode, time of change, length.
type Version = (u64, u64, i64, i64, u64);

impl Config {
    /// Reads the configuration. `search` is kept up to date with the search domains.
    pub(crate) fn new(path: PathBuf, search: Arc<Mutex<Vec<String>>>, now: Instant) -> Self {
        let servers = vec![fallback()];
        let folder = open_folder(&path);
        let mut config = Self { path, folder, version: None, checked: None, servers, search };
        config.refresh(now);
        config
    }

    /// Reads the file again if it has changed. True if it has. A file that cannot be opened counts as
    /// unchanged.
    pub(super) fn refresh(&mut self, now: Instant) -> bool {
        if self.checked.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL) {
            return false;
        }
        self.checked = Some(now);
        let Some(file) = self.open() else { return false };
        let version = file.metadata().ok().map(|metadata| version(&metadata));
        if version == self.version {
            return false;
        }
        self.version = version;
        let (servers, search) = parse(&read(file));
        self.servers = servers;
        *self.search.lock().unwrap_or_else(PoisonError::into_inner) = search;
        tracing::debug!("network: name servers are {:?}", self.servers);
        true
    }

    /// Has the next query check the file.
    pub(super) fn invalidate(&mut self) {
        self.checked = None;
    }

    /// The host's search domains.
    pub(super) fn search(&self) -> Vec<String> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open(&self) -> Option<File> {
        // NONBLOCK, since the path may be a pipe.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(&self.path, flags, Mode::empty());
        let file = file.ok().or_else(|| {
            let (folder, name) = self.folder.as_ref()?;
            rustix::fs::openat(folder, name, flags, Mode::empty()).ok()
        });
        file.map(File::from)
    }
}

/// Opens the folder of a file, with symbolic links resolved.
fn open_folder(path: &Path) -> Option<(OwnedFd, OsString)> {
    let path = path.canonicalize().ok()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path.parent()?, flags, Mode::empty()).ok()?;
    Some((folder, path.file_name()?.to_owned()))
}

fn read(file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    // After an error, what was read counts.
    let _ = file.take(MAX_LEN).read_to_end(&mut bytes);
    bytes
}

/// The name server of this machine, used if the file names none (resolv.conf(5)).
fn fallback() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 53)
}

fn version(m: &Metadata) -> Version {
    (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.len())
}

fn parse(text: &[u8]) -> (Vec<SocketAddr>, Vec<String>) {
    // One invalid line must not invalidate the others.
    let lines =
        text.split(|byte| *byte == b'\n').filter(|line| resolv_conf::Config::parse(line).is_ok());
    let text: Vec<u8> = lines.flat_map(|line| [line, b"\n"].concat()).collect();
    let config = resolv_conf::Config::parse(&text).unwrap_or_default();
    let mut servers: Vec<SocketAddr> = config
        .nameservers
        .iter()
        .map(|server| match server {
            resolv_conf::ScopedIp::V4(ip) => SocketAddr::new(IpAddr::V4(*ip), 53),
            resolv_conf::ScopedIp::V6(ip, scope) => {
                let scope = scope.as_deref().map_or(0, scope_id);
                SocketAddr::V6(std::net::SocketAddrV6::new(*ip, 53, 0, scope))
            }
        })
        .take(3)
        .collect();
    if servers.is_empty() {
        servers.push(fallback());
    }
    let search = config.get_last_search_or_domain();
    let search = search.map(|name| name.to_ascii_lowercase()).take(16).collect();
    (servers, search)
}

/// The number of a link, by its name or as it is.
fn scope_id(scope: &str) -> u32 {
    scope.parse().unwrap_or_else(|_| {
        let index = std::fs::read_to_string(format!("/sys/class/net/{scope}/ifindex"));
        index.ok().and_then(|index| index.trim().parse().ok()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_domains_are_found_whatever_else_is_there() {
        let text = b"# c\nnameserver 10.0.0.1\nnonsense\nnameserver ::1\nsearch Corp.example lan\n\
            options edns0 trust-ad unknown:7\nnameserver x\n";
        let (servers, search) = parse(text);
        assert_eq!(servers, ["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!(search, ["corp.example", "lan"]);
        assert_eq!(parse(b"").0, [fallback()]);
        assert_eq!(parse(&[0xff; 1000]).0, [fallback()]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        let search = Arc::new(Mutex::new(Vec::new()));
        let now = Instant::now();
        let mut config = Config::new(path.clone(), Arc::clone(&search), now);
        assert_eq!(config.servers, ["10.0.0.1:53".parse().unwrap()]);
        assert!(!config.refresh(now + INTERVAL));
        std::fs::write(&path, "nameserver 10.0.0.22\nsearch lan\n").unwrap();
        assert!(!config.refresh(now + INTERVAL), "not that often");
        assert!(config.refresh(now + INTERVAL * 2));
        assert_eq!(config.servers, ["10.0.0.22:53".parse().unwrap()]);
        assert_eq!(*search.lock().unwrap(), ["lan"]);
        // In a jail the path leads nowhere, but the folder is still the same.
        config.path = "/nonexistent".into();
        std::fs::write(dir.path().join("new"), "nameserver 10.0.0.3\n").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        config.invalidate();
        assert!(config.refresh(now));
        assert_eq!(config.servers, ["10.0.0.3:53".parse().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        config.invalidate();
        assert!(!config.refresh(now));
        assert_eq!(config.servers, ["10.0.0.3:53".parse().unwrap()]);
    }

    #[test]
    fn without_a_file_this_machine_is_asked() {
        let config = Config::new("/nonexistent".into(), Arc::default(), Instant::now());
        assert_eq!(config.servers, [fallback()]);
    }
}
