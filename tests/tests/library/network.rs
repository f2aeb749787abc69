//! The network of boxes: published ports, counters, denials.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use boxlite_runtime::{
    BoxOptions, ErrorKind, EventKind, EventQuery, NetworkPolicy, PublishedPort, Transport,
};

use super::{Embedder, shell};

/// How long a server in a box may take to come up.
const SOON: Duration = Duration::from_secs(20);

/// The answer of an echo server to a word.
fn echo(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"word\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn published_ports_are_listed_and_work_and_traffic_is_counted() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let options = embedder.options("ports").port(PublishedPort::tcp(0, 7));
        let sandbox = runtime.create(options).await.unwrap();
        assert_eq!(sandbox.info().await.unwrap().ports, []);
        sandbox.start().await.unwrap();
        let ports = sandbox.info().await.unwrap().ports;
        let [PublishedPort { protocol: Transport::Tcp, host, guest: 7 }] = ports[..] else {
            panic!("{ports:?}")
        };
        let server = sandbox.exec(["nc", "-ll", "-p", "7", "-e", "cat"]).spawn().await.unwrap();
        let word = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + SOON;
            loop {
                match echo(host) {
                    Ok(word) => break word,
                    Err(e) => assert!(Instant::now() < deadline, "{host}: {e}"),
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        assert_eq!(word.await.unwrap(), "word\n");
        let network = sandbox.metrics().await.unwrap().machine.unwrap().network.unwrap();
        assert!(network.tcp_flows > 0 && network.bytes_sent > 0, "{network:?}");
        assert_eq!(network.denied, 0);
        drop(server);

        // Another box cannot publish the same port.
        let second = embedder.options("taken").port(PublishedPort::tcp(host.port(), 7));
        let second = runtime.create(second).await.unwrap();
        let error = second.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Port);
        let error = error.to_string();
        assert!(error.contains(&host.port().to_string()) && error.contains("in use"), "{error}");
        sandbox.stop(Duration::ZERO).await.unwrap();
        let deadline = Instant::now() + SOON;
        while let Err(e) = TcpListener::bind(host) {
            assert!(Instant::now() < deadline, "{host}: {e}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn a_denied_flow_is_an_event() {
    let Some(embedder) = Embedder::find() else { return };
    embedder.run(async {
        let runtime = embedder.open().await;
        let policy = NetworkPolicy::default().deny("tcp:192.0.2.0/24");
        let options: BoxOptions = embedder.options("denied").network(policy);
        let sandbox = runtime.create(options).await.unwrap();
        sandbox.start().await.unwrap();
        let mut query = EventQuery::default().since(std::time::UNIX_EPOCH).follow(true);
        query.id = Some(sandbox.id().to_owned());
        let mut events = runtime.events(query).await.unwrap();
        let answer = shell(&sandbox, "nc -w 60 192.0.2.9 80 </dev/null 2>&1 || true").await;
        assert!(!answer.contains("timed out"), "it is refused, not dropped: {answer}");
        loop {
            let event = events.next().await.unwrap().expect("the event comes");
            if let EventKind::Denied { what, why } = event.kind {
                assert_eq!(what, "tcp to 192.0.2.9:80");
                break assert!(why.contains("deny tcp:192.0.2.0/24"), "{why}");
            }
        }
    });
}
