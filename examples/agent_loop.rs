//! An agent's tool loop with a box that persists: each line is run by the box's shell, and what
//! it leaves behind is there for the next line, and for the next run of this program.
//!
//! `printf 'echo hi >> /notes\ncat /notes\n' | … --example agent_loop -- oci:target/images/busybox`
//!
//! Without lines on standard input a short script is run. `boxlite-vmm rm agent` forgets everything.

use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use boxlite_runtime::{BoxHandle, BoxOptions, Error, ErrorKind, Runtime, RuntimeOptions};

/// What is run when nobody says anything.
const SCRIPT: [&str; 3] = ["echo run >> /runs", "wc -l < /runs", "ls /no/such/folder"];

/// How long a line may run.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("which image? e.g. oci:target/images/busybox")?;
    let runtime = Runtime::open(RuntimeOptions::default()).await?;

    // Made the first time, found again afterwards.
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

    // In good order, so that everything is on the box's disk.
    sandbox.stop(Duration::from_secs(5)).await?;
    Ok(())
}

/// Runs a line; what comes of it, as an agent would be told. Only what is wrong with the box itself is an
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
