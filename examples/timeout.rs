//! Ends commands that take too long: by a timeout, a signal, and a kill.
//!
//! `… --example timeout -- oci:target/images/busybox`

use std::time::{Duration, Instant};

use boxlite_runtime::{BoxOptions, ErrorKind, ExitStatus, Runtime, RuntimeOptions, signals};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("which image? e.g. oci:target/images/busybox")?;
    let runtime = Runtime::open(RuntimeOptions::default()).await?;
    let options = BoxOptions::new(image).memory_mib(256).auto_remove(true);
    let sandbox = runtime.create(options).await?;
    sandbox.start().await?;

    // A timeout: kills the command and its children; the box goes on.
    let began = Instant::now();
    let endless = sandbox.exec(["sh", "-c", "while :; do :; done"]);
    match endless.timeout(Duration::from_secs(2)).output().await {
        Err(e) if e.kind() == ErrorKind::CommandTimeout => {
            println!("after {} s: {e}", began.elapsed().as_secs());
        }
        other => return Err(format!("not ended by its timeout: {other:?}").into()),
    }

    // A signal, which the command may handle.
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut polite = sandbox.exec(["sh", "-c", script]).spawn().await?;
    let stdout = polite.stdout().ok_or("no output")?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        println!("it prints {line}");
        if line == "ready" {
            polite.signal(signals::parse("TERM").ok_or("no such signal")?);
        }
    }
    println!("it ended with {:?}", polite.wait().await?);

    // A kill, which it cannot handle.
    let stubborn = sandbox.exec(["sleep", "1000"]).spawn().await?;
    stubborn.kill();
    let status = stubborn.wait().await?;
    println!("the other one ended with {status:?}");
    assert_eq!(status, ExitStatus::Signal(9));

    sandbox.stop(Duration::from_secs(5)).await?;
    Ok(())
}
