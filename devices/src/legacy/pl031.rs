//! A real-time clock, the Arm PrimeCell PL031 (Arm DDI 0224): the host's wall clock, until the guest sets another
//! time. It has no alarm.

use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

use crate::BusDevice;

/// The size of the register window, in bytes.
pub const PL031_LEN: u64 = 0x1000;

/// A real-time clock. Its registers have 32 bits: other accesses read as zero and write nothing.
#[derive(Debug)]
pub struct Pl031(Rtc<NoEvents>);

impl Pl031 {
    /// A clock with the host's time.
    pub fn new() -> Self {
        Self(Rtc::new())
    }
}

impl Default for Pl031 {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Pl031 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            self.0.read(offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            self.0.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    const DATA: u64 = 0x000;
    const LOAD: u64 = 0x008;

    fn read(clock: &mut Pl031, offset: u64) -> u32 {
        let mut data = [0; 4];
        clock.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn host_time() -> u32 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32
    }

    #[test]
    fn the_time_is_the_hosts_until_the_guest_sets_another() {
        let mut clock = Pl031::new();
        let before = host_time();
        let time = read(&mut clock, DATA);
        assert!((before..=host_time()).contains(&time));
        clock.write(LOAD, &1000u32.to_le_bytes());
        assert!((1000..1000 + 60).contains(&read(&mut clock, DATA)));
    }

    #[test]
    fn it_identifies_itself_as_linux_expects() {
        let mut clock = Pl031::new();
        // Linux puts together the lowest byte of each of four registers.
        let mut id =
            |first: u64| (0..4).map(|n| read(&mut clock, first + 4 * n) << (8 * n)).sum::<u32>();
        assert_eq!(id(0xfe0) & 0x000f_ffff, 0x0004_1031, "peripheral: PL031 by Arm");
        assert_eq!(id(0xff0), 0xb105_f00d, "cell: PrimeCell");
    }

    #[test]
    fn accesses_of_other_widths_do_nothing() {
        let mut clock = Pl031::new();
        clock.write(LOAD, &1000u32.to_le_bytes());
        for len in [0, 1, 2, 3, 5, 8, 4096] {
            for offset in [DATA, LOAD, 1, 0xfe0, 0xffc, 0xfff, u64::from(u16::MAX), u64::MAX] {
                let mut data = vec![0xaa; len];
                clock.write(offset, &data);
                clock.read(offset, &mut data);
                assert!(data.iter().all(|byte| *byte == 0xaa));
            }
        }
        for offset in [2, 0x20, 0xfdc, 0xfff, 0x1_0000] {
            clock.write(offset, &[0xaa; 4]);
            assert!([0, 0x31, 0xb1].contains(&read(&mut clock, offset)));
        }
        assert_eq!(read(&mut clock, LOAD), 1000);
    }
}
