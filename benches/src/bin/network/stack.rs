//! The stacks, and how each is started between two namespaces.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use boxlite_net::link::MAX_FRAME;
use boxlite_net::sys::TapLink;
use boxlite_net::{Link, NetworkOptions, OffloadFeatures};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType};
use tempfile::TempDir;

use crate::lab::{Lab, OUTSIDE, Running, batch, missing};

/// The default gateway of the host's namespace: pasta maps its address to the host's loopback.
const ROUTER: &str = "203.0.113.254";

/// A user-mode network stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    Ours,
    Pasta,
    Slirp4netns,
    Gvproxy,
}

/// A running stack, which stops when this is dropped.
pub(crate) enum Started {
    Ours { _network: Running },
    Program(Child),
    Gvproxy { process: Child, _dir: TempDir },
}

impl Stack {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Pasta, Self::Slirp4netns, Self::Gvproxy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
            Self::Gvproxy => "gvproxy",
        }
    }

    /// Why the stack cannot be measured here, if so.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::Ours => None,
            Self::Pasta => missing(&["pasta"]),
            Self::Slirp4netns => missing(&["slirp4netns"]),
            Self::Gvproxy if gvproxy().is_file() => None,
            Self::Gvproxy => Some(
                "not installed; Debian 13 has a package, or BOXLITE_GVPROXY names the program"
                    .to_owned(),
            ),
        }
    }

    /// Connects the lab's namespaces. Returns the stack and the host's address for the guest.
    pub(crate) fn start(self, lab: &Lab, mtu: u16) -> Result<(Started, String)> {
        let guest = format!("/var/run/netns/{}", lab.guest_name());
        let mtu_arg = mtu.to_string();
        let (program, server) = match self {
            Self::Ours => {
                let network = lab.start(NetworkOptions { mtu, ..Default::default() });
                return Ok((Started::Ours { _network: network }, OUTSIDE.to_owned()));
            }
            Self::Pasta => {
                // pasta copies the guest's configuration from an interface with a default route.
                batch(&format!(
                    "tuntap add up0 mode tap\naddr add 203.0.113.2/24 dev up0\nlink set up0 up\n\
                     route add default via {ROUTER}\n"
                ));
                let mut pasta = Command::new("pasta");
                pasta.args(["--foreground", "--config-net", "--quiet", "--runas", "0"]);
                pasta.args(["-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
                pasta.args(["--mtu", &mtu_arg, "--netns", &guest]);
                (pasta, ROUTER)
            }
            Self::Slirp4netns => {
                let mut slirp = Command::new("slirp4netns");
                slirp.args(["--configure", "--mtu", &mtu_arg, "--netns-type", "path"]);
                slirp.args([&guest, "tap0"]);
                (slirp, "10.0.2.2")
            }
            Self::Gvproxy => return start_gvproxy(lab, mtu),
        };
        let started = start(program)?;
        wait_for_route(lab, self)?;
        Ok((started, server.to_owned()))
    }
}

fn gvproxy() -> PathBuf {
    std::env::var_os("BOXLITE_GVPROXY").map_or_else(|| "/usr/bin/gvproxy".into(), PathBuf::from)
}

/// Starts gvproxy. It exchanges frames over a socket, so the TAP device needs a relay, as with its own
/// forwarder.
fn start_gvproxy(lab: &Lab, mtu: u16) -> Result<(Started, String)> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("frames");
    let process = Command::new(gvproxy())
        .args(["-mtu", &mtu.to_string(), "-listen-bess"])
        .arg(format!("unixpacket://{}", path.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let started = Started::Gvproxy { process, _dir: dir };
    let address = SocketAddrUnix::new(&path)?;
    let socket = net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while net::connect(&socket, &address).is_err() {
        ensure!(Instant::now() < deadline, "gvproxy does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    let tap = lab.tap(OffloadFeatures::default());
    let (out, socket_out) = (tap.fd().try_clone_to_owned()?, socket.try_clone()?);
    // Two threads, so that one direction can block without stopping the other.
    thread::spawn(move || from_guest(tap, &socket));
    thread::spawn(move || to_guest(&out, &socket_out));
    lab.configure_guest(mtu);
    Ok((started, "192.168.127.254".to_owned()))
}

/// Forwards the guest's frames until gvproxy exits.
fn from_guest(mut tap: TapLink, socket: &OwnedFd) -> Option<()> {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let mut ready = [PollFd::from_borrowed_fd(tap.fd(), PollFlags::IN)];
        poll(&mut ready, None).ok()?;
        while let Some(frame) = tap.receive(&mut buffer).ok()? {
            net::send(socket, &buffer[..frame.len], SendFlags::NOSIGNAL).ok()?;
        }
    }
}

/// Forwards gvproxy's frames until it exits.
fn to_guest(tap: &OwnedFd, socket: &OwnedFd) -> Option<()> {
    // A `virtio_net_hdr` without offloads.
    let header = [0; 10];
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let (n, _) = net::recv(socket, &mut buffer[..], RecvFlags::empty()).ok()?;
        if n == 0 {
            return None;
        }
        // A frame that the device refuses is lost, as on any link.
        let _ = rustix::io::writev(tap, &[IoSlice::new(&header), IoSlice::new(&buffer[..n])]);
    }
}

fn start(mut program: Command) -> Result<Started> {
    let child = program.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(Started::Program(child))
}

/// Waits until the stack has configured the guest.
fn wait_for_route(lab: &Lab, stack: Stack) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let routes = lab.guest_run("ip", &["route", "show", "default"]);
        if !routes.stdout.is_empty() {
            // The stack's event loop may start a little later.
            thread::sleep(Duration::from_millis(200));
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} did not configure the guest", stack.name());
        thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Self::Program(child) | Self::Gvproxy { process: child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
