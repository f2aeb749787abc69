//! The devices that are no virtio devices: a serial port, the reset line of a PC, a real-time clock.

mod i8042;
mod pl031;
mod serial;

pub use i8042::{I8042, I8042_PORTS};
pub use pl031::{PL031_LEN, Pl031};
pub use serial::{SERIAL_LEN, Serial};
