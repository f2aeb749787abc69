//! Runs a command in a box.
//!
//! Needs the guest files, the launcher and an image, which `cargo xtask demo` makes. Then:
//! `BOXLITE_GUEST_DIR=target/guest cargo run --release -p boxlite-runtime --example hello_box -- oci:target/images/busybox`

use std::time::Duration;

use boxlite_runtime::{BoxOptions, Runtime, RuntimeOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args().nth(1).ok_or("which image? e.g. oci:target/images/busybox")?;
    let runtime = Runtime::open(RuntimeOptions::default()).await?;
    let options = BoxOptions::new(image).memory_mib(256).auto_remove(true);
    let sandbox = runtime.create(options).await?;
    sandbox.start().await?;
    let output = sandbox.exec(["sh", "-c", "echo hello from $(hostname)"]).output().await?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    sandbox.stop(Duration::from_secs(5)).await?;
    Ok(())
}
