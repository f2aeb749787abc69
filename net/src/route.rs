//! Where a destination leads that a guest addresses.

use std::net::{IpAddr, SocketAddr};

use boxlite_net_policy::is_global_unicast;

use crate::addresses::Addresses;

/// Where a destination leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the gateway itself.
    Gateway,
    /// To this address of the host's loopback.
    Host(SocketAddr),
    /// Wherever the host's routes lead.
    Outside(SocketAddr),
    /// Nowhere.
    Nowhere,
}

impl Route {
    pub(crate) fn to(addresses: &Addresses, destination: SocketAddr) -> Self {
        let ip = destination.ip();
        if addresses.is_gateway(ip) {
            return Self::Gateway;
        }
        if addresses.is_host(ip) {
            let loopback: IpAddr = match ip {
                IpAddr::V4(_) => addresses.loopback.into(),
                IpAddr::V6(_) => addresses.loopback6.into(),
            };
            return Self::Host(SocketAddr::new(loopback, destination.port()));
        }
        let closed = addresses.closed.iter().any(|net| net.contains(&ip));
        if closed || addresses.on_link(ip) || !is_global_unicast(ip) {
            return Self::Nowhere;
        }
        Self::Outside(destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for nowhere in
            ["10.0.2.2:80", "10.0.2.3:53", "10.0.2.15:80", "[fec0::2]:80", "127.0.0.1:80"]
        {
            assert_eq!(to(nowhere), Route::Nowhere, "{nowhere}");
        }
        assert_eq!(to("10.0.3.2:80"), Route::Outside("10.0.3.2:80".parse().unwrap()));
    }
}
