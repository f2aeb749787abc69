//! A box's network: the user-mode stack on a thread of its own, its link to the VM's device, and its published
//! ports.
//!
//! ```text
//!   vCPU ── virtio-net ── link ── boxlite-net (thread "network") ── sockets of the host
//!                                  ports: listens here; in the nested host,
//!                                  `nested` makes the real host listen, too
//! ```
//!
//! A captured link passes its packets to `capture`, whose thread writes the file.
//!
//! The network is created once, before the first boot, and outlives restarts of the VM: ports are opened, or
//! fail to open, before the guest boots, and keep their numbers.

mod capture;
mod link;
mod nested;

use anyhow::{Context, Result};
use boxlite_contract::metrics::NetworkMetrics;
use boxlite_contract::nested::{
    HostEnvironment, NESTED_HOST, NETWORK, NETWORK6, REAL_HOST, REAL_HOST6,
};
use boxlite_contract::spec::NetworkSpec;
use boxlite_devices::virtio::net::{NetDevice, NetOptions};
use boxlite_net::{
    Addresses, Counters, Denials, Handle, Network, NetworkError, NetworkOptions, Policy,
    PublishedPort, RateLimit, RateLimits, Rule,
};
use boxlite_proto::network::{NetworkParams, search_domains};
use rustix::process::{Resource, getrlimit};

pub(super) use self::capture::CaptureOutput;
use self::capture::Recorder;
use self::nested::PortLease;
use super::threads::Threads;

/// The MTU of the link: a full packet carries nearly 64 KiB of TCP payload.
const MTU: u16 = 65_520;

/// Descriptors that are reserved from flows, where the limit allows it, so that a guest cannot prevent control
/// connections and execs.
const RESERVED: u64 = 4096;

/// A published port that cannot be opened: which, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct PortError(String);

/// A running network.
pub(super) struct BoxNetwork {
    handle: Handle,
    addresses: Addresses,
    ports: Vec<PublishedPort>,
    /// Captures the packets, if that was requested.
    recorder: Option<Recorder>,
    /// In the nested host: the lease of the real host's ports.
    _lease: Option<PortLease>,
}

impl BoxNetwork {
    /// Opens the ports and starts the network. `denied` is called for each flow or name that the policy denies. Packets
    /// are written to `capture`.
    ///
    /// # Errors
    /// A port cannot be opened, a rule cannot be parsed, or the capture cannot be started.
    pub(super) fn start(
        spec: &NetworkSpec,
        host: HostEnvironment,
        capture: Option<CaptureOutput>,
        threads: &Threads,
        denied: impl Fn(&str, &str) + Send + Sync + 'static,
    ) -> Result<Self> {
        let addresses = addresses(host);
        let rules: Vec<Rule> =
            spec.rules.iter().map(|rule| rule.parse()).collect::<Result<_, _>>()?;
        let limit = |rate: Option<u64>| rate.map(RateLimit::new);
        let options = NetworkOptions {
            addresses: addresses.clone(),
            mtu: MTU,
            policy: Policy::from_rules(rules),
            ports: spec.ports.iter().map(|port| listener(*port, host)).collect(),
            limits: RateLimits {
                to_guest: limit(spec.limit_down),
                from_guest: limit(spec.limit_up),
            },
            max_descriptors: max_descriptors(),
            own_addresses_awaited: host.is_nested(),
            denials: Some(Denials::new(denied)),
            ..NetworkOptions::default()
        };
        let network = Network::new(options).map_err(|e| match e {
            NetworkError::Publish(e) => PortError(e.to_string()).into(),
            e => anyhow::Error::from(e),
        })?;
        let handle = network.handle();
        let mut ports = handle.published();
        let lease = match host.is_nested() && !ports.is_empty() {
            true => Some(lease(&spec.ports, &ports)?),
            false => None,
        };
        if host.is_nested() && lease.is_none() {
            nested::close_own_addresses(handle.clone(), threads)?;
        }
        if let Some(lease) = &lease {
            handle.close_own(lease.own.clone())?;
            for (port, real) in ports.iter_mut().zip(&lease.ports) {
                port.host = real.host;
            }
        }
        let recorder = capture.map(|output| Recorder::start(output, threads)).transpose()?;
        let watch = threads.clone();
        let run = move || {
            if let Err(e) = network.run() {
                watch.failed(format!("the box's network ended: {e}"));
            }
        };
        threads.spawn("network", run).context("cannot start the network's thread")?;
        Ok(Self { handle, addresses, ports, recorder, _lease: lease })
    }

    /// Creates the network device for a VM of the box. Only one is connected at a time.
    pub(super) fn device(&self) -> Result<NetDevice> {
        let mut options = NetOptions::new(self.addresses.guest_mac);
        options.mtu = MTU;
        (options.tso_from_guest, options.tso_to_guest) = (true, true);
        let capture = self.recorder.as_ref().map(Recorder::capture);
        Ok(NetDevice::new(options, link::Backend { network: self.handle.clone(), capture })?)
    }

    /// Ends the capture, and waits a bounded time until its packets are in the file.
    pub(super) fn finish_capture(&mut self) {
        if let Some(recorder) = self.recorder.take() {
            recorder.finish();
        }
    }

    /// The network's parameters for the guest.
    pub(super) fn params(&self) -> NetworkParams {
        let Addresses { subnet, gateway, guest, host, subnet6, gateway6, guest6, .. } =
            self.addresses;
        NetworkParams {
            address: (guest, subnet.prefix_len()),
            gateway,
            host,
            address6: (guest6, subnet6.prefix_len()),
            gateway6,
        }
    }

    /// The host's search domains, as many as fit into the guest's parameters.
    pub(super) fn search(&self) -> Vec<String> {
        let domains = self.handle.search_domains();
        search_domains(domains.iter().map(String::as_str))
    }

    /// The published ports.
    pub(super) fn ports(&self) -> &[PublishedPort] {
        &self.ports
    }

    /// The network's counters.
    pub(super) fn metrics(&self) -> NetworkMetrics {
        metrics(self.handle.counters())
    }
}

impl Drop for BoxNetwork {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

/// The addresses on the link and of the host.
fn addresses(environment: HostEnvironment) -> Addresses {
    let mut addresses = Addresses::default();
    if environment.is_nested() {
        // QEMU's user network is between this process and the real host: its gateway is the real host's loopback, its
        // name server the real host's resolver, and all boxes share this host's address.
        addresses.loopback = REAL_HOST;
        addresses.loopback6 = REAL_HOST6;
        addresses.closed = vec![NETWORK.into(), NETWORK6.into()];
    }
    addresses
}

/// Where this process listens for a port. In the nested host, QEMU forwards to a free port of it.
fn listener(port: PublishedPort, environment: HostEnvironment) -> PublishedPort {
    let host = if environment.is_nested() { (NESTED_HOST, 0).into() } else { port.host };
    PublishedPort { host, ..port }
}

/// Makes the real host listen on the requested ports, and forward to those of this process.
fn lease(asked: &[PublishedPort], ours: &[PublishedPort]) -> Result<PortLease> {
    let pairs = asked.iter().zip(ours);
    let ports =
        pairs.map(|(asked, ours)| PublishedPort { guest: ours.host.port(), ..*asked }).collect();
    PortLease::take(ports).map_err(|e| PortError(e.to_string()).into())
}

/// The most descriptors for flows: this process's limit less the reserve, which is at most half of the limit.
fn max_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let most = NetworkOptions::default().max_descriptors;
    let room = limit.map_or(u64::MAX, |limit| limit - RESERVED.min(limit / 2));
    usize::try_from(room).unwrap_or(most).min(most)
}

fn metrics(counters: Counters) -> NetworkMetrics {
    let mut metrics = NetworkMetrics::default();
    metrics.bytes_sent = counters.bytes_from_guest;
    metrics.packets_sent = counters.frames_from_guest;
    metrics.bytes_received = counters.bytes_to_guest;
    metrics.packets_received = counters.frames_to_guest;
    metrics.dropped = counters.dropped + counters.malformed;
    metrics.retransmits = counters.retransmits;
    metrics.out_of_order = counters.out_of_order;
    metrics.tcp_flows = counters.tcp_flows;
    metrics.tcp_open = counters.tcp_open;
    metrics.udp_flows = counters.udp_flows;
    metrics.udp_open = counters.udp_open;
    metrics.denied = counters.denied;
    metrics.dns_queries = counters.dns_queries;
    metrics.dns_failures = counters.dns_failures;
    metrics
}

#[cfg(test)]
mod tests {
    use boxlite_net::Transport;

    use super::*;

    fn start(ports: Vec<PublishedPort>) -> Result<BoxNetwork> {
        let spec = NetworkSpec { ports, ..NetworkSpec::default() };
        BoxNetwork::start(&spec, HostEnvironment::Real, None, &Threads::new(|_| {}), |_, _| {})
    }

    #[test]
    fn ports_are_opened_reported_and_closed() {
        let network = start(vec![PublishedPort::tcp(0, 80), PublishedPort::udp(0, 80)]).unwrap();
        let [tcp, udp] = *network.ports() else { panic!("{:?}", network.ports()) };
        assert_eq!((tcp.protocol, udp.protocol, tcp.guest), (Transport::Tcp, Transport::Udp, 80));
        assert!(tcp.host.port() != 0 && udp.host.port() != 0);
        let error = start(vec![tcp]).err().unwrap().to_string();
        assert!(error.contains(&format!("tcp port {} of 127.0.0.1", tcp.host.port())), "{error}");
        assert!(error.contains("in use"), "{error}");
        drop(network);
        // The network's thread takes a moment to end.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while let Err(e) = start(vec![tcp]) {
            assert!(std::time::Instant::now() < deadline, "{e}");
        }
    }

    #[test]
    fn a_malformed_rule_is_an_error() {
        let spec = NetworkSpec { rules: vec!["permit any".into()], ..NetworkSpec::default() };
        assert!(
            BoxNetwork::start(&spec, HostEnvironment::Real, None, &Threads::new(|_| {}), |_, _| {})
                .is_err()
        );
    }

    #[test]
    fn the_guests_parameters_match_the_network() {
        let network = start(Vec::new()).unwrap();
        let words = network.params().to_string();
        let expected = "192.168.127.2/24,192.168.127.1,192.168.127.254,fdb0:786c:6974::2/64,\
                        fdb0:786c:6974::1";
        assert_eq!(words, expected);
        assert_eq!(network.metrics(), NetworkMetrics::default());
        network.device().unwrap();
    }
}
