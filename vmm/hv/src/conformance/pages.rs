//! Host memory for guests.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// Zeroed, page-aligned host memory.
pub(super) struct Pages {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is owned, and accessed by volatile reads and writes only.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// A multiple of every host's page size.
    pub(super) const ALIGN: usize = 64 << 10;

    pub(super) fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len, Self::ALIGN).expect("layout");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        Self { start, layout }
    }

    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.layout.size());
        // SAFETY: within the allocation.
        unsafe { self.start.add(offset) }
    }

    pub(super) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.layout.size());
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: within the allocation; volatile, because a guest may see it.
            unsafe { self.at(offset + i).write_volatile(*byte) };
        }
    }

    pub(super) fn read(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= self.layout.size() && offset.is_multiple_of(4));
        // SAFETY: within the allocation and aligned.
        unsafe { self.at(offset).cast::<u32>().read_volatile() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}
