//! The virtio-mmio transport (virtio 1.3, section 4.2): one device's registers.
//!
//! It enforces the specification's rules for the driver (sections 2.1, 3.1.1 and 4.2.2): a write that violates one
//! is ignored and logged, a few times a minute at most.

mod config;
mod queues;

use std::fmt;
use std::sync::Arc;

use boxlite_hv::{Doorbell, Interrupt};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_queue::{Error as QueueError, Queue};

use self::config::Generation;
use self::queues::QueueRegisters;
use super::{Activation, QueueInterrupt, VirtioDevice, has_feature};
use crate::{BusDevice, GuestMemory, LogBudget};

/// The size of a transport's register window, in bytes.
pub const MMIO_LEN: u64 = 0x1000;

/// The offset of the `QueueNotify` register, for a hypervisor that can ring the doorbell on writes to it.
pub const MMIO_QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt"
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// A vendor ID that no vendor uses.
const VENDOR_ID: u32 = 0;

/// `QueueReset`; not in the kernel's headers yet.
const QUEUE_RESET: u32 = 0x0c0;

/// The status bits that the driver sets, in the required order, each with the bits that must be set before.
const STATUS_ORDER: [(u32, u32); 4] = [
    (VIRTIO_CONFIG_S_ACKNOWLEDGE, 0),
    (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE),
    (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER),
    (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK),
];

/// A virtio device and the registers that a guest drives it by.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    interrupt: QueueInterrupt,
    doorbell: Doorbell,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    registers: Vec<QueueRegisters>,
    /// The queues; the device has them while this is `None`.
    queues: Option<Vec<Queue>>,
    generation: Generation,
    log: LogBudget,
    width_warned: bool,
}

impl MmioTransport {
    /// Creates a transport for `device`, with its memory, interrupt and doorbell.
    ///
    /// Fails if a queue size of the device is not a power of two.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        interrupt: Interrupt,
        doorbell: Doorbell,
    ) -> Result<Self, QueueError> {
        let sizes = device.queue_sizes();
        let queues = queues::new_queues(sizes)?;
        let registers = sizes.iter().map(|&max| QueueRegisters::new(max)).collect();
        Ok(Self {
            device,
            memory,
            interrupt: QueueInterrupt::new(interrupt),
            doorbell,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            registers,
            queues: Some(queues),
            generation: Generation::default(),
            log: LogBudget::default(),
            width_warned: false,
        })
    }

    fn read_register(&mut self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR_ID,
            VIRTIO_MMIO_DEVICE_FEATURES => {
                feature_window(self.offered_features(), self.device_features_sel)
            }
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |q| q.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |q| q.ready.into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.status(),
            // There are no shared memory regions: their length and base read as all ones.
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.generation.read(self.device.as_ref()),
            // Write-only or reserved; and a queue's reset is over when its write returns.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NUM => self.configure_queue(|queue| queue.set_size(value)),
            VIRTIO_MMIO_QUEUE_DESC_LOW => self.configure_queue(|queue| queue.desc.set_low(value)),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => self.configure_queue(|queue| queue.desc.set_high(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => self.configure_queue(|queue| queue.avail.set_low(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                self.configure_queue(|queue| queue.avail.set_high(value));
            }
            VIRTIO_MMIO_QUEUE_USED_LOW => self.configure_queue(|queue| queue.used.set_low(value)),
            VIRTIO_MMIO_QUEUE_USED_HIGH => self.configure_queue(|queue| queue.used.set_high(value)),
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            QUEUE_RESET => self.write_queue_reset(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            // There is nothing to select.
            VIRTIO_MMIO_SHM_SEL => {}
            _ => self.refuse(format_args!("register {offset:#x} cannot be written")),
        }
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return self.refuse(format_args!("features are fixed after FEATURES_OK"));
        }
        let shift = match self.driver_features_sel {
            0 => 0,
            1 => 32,
            _ if value == 0 => return,
            sel => return self.refuse(format_args!("features of window {sel} are not offered")),
        };
        let others = self.driver_features & !(u64::from(u32::MAX) << shift);
        self.driver_features = others | u64::from(value) << shift;
    }

    fn status(&self) -> u32 {
        match self.interrupt.has_failed() {
            true => self.status | VIRTIO_CONFIG_S_NEEDS_RESET,
            false => self.status,
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if self.status & VIRTIO_CONFIG_S_FAILED != 0 {
            return self.refuse(format_args!("the driver has given up: only a reset is left"));
        }
        // After the driver has given up, the device must not touch its memory.
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.stop();
            self.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        if self.status & !value != 0 {
            return self.refuse(format_args!("status bits are cleared by reset only"));
        }
        for (bit, before) in STATUS_ORDER {
            if value & bit == 0 || self.status & bit != 0 {
                continue;
            }
            if self.status & before != before {
                return self.refuse(format_args!("status bit {bit:#x} comes after {before:#x}"));
            }
            if bit == VIRTIO_CONFIG_S_FEATURES_OK && !self.accepts_features() {
                return;
            }
            self.status |= bit;
            if bit == VIRTIO_CONFIG_S_DRIVER_OK {
                self.start();
            }
        }
    }

    /// Whether FEATURES_OK may be set.
    fn accepts_features(&mut self) -> bool {
        let unoffered = self.driver_features & !self.offered_features();
        if unoffered != 0 {
            self.refuse(format_args!("features {unoffered:#x} were not offered"));
            return false;
        }
        if !has_feature(self.driver_features, VIRTIO_F_VERSION_1) {
            self.refuse(format_args!("legacy drivers are not supported"));
            return false;
        }
        true
    }

    fn notify(&mut self, queue: u32) {
        let exists = usize::try_from(queue).is_ok_and(|index| index < self.registers.len());
        // Before DRIVER_OK no device waits; activation rings for early notifications.
        if exists && self.queues.is_none() {
            self.ring();
        }
    }

    fn ring(&mut self) {
        if let Err(e) = self.doorbell.ring() {
            self.refuse(format_args!("doorbell: {e}"));
        }
    }

    /// Gives the queues to the device.
    fn start(&mut self) {
        let Some(mut queues) = self.queues.take() else { return };
        queues::set_event_idx(&mut queues, self.driver_features);
        let activation = self.doorbell.try_clone().map(|doorbell| Activation {
            memory: Arc::clone(&self.memory),
            queues,
            doorbell,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        });
        let started = match activation {
            Ok(activation) => self.device.activate(activation).map_err(|e| e.to_string()),
            Err(e) => Err(format!("doorbell: {e}")),
        };
        match started {
            Ok(()) => self.ring(),
            Err(reason) => {
                self.queues = queues::new_queues(self.device.queue_sizes()).ok();
                self.fail(format_args!("the device did not start: {reason}"));
            }
        }
    }

    /// Takes the queues back. The device touches nothing of the guest afterwards.
    fn stop(&mut self) {
        if self.queues.is_some() {
            return;
        }
        let queues = self.device.reset();
        if queues.len() == self.registers.len() {
            self.queues = Some(queues);
        } else {
            // The device has ended together with the event loop: the VM is going down.
            self.queues = queues::new_queues(self.device.queue_sizes()).ok();
            self.fail(format_args!("the device stopped without its queues"));
        }
    }

    /// Brings the device back to its initial state (section 2.4).
    pub fn reset(&mut self) {
        self.stop();
        self.queues = queues::new_queues(self.device.queue_sizes()).ok();
        for registers in &mut self.registers {
            registers.reset();
        }
        self.status = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.interrupt.reset();
    }

    /// Sets DEVICE_NEEDS_RESET and tells the driver.
    fn fail(&mut self, reason: fmt::Arguments<'_>) {
        self.refuse(reason);
        if let Err(e) = self.interrupt.device_failed() {
            self.refuse(format_args!("interrupt: {e}"));
        }
    }

    /// Logs a fault of the driver or of the device.
    fn refuse(&mut self, reason: fmt::Arguments<'_>) {
        let device = self.device.device_type();
        self.log.warn(format_args!("virtio-mmio, device type {device}: {reason}"));
    }
}

/// The 32 features that `sel` selects.
fn feature_window(features: u64, sel: u32) -> u32 {
    let window = match sel {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    (window & u64::from(u32::MAX)) as u32
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match Access::of(offset, data.len()) {
            Access::Register(register) => {
                data.copy_from_slice(&self.read_register(register).to_le_bytes());
            }
            Access::Config(offset) => self.device.read_config(offset, data),
            Access::Malformed => self.warn_width(offset, data.len()),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (Access::of(offset, data.len()), data.try_into()) {
            (Access::Register(register), Ok(value)) => {
                self.write_register(register, u32::from_le_bytes(value));
            }
            (Access::Config(offset), _) => self.device.write_config(offset, data),
            _ => self.warn_width(offset, data.len()),
        }
    }
}

impl MmioTransport {
    fn warn_width(&mut self, offset: u64, len: usize) {
        if !self.width_warned {
            self.width_warned = true;
            self.refuse(format_args!(
                "ignored an access of {len} bytes at {offset:#x} (further ones are not logged): \
                 registers have 32 bits"
            ));
        }
    }
}

/// The target of a guest's access.
enum Access {
    /// A whole register.
    Register(u32),
    /// Configuration space, from this offset on.
    Config(u64),
    /// An invalid width or alignment.
    Malformed,
}

impl Access {
    fn of(offset: u64, len: usize) -> Self {
        match (u32::try_from(offset), len) {
            (Ok(register), 4) if register < VIRTIO_MMIO_CONFIG && register % 4 == 0 => {
                Self::Register(register)
            }
            (Ok(register), 1 | 2 | 4 | 8) if register >= VIRTIO_MMIO_CONFIG => {
                Self::Config(u64::from(register - VIRTIO_MMIO_CONFIG))
            }
            _ => Self::Malformed,
        }
    }
}

impl Drop for MmioTransport {
    /// Stops the device, which touches no guest memory afterwards.
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device", &self.device.device_type())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
