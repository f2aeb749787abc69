//! What the framework demands of a VM's addresses: pages of 16 KiB, the size of intermediate physical addresses, and
//! where the interrupt controller may be.

use boxlite_hv::{Error, Result, gic};

/// The page size of mappings. It is Apple's, whatever the guest's is.
pub const PAGE_SIZE: u64 = 16 << 10;

/// The size of intermediate physical addresses, in bits, for a VM that needs `needed`: the framework's default unless
/// that is too small, as few levels of translation are fast, and `max` is an error to exceed.
pub fn ipa_bits(needed: u32, default: u32, max: u32) -> Result<u32> {
    match needed.max(default) {
        bits if bits <= max => Ok(bits),
        _ => Err(Error::Missing("guest-physical addresses of that many bits")),
    }
}

/// MPIDR_EL1 of a vCPU: its affinity.
pub fn mpidr(id: u32) -> u64 {
    gic::affinity(id).into()
}

/// GPA of the redistributor of a vCPU.
pub fn redistributor(id: u32) -> u64 {
    gic::REDISTRIBUTORS + u64::from(id) * gic::REDISTRIBUTOR_SIZE
}

/// What the framework says of its interrupt controller, in bytes and INTIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GicLimits {
    /// Size of the distributor.
    pub distributor_size: u64,
    /// Alignment of the distributor.
    pub distributor_alignment: u64,
    /// Size of the region of all redistributors.
    pub redistributors_size: u64,
    /// Size of one redistributor.
    pub redistributor_size: u64,
    /// Alignment of the region of all redistributors.
    pub redistributors_alignment: u64,
    /// The first SPI.
    pub first_spi: u32,
    /// The number of SPIs.
    pub spis: u32,
}

impl GicLimits {
    /// Checks that the interrupt controller fits where [`gic`] puts it.
    pub fn check(&self, vcpus: u32) -> Result<()> {
        let aligned =
            |address: u64, alignment: u64| alignment == 0 || address.is_multiple_of(alignment);
        if !aligned(gic::DISTRIBUTOR, self.distributor_alignment)
            || self.distributor_size > gic::REDISTRIBUTORS - gic::DISTRIBUTOR
        {
            return Err(Error::Missing(
                "an interrupt controller whose distributor is at 0x8000000",
            ));
        }
        if !aligned(gic::REDISTRIBUTORS, self.redistributors_alignment)
            || self.redistributors_size > gic::REDISTRIBUTORS_RESERVED
            || self.redistributor_size != gic::REDISTRIBUTOR_SIZE
        {
            return Err(Error::Missing(
                "an interrupt controller whose redistributors are at 0xa000000",
            ));
        }
        let region = self.redistributors_size.min(gic::REDISTRIBUTORS_RESERVED);
        if u64::from(vcpus) * self.redistributor_size > region {
            return Err(Error::Missing("that many vCPUs"));
        }
        let spis = self.first_spi..self.first_spi.saturating_add(self.spis);
        let last = gic::FIRST_SPI + gic::SPIS - 1;
        match spis.contains(&gic::FIRST_SPI) && spis.contains(&last) {
            true => Ok(()),
            false => Err(Error::Missing("that many shared peripheral interrupts")),
        }
    }
}

/// The INTID of an interrupt line.
pub fn spi(line: u32) -> Result<u32> {
    match line {
        line if line < gic::SPIS => Ok(gic::FIRST_SPI + line),
        _ => Err(Error::NoLine { line }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As measured by others on an M-series Mac with macOS 15.
    const LIMITS: GicLimits = GicLimits {
        distributor_size: 0x1_0000,
        distributor_alignment: 0x1_0000,
        redistributors_size: 0x200_0000,
        redistributor_size: 0x2_0000,
        redistributors_alignment: 0x1_0000,
        first_spi: 32,
        spis: 988,
    };

    #[test]
    fn the_address_space_is_the_default_or_as_large_as_needed() {
        let bits = |needed| ipa_bits(needed, 36, 40).ok();
        assert_eq!([32, 36, 37, 40, 41].map(bits), [Some(36), Some(36), Some(37), Some(40), None]);
    }

    #[test]
    fn the_interrupt_controller_fits() {
        assert!(LIMITS.check(1).is_ok());
        assert!(LIMITS.check(256).is_ok());
        assert!(LIMITS.check(257).is_err());
        for limits in [
            GicLimits { distributor_alignment: 1 << 28, ..LIMITS },
            GicLimits { distributor_size: 0x300_0000, ..LIMITS },
            GicLimits { redistributors_alignment: 1 << 26, ..LIMITS },
            GicLimits { redistributors_size: 0x201_0000, ..LIMITS },
            GicLimits { redistributor_size: 0x4_0000, ..LIMITS },
            GicLimits { first_spi: 33, ..LIMITS },
            GicLimits { spis: 95, ..LIMITS },
        ] {
            assert!(limits.check(1).is_err(), "{limits:?}");
        }
    }

    #[test]
    fn lines_are_spis() {
        assert_eq!(spi(0).ok(), Some(32));
        assert_eq!(spi(95).ok(), Some(127));
        assert!(spi(96).is_err());
    }

    proptest! {
        #[test]
        fn every_vcpu_has_an_affinity_of_its_own(a in 0..4096u32, b in 0..4096u32) {
            prop_assert_eq!(mpidr(a) == mpidr(b), a == b);
            prop_assert!(mpidr(a) & 0xff < 16);
        }
    }
}
