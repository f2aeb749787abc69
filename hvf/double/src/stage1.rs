//! Stage 1 translation at EL1 and EL0 (Arm ARM DDI 0487, D8.2), without 52-bit addresses of small pages.

/// The registers that say how addresses are translated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage1 {
    pub(crate) sctlr: u64,
    pub(crate) tcr: u64,
    pub(crate) ttbr0: u64,
    pub(crate) ttbr1: u64,
}

/// Bits 47 to 1 of a descriptor or table base.
const ADDRESS: u64 = 0xffff_ffff_fffe;
/// TCR_EL1.DS: descriptors of another format.
const DS: u64 = 1 << 59;

impl Stage1 {
    /// The intermediate physical address of a virtual one. `read` reads a descriptor.
    pub(crate) fn translate(&self, va: u64, read: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        if self.sctlr & 1 == 0 {
            return Some(va);
        }
        let (base, size, granule) = match va >> 55 & 1 {
            0 => (self.ttbr0, self.tcr & 0x3f, [12, 16, 14, 0][(self.tcr >> 14 & 3) as usize]),
            _ => {
                (self.ttbr1, self.tcr >> 16 & 0x3f, [0, 14, 12, 16][(self.tcr >> 30 & 3) as usize])
            }
        };
        if granule == 0 || self.tcr & DS != 0 {
            return None;
        }
        walk(va, base, 64 - size as u32, granule, read)
    }
}

/// Walks tables of pages with `page` bits, for virtual addresses of `size` bits.
fn walk(
    va: u64,
    base: u64,
    size: u32,
    page: u32,
    read: impl Fn(u64) -> Option<u64>,
) -> Option<u64> {
    let stride = page - 3;
    let levels = size.checked_sub(page)?.div_ceil(stride).clamp(1, 4);
    let va_in = va & (u64::MAX >> (64 - size));
    let mut table = base & ADDRESS;
    for below in (0..levels).rev() {
        let low = page + stride * below;
        let index = va_in >> low & ((1 << stride) - 1);
        let descriptor = read(table + index * 8)?;
        match (descriptor & 3, below) {
            (0b11, 0) | (0b01, 1..) => {
                let offset = (1 << low) - 1;
                return Some(descriptor & ADDRESS & !offset | va & offset);
            }
            (0b11, _) => table = descriptor & ADDRESS & !((1 << page) - 1),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 48-bit addresses and 4 KiB pages on both sides.
    const TCR: u64 = 16 | 16 << 16 | 0b10 << 30;

    #[test]
    fn without_the_mmu_addresses_are_the_same() {
        let stage1 = Stage1 { sctlr: 0, tcr: 0, ttbr0: 0, ttbr1: 0 };
        assert_eq!(stage1.translate(0x1234, |_| None), Some(0x1234));
    }

    #[test]
    fn pages_and_blocks_are_found() {
        let stage1 = Stage1 { sctlr: 1, tcr: TCR, ttbr0: 0x1000, ttbr1: 0xaa_0000_0000_5001 };
        let read = |at| match at {
            0x1000 => Some(0x2003),
            0x2008 => Some(0x3003),
            0x3010 => Some(0x4003),
            0x4018 => Some(0x60_0000_dead_d743),
            0x3018 => Some(0x60_0000_4020_0741),
            0x5ff8 => Some(0x2003),
            _ => Some(0),
        };
        let va = 1 << 30 | 2 << 21 | 3 << 12 | 0x45;
        assert_eq!(stage1.translate(va, read), Some(0xdead_d045));
        assert_eq!(stage1.translate(1 << 30 | 3 << 21 | 0x12_3456, read), Some(0x4032_3456));
        assert_eq!(stage1.translate(0xffff_ff80_0000_0000 | va, read), Some(0xdead_d045));
        assert_eq!(stage1.translate(0, read), None);
        assert_eq!(stage1.translate(va, |_| None), None);
    }

    #[test]
    fn large_granules_have_fewer_levels() {
        // 42-bit addresses and 64 KiB pages: two levels.
        let stage1 = Stage1 { sctlr: 1, tcr: 22 | 0b01 << 14, ttbr0: 0x1_0000, ttbr1: 0 };
        let read = |at| match at {
            0x1_0008 => Some(0x2_0003),
            0x2_0010 => Some(0x7_0003),
            _ => Some(0),
        };
        assert_eq!(stage1.translate(1 << 29 | 2 << 16 | 0x123, read), Some(0x7_0123));
    }
}
