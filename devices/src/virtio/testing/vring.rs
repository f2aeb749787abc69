//! One virtqueue, as a driver sees it.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;

/// Where in memory each queue is, and in that its rings.
pub(crate) const RING: u64 = 0x1_0000;
pub(crate) const AVAIL: u64 = 0x2000;
pub(crate) const USED: u64 = 0x4000;

/// One virtqueue, as its driver sees it.
pub(crate) struct Vring {
    index: usize,
    pub(crate) size: u16,
    event_idx: bool,
    avail: u16,
    seen: u16,
    /// Descriptors that are not in use; each chain starts with one and takes as many as it needs.
    pub(crate) free: Vec<u16>,
}

impl Vring {
    pub(crate) fn new(index: usize, size: u16, event_idx: bool) -> Self {
        Self { index, size, event_idx, avail: 0, seen: 0, free: (0..size).rev().collect() }
    }

    fn base(&self) -> u64 {
        RING * (self.index as u64 + 1)
    }

    pub(crate) fn queue(&self, memory: &GuestMemory) -> Queue {
        memory.write_slice(&[0; RING as usize], GuestAddress(self.base())).unwrap();
        let mut queue = Queue::new(256.max(self.size)).unwrap();
        queue.try_set_size(self.size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.base())).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.base() + AVAIL)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.base() + USED)).unwrap();
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        queue
    }

    fn load(&self, memory: &GuestMemory, offset: u64) -> u16 {
        memory.load(GuestAddress(self.base() + offset), Ordering::Acquire).unwrap()
    }

    fn store(&self, memory: &GuestMemory, offset: u64, value: u16) {
        memory.store(value, GuestAddress(self.base() + offset), Ordering::Release).unwrap();
    }

    /// Makes a chain available. Returns whether the device wants to hear of it.
    pub(crate) fn publish(
        &mut self,
        memory: &GuestMemory,
        chain: &[(u64, u32)],
        writable: bool,
    ) -> bool {
        let at = self.free.len() - chain.len();
        let ids = self.free.split_off(at);
        for (position, (&id, &(address, len))) in ids.iter().zip(chain).enumerate() {
            let mut flags = if writable { VRING_DESC_F_WRITE } else { 0 };
            let next = ids.get(position + 1).copied();
            if next.is_some() {
                flags |= VRING_DESC_F_NEXT;
            }
            let descriptor = Descriptor::new(address, len, flags as u16, next.unwrap_or(0));
            let slot = GuestAddress(self.base() + 16 * u64::from(id));
            memory.write_obj(RawDescriptor::from(descriptor), slot).unwrap();
        }
        self.publish_head(memory, ids[0])
    }

    pub(crate) fn publish_head(&mut self, memory: &GuestMemory, head: u16) -> bool {
        let old = self.avail;
        self.store(memory, AVAIL + 4 + 2 * u64::from(old % self.size), head);
        self.avail = old.wrapping_add(1);
        self.store(memory, AVAIL + 2, self.avail);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.load(memory, USED + 4 + 8 * u64::from(self.size));
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
        } else {
            self.load(memory, USED) & 1 == 0
        }
    }

    /// The next used chain: its descriptors and the number of bytes written.
    pub(crate) fn take_used(&mut self, memory: &GuestMemory) -> Option<(Vec<u16>, u32)> {
        if self.load(memory, USED + 2) == self.seen {
            return None;
        }
        let slot = self.base() + USED + 4 + 8 * u64::from(self.seen % self.size);
        let [head, len]: [u32; 2] = memory.read_obj(GuestAddress(slot)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        let mut ids = vec![head as u16];
        loop {
            let at = GuestAddress(self.base() + 16 * u64::from(*ids.last().unwrap()));
            let descriptor: Descriptor = memory.read_obj::<RawDescriptor>(at).unwrap().into();
            if !descriptor.has_next() {
                break;
            }
            ids.push(descriptor.next());
        }
        Some((ids, len))
    }

    pub(crate) fn recycle(&mut self, ids: Vec<u16>) {
        self.free.extend(ids.into_iter().rev());
    }

    /// Asks for an interrupt with the next used chain. Returns whether there is one already.
    pub(crate) fn ask_for_interrupt(&self, memory: &GuestMemory) -> bool {
        self.store(memory, AVAIL + 4 + 2 * u64::from(self.size), self.seen);
        fence(Ordering::SeqCst);
        self.load(memory, USED + 2) != self.seen
    }

    /// Makes more chains available than there can be.
    pub(crate) fn break_avail_index(&self, memory: &GuestMemory) {
        self.store(memory, AVAIL + 2, self.avail.wrapping_add(self.size * 2));
    }
}
