//! Two network namespaces for each test, and the network between them. The benchmark of the network
//! has this file, too.
#![allow(dead_code)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use boxlite_net::sys::TapLink;
use boxlite_net::{Counters, Handle, Link, Network, NetworkOptions, OffloadFeatures};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// An address of the "Internet", where servers of the tests listen.
pub(crate) const OUTSIDE: &str = "203.0.113.1";
pub(crate) const OUTSIDE6: &str = "2001:db8::1";
/// Unreachable addresses: one without a route, one that a router reports as unreachable.
pub(crate) const NO_ROUTE: &str = "198.51.100.1";
pub(crate) const UNREACHABLE: &str = "203.0.113.66";

/// The offloads of this project's virtio-net device.
pub(crate) const FEATURES: OffloadFeatures =
    OffloadFeatures { checksum: true, tso4: true, tso6: true };

/// Two namespaces. The thread that creates the lab, with its threads and processes, is the host.
pub(crate) struct Lab {
    host: String,
    guest: String,
}

/// A network that runs in a lab.
pub(crate) struct Running {
    pub(crate) handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Runs a test in a lab of its own, or prints why it is skipped.
pub(crate) fn in_lab(test: impl FnOnce(&Lab) + Send + 'static) {
    if let Some(reason) = missing(&["ip"]) {
        println!("SKIPPED: {reason}");
        return;
    }
    // A namespace belongs to a thread; the test's own may be used for other tests.
    let result = thread::spawn(move || test(&Lab::new())).join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// The reason to skip a test that needs these programs; none if all is there.
pub(crate) fn missing(programs: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, for network namespaces and a TAP device".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".to_owned());
    }
    let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    let found = |program: &&&str| dirs.iter().any(|dir| Path::new(dir).join(program).exists());
    programs
        .iter()
        .find(|program| !found(program))
        .map(|program| format!("{program} is not installed"))
}

impl Lab {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { host: format!("bxh-{id}"), guest: format!("bxg-{id}") };
        for name in [&lab.host, &lab.guest] {
            run(Command::new("ip").args(["netns", "add", name]));
        }
        enter(&lab.host);
        batch(&format!(
            "link set lo up\naddr add {OUTSIDE}/32 dev lo\naddr add {OUTSIDE6}/128 dev lo nodad\n\
             route add unreachable {UNREACHABLE}/32\n"
        ));
        lab
    }

    /// Starts a network with these options, and gives the guest its static configuration.
    pub(crate) fn start(&self, options: NetworkOptions) -> Running {
        self.start_with(options, FEATURES)
    }

    pub(crate) fn start_with(&self, options: NetworkOptions, features: OffloadFeatures) -> Running {
        let mtu = options.mtu;
        let running = self.start_bare(options, features);
        self.configure_guest(mtu);
        running
    }

    /// Starts a network whose guest has a device `eth0` that is down.
    pub(crate) fn start_bare(&self, options: NetworkOptions, features: OffloadFeatures) -> Running {
        let tap = self.tap(features);
        Running::start(options, Box::new(tap))
    }

    /// The guest's device, which is down.
    pub(crate) fn tap(&self, features: OffloadFeatures) -> TapLink {
        let tap = TapLink::create("eth0", features).expect("a TAP device");
        // The network knows the guest's MAC address before the first frame, as with a virtio-net device.
        let mac = "02:62:6f:78:00:02";
        run(Command::new("ip").args(["link", "set", "eth0", "address", mac, "netns", &self.guest]));
        tap
    }

    /// Gives the guest its static configuration.
    pub(crate) fn configure_guest(&self, mtu: u16) {
        self.guest(move || {
            batch(&format!(
                "link set lo up\nlink set eth0 mtu {mtu} up\n\
                 addr add 192.168.127.2/24 dev eth0\n\
                 addr add fdb0:786c:6974::2/64 dev eth0 nodad\n\
                 route add default via 192.168.127.1\n\
                 route add default via fdb0:786c:6974::1\n"
            ));
        });
    }

    /// Runs something as the guest.
    pub(crate) fn guest<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(&self.guest);
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The name of the guest's namespace.
    pub(crate) fn guest_name(&self) -> &str {
        &self.guest
    }

    /// Runs a program as the guest.
    pub(crate) fn guest_run(&self, program: &str, args: &[&str]) -> Output {
        self.guest(|| Command::new(program).args(args).output().expect("a program"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.host, &self.guest] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

impl Running {
    /// The "Internet" of a lab is an address of its host.
    pub(crate) fn start(options: NetworkOptions, link: Box<dyn Link>) -> Self {
        Self::start_closed(NetworkOptions { own_addresses_open: true, ..options }, link)
    }

    /// With the host's own addresses closed, as they are outside of a lab.
    pub(crate) fn start_closed(options: NetworkOptions, link: Box<dyn Link>) -> Self {
        let network = Network::new(options).expect("a network");
        let handle = network.handle();
        handle.attach(link).expect("a link");
        let thread = thread::spawn(move || network.run().expect("the network runs"));
        Self { handle, thread: Some(thread) }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.handle.counters()
    }

    /// Waits until the counters are as expected.
    pub(crate) fn wait_for(&self, what: &str, done: impl Fn(&Counters) -> bool) {
        // A busy kernel drops frames if its backlog is full; they are sent again with growing delays.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(&self.counters()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.counters());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the network's thread panicked");
        }
    }
}

/// Moves this thread, and its later threads and processes, into the namespace.
fn enter(name: &str) {
    let file = File::open(format!("/var/run/netns/{name}")).expect("a namespace");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
}

/// Runs `ip` with these lines.
pub(crate) fn batch(lines: &str) {
    let mut child =
        Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("iproute2");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("ip reads");
    assert!(child.wait().expect("ip ends").success(), "ip -batch:\n{lines}");
}

/// Runs a program that must succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}
