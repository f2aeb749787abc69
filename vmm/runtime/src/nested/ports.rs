//! Ports of the real host that are published by boxes in the nested host.
//!
//! ```text
//!   nested host                             real host
//!   box's process ── TCP 10.0.2.100:1 ── QEMU ── boxlite-vmm softhost-ports ── ports.sock ── keeper
//!    listens on 10.0.2.15:N  ◀──────────  hostfwd  ◀── human-monitor-command ──────────────────┘
//! ```
//!
//! Each connection is a box: it requests ports, receives the bound ones, and holds them until the connection ends,
//! which it does with the box's process. So nothing needs to be cleaned up, whichever end stops first.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use boxlite_contract::nested::{
    MAX_PORTS_LINE, NESTED_HOST, PORTS_TIMEOUT, PortsAnswer, PortsRequest,
};
use boxlite_net_policy::{PublishError, PublishedPort, Transport};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::monitor::Monitor;

/// Number of attempts to find a free port: another process may take the one that was found.
const ATTEMPTS: u32 = 5;

/// The keeper's side.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// QEMU's monitor, once QEMU runs.
    monitor: Mutex<Option<Monitor>>,
}

impl Ports {
    /// Sets the connection to QEMU's monitor.
    pub(super) async fn set_monitor(&self, monitor: Monitor) {
        *self.monitor.lock().await = Some(monitor);
    }

    /// Serves a box: opens ports for it, and closes them when its connection ends.
    pub(super) async fn serve<C>(&self, mut connection: C)
    where
        C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let mut open = Vec::new();
        let answered = timeout(PORTS_TIMEOUT, async {
            let mut line = String::new();
            let mut reader = tokio::io::BufReader::new(&mut connection).take(MAX_PORTS_LINE);
            reader.read_line(&mut line).await?;
            let PortsRequest(ports) = serde_json::from_str(&line)?;
            let answer = match self.open(&ports, &mut open).await {
                Ok(()) => match own() {
                    Ok(own) => PortsAnswer::Open { ports: open.clone(), own },
                    Err(e) => PortsAnswer::Refused(e.to_string()),
                },
                Err(e) => PortsAnswer::Refused(e.to_string()),
            };
            let mut bytes = serde_json::to_vec(&answer)?;
            bytes.push(b'\n');
            connection.write_all(&bytes).await?;
            connection.flush().await?;
            io::Result::Ok(matches!(answer, PortsAnswer::Open { .. }))
        });
        match answered.await {
            Ok(Ok(true)) => {
                // A box sends nothing after its request.
                let _ = connection.read_u8().await;
            }
            Ok(Ok(false)) => {}
            Ok(Err(e)) => tracing::warn!("a box's request for ports: {e}"),
            Err(_) => tracing::warn!("a box's request for ports timed out"),
        }
        for port in open {
            if let Err(e) = self.close(port).await {
                tracing::warn!("{port}: {e}");
            }
        }
    }

    /// Opens ports one by one, and adds them to `open`.
    async fn open(&self, ports: &[PublishedPort], open: &mut Vec<PublishedPort>) -> io::Result<()> {
        for port in ports {
            let mut attempts = 1;
            loop {
                let free = PublishedPort { host: free(port)?, ..*port };
                match self.add(free).await {
                    Ok(()) => break open.push(free),
                    Err(e) if port.host.port() != 0 || attempts == ATTEMPTS => {
                        return Err(refused(&free, e).into());
                    }
                    Err(_) => attempts += 1,
                }
            }
        }
        Ok(())
    }

    async fn add(&self, port: PublishedPort) -> io::Result<()> {
        let rule = format!("hostfwd_add net {}-{NESTED_HOST}:{}", outside(port), port.guest);
        // QEMU prints nothing on success.
        match self.run(&rule).await?.trim() {
            "" => Ok(()),
            why => Err(io::Error::other(why.to_owned())),
        }
    }

    async fn close(&self, port: PublishedPort) -> io::Result<()> {
        self.run(&format!("hostfwd_remove net {}", outside(port))).await.map(drop)
    }

    async fn run(&self, line: &str) -> io::Result<String> {
        let mut monitor = self.monitor.lock().await;
        let monitor = monitor.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        monitor.run(line).await
    }
}

/// The addresses of this host, which boxes could reach through QEMU's network like any other address.
fn own() -> io::Result<Vec<IpAddr>> {
    boxlite_net_interfaces::own_addresses().map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("cannot list the host's addresses, which boxes must not reach: {e}"),
        )
    })
}

/// A port in QEMU's syntax.
fn outside(port: PublishedPort) -> String {
    format!("{}:{}:{}", port.protocol, port.host.ip(), port.host.port())
}

/// Binds the address to find a free port if it has none, and to get the kernel's error if it cannot be bound, which
/// QEMU does not report.
fn free(port: &PublishedPort) -> io::Result<SocketAddr> {
    let asked = port.host;
    if asked.is_ipv6() {
        let why = io::Error::other("the software host forwards ports of IPv4 addresses only");
        return Err(refused(port, why).into());
    }
    let found = match port.protocol {
        Transport::Tcp => TcpListener::bind(asked).and_then(|socket| socket.local_addr()),
        Transport::Udp => UdpSocket::bind(asked).and_then(|socket| socket.local_addr()),
    };
    Ok(found.map_err(|e| refused(port, e))?)
}

fn refused(port: &PublishedPort, source: io::Error) -> Refused {
    Refused(PublishError { port: *port, source })
}

struct Refused(PublishError);

impl From<Refused> for io::Error {
    fn from(Refused(error): Refused) -> Self {
        Self::other(error)
    }
}

/// Copies bytes between a box, on standard input and output, and the keeper. QEMU starts a process for each box that
/// requests ports.
pub(super) fn relay(keeper: std::os::unix::net::UnixStream) -> io::Result<()> {
    let answers = keeper.try_clone()?;
    std::thread::spawn(move || {
        // The first end of either direction ends both.
        let _ = io::copy(&mut &answers, &mut io::stdout().lock());
        std::process::exit(0);
    });
    io::copy(&mut io::stdin().lock(), &mut &keeper)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A QEMU that forwards nothing, and records its commands.
    async fn qemu(commands: Arc<Mutex<Vec<String>>>) -> Monitor {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut lines = tokio::io::BufReader::new(read).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                let message: serde_json::Value = serde_json::from_str(&line).unwrap();
                let command = message["arguments"]["command-line"].as_str().unwrap_or_default();
                commands.lock().await.push(command.to_owned());
                let output = if command.contains(":1-") { "could not set up" } else { "" };
                let event = r#"{"event": "RTC_CHANGE", "data": {"offset": 1}}"#;
                let answer = serde_json::json!({"return": output, "id": message["id"]});
                write.write_all(format!("{event}\n{answer}\n").as_bytes()).await.unwrap();
            }
        });
        Monitor::new(ours)
    }

    fn port(protocol: Transport, host: &str, guest: u16) -> PublishedPort {
        PublishedPort { protocol, host: host.parse().unwrap(), guest }
    }

    #[tokio::test]
    async fn ports_are_open_as_long_as_the_box_is_connected() {
        let commands = Arc::default();
        let ports = Arc::new(Ports::default());
        ports.set_monitor(qemu(Arc::clone(&commands)).await).await;
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn({
            let ports = Arc::clone(&ports);
            async move { ports.serve(theirs).await }
        });
        let wanted = vec![
            port(Transport::Tcp, "127.0.0.1:0", 5000),
            port(Transport::Udp, "0.0.0.0:0", 6000),
        ];
        let mut line = serde_json::to_vec(&PortsRequest(wanted)).unwrap();
        line.push(b'\n');
        ours.write_all(&line).await.unwrap();
        let mut answer = String::new();
        tokio::io::BufReader::new(&mut ours).read_line(&mut answer).await.unwrap();
        let PortsAnswer::Open { ports: open, own } = serde_json::from_str(&answer).unwrap() else {
            panic!("{answer}")
        };
        assert!(own.contains(&std::net::Ipv4Addr::LOCALHOST.into()), "{own:?}");
        let (tcp, udp) = (open[0].host.port(), open[1].host.port());
        assert!(tcp != 0 && udp != 0);
        drop(ours);
        serving.await.unwrap();
        let expected = [
            format!("hostfwd_add net tcp:127.0.0.1:{tcp}-10.0.2.15:5000"),
            format!("hostfwd_add net udp:0.0.0.0:{udp}-10.0.2.15:6000"),
            format!("hostfwd_remove net tcp:127.0.0.1:{tcp}"),
            format!("hostfwd_remove net udp:0.0.0.0:{udp}"),
        ];
        assert_eq!(*commands.lock().await, expected);
    }

    #[tokio::test]
    async fn a_port_that_cannot_be_bound_is_named_and_no_port_stays_open() {
        let commands = Arc::default();
        let ports = Ports::default();
        ports.set_monitor(qemu(Arc::clone(&commands)).await).await;
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let taken = PublishedPort { protocol: Transport::Tcp, host: address, guest: 1000 };
        let open = async |wanted: Vec<PublishedPort>| {
            let mut open = Vec::new();
            let error = ports.open(&wanted, &mut open).await.unwrap_err().to_string();
            (error, open.len())
        };
        let (error, open_before) = open(vec![port(Transport::Tcp, "127.0.0.1:0", 9), taken]).await;
        assert!(error.contains(&address.port().to_string()) && error.contains("in use"), "{error}");
        assert_eq!(open_before, 1, "for whoever serves to close");
        let (error, _) = open(vec![port(Transport::Udp, "[::1]:0", 9)]).await;
        assert!(error.contains("IPv4"), "{error}");
    }
}
