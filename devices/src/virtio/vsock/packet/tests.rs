use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use virtio_vsock::packet::VsockPacket;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::chain::Table;

/// Memory has two regions that meet here, so that a packet can cross the boundary.
const SEAM: u64 = 0x10_0000;
const END: u64 = 0x20_0000;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[
        (GuestAddress(0), SEAM as usize),
        (GuestAddress(SEAM), (END - SEAM) as usize),
    ])
    .unwrap()
}

/// A queue with one available chain.
fn ring(memory: &GuestMemory, buffers: &[(u64, u32)], flags: u32) -> Queue {
    let queue = MockSplitQueue::new(memory, 256);
    for (&(address, len), index) in buffers.iter().zip(0u16..) {
        let more = usize::from(index) + 1 < buffers.len();
        let flags = flags | if more { VRING_DESC_F_NEXT } else { 0 };
        let descriptor = Descriptor::new(address, len, flags as u16, index + 1);
        queue.desc_table().store(index, RawDescriptor::from(descriptor)).unwrap();
    }
    queue.avail().ring().ref_at(0).unwrap().store(0);
    queue.avail().idx().store(1);
    queue.create_queue::<Queue>().unwrap()
}

fn chain(memory: &GuestMemory, buffers: &[(u64, u32)], flags: u32) -> Descriptors {
    Table::of(&ring(memory, buffers, flags), 0).chain(0)
}

fn header(len: u32) -> Header {
    Header {
        src_cid: 3.into(),
        dst_cid: 2.into(),
        src_port: 0x0102_0304.into(),
        dst_port: 0x0506_0708.into(),
        len: len.into(),
        socket_type: TYPE_STREAM.into(),
        op: op::RW.into(),
        flags: 0x0a0b_0c0d.into(),
        buf_alloc: 0x1112_1314.into(),
        fwd_cnt: 0x2122_2324.into(),
    }
}

fn gather<'m>(slices: impl Iterator<Item = VolatileSlice<'m>>) -> Vec<u8> {
    slices
        .flat_map(|slice| {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            bytes
        })
        .collect()
}

#[test]
fn a_header_has_the_layout_of_rust_vmm() {
    let memory = memory();
    let at = GuestAddress(0x8000);
    memory.write_slice(header(4).as_bytes(), at).unwrap();
    let mut ring = ring(&memory, &[(0x8000, HEADER_SIZE as u32 + 4)], 0);
    let mut chain = ring.iter(&memory).unwrap().next().unwrap();
    let theirs = VsockPacket::from_tx_virtq_chain(&memory, &mut chain, 4).unwrap();
    assert_eq!(theirs.src_cid(), 3);
    assert_eq!(theirs.dst_cid(), 2);
    assert_eq!(theirs.src_port(), 0x0102_0304);
    assert_eq!(theirs.dst_port(), 0x0506_0708);
    assert_eq!(theirs.len(), 4);
    assert_eq!(theirs.type_(), 1);
    assert_eq!(theirs.op(), 5);
    assert_eq!(theirs.flags(), 0x0a0b_0c0d);
    assert_eq!(theirs.buf_alloc(), 0x1112_1314);
    assert_eq!(theirs.fwd_cnt(), 0x2122_2324);
}

#[test]
fn a_packet_needs_its_header_and_its_payload() {
    let memory = memory();
    memory.write_slice(header(10).as_bytes(), GuestAddress(0x8000)).unwrap();
    let parse = |buffers: &[_]| TxPacket::parse(&memory, chain(&memory, buffers, 0));
    assert!(matches!(parse(&[(0x8000, 43)]), Err(Malformed::NoHeader(43))));
    assert!(matches!(
        parse(&[(0x8000, 44), (0x9000, 9)]),
        Err(Malformed::Truncated { room: 9, .. })
    ));
    assert!(parse(&[(0x8000, 44), (0x9000, 10)]).is_ok());
    // Beyond guest memory.
    assert!(matches!(parse(&[(0x8000, 44), (END - 9, 10)]), Err(Malformed::Chain(_))));
    assert!(matches!(parse(&[(u64::MAX - 8, 10)]), Err(Malformed::Chain(_))));
    // Device-writable memory must not be read, nor device-readable memory written.
    let writable = chain(&memory, &[(0x8000, 100)], VRING_DESC_F_WRITE);
    assert!(matches!(TxPacket::parse(&memory, writable), Err(Malformed::NoHeader(0))));
    let readable = chain(&memory, &[(0x8000, 100)], 0);
    assert!(matches!(RxBuffer::new(&memory, readable), Err(Malformed::NoHeader(0))));
}

#[test]
fn a_chain_that_loops_is_an_error() {
    let memory = memory();
    let buffers = [(0x8000, 0x1000), (0x8000, 0x1000)];
    let chain = chain(&memory, &buffers, VRING_DESC_F_NEXT);
    let back = Descriptor::new(0x8000, 0x1000, VRING_DESC_F_NEXT as u16, 0);
    MockSplitQueue::new(&memory, 256).desc_table().store(1, RawDescriptor::from(back)).unwrap();
    assert!(matches!(TxPacket::parse(&memory, chain), Err(Malformed::Chain(_))));
}

proptest! {
    /// A packet may be split into descriptors at any byte, and may cross memory regions.
    #[test]
    fn any_layout_is_the_same_packet(
        payload in prop::collection::vec(any::<u8>(), 0..500),
        spare in 0..50u32,
        cuts in prop::collection::btree_set(1..540u32, 0..20),
        across in any::<bool>(),
    ) {
        let memory = memory();
        let total = HEADER_SIZE as u32 + payload.len() as u32 + spare;
        let mut buffers = Vec::new();
        let mut at = if across { SEAM - u64::from(total) / 2 } else { 0x8000 };
        let mut start = 0;
        for end in cuts.into_iter().filter(|&cut| cut < total).chain([total]) {
            buffers.push((at, end - start));
            // No gap across the boundary, so that one descriptor does cross it.
            at += u64::from(end - start) + u64::from(!across) * 7;
            start = end;
        }
        let header = header(payload.len() as u32);

        let rx = RxBuffer::new(&memory, chain(&memory, &buffers, VRING_DESC_F_WRITE)).unwrap();
        prop_assert_eq!(rx.room(), payload.len() + spare as usize);
        rx.write_header(&header);
        let mut rest = &payload[..];
        for slice in rx.payload(payload.len()) {
            let (part, left) = rest.split_at(slice.len());
            slice.copy_from(part);
            rest = left;
        }
        prop_assert!(rest.is_empty());

        let tx = TxPacket::parse(&memory, chain(&memory, &buffers, 0)).unwrap();
        prop_assert_eq!(tx.header, header);
        prop_assert_eq!(gather(tx.payload()), payload);
    }
}
