//! aarch64: the address map of the interrupt controller, a GICv3 (Arm IHI 0069) that every hypervisor implements
//! itself, and the affinities by which it finds vCPUs. Backends create it here, and the device tree says so.

/// GPA of the distributor (GICD).
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// Size of the distributor's registers, in bytes.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;

/// GPA of the redistributors (GICR), one for each vCPU, in the order of their IDs.
pub const REDISTRIBUTORS: u64 = 0x0a00_0000;
/// Size of one redistributor's two frames, in bytes.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// Bytes that are kept free for redistributors: the region that Hypervisor.framework reserves for them.
pub const REDISTRIBUTORS_RESERVED: u64 = 0x200_0000;

/// The first INTID of a shared peripheral interrupt (SPI). [`Vm::irq`](crate::Vm::irq) counts from here.
pub const FIRST_SPI: u32 = 32;
/// Number of SPIs.
pub const SPIS: u32 = 96;

/// The affinity fields Aff0 to Aff2 of a vCPU's MPIDR_EL1, as KVM assigns them: 16 vCPUs in each group of the lowest
/// level, because one SGI reaches at most 16 vCPUs there.
pub const fn affinity(vcpu: u32) -> u32 {
    (vcpu & 0xf) | (vcpu >> 4 & 0xff) << 8 | (vcpu >> 12 & 0xff) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn affinities_are_those_of_kvm() {
        let expected =
            [(0, 0), (15, 0xf), (16, 0x100), (63, 0x30f), (4095, 0xff0f), (4096, 0x1_0000)];
        for (vcpu, value) in expected {
            assert_eq!(affinity(vcpu), value);
        }
    }
}
