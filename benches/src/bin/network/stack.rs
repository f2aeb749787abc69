//! The stacks, and how each is put between two namespaces.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use boxlite_net::{NetworkOptions, Policy};

use crate::lab::{Lab, OUTSIDE, Running, batch, missing};

/// The "router" of the namespace that is the host: pasta maps it to the host's loopback.
const ROUTER: &str = "203.0.113.254";

/// A user-mode network stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    Ours,
    Pasta,
    Slirp4netns,
}

/// Something that runs until it is dropped.
pub(crate) enum Started {
    Ours { _network: Running },
    Program(Child),
}

impl Stack {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Pasta, Self::Slirp4netns];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }

    /// Why it cannot be measured here.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::Ours => None,
            Self::Pasta => missing(&["pasta"]),
            Self::Slirp4netns => missing(&["slirp4netns"]),
        }
    }

    /// Connects the lab's namespaces, and says where the guest finds the host.
    pub(crate) fn start(self, lab: &Lab, mtu: u16) -> Result<(Started, String)> {
        let guest = format!("/var/run/netns/{}", lab.guest_name());
        let mtu_arg = mtu.to_string();
        let (program, server) = match self {
            Self::Ours => {
                let policy = Policy::default();
                let network = lab.start(NetworkOptions { mtu, policy, ..Default::default() });
                return Ok((Started::Ours { _network: network }, OUTSIDE.to_owned()));
            }
            Self::Pasta => {
                // It takes the guest's configuration from an interface with a default route.
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
        };
        let started = start(program)?;
        wait_for_route(lab, self)?;
        Ok((started, server.to_owned()))
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
            // Its loop may begin a little later.
            thread::sleep(Duration::from_millis(200));
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} did not configure the guest", stack.name());
        thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Self::Program(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
