//! Spreads work over several boxes: each takes the next piece from a queue until the queue is empty.
//!
//! `… --example parallel -- oci:target/images/busybox [BOXES]`

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use boxlite_runtime::{BoxOptions, Error, Runtime, RuntimeOptions};
use tokio::task::JoinSet;

type Queue = Arc<Mutex<Vec<u32>>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let image = args.next().ok_or("which image? e.g. oci:target/images/busybox")?;
    let boxes: usize = args.next().map_or(Ok(3), |n| n.parse())?;
    let runtime = Runtime::open(RuntimeOptions::default()).await?;
    // The image is fetched and unpacked once for all boxes.
    let options = BoxOptions::new(image).memory_mib(256).auto_remove(true);

    let queue: Queue = Arc::new(Mutex::new((1..=9).rev().collect()));
    let mut workers = JoinSet::new();
    for number in 1..=boxes {
        workers.spawn(work(runtime.clone(), options.clone(), queue.clone(), number));
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(())
}

/// A worker: creates a box and takes pieces of work until there are none.
async fn work(
    runtime: Runtime,
    options: BoxOptions,
    queue: Queue,
    number: usize,
) -> Result<(), Error> {
    let sandbox = runtime.create(options).await?;
    sandbox.start().await?;
    let mut done = 0;
    while let Some(piece) = next(&queue) {
        let line = format!("seq 1 {piece}000 | md5sum | cut -c1-8");
        let output = sandbox.exec(["sh", "-c", &line]).output().await?;
        let result = String::from_utf8_lossy(&output.stdout);
        println!("box {number}: piece {piece} is {}", result.trim());
        done += 1;
    }
    println!("box {number}: did {done}");
    sandbox.stop(Duration::from_secs(5)).await
}

fn next(queue: &Queue) -> Option<u32> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}
