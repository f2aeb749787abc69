//! The keyboard controller, reduced to the reset line, by which a Linux guest on x86 without ACPI
//! resets its machine (`reboot=k`).

use std::convert::Infallible;
use std::ops::Range;

use vm_superio::{I8042Device, Trigger};

use crate::BusDevice;

/// The I/O ports of the controller.
pub const I8042_PORTS: Range<u64> = 0x60..0x65;

/// A keyboard controller without a keyboard.
pub struct I8042(I8042Device<ResetLine>);

struct ResetLine(Box<dyn Fn() + Send>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)();
        Ok(())
    }
}

impl I8042 {
    /// A controller that calls `reset`, on a vCPU thread, when the guest pulses the reset line.
    pub fn new(reset: impl Fn() + Send + 'static) -> Self {
        Self(I8042Device::new(ResetLine(Box::new(reset))))
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            *value = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            match self.0.write(offset, *value) {
                Ok(()) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let resets = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&resets);
        let mut i8042 = I8042::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let mut status = [0xaa];
        i8042.read(4, &mut status);
        assert_eq!(status, [0], "the input buffer is always empty");
        for (offset, data) in [(0, &[0xfe][..]), (4, &[0xfd]), (4, &[0xfe, 0xfe]), (300, &[0xfe])] {
            i8042.write(offset, data);
        }
        assert_eq!(resets.load(Ordering::Relaxed), 0);
        i8042.write(4, &[0xfe]);
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }
}
