//! Address ranges and the devices behind them: guest physical memory (MMIO) or x86 I/O ports.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A device with registers on a [`Bus`].
///
/// Both calls run on a vCPU thread, `offset` counts from the start of the device's range, and the
/// access lies within the range. The guest chooses the width.
pub trait BusDevice: Send {
    /// Reads registers into `data`, which is zeroed before.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes registers.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Devices by address. Filled by the VMM, then shared by its vCPU threads.
///
/// An access that no device claims, or that reaches over the end of a device's range, reads as all
/// ones and ignores writes, as on hardware.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, without overlaps.
    entries: Vec<Entry>,
}

struct Entry {
    range: Range<u64>,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Why a device cannot be added to a bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range has no addresses.
    #[error("bus range {:#x}..{:#x} is empty: give the device at least one address", .0.start, .0.end)]
    Empty(Range<u64>),
    /// Another device is there.
    #[error(
        "bus range {:#x}..{:#x} overlaps {:#x}..{:#x}: place the device elsewhere",
        .new.start, .new.end, .old.start, .old.end
    )]
    Overlap {
        /// The requested range.
        new: Range<u64>,
        /// The range that is taken.
        old: Range<u64>,
    },
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device at `range`. The caller may keep a reference to it.
    pub fn insert(
        &mut self,
        range: Range<u64>,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        if range.is_empty() {
            return Err(BusError::Empty(range));
        }
        let at = self.entries.partition_point(|entry| entry.range.end <= range.start);
        if let Some(next) = self.entries.get(at).filter(|next| next.range.start < range.end) {
            return Err(BusError::Overlap { new: range, old: next.range.clone() });
        }
        self.entries.insert(at, Entry { range, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((entry, offset)) => {
                data.fill(0);
                // A poisoned device is still usable; a second panic would not repair it.
                let mut device = entry.device.lock().unwrap_or_else(PoisonError::into_inner);
                device.read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((entry, offset)) = self.find(address, data.len()) {
            let mut device = entry.device.lock().unwrap_or_else(PoisonError::into_inner);
            device.write(offset, data);
        }
    }

    /// The device whose range holds all of the access, and the offset into it.
    fn find(&self, address: u64, len: usize) -> Option<(&Entry, u64)> {
        let after = self.entries.partition_point(|entry| entry.range.start <= address);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let end = address.checked_add(u64::try_from(len).ok()?)?;
        (len > 0 && end <= entry.range.end).then(|| (entry, address - entry.range.start))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| &entry.range)).finish()
    }
}

#[cfg(test)]
mod tests;
