//! The measurements: throughput with iperf3, and latency of a short connection.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::Lab;

/// Size of a request and of its answer, in bytes.
const REQUEST: usize = 64;
const PORT: u16 = 5201;

/// Received throughput in Gbit/s.
pub(crate) fn throughput(
    lab: &Lab,
    server: &str,
    flows: u32,
    reverse: bool,
    seconds: u32,
) -> Result<f64> {
    let mut serving = Command::new("iperf3")
        .args(["--server", "--one-off", "--port", &PORT.to_string()])
        .stdout(Stdio::null())
        .spawn()?;
    wait_until_listening()?;
    // Some stacks lose a connection occasionally, and iperf3 waits for it.
    let limit = (10 + 2 * seconds).to_string();
    let (flows, seconds) = (flows.to_string(), seconds.to_string());
    let mut args = vec![
        &limit,
        "iperf3",
        "--client",
        server,
        "--json",
        "--parallel",
        &flows,
        "--time",
        &seconds,
    ];
    args.extend(["--omit", "1"]);
    if reverse {
        args.push("--reverse");
    }
    let output = lab.guest_run("timeout", &args);
    let _ = serving.kill();
    serving.wait()?;
    ensure!(output.status.code() != Some(124), "iperf3 did not finish");
    let report: Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    let bits = bits.with_context(|| format!("iperf3: {}", report["error"]))?;
    Ok(bits / 1e9)
}

/// Waits for the listening socket in `/proc`: iperf3 does not report it, and accepts one client only.
fn wait_until_listening() -> Result<()> {
    let line = format!(":{PORT:04X} ");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
        let listens = |table: &&str| -> bool {
            let table = std::fs::read_to_string(table).unwrap_or_default();
            table.lines().any(|l| l.contains(&line) && l.contains(" 0A "))
        };
        if tables.iter().any(&listens) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "iperf3 does not listen");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Time of connect, request, answer and close, in microseconds: 50th and 99th percentile.
pub(crate) fn latency(lab: &Lab, server: &str, time: Duration) -> Result<(f64, f64)> {
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))?;
    let address = SocketAddr::new(server.parse()?, listener.local_addr()?.port());
    thread::spawn(move || {
        let mut request = [0; REQUEST];
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let served = stream.read_exact(&mut request).and_then(|()| stream.write_all(&request));
            if served.is_ok() {
                // The client closes first.
                let _ = stream.read(&mut request);
            }
        }
    });
    let mut times = lab.guest(|| -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        let started = Instant::now();
        // Limited, because ports are. The first ones warm up caches and are not counted.
        while started.elapsed() < time && times.len() < 10_000 {
            let connecting = Instant::now();
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&[7; REQUEST])?;
            stream.read_exact(&mut [0; REQUEST])?;
            drop(stream);
            times.push(connecting.elapsed());
        }
        Ok(times)
    })?;
    times.drain(..times.len().min(100));
    times.sort_unstable();
    let at = |n: usize| times.get(times.len() * n / 100).map(|t| t.as_secs_f64() * 1e6);
    Ok((at(50).context("too few connections")?, at(99).context("too few connections")?))
}
