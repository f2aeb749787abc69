//! The driver's side of virtio devices, for tests, benchmarks and fuzz targets.
//!
//! ```text
//!   Driver ── Registers ──▶ transport, device      [`Driver`]: the registers, and a Ring per queue
//!     └─ Ring ── guest memory ──▶ queue            [`Ring`]: one virtqueue
//!     Line ◀── interrupt ──                        [`Line`]: counts interrupts
//! ```
//!
//! A driver follows the specification unless a test makes it break a rule: every field of a ring can
//! be written to.
//!
//! **No cycle:** this crate does not depend on `boxlite-devices`, whose unit tests use it; otherwise
//! they would link two copies of that crate, with distinct types. A test passes its transport as
//! [`Registers`]; guest memory, interrupts and doorbells are types of crates below both.
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

/// Guest memory is two regions that touch here, so that buffers can lie over the seam.
pub const SEAM: u64 = 0x8_0000;
/// Where guest memory ends.
pub const MEMORY_END: u64 = 0x20_0000;
/// Where tests put their buffers: behind the rings of three queues.
pub const DATA: u64 = 0x4_0000;

/// Guest memory for a test, from 0 to [`MEMORY_END`].
pub fn memory() -> Arc<GuestMemory> {
    let regions =
        [(GuestAddress(0), SEAM as usize), (GuestAddress(SEAM), (MEMORY_END - SEAM) as usize)];
    Arc::new(GuestMemory::from_ranges(&regions).expect("guest memory"))
}

/// Waits until something has happened, for 20 seconds at most.
pub fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_micros(50));
    }
}
