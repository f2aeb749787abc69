//! Boot latency: a command in a new box, and a command in a running box.
//!
//! Needs guest files, a release launcher and a busybox image. Without hardware virtualization, run it
//! in the software host:
//!
//! ```text
//! cargo xtask demo
//! cargo build --release -p boxlite-vmm && cargo bench -p boxlite-benches --no-run
//! BOXLITE_GUEST_DIR=$PWD/target/guest BOXLITE_BENCH_IMAGE=oci:$PWD/target/images/busybox \
//!     target/release/boxlite-vmm softhost -- target/release/deps/boot-* --bench
//! ```

// `criterion_group!` makes a public function without documentation.
#![allow(missing_docs)]

use std::time::Duration;

use boxlite_runtime::{BoxOptions, Runtime, RuntimeOptions};
use criterion::{Criterion, criterion_group, criterion_main};

fn boot(criterion: &mut Criterion) {
    let Ok(image) = std::env::var("BOXLITE_BENCH_IMAGE") else {
        eprintln!("SKIPPED: BOXLITE_BENCH_IMAGE names no image");
        return;
    };
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tokio = tokio.expect("a tokio runtime");
    let runtime = tokio.block_on(Runtime::open(RuntimeOptions::default()));
    let runtime = runtime.expect("a home and guest files");
    let options = || BoxOptions::new(&image).memory_mib(256).auto_remove(true);
    let start = async || {
        let sandbox = runtime.create(options()).await.expect("a box");
        sandbox.start().await.expect("a running box");
        sandbox
    };
    // The first box also makes the image's base disk.
    let running = tokio.block_on(start());

    let mut group = criterion.benchmark_group("boot");
    group.sample_size(10).measurement_time(Duration::from_secs(30));
    group.bench_function("cold run", |bencher| {
        bencher.iter(|| {
            tokio.block_on(async {
                let sandbox = start().await;
                let status = sandbox.exec(["true"]).status().await.expect("a command");
                sandbox.kill().await.expect("a killed box");
                status
            })
        });
    });
    group.bench_function("exec in a running box", |bencher| {
        bencher.iter(|| tokio.block_on(running.exec(["true"]).status()).expect("a command"));
    });
    group.finish();
}

criterion_group!(benches, boot);
criterion_main!(benches);
