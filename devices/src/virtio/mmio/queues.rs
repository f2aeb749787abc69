//! The queue registers of the transport: how a driver lays out, starts, stops and resets a queue.

use std::fmt;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_F_RING_RESET};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::GuestAddress;

use super::MmioTransport;
use crate::GuestMemory;
use crate::virtio::has_feature;

/// What the driver has written about one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    /// As written: checked when the queue is made ready.
    size: u32,
    pub(super) ready: bool,
    pub(super) desc: Address,
    pub(super) avail: Address,
    pub(super) used: Address,
}

/// A guest physical address in two registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Address(u64);

impl Address {
    pub(super) fn set_low(&mut self, low: u32) {
        self.0 = self.0 >> 32 << 32 | u64::from(low);
    }

    pub(super) fn set_high(&mut self, high: u32) {
        self.0 = u64::from(high) << 32 | self.0 & u64::from(u32::MAX);
    }
}

impl From<Address> for GuestAddress {
    fn from(address: Address) -> Self {
        Self(address.0)
    }
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size.into(),
            ready: false,
            desc: Address::default(),
            avail: Address::default(),
            used: Address::default(),
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    pub(super) fn set_size(&mut self, size: u32) {
        self.size = size;
    }

    /// The queue that these registers describe, if all of it lies in guest memory.
    fn build(&self, memory: &GuestMemory) -> Result<Queue, QueueError> {
        let mut queue = Queue::new(self.max_size)?;
        queue.try_set_size(u16::try_from(self.size).map_err(|_| QueueError::InvalidSize)?)?;
        queue.try_set_desc_table_address(self.desc.into())?;
        queue.try_set_avail_ring_address(self.avail.into())?;
        queue.try_set_used_ring_address(self.used.into())?;
        queue.set_ready(true);
        match queue.is_valid(memory) {
            true => Ok(queue),
            false => Err(QueueError::FindMemoryRegion),
        }
    }
}

/// Queues that no driver has configured.
pub(super) fn new_queues(sizes: &[u16]) -> Result<Vec<Queue>, QueueError> {
    sizes.iter().map(|&size| Queue::new(size)).collect()
}

/// Tells the queues which kind of notification suppression was negotiated.
pub(super) fn set_event_idx(queues: &mut [Queue], features: u64) {
    for queue in queues {
        queue.set_event_idx(has_feature(features, VIRTIO_RING_F_EVENT_IDX));
    }
}

impl MmioTransport {
    /// The registers of the queue that `QueueSel` selects.
    pub(super) fn selected(&self) -> Option<&QueueRegisters> {
        self.registers.get(self.selected_index()?)
    }

    fn selected_index(&self) -> Option<usize> {
        usize::try_from(self.queue_sel).ok().filter(|&index| index < self.registers.len())
    }

    /// Whether queues may be reset, and set up again, one by one (section 2.6.1).
    fn resets_queues(&self) -> bool {
        has_feature(self.driver_features, VIRTIO_F_RING_RESET)
    }

    fn is_driver_ok(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
    }

    /// Writes a register of the selected queue, unless the queue is in use.
    pub(super) fn configure_queue(&mut self, write: impl FnOnce(&mut QueueRegisters)) {
        if let Some(index) = self.configurable_queue()
            && let Some(registers) = self.registers.get_mut(index)
        {
            write(registers);
        }
    }

    fn configurable_queue(&mut self) -> Option<usize> {
        let index = self.selected_index();
        let refused = match self.selected() {
            None => "does not exist",
            Some(queue) if queue.ready => "is ready: its registers are fixed",
            Some(_) if self.is_driver_ok() && !self.resets_queues() => "is fixed after DRIVER_OK",
            Some(_) => return index,
        };
        self.refuse_queue(format_args!("{refused}"));
        None
    }

    fn refuse_queue(&mut self, reason: fmt::Arguments<'_>) {
        let queue = self.queue_sel;
        self.refuse(format_args!("queue {queue} {reason}"));
    }

    pub(super) fn write_queue_ready(&mut self, value: u32) {
        match (value, self.selected().is_some_and(|queue| queue.ready)) {
            (0, true) => self.detach_queue(false),
            (1, false) => self.attach_queue(),
            (0 | 1, _) => {}
            _ => self.refuse_queue(format_args!("cannot take the ready value {value:#x}")),
        }
    }

    pub(super) fn write_queue_reset(&mut self, value: u32) {
        if value == 1 && self.resets_queues() && self.selected().is_some() {
            self.detach_queue(true);
        } else {
            self.refuse_queue(format_args!("cannot be reset alone"));
        }
    }

    /// Makes the selected queue ready, and hands it to a running device.
    fn attach_queue(&mut self) {
        let Some(index) = self.configurable_queue() else { return };
        let Some(registers) = self.registers.get_mut(index) else { return };
        match registers.build(&self.memory) {
            Ok(queue) => {
                registers.ready = true;
                self.exchange(index, queue);
            }
            Err(e) => self.refuse_queue(format_args!("cannot be made ready: {e}")),
        }
    }

    /// Takes the selected queue away from the device.
    fn detach_queue(&mut self, reset: bool) {
        let Some(index) = self.selected_index() else { return };
        let Some(registers) = self.registers.get_mut(index) else { return };
        registers.ready = false;
        if reset {
            registers.reset();
        }
        if let Ok(queue) = Queue::new(registers.max_size) {
            self.exchange(index, queue);
        }
    }

    /// Replaces one queue. A running device is stopped for that, and then restarted.
    fn exchange(&mut self, index: usize, queue: Queue) {
        let runs = self.queues.is_none();
        self.stop();
        if let Some(slot) = self.queues.as_mut().and_then(|queues| queues.get_mut(index)) {
            *slot = queue;
        }
        if runs && !self.interrupt.has_failed() {
            self.start();
        }
    }
}
