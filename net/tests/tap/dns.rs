//! The resolver at the gateway, asked by dig, in front of dnsmasq.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::{NetworkOptions, Policy, Rule};
use tempfile::TempDir;

use crate::lab::{Lab, OUTSIDE, in_lab, missing};

const TIMEOUT: Duration = Duration::from_secs(60);

/// A name server of the host, on 127.0.0.1, and the resolver configuration that names it.
struct Server {
    process: Child,
    dir: TempDir,
}

impl Server {
    fn start(address: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("resolv.conf");
        std::fs::write(&conf, format!("nameserver {address}\nsearch corp.example\n")).unwrap();
        let mut dnsmasq = Command::new("dnsmasq");
        dnsmasq.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
        ]);
        dnsmasq.args(["--user=root", "--pid-file=", "--bind-interfaces", "--no-daemon"]);
        dnsmasq.arg(format!("--listen-address={address}"));
        for record in [
            "--host-record=www.example.org,203.0.113.1,2001:db8::1",
            "--cname=alias.example.org,www.example.org",
            "--host-record=rebind.example.org,127.0.0.1",
            "--host-record=metadata.example.org,169.254.169.254",
            "--host-record=private.example.org,10.0.0.1",
            "--host-record=other.example.net,203.0.113.1",
        ] {
            dnsmasq.arg(record);
        }
        for n in 0..20 {
            dnsmasq.arg(format!("--txt-record=large.example.org,{n}{}", "x".repeat(200)));
        }
        dnsmasq.arg(format!("--txt-record=who.example.org,{address}"));
        let process = dnsmasq.stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while TcpStream::connect((address, 53)).is_err() {
            assert!(Instant::now() < deadline, "dnsmasq does not start");
            thread::sleep(Duration::from_millis(20));
        }
        Self { process, dir }
    }

    fn conf(&self) -> &Path {
        self.dir.path()
    }

    fn options(&self) -> NetworkOptions {
        NetworkOptions { resolv_conf: self.conf().join("resolv.conf"), ..Default::default() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The records of the answer.
fn dig(lab: &Lab, args: &[&str]) -> String {
    output_of_dig(lab, &[&["+short"], args].concat())
}

/// The whole output of dig.
fn output_of_dig(lab: &Lab, args: &[&str]) -> String {
    let args = [&["@192.168.127.1", "+tries=1", "+time=60"], args].concat();
    String::from_utf8(lab.guest_run("dig", &args).stdout).unwrap().trim().to_owned()
}

fn in_dns_lab(test: impl FnOnce(&Lab, Server) + Send + 'static) {
    match missing(&["dig", "dnsmasq"]) {
        Some(reason) => println!("SKIPPED: {reason}"),
        None => in_lab(|lab| test(lab, Server::start("127.0.0.1"))),
    }
}

#[test]
fn names_are_resolved_over_udp_and_tcp() {
    in_dns_lab(|lab, server| {
        let network = lab.start(server.options());
        for transport in ["+notcp", "+tcp"] {
            let ask = |name, kind| dig(lab, &[transport, name, kind]);
            assert_eq!(ask("www.example.org", "A"), "203.0.113.1");
            assert_eq!(ask("www.example.org", "AAAA"), "2001:db8::1");
            assert_eq!(ask("alias.example.org", "A"), "www.example.org.\n203.0.113.1");
            assert_eq!(ask("host.boxlite.internal", "A"), "192.168.127.254");
            assert_eq!(ask("HOST.docker.internal", "AAAA"), "fdb0:786c:6974::fe");
            assert_eq!(ask("host.docker.internal", "MX"), "");
        }
        // Too large for a datagram: dig asks again over TCP.
        assert_eq!(dig(lab, &["+bufsize=1232", "large.example.org", "TXT"]).lines().count(), 20);
        // dnsmasq's answer for names that it does not know.
        assert!(output_of_dig(lab, &["nothing.example.org"]).contains("REFUSED"));
        let six =
            lab.guest_run("dig", &["@fdb0:786c:6974::1", "+short", "+time=60", "www.example.org"]);
        assert_eq!(six.stdout, b"203.0.113.1\n");
        assert_eq!(network.handle.search_domains(), ["corp.example"]);
        let counters = network.counters();
        assert!(counters.dns_queries >= 16 && counters.dns_failures == 0, "{counters:?}");
    });
}

#[test]
fn answers_with_addresses_of_the_host_are_withheld() {
    in_dns_lab(|lab, server| {
        let _network = lab.start(server.options());
        assert_eq!(dig(lab, &["rebind.example.org"]), "");
        assert_eq!(dig(lab, &["+tcp", "metadata.example.org"]), "");
        assert_eq!(dig(lab, &["private.example.org"]), "10.0.0.1");
    });
}

#[test]
fn only_allowed_names_are_resolved_and_reached() {
    in_dns_lab(|lab, server| {
        let listener = TcpListener::bind((OUTSIDE.parse::<IpAddr>().unwrap(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || listener.incoming().for_each(drop));
        let policy = Policy::from_rules(vec![Rule::allow("*.example.org").unwrap()]);
        let _network = lab.start(NetworkOptions { policy, ..server.options() });
        let connects = || lab.guest(|| TcpStream::connect_timeout(&address, TIMEOUT).is_ok());
        assert_eq!(dig(lab, &["other.example.net"]), "");
        assert!(output_of_dig(lab, &["other.example.net"]).contains("REFUSED"));
        assert!(!connects(), "the name was not resolved");
        assert_eq!(dig(lab, &["www.example.org"]), "203.0.113.1");
        assert!(connects());
    });
}

#[test]
fn the_resolver_survives_a_changed_configuration_and_dead_servers() {
    in_dns_lab(|lab, server| {
        let network = lab.start(server.options());
        assert_eq!(dig(lab, &["who.example.org", "TXT"]), "\"127.0.0.1\"");
        let _second = Server::start("127.0.0.2");
        let conf = server.conf().join("resolv.conf");
        std::fs::write(&conf, "nameserver 127.0.0.2\nsearch lan\n").unwrap();
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(dig(lab, &["who.example.org", "TXT"]), "\"127.0.0.2\"");
        assert_eq!(network.handle.search_domains(), ["lan"]);
        // One server refuses, the other answers.
        std::fs::write(&conf, "nameserver 127.0.0.3\nnameserver 127.0.0.1\n").unwrap();
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(dig(lab, &["who.example.org", "TXT"]), "\"127.0.0.1\"");
        std::fs::write(&conf, "nameserver 127.0.0.3\n").unwrap();
        thread::sleep(Duration::from_millis(1100));
        assert!(output_of_dig(lab, &["www.example.org"]).contains("SERVFAIL"));
        assert_eq!(network.counters().dns_failures, 1);
    });
}
