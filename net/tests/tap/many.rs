//! Ten thousand connections at once. The network and both ends are processes of their own, because the number of
//! open files per process is limited: this test runs its own executable again.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::NetworkOptions;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::lab::{Lab, OUTSIDE, in_lab};

const COUNT: usize = 10_000;
/// The role of another process: `network`, `accept`, or an address to connect to.
const ROLE: &str = "BOXLITE_TEST_ROLE";

/// Another process, which exits when its standard input ends.
struct Helper {
    process: Child,
    says: BufReader<ChildStdout>,
}

impl Helper {
    fn start(role: &str) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "many::helper", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        Self { process, says }
    }

    /// The rest of the line that begins with `word`.
    fn wait_for(&mut self, word: &str) -> String {
        for line in (&mut self.says).lines() {
            if let Some(at) = line.as_ref().unwrap().find(word) {
                return line.unwrap()[at + word.len()..].trim().to_owned();
            }
        }
        panic!("a helper ended without {word}");
    }

    fn end(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

fn allow_files() -> bool {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    maximum.is_none_or(|most| most >= COUNT as u64 + 500)
}

fn number(i: usize) -> [u8; 4] {
    u32::try_from(i).unwrap().to_be_bytes()
}

/// The body of the other processes; does nothing in the test's own.
#[test]
fn helper() {
    let Ok(role) = env::var(ROLE) else { return };
    assert!(allow_files());
    let mut streams = Vec::new();
    if role == "accept" {
        let listener = TcpListener::bind((OUTSIDE, 0)).unwrap();
        rustix::net::listen(&listener, 4096).unwrap();
        println!("\nlistening {}", listener.local_addr().unwrap());
        for _ in 0..COUNT {
            streams.push(listener.accept().unwrap().0);
        }
        println!("\naccepted");
        for mut stream in &streams {
            let mut number = [0; 4];
            stream.read_exact(&mut number).unwrap();
            stream.write_all(&number).unwrap();
        }
    } else {
        let address: SocketAddr = role.parse().unwrap();
        for _ in 0..COUNT {
            streams.push(TcpStream::connect(address).unwrap());
        }
        println!("\nconnected");
        for (i, mut stream) in streams.iter().enumerate() {
            stream.write_all(&number(i)).unwrap();
        }
        for (i, mut stream) in streams.iter().enumerate() {
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, number(i), "an answer went astray");
        }
        println!("\nanswered");
    }
    let _ = std::io::stdin().read(&mut [0]);
}

/// Starts a helper that is the guest.
fn start_guest(lab: &Lab, role: &str) -> Helper {
    lab.guest(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "2000 65000").unwrap();
        Helper::start(role)
    })
}

#[test]
fn ten_thousand_connections_at_once() {
    // In a process of its own, so that its memory is the network's.
    if env::var(ROLE).is_err() {
        let test = "many::ten_thousand_connections_at_once";
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, "network")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    in_lab(|lab| {
        if !allow_files() {
            return println!("SKIPPED: this process may not have {} open files", COUNT + 500);
        }
        let network = lab.start(NetworkOptions::default());
        let mut server = Helper::start("accept");
        let address = server.wait_for("listening ");
        let before = memory();
        let mut client = start_guest(lab, &address);
        client.wait_for("connected");
        server.wait_for("accepted");
        assert_eq!(network.counters().tcp_open, COUNT as u64);
        client.wait_for("answered");
        // The network frees buffers after ten quiet seconds, so the rest is the cost of idle flows.
        thread::sleep(Duration::from_secs(11));
        let deadline = Instant::now() + Duration::from_secs(120);
        let grown = loop {
            let grown = memory().saturating_sub(before) / COUNT as u64;
            if grown <= 8192 {
                break grown;
            }
            assert!(Instant::now() < deadline, "{grown} bytes for each idle flow");
            thread::sleep(Duration::from_millis(200));
        };
        println!("{grown} bytes of memory for each idle flow");
        client.end();
        server.end();
        network.wait_for("all flows end", |c| c.tcp_open == 0);
    });
}

/// The resident memory of this process, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
