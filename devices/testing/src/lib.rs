//! The driver's side of virtio devices, for tests, benchmarks and fuzz targets.
//!
//! ```text
//!   Driver ── Registers ──▶ transport, device      [`Driver`]: the registers, and a Ring per queue
//!     └─ Ring ── guest memory ──▶ queue            [`Ring`]: one virtqueue
//!     Line ◀── interrupt ──                        [`Line`]: counts interrupts
//! ```
//!
//! A driver follows the specification unless a test makes it break a rule: a test can write every
//! field of a ring.
//!
//! **Invariant:** this crate does not depend on `boxlite-devices`, whose unit tests use it: they would
//! otherwise link two copies of that crate, with distinct types. A test passes its transport as
//! [`Registers`]; guest memory, interrupts and doorbells are types of crates that both depend on.
//!
//! A failure in this crate is a mistake of the test, and panics.

#![forbid(unsafe_code)]

mod driver;
mod line;
mod ring;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryMmap};

pub use driver::{ACKNOWLEDGED, DRIVER_OK, Driver, FEATURES_OK, Registers};
pub use line::Line;
pub use ring::{Buffer, Layout, Ring};

/// Guest memory, as devices see it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// Guest memory is two adjacent regions that meet here, so that a buffer can cross the boundary.
pub const SEAM: u64 = 0x8_0000;
/// The end of guest memory.
pub const MEMORY_END: u64 = 0x20_0000;
/// The address of tests' buffers, behind the rings of three queues.
pub const DATA: u64 = 0x4_0000;

/// Guest memory for a test, from 0 to [`MEMORY_END`].
pub fn memory() -> Arc<GuestMemory> {
    let regions =
        [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (MEMORY_END - SEAM) as usize)];
    Arc::new(GuestMemory::from_ranges(&regions).expect("guest memory"))
}

/// Waits until `condition` is true, for at most 20 seconds. `what` names it in the panic message.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        thread::sleep(Duration::from_micros(50));
    }
}
