//! Rules as they are written, and as they decide.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::Denials;
use crate::counters::Meter;
use crate::forward::Protocol;

fn gate(rules: &[&str]) -> Gate {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Gate::new(Policy::from_rules(rules), Arc::new(Meter::default()), None)
}

fn ask(gate: &mut Gate, protocol: Protocol, destination: &str) -> bool {
    let destination: SocketAddr = destination.parse().unwrap();
    let route = Route::to(&Addresses::default(), destination);
    let host = matches!(route, Route::Host(_));
    let verdict = gate.ask(Flow { protocol, destination, host, own: false }, Instant::now());
    verdict == Verdict::Allowed
}

fn tcp(gate: &mut Gate, destination: &str) -> bool {
    ask(gate, Protocol::Tcp, destination)
}

#[test]
fn the_default_is_everything_outside_but_what_is_protected() {
    let mut gate = gate(&[]);
    for open in ["93.184.216.34:443", "10.1.2.3:22", "[2606:2800::1]:443", "[fd12::1]:80"] {
        assert!(tcp(&mut gate, open), "{open}");
    }
    for closed in [
        "192.168.127.254:22",
        "[fdb0:786c:6974::fe]:22",
        "169.254.169.254:80",
        "[fe80::1]:80",
        "[fd00:ec2::254]:80",
        "100.100.100.200:80",
        "[64:ff9b::a9fe:a9fe]:80",
        "[64:ff9b::7f00:1]:80",
    ] {
        assert!(!tcp(&mut gate, closed), "{closed}");
    }
}

#[test]
fn every_clouds_credentials_are_closed_unless_a_rule_names_them() {
    let services = [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.42.42",
        "169.254.0.23",
        "100.100.100.200",
        "100.96.0.96",
        "168.63.129.16",
        "192.0.0.192",
        "fe80::a9fe:a9fe",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd00:ec2:ffff::1",
        "fd20:ce::254",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:100::100:200",
    ];
    for service in services {
        let service = SocketAddr::new(service.parse().unwrap(), 80).to_string();
        assert!(!tcp(&mut gate(&[]), &service), "{service}");
        let mut wide = gate(&["allow any", "allow fd00::/8", "allow 2000::/3", "allow 0.0.0.0/0"]);
        assert!(!tcp(&mut wide, &service), "{service}");
    }
    let mut named = gate(&["allow fd00:ec2::254", "allow 100.100.100.200", "allow fd00:42::/64"]);
    for open in ["[fd00:ec2::254]:80", "100.100.100.200:80", "[fd00:42::42]:80"] {
        assert!(tcp(&mut named, open), "{open}");
    }
    assert!(!tcp(&mut named, "[fd00:ec2::23]:80"));
}

#[test]
fn a_rule_is_about_all_forms_of_an_address() {
    // As sockets write IPv4 addresses.
    assert_eq!(Rule::deny("::ffff:10.0.0.0/104").unwrap(), Rule::deny("10.0.0.0/8").unwrap());
    assert_eq!(Rule::deny("::ffff:10.1.2.3").unwrap(), Rule::deny("10.1.2.3").unwrap());
    // What is allowed is, where it is certain to be the same.
    let mut allowed = gate(&["allow 203.0.113.5"]);
    assert!(tcp(&mut allowed, "[64:ff9b::cb00:7105]:80"));
    assert!(!tcp(&mut allowed, "[64:ff9b:1::cb00:7105]:80"));
    assert!(!tcp(&mut allowed, "[2002:cb00:7105::1]:80"));
    // An operator's translator is not closed by the bits that it does not use.
    assert!(tcp(&mut gate(&[]), "[64:ff9b:1::cb00:7105]:80"));
    // A network of tunnels does not name what some of them lead to.
    let mut tunnels = gate(&["allow 2001::/32", "allow 2002::/16", "allow 64:ff9b::/96"]);
    for form in embedded::tests::forms([169, 254, 169, 254].into()) {
        assert!(!tcp(&mut tunnels, &SocketAddr::new(form.into(), 80).to_string()), "{form}");
    }
    // Names, too.
    let mut names = gate(&["deny evil.example.org", "allow any"]);
    let (ip, now) = ("203.0.113.9".parse().unwrap(), Instant::now());
    assert!(names.answer("evil.example.org", ip, Some(Duration::ZERO), now));
    assert!(!tcp(&mut names, "[64:ff9b::cb00:7109]:443"));
    assert!(tcp(&mut names, "[64:ff9b::cb00:7108]:443"));
}

#[test]
fn addresses_that_lead_back_to_the_host_lead_nowhere() {
    let addresses = Addresses::default();
    for nowhere in [
        "127.0.0.1:1",
        "0.0.0.0:1",
        "0.1.2.3:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "240.0.0.1:1",
        "192.168.127.77:1",
        "[::]:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
        "[::127.0.0.1]:1",
        "[::ffff:0:127.0.0.1]:1",
        "[ff02::1]:1",
        "[fe80::5]:1",
        "[fdb0:786c:6974::77]:1",
    ] {
        let destination = nowhere.parse().unwrap();
        assert_eq!(Route::to(&addresses, destination), Route::Nowhere, "{nowhere}");
    }
    let to = |text: &str| Route::to(&addresses, text.parse().unwrap());
    assert_eq!(to("192.168.127.1:53"), Route::Gateway);
    assert_eq!(to("[fe80::1]:53"), Route::Gateway);
    assert_eq!(to("192.168.127.254:80"), Route::Host("127.0.0.1:80".parse().unwrap()));
    assert_eq!(to("[fdb0:786c:6974::fe]:80"), Route::Host("[::1]:80".parse().unwrap()));
    assert_eq!(to("1.2.3.4:80"), Route::Outside("1.2.3.4:80".parse().unwrap()));
}

#[test]
fn where_the_host_is_another_machine_its_loopback_is_what_stands_for_it() {
    let addresses = Addresses {
        loopback: "10.0.2.2".parse().unwrap(),
        loopback6: "fec0::2".parse().unwrap(),
        closed: vec!["10.0.2.0/24".parse().unwrap(), "fec0::/64".parse().unwrap()],
        ..Addresses::default()
    };
    let to = |text: &str| Route::to(&addresses, text.parse().unwrap());
    assert_eq!(to("192.168.127.254:80"), Route::Host("10.0.2.2:80".parse().unwrap()));
    assert_eq!(to("[fdb0:786c:6974::fe]:80"), Route::Host("[fec0::2]:80".parse().unwrap()));
    for nowhere in ["10.0.2.2:80", "10.0.2.3:53", "10.0.2.15:80", "[fec0::2]:80", "127.0.0.1:80"] {
        assert_eq!(to(nowhere), Route::Nowhere, "{nowhere}");
    }
    assert_eq!(to("10.0.3.2:80"), Route::Outside("10.0.3.2:80".parse().unwrap()));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let mut gate =
        gate(&["deny tcp:10.0.0.5:22", "allow 10.0.0.0/8", "allow udp:any:53", "deny any"]);
    assert!(!tcp(&mut gate, "10.0.0.5:22"));
    assert!(tcp(&mut gate, "10.0.0.5:23"));
    assert!(ask(&mut gate, Protocol::Udp, "10.0.0.5:22"));
    assert!(ask(&mut gate, Protocol::Udp, "8.8.8.8:53"));
    assert!(!ask(&mut gate, Protocol::Udp, "8.8.8.8:54"));
    assert!(!tcp(&mut gate, "8.8.8.8:53"));
}

#[test]
fn what_is_protected_opens_to_rules_that_name_it() {
    let mut wide =
        gate(&["allow any", "allow 0.0.0.0/0", "allow 168.0.0.0/6", "allow 192.0.0.0/8"]);
    assert!(!tcp(&mut wide, "169.254.169.254:80"));
    assert!(!tcp(&mut wide, "192.168.127.254:5432"));
    let mut host = gate(&["allow tcp:host:5432"]);
    assert!(tcp(&mut host, "192.168.127.254:5432"));
    assert!(tcp(&mut host, "[fdb0:786c:6974::fe]:5432"));
    assert!(!tcp(&mut host, "192.168.127.254:5433"));
    assert!(tcp(&mut host, "1.2.3.4:80"), "opening the host closes nothing else");
    let mut loopback = gate(&["allow 127.0.0.1:80", "allow 169.254.0.0/16:80"]);
    assert!(tcp(&mut loopback, "192.168.127.254:80"));
    assert!(tcp(&mut loopback, "169.254.169.254:80"));
    assert!(!tcp(&mut loopback, "1.2.3.4:80"));
}

#[test]
fn addresses_of_the_host_open_to_rules_that_name_them() {
    let own = |rules: &[&str]| {
        let destination = "192.0.2.7:8080".parse().unwrap();
        let flow = Flow { protocol: Protocol::Tcp, destination, host: false, own: true };
        gate(rules).ask(flow, Instant::now()) == Verdict::Allowed
    };
    for wide in ["allow any", "allow 192.0.2.0/24", "allow tcp:any:8080"] {
        assert!(!own(&[wide]), "{wide}");
    }
    assert!(!own(&[]) && !own(&["deny host", "allow any"]) && !own(&["allow host:22"]));
    assert!(own(&["allow host"]) && own(&["allow 192.0.2.7"]) && own(&["allow host:8080"]));
    let mut named = gate(&["allow www.example.org"]);
    let ip = "192.0.2.7".parse().unwrap();
    assert!(named.answer("www.example.org", ip, Some(Duration::ZERO), Instant::now()));
    let destination = SocketAddr::new(ip, 443);
    let flow = Flow { protocol: Protocol::Tcp, destination, host: false, own: true };
    assert_eq!(named.ask(flow, Instant::now()), Verdict::Denied, "no name of others' does");
}

#[test]
fn names_open_the_addresses_that_the_guest_was_told() {
    let mut gate = gate(&["deny evil.example.org", "allow *.example.org:443"]);
    let now = Instant::now();
    let mut answer =
        |name, ip: &str| gate.answer(name, ip.parse().unwrap(), Some(Duration::ZERO), now);
    assert!(answer("www.example.org", "203.0.113.1"));
    assert!(answer("evil.example.org", "203.0.113.2"));
    assert!(answer("example.org", "203.0.113.3"), "not below itself");
    assert!(answer("badexample.org", "203.0.113.4"));
    assert!(answer("www.example.org", "10.0.0.1"), "told, but not opened");
    for local in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"] {
        assert!(!answer("www.example.org", local), "{local}");
    }
    assert!(tcp(&mut gate, "203.0.113.1:443"));
    assert!(!tcp(&mut gate, "203.0.113.1:80"));
    for closed in ["203.0.113.2:443", "203.0.113.3:443", "203.0.113.4:443", "10.0.0.1:443"] {
        assert!(!tcp(&mut gate, closed), "{closed}");
    }
    assert!(gate.may_ask("www.example.org"));
    assert!(!gate.may_ask("evil.example.org"));
    assert!(!gate.may_ask("secret.attacker.net"));
}

#[test]
fn questions_are_free_where_addresses_are() {
    assert!(gate(&[]).may_ask("anything"));
    assert!(gate(&["allow 10.0.0.0/8"]).may_ask("anything"));
    assert!(gate(&["deny tcp:any:25"]).may_ask("anything"));
    assert!(!gate(&["deny any"]).may_ask("anything"));
    assert!(gate(&["allow a.org", "deny any"]).may_ask("a.org"));
    assert!(!gate(&["allow a.org", "deny any"]).may_ask("b.org"));
    let none = Gate::new(Policy::none(), Arc::new(Meter::default()), None);
    assert!(!none.may_ask("anything"));
}

#[test]
fn a_name_that_is_denied_alone_is_known_to_be_walked_around() {
    let around = |rules: &[&str]| {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let policy = Policy::from_rules(rules);
        policy.names_walked_around().map(Rule::to_string).collect::<Vec<_>>()
    };
    let (name, all) = ("deny evil.org", ["deny evil.org".to_owned()]);
    assert_eq!(around(&[name, "deny 10.0.0.0/8"]), all);
    assert_eq!(around(&[name, "allow host"]), all);
    assert_eq!(around(&[name, "allow 0.0.0.0/0"]), all);
    assert_eq!(around(&[name, "allow *.org"]), [""; 0]);
    assert_eq!(around(&[name, "allow 192.0.2.1"]), [""; 0]);
    assert_eq!(around(&[name, "deny any"]), [""; 0]);
    assert_eq!(around(&["deny 10.0.0.0/8"]), [""; 0]);
}

#[test]
fn denials_are_counted_each_time() {
    let meter = Arc::new(Meter::default());
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let denials =
        Denials::new(move |what, why| sink.lock().unwrap().push(format!("{what}: {why}")));
    let mut gate = Gate::new(Policy::none(), Arc::clone(&meter), Some(denials));
    for _ in 0..3 {
        assert!(!tcp(&mut gate, "1.2.3.4:80"));
        gate.deny_name("a.org", "closed");
    }
    assert_eq!(meter.denied.get(), 6);
    // Once each.
    let told = told.lock().unwrap();
    assert_eq!(*told, ["tcp to 1.2.3.4:80: no rule allows it", "the name \"a.org\": closed"]);
}

#[test]
fn a_guest_that_tries_everything_fills_no_log() {
    let meter = Arc::new(Meter::default());
    let told = Arc::new(std::sync::Mutex::new(0));
    let sink = Arc::clone(&told);
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
    assert_eq!(*told.lock().unwrap(), 2 * 4096);
}

#[test]
fn rules_are_read_as_they_are_written() {
    for text in [
        "allow any",
        "deny udp:any:53",
        "allow tcp:10.0.0.0/8:80-90",
        "allow 2001:db8::/32",
        "deny [2001:db8::/32]:53",
        "allow tcp:*.example.org:443",
        "allow icmp:10.0.0.1/32",
        "deny host:22",
    ] {
        assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
    }
    assert_eq!(Rule::allow("10.1.2.3/8").unwrap().to_string(), "allow 10.0.0.0/8");
    assert_eq!(Rule::allow("*").unwrap().target, Target::Any);
    assert_eq!(Rule::allow("Example.ORG.").unwrap(), Rule::allow("example.org").unwrap());
    assert_eq!(Rule::allow("host.docker.internal:80").unwrap(), Rule::allow("host:80").unwrap());
}

#[test]
fn what_is_wrong_with_a_rule_is_said() {
    for (text, problem) in [
        ("", "neither an address"),
        ("10.0.0.0/33", "neither an address"),
        ("10.0.0.256", "neither an address"),
        ("example.org:0", "`0` is no port"),
        ("example.org:70000", "`70000` is no port"),
        ("example.org:90-80", "empty range"),
        ("icmp:any:80", "ICMP has no ports"),
        ("[::1", "no `]`"),
        ("[2001:db8::]/32:53", "inside"),
        ("a b", "neither an address"),
        ("exa*mple.org", "neither an address"),
    ] {
        let error = Rule::allow(text).unwrap_err().to_string();
        assert!(error.contains(problem) && error.contains("TARGET"), "{text}: {error}");
    }
    assert!("permit any".parse::<Rule>().is_err());
}

proptest! {
    /// Whatever IPv4 address is denied, by a rule or for good, is so in each of its forms.
    #[test]
    fn what_is_denied_is_denied_in_every_form(
        v4 in any::<[u8; 4]>(),
        len in 0..=32_u8,
        services in 0..5_usize,
        port in 1..=u16::MAX,
    ) {
        let v4 = std::net::Ipv4Addr::from(v4);
        let mut denying = gate(&[&format!("deny {v4}/{len}"), "allow any", "allow 2000::/3"]);
        let closed: [[u8; 4]; 5] = [
            [169, 254, v4.octets()[2], v4.octets()[3]],
            [100, 100, 100, 200],
            [168, 63, 129, 16],
            [192, 0, 0, 192],
            [127, v4.octets()[1], 0, 1],
        ];
        let mut open = gate(&["allow any", "allow 64:ff9b::/96", "allow 2002::/16"]);
        for form in embedded::tests::forms(v4) {
            // Zeroes are not looked for where they may be padding.
            let padding = v4.octets()[0] == 0 && form.segments()[..3] == [0x64, 0xff9b, 1];
            let address = SocketAddr::new(form.into(), port).to_string();
            prop_assert!(padding || !tcp(&mut denying, &address), "{}", address);
        }
        for form in embedded::tests::forms(closed[services].into()) {
            let address = SocketAddr::new(form.into(), port).to_string();
            prop_assert!(!tcp(&mut open, &address), "{}", address);
        }
    }

    #[test]
    fn any_text_is_a_rule_or_an_error(text in "\\PC{0,40}") {
        if let Ok(rule) = Rule::deny(&text) {
            prop_assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
        }
    }
}
