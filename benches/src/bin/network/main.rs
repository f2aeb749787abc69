//! Compares user-mode network stacks: throughput and connection latency between two network
//! namespaces, one in the guest's place and one in the host's.
//!
//! ```text
//! cargo run --release -p boxlite-benches --bin network [-- --seconds 2 --rounds 2 --only ours,pasta]
//! ```
//!
//! Needs root, iproute2 and iperf3. Other stacks are measured if they are installed. The result is the
//! best of all rounds, because other load can only make a round slower. It still depends on that load:
//! compare ratios, not results of different runs.

#[cfg(target_os = "linux")]
mod client;
#[cfg(target_os = "linux")]
mod compare;
#[cfg(target_os = "linux")]
#[path = "../../../../net/tests/tap/lab.rs"]
mod lab;
#[cfg(target_os = "linux")]
mod stack;

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    compare::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("SKIPPED: network namespaces and TAP devices are of Linux");
}
