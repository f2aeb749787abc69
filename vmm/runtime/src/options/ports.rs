//! The stored form of published ports in `config.json`, which is older than [`PublishedPort`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use boxlite_net_policy::{PublishedPort, Transport};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
struct Stored {
    /// The host's address; none: 127.0.0.1.
    address: Option<IpAddr>,
    host: u16,
    guest: u16,
    protocol: Transport,
}

const DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(super) fn serialize<S: Serializer>(ports: &[PublishedPort], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(ports.iter().map(|port| Stored {
        address: Some(port.host.ip()).filter(|address| *address != DEFAULT),
        host: port.host.port(),
        guest: port.guest,
        protocol: port.protocol,
    }))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Vec<PublishedPort>, D::Error> {
    let ports = Vec::<Stored>::deserialize(from)?;
    let port = |Stored { address, host, guest, protocol }| {
        let host = SocketAddr::new(address.unwrap_or(DEFAULT), host);
        PublishedPort { protocol, host, guest }
    };
    Ok(ports.into_iter().map(port).collect())
}

#[cfg(test)]
mod tests {
    use super::super::BoxOptions;
    use super::*;

    #[test]
    fn the_stored_format_of_ports_does_not_change() {
        let stored = serde_json::json!([
            { "address": null, "host": 8080, "guest": 80, "protocol": "tcp" },
            { "address": "::1", "host": 0, "guest": 53, "protocol": "udp" },
        ]);
        let options = BoxOptions::new("x")
            .port(PublishedPort::tcp(8080, 80))
            .port(PublishedPort::udp(0, 53).on([0, 0, 0, 0, 0, 0, 0, 1_u16]));
        let mut json = serde_json::to_value(&options).unwrap();
        assert_eq!(json["ports"], stored);
        assert_eq!(serde_json::from_value::<BoxOptions>(json.clone()).unwrap(), options);
        json["ports"][0]["address"] = "127.0.0.1".into();
        assert_eq!(serde_json::from_value::<BoxOptions>(json).unwrap(), options);
    }
}
