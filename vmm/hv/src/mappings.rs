//! The mapped ranges of guest memory: which are allowed, and which there are.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// The mappings of a VM, each with what the backend knows it by. Ranges consist of whole pages, end within the
/// guest-physical address space and do not overlap.
#[derive(Debug)]
pub struct Mappings<T> {
    /// The page size of mappings in bytes.
    page: u64,
    /// The size of guest-physical addresses in bits.
    address_bits: u32,
    by_gpa: Mutex<BTreeMap<u64, Mapping<T>>>,
}

#[derive(Debug)]
struct Mapping<T> {
    /// In bytes.
    len: usize,
    name: T,
}

impl<T> Mappings<T> {
    /// No mapping, where a page has `page` bytes and a guest-physical address `address_bits` bits.
    pub fn new(page: u64, address_bits: u32) -> Self {
        Self { page, address_bits, by_gpa: Mutex::default() }
    }

    /// Adds a mapping of `len` bytes at `host`, which `map` makes.
    ///
    /// # Errors
    /// The range is not allowed, and `map` is not called; or the error of `map`.
    pub fn insert(
        &self,
        gpa: u64,
        host: u64,
        len: usize,
        map: impl FnOnce() -> Result<T>,
    ) -> Result<()> {
        let end = self.check(gpa, host, len)?;
        let mut by_gpa = self.by_gpa();
        let below = by_gpa.range(..end).next_back();
        if below.is_some_and(|(at, mapping)| at + mapping.len as u64 > gpa) {
            return Err(Error::Range { gpa, len, reason: "overlaps another mapping" });
        }
        by_gpa.insert(gpa, Mapping { len, name: map()? });
        Ok(())
    }

    /// Removes a mapping, exactly as it was made; `unmap` tells the hypervisor.
    ///
    /// # Errors
    /// There is no such mapping; or the error of `unmap`, and the mapping stays.
    pub fn remove(&self, gpa: u64, len: usize, unmap: impl FnOnce(&T) -> Result<()>) -> Result<()> {
        let mut by_gpa = self.by_gpa();
        let mapping = by_gpa
            .get(&gpa)
            .filter(|mapping| mapping.len == len)
            .ok_or(Error::Range { gpa, len, reason: "no such mapping" })?;
        unmap(&mapping.name)?;
        by_gpa.remove(&gpa);
        Ok(())
    }

    /// The end of a range that may be mapped where there is no other.
    fn check(&self, gpa: u64, host: u64, len: usize) -> Result<u64> {
        let range = |reason| Error::Range { gpa, len, reason };
        let size = len as u64;
        if size == 0 || [gpa, host, size].iter().any(|n| !n.is_multiple_of(self.page)) {
            return Err(range("not a whole number of pages"));
        }
        let end = gpa.checked_add(size).ok_or(range("wraps around"))?;
        match (end - 1).checked_shr(self.address_bits) {
            Some(0) | None => Ok(end),
            Some(_) => Err(range("past the guest-physical address space")),
        }
    }

    fn by_gpa(&self) -> MutexGuard<'_, BTreeMap<u64, Mapping<T>>> {
        self.by_gpa.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 0x4000;
    const END: u64 = 1 << 36;

    fn mappings() -> Mappings<()> {
        Mappings::new(PAGE, 36)
    }

    #[test]
    fn ranges_are_whole_pages_within_the_address_space() {
        let insert = |gpa, host, len| mappings().insert(gpa, host, len, || Ok(())).is_ok();
        assert!(insert(0x8000_0000, 0x4000, 0x8000));
        assert!(insert(END - 0x4000, 0x4000, 0x4000));
        for (gpa, host, len) in [
            (0x1000, 0x4000, 0x4000),
            (0x4000, 0x1000, 0x4000),
            (0x4000, 0x4000, 0x1000),
            (0x4000, 0x4000, 0),
            (u64::MAX - 0x3fff, 0x4000, 0x4000),
            (u64::MAX - 0x7fff, 0x4000, 0x4000),
            (END - 0x4000, 0x4000, 0x8000),
            (END, 0x4000, 0x4000),
        ] {
            assert!(!insert(gpa, host, len), "{gpa:#x} {host:#x} {len:#x}");
        }
    }

    #[test]
    fn a_mapping_that_was_not_made_is_none() {
        let failed = || Err(Error::Missing("memory"));
        let mappings = Mappings::<u8>::new(PAGE, 36);
        assert!(mappings.insert(0, 0, 0x4000, failed).is_err());
        assert!(mappings.insert(0, 0, 0x4000, || Ok(7)).is_ok());
        assert!(mappings.remove(0, 0x8000, |_| Ok(())).is_err());
        assert!(mappings.remove(0, 0x4000, |_| failed().map(drop::<u8>)).is_err());
        assert!(
            mappings
                .remove(0, 0x4000, |name| (*name == 7).then_some(()).ok_or(Error::Missing("it")))
                .is_ok()
        );
        assert!(mappings.remove(0, 0x4000, |_| Ok(())).is_err());
    }

    proptest! {
        /// Against a model of one flag for each page.
        #[test]
        fn no_page_is_mapped_twice(ranges in proptest::collection::vec((0..16_usize, 1..6_usize, any::<bool>()), 1..40)) {
            let mappings = mappings();
            let mut pages = [None; 32];
            for (first, count, add) in ranges {
                let (gpa, len) = (first as u64 * PAGE, count * PAGE as usize);
                let used = &mut pages[first..first + count];
                if add {
                    let free = used.iter().all(Option::is_none);
                    prop_assert_eq!(mappings.insert(gpa, 0, len, || Ok(())).is_ok(), free);
                    if free {
                        used.fill(Some((first, count)));
                    }
                } else {
                    let mapped = used[0] == Some((first, count));
                    prop_assert_eq!(mappings.remove(gpa, len, |()| Ok(())).is_ok(), mapped);
                    if mapped {
                        used.fill(None);
                    }
                }
            }
        }

        #[test]
        fn every_range_has_an_answer(gpa: u64, host: u64, len: usize, bits in 0..80u32) {
            let aligned = |n: u64| n & !(PAGE - 1);
            let len = aligned(len as u64) as usize;
            let _ = Mappings::new(PAGE, bits).insert(aligned(gpa), aligned(host), len, || Ok(()));
        }
    }
}
