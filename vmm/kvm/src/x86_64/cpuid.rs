//! The guest's CPUID: the host's features as KVM supports them, with the box's
//! own topology: one package, one thread per core. Virtualization extensions and performance
//! monitoring are left out, unless the box is configured to have them.

use boxlite_hv::Result;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use crate::failed;

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

/// Leaf 1 ECX: 64-bit debug store, CPL-qualified debug store, VMX, SMX, performance capabilities.
const LEAF1_ECX_MASKED: u32 = 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 15;
/// Leaf 1 EDX: debug store.
const LEAF1_EDX_MASKED: u32 = 1 << 21;
/// Leaf 7.0 EBX: processor trace. EDX: architectural last branch records. Leaf 7.1 EAX: the leaf 0x23.
const PROCESSOR_TRACE: u32 = 1 << 25;
const ARCH_LBR: u32 = 1 << 19;
const ARCH_PERFMON_EXT: u32 = 1 << 8;
/// Leaf 0x8000_0001 ECX: SVM, instruction based sampling, SKINIT, and the counter extensions of core,
/// northbridge and last-level cache.
const AMD_ECX_MASKED: u32 = 1 << 2 | 1 << 10 | 1 << 12 | 1 << 23 | 1 << 24 | 1 << 28;

/// A vCPU's number, the size of its VM, and its features.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) id: u32,
    pub(super) vcpus: u32,
    /// Whether it has virtualization extensions and performance counters.
    pub(super) nested: bool,
}

impl Shape {
    /// Bits of the APIC ID that number the cores of the package.
    fn core_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }
}

/// The CPUID table of a vCPU.
pub(super) fn table(kvm: &Kvm, shape: Shape) -> Result<CpuId> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        describe(entry, shape, deadline);
        if !shape.nested {
            restrict(entry);
        }
    }
    Ok(cpuid)
}

/// Takes virtualization extensions and performance monitoring out of an entry.
fn restrict(entry: &mut kvm_cpuid_entry2) {
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ecx &= !LEAF1_ECX_MASKED;
            entry.edx &= !LEAF1_EDX_MASKED;
        }
        (0x7, 0) => {
            entry.ebx &= !PROCESSOR_TRACE;
            entry.edx &= !ARCH_LBR;
        }
        (0x7, 1) => entry.eax &= !ARCH_PERFMON_EXT,
        (0x8000_0001, _) => entry.ecx &= !AMD_ECX_MASKED,
        // Intel: performance monitoring, processor trace, last branch records, more of the first.
        // AMD: SVM, instruction based sampling, more performance monitoring.
        (0xa | 0x14 | 0x1c | 0x23 | 0x8000_000a | 0x8000_001b | 0x8000_0022, _) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

fn describe(entry: &mut kvm_cpuid_entry2, shape: Shape, deadline: bool) {
    let Shape { id, vcpus, .. } = shape;
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
            let sharing = if level >= 3 { (1 << shape.core_bits()) - 1 } else { 0 };
            let cores = (1 << shape.core_bits()) - 1;
            entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (cores << 26);
        }
        0x6 => {
            entry.eax &= ARAT;
            (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
        }
        0xb | 0x1f => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, LEVEL_SMT),
                1 => (shape.core_bits(), vcpus, LEVEL_CORE | 1),
                level => (0, 0, level & 0xff),
            };
            entry.edx = id;
        }
        0x8000_0001 if vcpus > 1 => entry.ecx |= AMD_CMP_LEGACY,
        0x8000_0008 => {
            entry.ecx = (shape.core_bits() << 12) | (vcpus - 1);
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
            let shape = Shape { id, vcpus, nested: false };
            let described = |function, index, eax| {
                let mut entry = kvm_cpuid_entry2 { function, index, eax, ..Default::default() };
                describe(&mut entry, shape, true);
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

    /// A leaf of a processor with all features, after the restriction.
    fn restricted(function: u32, index: u32) -> kvm_cpuid_entry2 {
        let (eax, ebx, ecx, edx) = (u32::MAX, u32::MAX, u32::MAX, u32::MAX);
        let mut entry =
            kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() };
        restrict(&mut entry);
        entry
    }

    #[test]
    fn a_box_sees_no_virtualization_and_no_performance_counters() {
        let (vmx, svm) = (1 << 5, 1 << 2);
        assert_eq!(restricted(0x1, 0).ecx & vmx, 0);
        assert_eq!(restricted(0x8000_0001, 0).ecx & svm, 0);
        for leaf in [0xa, 0x14, 0x1c, 0x23, 0x8000_000a, 0x8000_001b, 0x8000_0022] {
            let entry = restricted(leaf, 0);
            assert_eq!([entry.eax, entry.ebx, entry.ecx, entry.edx], [0; 4], "{leaf:#x}");
        }
        for counters in [1 << 23, 1 << 24, 1 << 28] {
            assert_eq!(restricted(0x8000_0001, 0).ecx & counters, 0);
        }
        assert_eq!(restricted(0x7, 0).edx & ARCH_LBR, 0);
    }

    #[test]
    fn the_rest_of_the_processor_stays() {
        let (sse3, xsave, avx, aes) = (1, 1 << 26, 1 << 28, 1 << 25);
        assert_eq!(restricted(0x1, 0).ecx & (sse3 | xsave | avx | aes), sse3 | xsave | avx | aes);
        let lahf = 1;
        assert_eq!(restricted(0x8000_0001, 0).ecx & lahf, lahf);
        for leaf in [0x0, 0x2, 0x4, 0xb, 0xd, 0x15, 0x8000_0000, 0x8000_0008, 0x8000_001f] {
            let entry = restricted(leaf, 0);
            assert_eq!([entry.eax, entry.ebx, entry.ecx, entry.edx], [u32::MAX; 4], "{leaf:#x}");
        }
    }

    #[test]
    fn the_table_of_this_host_depends_on_what_was_asked_for() {
        let Ok(kvm) = Kvm::new() else {
            eprintln!("SKIPPED: no /dev/kvm");
            return;
        };
        let find = |nested, leaf| {
            let cpuid = table(&kvm, Shape { id: 0, vcpus: 1, nested }).unwrap();
            cpuid.as_slice().iter().find(|entry| entry.function == leaf).copied()
        };
        let has = |entry: Option<kvm_cpuid_entry2>, bits: u32| {
            entry.is_some_and(|entry| entry.ecx & bits != 0)
        };
        assert!(!has(find(false, 0x1), 1 << 5) && !has(find(false, 0x8000_0001), 1 << 2));
        assert_eq!(find(false, 0xa).map_or(0, |entry| entry.eax), 0);
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        for given in supported.as_slice().iter().filter(|entry| entry.function == 0xa) {
            assert_eq!(find(true, 0xa).map(|entry| entry.eax), Some(given.eax));
        }
    }
}
