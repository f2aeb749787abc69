//! Ping, ARP, neighbours, router advertisements and DHCP.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use boxlite_net::{NetworkOptions, Policy};

use crate::lab::{FEATURES, Lab, NO_ROUTE, OUTSIDE, OUTSIDE6, in_lab, missing};

/// The output of ping for three echoes.
fn ping(lab: &Lab, args: &[&str]) -> String {
    let args = [&["-n", "-c", "3", "-i", "0.05", "-w", "5"], args].concat();
    String::from_utf8(lab.guest_run("ping", &args).stdout).unwrap()
}

#[test]
fn echoes_come_back_from_the_gateway_and_from_outside() {
    if let Some(reason) = missing(&["ping"]) {
        return println!("SKIPPED: {reason}");
    }
    in_lab(|lab| {
        let network = lab.start(NetworkOptions::default());
        // First with host sockets for ping forbidden to all groups, so that we answer; then with the host's sockets.
        for range in ["1 0", "0 2147483647"] {
            fs::write("/proc/sys/net/ipv4/ping_group_range", range).unwrap();
            let open = ["192.168.127.1", "192.168.127.254", "fdb0:786c:6974::1", OUTSIDE, OUTSIDE6];
            for address in open {
                let output = ping(lab, &[address]);
                assert!(
                    output.contains("3 received") || output.contains("3 packets received"),
                    "{output}"
                );
            }
            // Larger than a frame, in both directions.
            let output = ping(lab, &["-s", "65500", OUTSIDE]);
            assert!(output.contains("3 received"), "{output}");
        }
        let output = ping(lab, &[NO_ROUTE]);
        assert!(output.contains("Net Unreachable"), "{output}");
        let output = ping(lab, &["169.254.169.254"]);
        assert!(output.contains("Packet filtered"), "{output}");
        assert_eq!(network.counters().malformed, 0);
    });
}

#[test]
fn nothing_leaves_a_closed_network() {
    if let Some(reason) = missing(&["ping"]) {
        return println!("SKIPPED: {reason}");
    }
    in_lab(|lab| {
        let _network = lab.start(NetworkOptions { policy: Policy::none(), ..Default::default() });
        let output = ping(lab, &[OUTSIDE]);
        assert!(output.contains("Packet filtered") && output.contains("0 received"), "{output}");
    });
}

#[test]
fn a_guest_configures_itself_by_router_advertisements() {
    in_lab(|lab| {
        let _network = lab.start_bare(NetworkOptions { mtu: 9000, ..Default::default() }, FEATURES);
        lab.guest(|| {
            fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
            crate::lab::batch("link set lo up\nlink set eth0 mtu 9000 up\n");
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output =
                lab.guest_run("ip", &["-6", "addr", "show", "dev", "eth0", "scope", "global"]);
            let addresses = String::from_utf8(output.stdout).unwrap();
            let output = lab.guest_run("ip", &["-6", "route", "show", "default"]);
            let routes = String::from_utf8(output.stdout).unwrap();
            if addresses.contains("fdb0:786c:6974:") && !addresses.contains("tentative") {
                assert!(routes.contains("via fe80::1"), "{routes}");
                break;
            }
            assert!(Instant::now() < deadline, "no address: {addresses}{routes}");
            thread::sleep(Duration::from_millis(100));
        }
        let mut stream = lab.guest(|| {
            let listener = std::net::TcpListener::bind((OUTSIDE6, 0));
            assert!(listener.is_err(), "the guest's address is not on the host");
            std::net::TcpStream::connect(("fdb0:786c:6974::1", 53)).unwrap()
        });
        std::io::Write::write_all(&mut stream, &[0, 0]).unwrap();
    });
}

#[test]
fn dhcp_gives_the_guest_its_address() {
    if let Some(reason) = missing(&["busybox"]) {
        return println!("SKIPPED: {reason}");
    }
    in_lab(|lab| {
        let _network = lab.start_bare(NetworkOptions::default(), FEATURES);
        lab.guest(|| crate::lab::batch("link set lo up\nlink set eth0 up\n"));
        let dir = tempfile::tempdir().unwrap();
        let (script, seen) = (dir.path().join("script"), dir.path().join("seen"));
        let text = format!("#!/bin/sh\n[ \"$1\" = bound ] && env >> {}\nexit 0\n", seen.display());
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let args =
            ["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-O", "mtu", "-s"];
        let args = [&args[..], &[script.to_str().unwrap()]].concat();
        let output = lab.guest_run("busybox", &args);
        assert!(output.status.success(), "{output:?}");
        let seen = fs::read_to_string(seen).unwrap();
        for line in [
            "ip=192.168.127.2",
            "subnet=255.255.255.0",
            "router=192.168.127.1",
            "dns=192.168.127.1",
            "serverid=192.168.127.1",
            "mtu=65520",
        ] {
            assert!(seen.lines().any(|l| l == line), "no {line} in\n{seen}");
        }
    });
}
