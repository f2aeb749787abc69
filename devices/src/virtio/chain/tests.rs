use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{DATA, MEMORY_END, SEAM, memory};

const LIMIT: usize = 8;
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Collects the chain that starts at descriptor 0.
fn collect<'m>(
    memory: &'m GuestMemory,
    descriptors: &[(u64, u32, u16, u16)],
) -> Result<Chain<'m>, ChainError> {
    collect_of(memory, descriptors, 1 << VIRTIO_RING_F_INDIRECT_DESC)
}

/// As `collect`, of a driver that negotiated `features`.
fn collect_of<'m>(
    memory: &'m GuestMemory,
    descriptors: &[(u64, u32, u16, u16)],
    features: u64,
) -> Result<Chain<'m>, ChainError> {
    let mock = MockSplitQueue::new(memory, 16);
    for (index, &(address, len, flags, next)) in (0..).zip(descriptors) {
        let descriptor = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        mock.desc_table().store(index, descriptor).unwrap();
    }
    mock.avail().ring().ref_at(0).unwrap().store(0);
    mock.avail().idx().store(1);
    let mut queue: Queue = mock.create_queue().unwrap();
    let head = queue.iter(memory).unwrap().next().unwrap().head_index();
    Chain::collect(memory, Table::of(&queue, features).chain(head), LIMIT)
}

#[test]
fn buffers_are_read_across_descriptors() {
    let memory = memory();
    memory.write_slice(b"0123456789", GuestAddress(SEAM - 5)).unwrap();
    let mut chain = collect(
        &memory,
        &[
            (SEAM - 5, 1, NEXT, 1),
            (DATA, 0, NEXT, 2),
            (SEAM - 4, 7, NEXT, 3),
            (SEAM + 3, 2, NEXT, 4),
            (DATA, 3, NEXT | WRITE, 5),
            (DATA + 3, 1, WRITE, 0),
        ],
    )
    .unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (10, 4));
    assert_eq!(chain.readable.take_front(), Some(*b"0123"));
    assert_eq!(chain.readable.take_front::<7>(), None, "six are left");
    assert_eq!(chain.readable.take_front(), Some(*b"45"));
    assert_eq!(chain.readable.len(), 4);
    assert_eq!(chain.readable.slices().iter().map(|s| s.len()).sum::<usize>(), 4);
    assert_eq!(chain.readable.take_front(), Some(*b"6789"));
    assert!(chain.readable.slices().is_empty());

    let last = chain.writable.take_last().unwrap();
    last.write_obj(b'!', 0).unwrap();
    assert_eq!(chain.writable.fill_from(b"abcdef"), 3);
    let mut bytes = [0; 4];
    memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
    assert_eq!(bytes, *b"abc!");
    assert_eq!(chain.writable.len(), 3);
}

#[test]
fn malformed_chains_have_distinct_errors() {
    let memory = memory();
    let whole = |descriptors: &[_]| collect(&memory, descriptors).map(|c| c.readable.len());
    let looped = [(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)];
    assert!(matches!(whole(&looped), Err(ChainError::TooLong(LIMIT))));
    assert!(matches!(whole(&[(DATA, 1, NEXT, 16)]), Err(ChainError::Broken)));
    assert!(matches!(whole(&[(DATA, 1, NEXT, u16::MAX)]), Err(ChainError::Broken)));
    let huge = [(DATA, u32::MAX, NEXT, 1), (DATA, 1, 0, 0)];
    assert!(matches!(whole(&huge), Err(ChainError::Memory(_))));
    let backwards = [(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)];
    assert!(matches!(whole(&backwards), Err(ChainError::Order)));
    for address in [MEMORY_END, MEMORY_END - 1, u64::MAX, 1 << 40] {
        assert!(matches!(whole(&[(address, 2, 0, 0)]), Err(ChainError::Memory(_))));
    }
    assert_eq!(whole(&[(DATA, 2, 0, 0)]).unwrap(), 2);
}

#[test]
fn an_indirect_table_is_followed_once() {
    let memory = memory();
    let table = GuestAddress(DATA);
    let put = |index: u64, address, len, flags, next| {
        let descriptor = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        memory.write_obj(descriptor, GuestAddress(DATA + 16 * index)).unwrap();
    };
    put(0, SEAM, 3, NEXT, 1);
    put(1, SEAM, 4, WRITE, 0);
    let chain = collect(&memory, &[(table.0, 32, INDIRECT, 0)]).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (3, 4));
    let behind = [(SEAM, 2, NEXT, 1), (table.0, 32, INDIRECT, 0)];
    let chain = collect(&memory, &behind).unwrap();
    assert_eq!((chain.readable.len(), chain.writable.len()), (5, 4));
    // Refused anywhere in a chain, unless it was negotiated.
    for descriptors in [&behind[..], &[(table.0, 32, INDIRECT, 0)]] {
        let refused = collect_of(&memory, descriptors, !(1 << VIRTIO_RING_F_INDIRECT_DESC));
        assert!(matches!(refused, Err(ChainError::Indirect)), "{refused:?}");
    }

    for (index, next) in [(0, NEXT), (1, 0)] {
        // A table in a table.
        put(index, DATA, 32, INDIRECT | next, 1);
        let nested = collect(&memory, &[(table.0, 32, INDIRECT, 0)]);
        assert!(matches!(nested, Err(ChainError::Indirect)), "{nested:?}");
        put(index, SEAM, 3, NEXT, 1);
    }
    for bad in [
        (table.0, 31, INDIRECT, 0),        // half a descriptor
        (table.0, 0, INDIRECT, 0),         // an empty table
        (table.0, 16, INDIRECT, 0),        // next is outside
        (MEMORY_END - 8, 32, INDIRECT, 0), // not in memory
    ] {
        assert!(matches!(collect(&memory, &[bad]), Err(ChainError::Broken)), "{bad:x?}");
    }
}

proptest! {
    /// A chain yields its bytes, taken from both ends, however it is split.
    #[test]
    fn any_split_reads_the_same(
        lens in prop::collection::vec(0u32..40, 1..LIMIT),
        start in SEAM - 100..SEAM,
    ) {
        let memory = memory();
        let total: u32 = lens.iter().sum();
        let bytes: Vec<u8> = (0..total).map(|i| i as u8).collect();
        memory.write_slice(&bytes, GuestAddress(start)).unwrap();
        let mut address = start;
        let mut descriptors = Vec::new();
        for (index, len) in (1..).zip(&lens) {
            let flags = if usize::from(index) < lens.len() { NEXT } else { 0 };
            descriptors.push((address, *len, flags, index));
            address += u64::from(*len);
        }
        let mut buffers = collect(&memory, &descriptors).unwrap().readable;
        let mut end = Vec::new();
        let mut front = Vec::new();
        loop {
            if let Some([a, b, c]) = buffers.take_front() {
                front.extend([a, b, c]);
            }
            let Some(last) = buffers.take_last() else { break };
            end.push(last.read_obj::<u8>(0).unwrap());
            prop_assert_eq!(buffers.len() + front.len() + end.len(), bytes.len());
        }
        front.extend(end.into_iter().rev());
        prop_assert_eq!(front, bytes);
    }
}
