//! Verdicts that depend on names; counters and log lines of denials.

use std::net::SocketAddr;

use boxlite_net_policy::Protocol;

use super::*;
use crate::addresses::Addresses;
use crate::route::Route;

fn gate(rules: &[&str]) -> Gate {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Gate::new(Policy::from_rules(rules), Arc::new(Meter::default()), None)
}

fn tcp(gate: &mut Gate, destination: &str) -> bool {
    let destination: SocketAddr = destination.parse().unwrap();
    let route = Route::to(&Addresses::default(), destination);
    let host = matches!(route, Route::Host(_));
    let flow = Flow { protocol: Protocol::Tcp, destination, host, own: false };
    gate.ask(flow, Instant::now()) == Verdict::Allowed
}

#[test]
fn the_address_that_stands_for_the_host_opens_to_rules_about_the_host() {
    for host in ["192.168.127.254:5432", "[fdb0:786c:6974::fe]:5432"] {
        assert!(!tcp(&mut gate(&[]), host), "{host}");
        assert!(!tcp(&mut gate(&["allow any", "allow 192.0.0.0/8"]), host), "{host}");
        assert!(tcp(&mut gate(&["allow tcp:host:5432"]), host), "{host}");
        assert!(!tcp(&mut gate(&["allow tcp:host:5433"]), host), "{host}");
    }
    assert!(tcp(&mut gate(&["allow 127.0.0.1:80"]), "192.168.127.254:80"));
}

#[test]
fn a_name_covers_all_forms_of_its_addresses() {
    let mut names = gate(&["deny evil.example.org", "allow any"]);
    let (ip, now) = ("203.0.113.9".parse().unwrap(), Instant::now());
    assert!(names.answer("evil.example.org", ip, Some(Duration::ZERO), now));
    assert!(!tcp(&mut names, "[64:ff9b::cb00:7109]:443"));
    assert!(tcp(&mut names, "[64:ff9b::cb00:7108]:443"));
}

#[test]
fn no_name_opens_an_address_of_the_host() {
    let mut named = gate(&["allow www.example.org"]);
    let ip = "192.0.2.7".parse().unwrap();
    assert!(named.answer("www.example.org", ip, Some(Duration::ZERO), Instant::now()));
    let destination = SocketAddr::new(ip, 443);
    let flow = Flow { protocol: Protocol::Tcp, destination, host: false, own: true };
    assert_eq!(
        named.ask(flow, Instant::now()),
        Verdict::Denied,
        "others decide what it resolves to"
    );
}

#[test]
fn names_open_the_addresses_of_their_answers() {
    let mut gate = gate(&["deny evil.example.org", "allow *.example.org:443"]);
    let now = Instant::now();
    let mut answer =
        |name, ip: &str| gate.answer(name, ip.parse().unwrap(), Some(Duration::ZERO), now);
    assert!(answer("www.example.org", "203.0.113.1"));
    assert!(answer("evil.example.org", "203.0.113.2"));
    assert!(answer("example.org", "203.0.113.3"), "not below itself");
    assert!(answer("badexample.org", "203.0.113.4"));
    assert!(answer("www.example.org", "10.0.0.1"), "answered, but not opened");
    for local in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"] {
        assert!(!answer("www.example.org", local), "{local}");
    }
    assert!(tcp(&mut gate, "203.0.113.1:443"));
    assert!(!tcp(&mut gate, "203.0.113.1:80"));
    for closed in ["203.0.113.2:443", "203.0.113.3:443", "203.0.113.4:443", "10.0.0.1:443"] {
        assert!(!tcp(&mut gate, closed), "{closed}");
    }
    assert!(gate.may_resolve("www.example.org"));
    assert!(!gate.may_resolve("evil.example.org"));
    assert!(!gate.may_resolve("secret.attacker.net"));
}

#[test]
fn denials_are_counted_each_time() {
    let meter = Arc::new(Meter::default());
    let reports = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&reports);
    let denials =
        Denials::new(move |what, why| sink.lock().unwrap().push(format!("{what}: {why}")));
    let mut gate = Gate::new(Policy::none(), Arc::clone(&meter), Some(denials));
    for _ in 0..3 {
        assert!(!tcp(&mut gate, "1.2.3.4:80"));
        gate.deny_name("a.org", "closed");
    }
    assert_eq!(meter.denied.get(), 6);
    // Once each.
    let reports = reports.lock().unwrap();
    assert_eq!(*reports, ["tcp to 1.2.3.4:80: no rule allows it", "the name \"a.org\": closed"]);
}

#[test]
fn a_guest_that_tries_everything_does_not_fill_the_log() {
    let meter = Arc::new(Meter::default());
    let reports = Arc::new(std::sync::Mutex::new(0));
    let sink = Arc::clone(&reports);
    let denials = Denials::new(move |_, _| *sink.lock().unwrap() += 1);
    let mut gate = Gate::new(Policy::none(), Arc::clone(&meter), Some(denials));
    for n in 0..20_000_u64 {
        assert!(!tcp(&mut gate, &format!("1.2.{}.{}:80", n / 256, n % 256)));
        gate.deny_name(&format!("{n}.org"), "closed");
        if n % 16 == 0 {
            gate.housekeep();
        }
    }
    assert_eq!(meter.denied.get(), 40_000);
    assert_eq!(*reports.lock().unwrap(), 2 * 4096);
}
