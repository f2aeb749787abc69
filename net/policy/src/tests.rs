//! Rules: their text form and their decisions.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::*;

/// The addresses that stand for the host in these tests.
const HOST: [&str; 2] = ["192.168.127.254", "fdb0:786c:6974::fe"];

fn policy(rules: &[&str]) -> Policy {
    Policy::from_rules(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

/// Whether a flow is allowed where no name was resolved.
fn allows(policy: &Policy, protocol: Protocol, destination: &str) -> bool {
    let destination: SocketAddr = destination.parse().unwrap();
    let host = HOST.map(|host| host.parse::<IpAddr>().unwrap()).contains(&destination.ip());
    let flow = Flow { protocol, destination, host, own: false };
    policy.decide(flow, |_, _| false).action == Action::Allow
}

fn tcp(policy: &Policy, destination: &str) -> bool {
    allows(policy, Protocol::Tcp, destination)
}

#[test]
fn the_default_allows_everything_but_protected_addresses() {
    let policy = policy(&[]);
    for open in ["93.184.216.34:443", "10.1.2.3:22", "[2606:2800::1]:443", "[fd12::1]:80"] {
        assert!(tcp(&policy, open), "{open}");
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
        assert!(!tcp(&policy, closed), "{closed}");
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
        assert!(!tcp(&policy(&[]), &service), "{service}");
        let wide = policy(&["allow any", "allow fd00::/8", "allow 2000::/3", "allow 0.0.0.0/0"]);
        assert!(!tcp(&wide, &service), "{service}");
    }
    let named = policy(&["allow fd00:ec2::254", "allow 100.100.100.200", "allow fd00:42::/64"]);
    for open in ["[fd00:ec2::254]:80", "100.100.100.200:80", "[fd00:42::42]:80"] {
        assert!(tcp(&named, open), "{open}");
    }
    assert!(!tcp(&named, "[fd00:ec2::23]:80"));
}

#[test]
fn a_rule_covers_all_forms_of_an_address() {
    // Mapped addresses, as sockets write IPv4 addresses.
    assert_eq!(Rule::deny("::ffff:10.0.0.0/104").unwrap(), Rule::deny("10.0.0.0/8").unwrap());
    assert_eq!(Rule::deny("::ffff:10.1.2.3").unwrap(), Rule::deny("10.1.2.3").unwrap());
    // A permission applies only to forms that are certain to be the same address.
    let allowed = policy(&["allow 203.0.113.5"]);
    assert!(tcp(&allowed, "[64:ff9b::cb00:7105]:80"));
    assert!(!tcp(&allowed, "[64:ff9b:1::cb00:7105]:80"));
    assert!(!tcp(&allowed, "[2002:cb00:7105::1]:80"));
    // An operator's NAT64 prefix is not denied by the bits that it does not use.
    assert!(tcp(&policy(&[]), "[64:ff9b:1::cb00:7105]:80"));
    // A rule for a network of tunnels does not name the addresses behind them.
    let tunnels = policy(&["allow 2001::/32", "allow 2002::/16", "allow 64:ff9b::/96"]);
    for form in embedded::tests::forms([169, 254, 169, 254].into()) {
        assert!(!tcp(&tunnels, &SocketAddr::new(form.into(), 80).to_string()), "{form}");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let ordered =
        policy(&["deny tcp:10.0.0.5:22", "allow 10.0.0.0/8", "allow udp:any:53", "deny any"]);
    assert!(!tcp(&ordered, "10.0.0.5:22"));
    assert!(tcp(&ordered, "10.0.0.5:23"));
    assert!(allows(&ordered, Protocol::Udp, "10.0.0.5:22"));
    assert!(allows(&ordered, Protocol::Udp, "8.8.8.8:53"));
    assert!(!allows(&ordered, Protocol::Udp, "8.8.8.8:54"));
    assert!(!tcp(&ordered, "8.8.8.8:53"));
}

#[test]
fn rules_that_name_protected_addresses_open_them() {
    let wide = policy(&["allow any", "allow 0.0.0.0/0", "allow 168.0.0.0/6", "allow 192.0.0.0/8"]);
    assert!(!tcp(&wide, "169.254.169.254:80"));
    assert!(!tcp(&wide, "192.168.127.254:5432"));
    let host = policy(&["allow tcp:host:5432"]);
    assert!(tcp(&host, "192.168.127.254:5432"));
    assert!(tcp(&host, "[fdb0:786c:6974::fe]:5432"));
    assert!(!tcp(&host, "192.168.127.254:5433"));
    assert!(tcp(&host, "1.2.3.4:80"), "opening the host closes nothing else");
    let loopback = policy(&["allow 127.0.0.1:80", "allow 169.254.0.0/16:80"]);
    assert!(tcp(&loopback, "192.168.127.254:80"));
    assert!(tcp(&loopback, "169.254.169.254:80"));
    assert!(!tcp(&loopback, "1.2.3.4:80"));
}

#[test]
fn rules_that_name_the_hosts_addresses_open_them() {
    let own = |rules: &[&str]| {
        let destination = "192.0.2.7:8080".parse().unwrap();
        let flow = Flow { protocol: Protocol::Tcp, destination, host: false, own: true };
        policy(rules).decide(flow, |_, _| false).action == Action::Allow
    };
    for wide in ["allow any", "allow 192.0.2.0/24", "allow tcp:any:8080"] {
        assert!(!own(&[wide]), "{wide}");
    }
    assert!(!own(&[]) && !own(&["deny host", "allow any"]) && !own(&["allow host:22"]));
    assert!(own(&["allow host"]) && own(&["allow 192.0.2.7"]) && own(&["allow host:8080"]));
}

#[test]
fn names_are_resolved_unless_only_names_are_allowed() {
    assert!(policy(&[]).may_resolve("anything"));
    assert!(policy(&["allow 10.0.0.0/8"]).may_resolve("anything"));
    assert!(policy(&["deny tcp:any:25"]).may_resolve("anything"));
    assert!(!policy(&["deny any"]).may_resolve("anything"));
    assert!(policy(&["allow a.org", "deny any"]).may_resolve("a.org"));
    assert!(!policy(&["allow a.org", "deny any"]).may_resolve("b.org"));
    assert!(!Policy::none().may_resolve("anything"));
}

#[test]
fn denials_that_can_be_bypassed_are_listed() {
    let bypassable = |rules: &[&str]| {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let policy = Policy::from_rules(rules);
        policy.bypassable_denials().map(Rule::to_string).collect::<Vec<_>>()
    };
    let (name, all) = ("deny evil.org", ["deny evil.org".to_owned()]);
    assert_eq!(bypassable(&[name, "deny 10.0.0.0/8"]), all);
    assert_eq!(bypassable(&[name, "allow host"]), all);
    assert_eq!(bypassable(&[name, "allow 0.0.0.0/0"]), all);
    assert_eq!(bypassable(&[name, "allow *.org"]), [""; 0]);
    assert_eq!(bypassable(&[name, "allow 192.0.2.1"]), [""; 0]);
    assert_eq!(bypassable(&[name, "deny any"]), [""; 0]);
    assert_eq!(bypassable(&["deny 10.0.0.0/8"]), [""; 0]);
}

#[test]
fn rules_are_parsed_and_printed() {
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
fn the_error_says_what_is_wrong_with_a_rule() {
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
    /// An IPv4 address that is denied, by a rule or by default, is denied in each of its forms.
    #[test]
    fn a_denied_address_is_denied_in_every_form(
        v4 in any::<[u8; 4]>(),
        len in 0..=32_u8,
        services in 0..5_usize,
        port in 1..=u16::MAX,
    ) {
        let v4 = std::net::Ipv4Addr::from(v4);
        let denying = policy(&[&format!("deny {v4}/{len}"), "allow any", "allow 2000::/3"]);
        let closed: [[u8; 4]; 5] = [
            [169, 254, v4.octets()[2], v4.octets()[3]],
            [100, 100, 100, 200],
            [168, 63, 129, 16],
            [192, 0, 0, 192],
            [127, v4.octets()[1], 0, 1],
        ];
        let open = policy(&["allow any", "allow 64:ff9b::/96", "allow 2002::/16"]);
        for form in embedded::tests::forms(v4) {
            // Not for addresses whose zeroes may be padding.
            let padding = v4.octets()[0] == 0 && form.segments()[..3] == [0x64, 0xff9b, 1];
            let address = SocketAddr::new(form.into(), port).to_string();
            prop_assert!(padding || !tcp(&denying, &address), "{}", address);
        }
        for form in embedded::tests::forms(closed[services].into()) {
            let address = SocketAddr::new(form.into(), port).to_string();
            prop_assert!(!tcp(&open, &address), "{}", address);
        }
    }

    #[test]
    fn any_text_is_a_rule_or_an_error(text in "\\PC{0,40}") {
        if let Ok(rule) = Rule::deny(&text) {
            prop_assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule);
        }
    }
}
