//! A server in a box that can be reached only from this machine, and that can reach nothing itself: each denied flow is an event.
//!
//! `… --example web_server -- oci:target/images/busybox`

use std::time::{Duration, SystemTime};

use boxlite_runtime::{
    BoxOptions, EventKind, EventQuery, NetworkPolicy, PublishedPort, Runtime, RuntimeOptions,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("which image? e.g. oci:target/images/busybox")?;
    let runtime = Runtime::open(RuntimeOptions::default()).await?;
    let options = BoxOptions::new(image)
        .memory_mib(256)
        .auto_remove(true)
        .port(PublishedPort::tcp(0, 80))
        .network(NetworkPolicy::default().deny("any"));
    let sandbox = runtime.create(options).await?;
    let mut query = EventQuery::default().since(SystemTime::now()).follow(true);
    query.id = Some(sandbox.id().to_owned());
    let mut events = runtime.events(query).await?;
    sandbox.start().await?;

    // Port 0 of the host means any free port.
    let port = sandbox.info().await?.ports.first().ok_or("no port")?.host;
    println!("http://{port}/");
    let serve = "mkdir /www; echo served by $(hostname) >/www/index.html; httpd -f -p 80 -h /www";
    let _server = sandbox.exec(["sh", "-c", serve]).spawn().await?;
    let page = loop {
        // The server needs a moment to start.
        if let Ok(mut stream) = TcpStream::connect(port).await {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
            let mut page = String::new();
            if stream.read_to_string(&mut page).await.is_ok() && page.contains("served") {
                break page;
            }
        }
        sleep(Duration::from_millis(100)).await;
    };
    println!("{}", page.lines().last().unwrap_or_default());

    sandbox.exec(["nc", "-w", "5", "192.0.2.1", "443"]).output().await?;
    while let Some(event) = events.next().await? {
        if let EventKind::Denied { what, why } = event.kind {
            println!("denied: {what} ({why})");
            break;
        }
    }
    sandbox.stop(Duration::from_secs(5)).await?;
    Ok(())
}
