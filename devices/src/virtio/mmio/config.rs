//! `ConfigGeneration`: lets a driver read fields wider than its accesses (virtio 1.3, section 2.5).

use crate::virtio::VirtioDevice;

/// Larger than any device's configuration space.
const SNAPSHOT: usize = 256;

/// Counts the changes of a device's configuration space as a driver can see them.
///
/// The driver reads the generation, the fields, and the generation again. Comparing the whole
/// space at each of these reads needs no help from the device, and cannot come too late.
#[derive(Debug)]
pub(super) struct Generation {
    count: u32,
    last: [u8; SNAPSHOT],
}

impl Default for Generation {
    fn default() -> Self {
        Self { count: 0, last: [0; SNAPSHOT] }
    }
}

impl Generation {
    /// The register's value.
    pub(super) fn read(&mut self, device: &dyn VirtioDevice) -> u32 {
        let mut now = [0; SNAPSHOT];
        device.read_config(0, &mut now);
        if now != self.last {
            self.last = now;
            self.count = self.count.wrapping_add(1);
        }
        self.count
    }
}
