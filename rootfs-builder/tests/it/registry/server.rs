//! A docker-registry for a test, with or without TLS, passwords and tokens.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::*;

/// TLS and authentication of a registry.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// Certificate and key, both PEM.
    pub(crate) tls: Option<(&'a Path, &'a Path)>,
    /// A file made by htpasswd.
    pub(crate) htpasswd: Option<&'a Path>,
    /// Realm of the tokens, and the certificate of their signer.
    pub(crate) token: Option<(&'a str, &'a Path)>,
}

/// A running registry.
pub(crate) struct Registry {
    child: Child,
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one. None, after printing `SKIPPED`, without docker-registry.
    pub(crate) fn start(setup: &Setup<'_>) -> Option<Self> {
        for tool in ["docker-registry", "skopeo"] {
            if Command::new(tool).arg("--version").output().is_err() {
                eprintln!("SKIPPED: {tool} is not installed");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        // Another process may take the port between its choice and its use.
        for _ in 0..5 {
            let address = free_address();
            fs::write(dir.path().join("config.yml"), config(setup, &address, dir.path())).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(dir.path().join("config.yml"))
                .stdout(Stdio::null())
                .stderr(fs::File::create(dir.path().join("log")).unwrap())
                .spawn()
                .unwrap();
            if listens(&mut child, &address) {
                return Some(Self { child, address, dir });
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("{}", fs::read_to_string(dir.path().join("log")).unwrap());
    }

    /// Copies an image into it under this name.
    pub(crate) fn push(&self, from: &str, name: &str) {
        self.push_as(from, name, &[]);
    }

    /// As `push`, with more options for skopeo.
    pub(crate) fn push_as(&self, from: &str, name: &str, options: &[&str]) {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"])
            .args(options)
            .arg(from)
            .arg(format!("docker://{}/{name}", self.address)));
    }

    /// The file of a blob.
    pub(crate) fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn listens(child: &mut Child, address: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
        if TcpStream::connect(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

fn config(setup: &Setup<'_>, address: &str, dir: &Path) -> String {
    let mut text = format!(
        "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
         storage: {{ filesystem: {{ rootdirectory: {} }}, delete: {{ enabled: true }} }}\n\
         http:\n  addr: {address}\n  secret: none\n",
        dir.join("data").display()
    );
    if let Some((certificate, key)) = setup.tls {
        text += &format!(
            "  tls: {{ certificate: {}, key: {} }}\n",
            certificate.display(),
            key.display()
        );
    }
    if let Some(path) = setup.htpasswd {
        text += &format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", path.display());
    }
    if let Some((realm, bundle)) = setup.token {
        text += &format!(
            "auth: {{ token: {{ realm: \"{realm}\", service: test-service, issuer: test-issuer, rootcertbundle: {} }} }}\n",
            bundle.display()
        );
    }
    text
}

/// Incompressible bytes, different for each seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(len / 8 + 1)
    .flatten()
    .collect();
    bytes.truncate(len);
    bytes
}
