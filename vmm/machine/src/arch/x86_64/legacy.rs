//! The devices of a PC that its kernel expects: a serial port and the reset line of the keyboard controller.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use boxlite_devices::legacy::{I8042, I8042_PORTS, SERIAL_LEN, Serial};

use super::layout::{SERIAL_IRQ, SERIAL_PORT};
use crate::arch::{Buses, Wiring};

/// Adds the devices to their ports.
pub(crate) fn add(buses: &mut Buses, wiring: Wiring<'_>) -> Result<()> {
    let serial = Serial::new((wiring.irq)(SERIAL_IRQ)?, wiring.console);
    buses.pio.insert(SERIAL_PORT..SERIAL_PORT + SERIAL_LEN, Arc::new(Mutex::new(serial)))?;
    let i8042 = I8042::new(wiring.reset);
    buses.pio.insert(I8042_PORTS, Arc::new(Mutex::new(i8042)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use boxlite_hv::Interrupt;

    use super::*;

    #[test]
    fn the_devices_answer_at_their_ports() {
        let resets = Arc::new(AtomicU32::new(0));
        let count = resets.clone();
        let wiring = Wiring {
            irq: &|line| {
                assert_eq!(line, SERIAL_IRQ);
                Ok(Interrupt::new(|| Ok(())))
            },
            console: Box::new(std::io::sink()),
            reset: Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }),
        };
        let mut buses = Buses::default();
        add(&mut buses, wiring).unwrap();
        let mut line_status = [0];
        buses.pio.read(SERIAL_PORT + 5, &mut line_status);
        assert_eq!(line_status, [0x60], "the transmitter is empty");
        buses.pio.write(0x64, &[0xfe]);
        assert_eq!(resets.load(Ordering::SeqCst), 1);
    }
}
