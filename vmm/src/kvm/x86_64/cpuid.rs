//! What the guest sees of the processor: the host's features as KVM supports them, with the box's
//! own topology: one package, one thread per core.

use boxlite_hv::Result;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::kvm::call;

/// Leaf 1 ECX: the TSC deadline mode of the local APIC timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX holds the number of logical processors.
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX and ECX: thermal and power management, which no guest has.
const ARAT: u32 = 1 << 2;
/// Leaf 0xb and 0x1f ECX: level types.
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;
/// Leaf 0x8000_0001 ECX: the topology extensions leaf 0x8000_001e.
const AMD_CMP_LEGACY: u32 = 1 << 1;

/// The CPUID table of vCPU `id` of `vcpus`.
pub(super) fn table(kvm: &Kvm, id: u32, vcpus: u32) -> Result<CpuId> {
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        describe(entry, Topology { id, vcpus }, deadline);
    }
    Ok(cpuid)
}

#[derive(Clone, Copy)]
struct Topology {
    id: u32,
    vcpus: u32,
}

impl Topology {
    /// Bits of the APIC ID that number the cores of the package.
    fn core_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }
}

fn describe(entry: &mut kvm_cpuid_entry2, topology: Topology, deadline: bool) {
    let Topology { id, vcpus } = topology;
    match entry.function {
        0x1 => {
            entry.ebx = (entry.ebx & 0xffff) | (vcpus.min(255) << 16) | (id << 24);
            entry.ecx |= HYPERVISOR;
            if deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            if vcpus > 1 {
                entry.edx |= HTT;
            } else {
                entry.edx &= !HTT;
            }
        }
        // Caches: level 3 is shared by the package, the others belong to one core.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level >= 3 { (1 << topology.core_bits()) - 1 } else { 0 };
            let cores = (1 << topology.core_bits()) - 1;
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (cores << 26);
        }
        0x6 => {
            entry.eax &= ARAT;
            (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
        }
        0xb | 0x1f => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, LEVEL_SMT),
                1 => (topology.core_bits(), vcpus, LEVEL_CORE | 1),
                level => (0, 0, level & 0xff),
            };
            entry.edx = id;
        }
        0x8000_0001 if vcpus > 1 => entry.ecx |= AMD_CMP_LEGACY,
        0x8000_0008 => {
            entry.ecx = (topology.core_bits() << 12) | (vcpus - 1);
        }
        // AMD caches.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14);
        }
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vcpu_has_its_own_apic_id_in_every_leaf() {
        for (id, vcpus) in [(0, 1), (3, 4), (63, 64), (4, 5)] {
            let topology = Topology { id, vcpus };
            let described = |function, index, eax| {
                let mut entry = kvm_cpuid_entry2 { function, index, eax, ..Default::default() };
                describe(&mut entry, topology, true);
                entry
            };
            assert_eq!(described(1, 0, 0).ebx >> 24, id);
            assert_eq!(described(1, 0, 0).edx & HTT != 0, vcpus > 1);
            assert_eq!(described(0xb, 0, 0).edx, id);
            assert_eq!(described(0xb, 1, 0).ebx, vcpus);
            assert!(id >> described(0xb, 1, 0).eax == 0, "one package");
            assert_eq!(described(0x8000_001e, 0, 0).eax, id);
            assert_eq!(described(0x8000_0008, 0, 0).ecx & 0xff, vcpus - 1);
            let l1 = described(4, 0, 0x21);
            assert_eq!((l1.eax >> 14) & 0xfff, 0, "a first-level cache belongs to one core");
            let l3 = described(4, 3, 0x63);
            assert!((l3.eax >> 14) & 0xfff >= vcpus - 1, "the last level is everyone's");
        }
    }
}
