//! An agent's tool loop with a persistent box: the box's shell runs each line, and its effects
//! are kept for the next line and for the next run of this program.
//!
//! `printf 'echo hi >> /notes\ncat /notes\n' | … --example agent_loop -- oci:target/images/busybox`
//!
//! Without lines on standard input, a short script is run. `boxlite-vmm rm agent` removes the box.

use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use boxlite_runtime::{BoxHandle, BoxOptions, Error, ErrorKind, Runtime, RuntimeOptions};

/// The lines to run when there are none on standard input.
const SCRIPT: [&str; 3] = ["echo run >> /runs", "wc -l < /runs", "ls /no/such/folder"];

/// How long a line may run.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("which image? e.g. oci:target/images/busybox")?;
    let runtime = Runtime::open(RuntimeOptions::default()).await?;

    // Creates the box the first time, and finds it afterwards.
    let options = BoxOptions::new(image).name("agent").memory_mib(256);
    let sandbox = runtime.get_or_create(options).await?;
    sandbox.start().await?;

    let stdin = std::io::stdin();
    let mut lines: Vec<String> = match stdin.is_terminal() {
        true => Vec::new(),
        false => stdin.lock().lines().collect::<Result<_, _>>()?,
    };
    if lines.is_empty() {
        lines = SCRIPT.map(str::to_owned).to_vec();
    }
    for line in &lines {
        println!("> {line}");
        print!("{}", observe(&sandbox, line).await?);
    }

    // An orderly stop writes everything to the box's disk.
    sandbox.stop(Duration::from_secs(5)).await?;
    Ok(())
}

/// Runs a line, and returns the result as text for an agent. Only a failure of the box itself is an
/// error.
async fn observe(sandbox: &BoxHandle, line: &str) -> Result<String, Error> {
    let ran = sandbox.exec(["sh", "-c", line]).timeout(LIMIT).output().await;
    let output = match ran {
        Ok(output) => output,
        Err(e) if e.kind() == ErrorKind::CommandTimeout => return Ok(format!("{e}\n")),
        Err(e) => return Err(e),
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    Ok(format!("{stdout}{stderr}[{:?}]\n", output.status))
}
