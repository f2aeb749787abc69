//! The devices beside virtio: a serial port for the console, and a real-time clock. A guest resets the VM by PSCI,
//! which the hypervisor answers.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use boxlite_devices::legacy::{PL031_LEN, Pl031, SERIAL_LEN, Serial};

use super::layout::{RTC_START, SERIAL_IRQ, SERIAL_START};
use crate::arch::{Buses, Wiring};

/// Adds the devices to their addresses.
pub(crate) fn add(buses: &mut Buses, wiring: Wiring<'_>) -> Result<()> {
    let serial = Serial::new((wiring.irq)(SERIAL_IRQ)?, wiring.console);
    buses.mmio.insert(SERIAL_START..SERIAL_START + SERIAL_LEN, Arc::new(Mutex::new(serial)))?;
    let clock = Arc::new(Mutex::new(Pl031::new()));
    buses.mmio.insert(RTC_START..RTC_START + PL031_LEN, clock)?;
    // No device resets the VM.
    drop(wiring.reset);
    Ok(())
}

#[cfg(test)]
mod tests {
    use boxlite_hv::Interrupt;

    use super::*;

    #[test]
    fn the_devices_answer_at_their_addresses() {
        let wiring = Wiring {
            irq: &|line| {
                assert_eq!(line, SERIAL_IRQ);
                Ok(Interrupt::new(|| Ok(())))
            },
            console: Box::new(std::io::sink()),
            reset: Box::new(|| panic!("no device resets the VM")),
        };
        let mut buses = Buses::default();
        add(&mut buses, wiring).unwrap();
        let mut line_status = [0];
        buses.mmio.read(SERIAL_START + 5, &mut line_status);
        assert_eq!(line_status, [0x60], "the transmitter is empty");
        let mut id = [0; 4];
        buses.mmio.read(RTC_START + 0xfe0, &mut id);
        assert_eq!(id, [0x31, 0, 0, 0]);
    }
}
