//! The driver's side of a split virtqueue (virtio 1.3, section 2.7).

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;

/// Guest-physical addresses of a queue's parts.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The descriptor table.
    pub table: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

impl Layout {
    /// Guest memory of a queue with the layout from [`of`](Self::of), in bytes.
    pub const LEN: u64 = 0x1_0000;

    /// The layout of queue `index`, with room for 512 descriptors.
    pub fn of(index: usize) -> Self {
        let table = Self::LEN * (index as u64 + 1);
        Self { table, available: table + 0x2000, used: table + 0x4000 }
    }
}

/// One descriptor: address, length in bytes, whether it is device-writable.
pub type Buffer = (u64, u32, bool);

/// The driver's side of a virtqueue.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Addresses of its parts.
    pub layout: Layout,
    /// The number of descriptors.
    pub size: u16,
    /// Whether EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// Unused descriptors: [`publish`](Self::publish) takes them from the end.
    pub free: Vec<u16>,
    available: u16,
    seen: u16,
}

/// Offsets of `idx` and `ring` in both rings; `flags` is at 0.
const INDEX: u64 = 2;
const ELEMENTS: u64 = 4;

impl Ring {
    /// An empty ring.
    pub fn new(layout: Layout, size: u16, event_idx: bool) -> Self {
        let free = (0..size).rev().collect();
        Self { layout, size, event_idx, free, available: 0, seen: 0 }
    }

    /// Empties the ring, also in guest memory.
    pub fn clear(&mut self, memory: &GuestMemory) {
        let size = usize::from(self.size);
        let Layout { table, available, used } = self.layout;
        for (at, len) in [(table, 16 * size), (available, 6 + 2 * size), (used, 6 + 8 * size)] {
            memory.write_slice(&vec![0; len], GuestAddress(at)).expect("a ring in memory");
        }
        *self = Self::new(self.layout, self.size, self.event_idx);
    }

    /// Empties the ring, and returns the device's side of it.
    pub fn queue(&mut self, memory: &GuestMemory) -> Queue {
        self.clear(memory);
        let mut queue = Queue::new(256.max(self.size)).expect("a power of two");
        queue.try_set_size(self.size).expect("a power of two");
        queue.try_set_desc_table_address(GuestAddress(self.layout.table)).expect("aligned");
        queue.try_set_avail_ring_address(GuestAddress(self.layout.available)).expect("aligned");
        queue.try_set_used_ring_address(GuestAddress(self.layout.used)).expect("aligned");
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        queue
    }

    /// Writes a descriptor.
    pub fn write_descriptor(&self, memory: &GuestMemory, index: u16, descriptor: Descriptor) {
        let at = GuestAddress(self.layout.table + 16 * u64::from(index));
        memory.write_obj(RawDescriptor::from(descriptor), at).expect("the table");
    }

    /// Writes a chain into descriptors `ids`.
    fn write_ids(&self, memory: &GuestMemory, ids: &[u16], buffers: &[Buffer]) {
        for (position, (&id, &(address, len, writable))) in ids.iter().zip(buffers).enumerate() {
            let next = ids.get(position + 1).copied();
            let flags = (if writable { VRING_DESC_F_WRITE } else { 0 })
                | (if next.is_some() { VRING_DESC_F_NEXT } else { 0 });
            let descriptor = Descriptor::new(address, len, flags as u16, next.unwrap_or(0));
            self.write_descriptor(memory, id, descriptor);
        }
    }

    /// Writes a chain into the descriptors from `head` on.
    pub fn write_chain(&self, memory: &GuestMemory, head: u16, buffers: &[Buffer]) {
        let ids = (head..).take(buffers.len()).collect::<Vec<_>>();
        self.write_ids(memory, &ids, buffers);
    }

    /// Writes the chain at `head` into slot `slot` of the available ring.
    pub fn write_slot(&self, memory: &GuestMemory, slot: u16, head: u16) {
        let element = ELEMENTS + 2 * u64::from(slot % self.size);
        self.store(memory, self.layout.available + element, head);
    }

    /// Makes the next `count` slots of the available ring available. Returns whether the device
    /// wants to be notified.
    pub fn offer(&mut self, memory: &GuestMemory, count: u16) -> bool {
        let old = self.available;
        self.available = old.wrapping_add(count);
        self.set_available_index(memory, self.available);
        fence(Ordering::SeqCst);
        match self.event_idx {
            true => {
                let event = self.available_event(memory);
                self.available.wrapping_sub(event).wrapping_sub(1)
                    < self.available.wrapping_sub(old)
            }
            false => self.used_flags(memory) & 1 == 0,
        }
    }

    /// Makes the chain at `head` available. Returns whether the device wants to be notified.
    pub fn make_available(&mut self, memory: &GuestMemory, head: u16) -> bool {
        self.write_slot(memory, self.available, head);
        self.offer(memory, 1)
    }

    /// Makes a chain of free descriptors available. Returns whether the device wants to be
    /// notified.
    pub fn publish(&mut self, memory: &GuestMemory, chain: &[(u64, u32)], writable: bool) -> bool {
        let ids = self.free.split_off(self.free.len() - chain.len());
        let buffers = chain.iter().map(|&(address, len)| (address, len, writable));
        self.write_ids(memory, &ids, &buffers.collect::<Vec<_>>());
        self.make_available(memory, ids[0])
    }

    /// The next used chain: its head and the number of bytes written.
    pub fn next_used(&mut self, memory: &GuestMemory) -> Option<(u32, u32)> {
        if self.used_index(memory) == self.seen {
            return None;
        }
        let element = ELEMENTS + 8 * u64::from(self.seen % self.size);
        let at = GuestAddress(self.layout.used + element);
        let [head, len]: [u32; 2] = memory.read_obj(at).expect("the used ring");
        self.seen = self.seen.wrapping_add(1);
        Some((head, len))
    }

    /// The next used chain of [`publish`](Self::publish): its descriptors, to be
    /// [recycled](Self::recycle), and the number of bytes written.
    pub fn take_used(&mut self, memory: &GuestMemory) -> Option<(Vec<u16>, u32)> {
        let (head, len) = self.next_used(memory)?;
        let mut ids = vec![head as u16];
        loop {
            let at = self.layout.table + 16 * u64::from(ids[ids.len() - 1]);
            let raw: RawDescriptor = memory.read_obj(GuestAddress(at)).expect("the table");
            let descriptor = Descriptor::from(raw);
            if !descriptor.has_next() {
                return Some((ids, len));
            }
            ids.push(descriptor.next());
        }
    }

    /// Frees descriptors.
    pub fn recycle(&mut self, ids: Vec<u16>) {
        self.free.extend(ids.into_iter().rev());
    }

    /// Asks for an interrupt for the next used chain. False if the device has used it already.
    pub fn ask_for_interrupt(&self, memory: &GuestMemory) -> bool {
        self.set_used_event(memory, self.seen);
        fence(Ordering::SeqCst);
        self.used_index(memory) == self.seen
    }

    /// Sets the available index, even to a wrong value.
    pub fn set_available_index(&self, memory: &GuestMemory, index: u16) {
        memory
            .store(index, GuestAddress(self.layout.available + INDEX), Ordering::Release)
            .expect("the available ring");
    }

    /// Breaks the queue: sets an available index that is ahead by more than the queue's size.
    pub fn break_available_index(&self, memory: &GuestMemory) {
        self.set_available_index(memory, self.available.wrapping_add(self.size * 2));
    }

    /// Sets the available ring's flags: without EVENT_IDX, 1 if the driver wants no interrupts.
    pub fn set_available_flags(&self, memory: &GuestMemory, flags: u16) {
        self.store(memory, self.layout.available, flags);
    }

    /// The used ring's flags: without EVENT_IDX, 1 if the device wants no notifications.
    pub fn used_flags(&self, memory: &GuestMemory) -> u16 {
        self.load(memory, self.layout.used)
    }

    /// With EVENT_IDX: sets the used index after which the driver wants an interrupt.
    pub fn set_used_event(&self, memory: &GuestMemory, index: u16) {
        let event = ELEMENTS + 2 * u64::from(self.size);
        self.store(memory, self.layout.available + event, index);
    }

    /// With EVENT_IDX: the available index after which the device wants a notification.
    pub fn available_event(&self, memory: &GuestMemory) -> u16 {
        self.load(memory, self.layout.used + ELEMENTS + 8 * u64::from(self.size))
    }

    /// The used index: how many chains the device has used, modulo 2¹⁶.
    pub fn used_index(&self, memory: &GuestMemory) -> u16 {
        self.load(memory, self.layout.used + INDEX)
    }

    fn load(&self, memory: &GuestMemory, at: u64) -> u16 {
        memory.load(GuestAddress(at), Ordering::Acquire).expect("a ring in memory")
    }

    fn store(&self, memory: &GuestMemory, at: u64, value: u16) {
        memory.store(value, GuestAddress(at), Ordering::Release).expect("a ring in memory");
    }
}
