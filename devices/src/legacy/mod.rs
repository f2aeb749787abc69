//! The PC devices that a kernel expects without discovery: a serial port and the reset line.

mod i8042;
mod serial;

pub use i8042::{I8042, I8042_PORTS};
pub use serial::{SERIAL_LEN, Serial};
