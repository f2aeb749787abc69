//! The interrupt controller: a GICv3 in the kernel (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst; Arm IHI 0069).
//!
//! There is no ITS, hence there are no LPIs and no pending tables in guest memory to write before a save.

use boxlite_hv::gic::{
    DISTRIBUTOR, FIRST_SPI, REDISTRIBUTOR_SIZE, REDISTRIBUTORS, REDISTRIBUTORS_RESERVED, SPIS,
};
use boxlite_hv::{Error, Result};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::failed;

/// Registers with a field for each interrupt, in the distributor and in the second frame of a redistributor.
#[derive(Clone, Copy)]
struct PerInterrupt {
    /// Offset of the register that has interrupt 0.
    offset: u64,
    /// Bits of a field.
    bits: u64,
    /// Offset of the registers that clear what is written to these, which only set.
    clear: Option<u64>,
}

const fn field(offset: u64, bits: u64) -> PerInterrupt {
    PerInterrupt { offset, bits, clear: None }
}

/// In the order in which they are restored: what an interrupt is, before whether it is enabled and active.
const GROUP: PerInterrupt = field(0x80, 1);
const CONFIGURATION: PerInterrupt = field(0xc00, 2);
const PRIORITY: PerInterrupt = field(0x400, 8);
const ROUTE: PerInterrupt = field(0x6000, 64);
const ENABLED: PerInterrupt = PerInterrupt { clear: Some(0x180), ..field(0x100, 1) };
const ACTIVE: PerInterrupt = PerInterrupt { clear: Some(0x380), ..field(0x300, 1) };
/// Last, when KVM knows edges from levels. Writes set and clear what is latched.
const PENDING: PerInterrupt = field(0x200, 1);

const OF_SHARED: [PerInterrupt; 7] =
    [GROUP, CONFIGURATION, PRIORITY, ROUTE, ENABLED, ACTIVE, PENDING];
const OF_PRIVATE: [PerInterrupt; 6] = [GROUP, CONFIGURATION, PRIORITY, ENABLED, ACTIVE, PENDING];

const GICD_CTLR: u64 = 0x0;
const GICD_IIDR: u64 = 0x8;
/// The first frame of a redistributor: the low and high words of GICR_PROPBASER and GICR_PENDBASER, then GICR_CTLR.
const GICR: [u64; 5] = [0x70, 0x74, 0x78, 0x7c, 0x0];
/// The second frame.
const GICR_SGI: u64 = 0x1_0000;

/// The registers of the CPU interface, by the encoding of their instructions: ICC_SRE, CTLR, PMR, BPR0, BPR1, IGRPEN0 and
/// IGRPEN1_EL1.
const ICC_CTLR: u64 = 0xc664;
const ICC: [u64; 7] = [0xc665, ICC_CTLR, 0xc230, 0xc643, 0xc663, 0xc666, 0xc667];
/// Active priorities: ICC_AP0R0_EL1 and ICC_AP1R0_EL1, followed by 1 to 3 where the priorities have more bits.
const ICC_AP0R: u64 = 0xc644;
const ICC_AP1R: u64 = 0xc648;

/// The saved state of the interrupt controller.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GicState {
    /// The revision of the implementation.
    iidr: u32,
    control: u32,
    /// Registers of shared interrupts, in the order of [`OF_SHARED`].
    shared: Vec<u32>,
    /// Input levels of shared interrupts.
    levels: Vec<u32>,
    /// What belongs to a vCPU, by its ID.
    vcpus: Vec<GicVcpuState>,
}

/// A vCPU's redistributor and CPU interface.
#[derive(Debug, Serialize, Deserialize)]
struct GicVcpuState {
    /// The first frame, in the order of [`GICR`].
    redistributor: Vec<u32>,
    /// Registers of private interrupts, in the order of [`OF_PRIVATE`].
    private: Vec<u32>,
    /// Input levels of private interrupts.
    levels: u32,
    /// CPU interface: encodings and values.
    interface: Vec<(u16, u64)>,
}

/// The interrupt controller of a VM.
#[derive(Debug)]
pub(super) struct Gic {
    fd: DeviceFd,
    /// The affinities of the vCPUs, by their IDs.
    vcpus: Vec<u32>,
}

impl Gic {
    /// Creates the controller of a VM whose vCPUs, with these affinities, exist and are all.
    pub(super) fn new(vm: &VmFd, vcpus: Vec<u32>) -> Result<Self> {
        let count = vcpus.len() as u64;
        if count * REDISTRIBUTOR_SIZE > REDISTRIBUTORS_RESERVED {
            return Err(Error::Missing("that many vCPUs"));
        }
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..Default::default()
        };
        let fd = vm.create_device(&mut device).map_err(|e| match e.errno() {
            libc::ENODEV => {
                Error::Missing("a GICv3: the host's interrupt controller is an older one")
            }
            _ => failed("KVM_CREATE_DEVICE (GICv3)")(e),
        })?;
        let gic = Self { fd, vcpus };
        gic.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, (FIRST_SPI + SPIS).into())?;
        gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST.into(), DISTRIBUTOR)?;
        // One region, with index 0. Before Linux 4.18, KVM knows only the address, and takes as much as it needs.
        let (region, legacy) = (KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, KVM_VGIC_V3_ADDR_TYPE_REDIST);
        if gic.has(KVM_DEV_ARM_VGIC_GRP_ADDR, region.into()) {
            gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, region.into(), count << 52 | REDISTRIBUTORS)?;
        } else {
            gic.set(KVM_DEV_ARM_VGIC_GRP_ADDR, legacy.into(), REDISTRIBUTORS)?;
        }
        gic.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0)?;
        Ok(gic)
    }

    /// The state, while no vCPU runs.
    pub(super) fn save(&self) -> Result<GicState> {
        let distributor = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        let words = |group, offsets: Vec<u64>| {
            offsets.into_iter().map(|offset| self.word(group, offset)).collect::<Result<Vec<_>>>()
        };
        Ok(GicState {
            iidr: self.word(distributor, GICD_IIDR)?,
            control: self.word(distributor, GICD_CTLR)?,
            shared: words(distributor, shared_registers())?,
            levels: words(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, shared_levels())?,
            vcpus: self.vcpus.iter().map(|vcpu| self.save_vcpu(*vcpu)).collect::<Result<_>>()?,
        })
    }

    fn save_vcpu(&self, affinity: u32) -> Result<GicVcpuState> {
        let vcpu = of_vcpu(affinity);
        let words = |offsets: Vec<u64>| {
            let read = |offset| self.word(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu | offset);
            offsets.into_iter().map(read).collect::<Result<Vec<_>>>()
        };
        let interface = |register| self.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, vcpu | register);
        let control = interface(ICC_CTLR)?;
        Ok(GicVcpuState {
            redistributor: words(GICR.to_vec())?,
            private: words(private_registers())?,
            levels: self.word(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu)?,
            interface: interface_registers(control)
                .map(|register| Ok((register as u16, interface(register)?)))
                .collect::<Result<_>>()?,
        })
    }

    /// Loads a state, before any vCPU has run.
    pub(super) fn restore(&self, state: &GicState) -> Result<()> {
        if state.vcpus.len() != self.vcpus.len() {
            return Err(unfit("another number of vCPUs"));
        }
        let distributor = KVM_DEV_ARM_VGIC_GRP_DIST_REGS;
        // First of all: KVM changes how the other registers behave by it.
        self.set(distributor, GICD_IIDR, state.iidr.into())?;
        self.set(distributor, GICD_CTLR, state.control.into())?;
        for (affinity, saved) in self.vcpus.iter().zip(&state.vcpus) {
            self.restore_vcpu(*affinity, saved)?;
        }
        self.clear(distributor, shared_clears())?;
        self.set_words(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, shared_levels(), &state.levels)?;
        self.set_words(distributor, shared_registers(), &state.shared)
    }

    fn restore_vcpu(&self, affinity: u32, state: &GicVcpuState) -> Result<()> {
        let (vcpu, redistributor) = (of_vcpu(affinity), KVM_DEV_ARM_VGIC_GRP_REDIST_REGS);
        let own = |offsets: Vec<u64>| offsets.into_iter().map(|offset| vcpu | offset).collect();
        self.set_words(redistributor, own(GICR.to_vec()), &state.redistributor)?;
        self.clear(redistributor, own(private_clears()))?;
        self.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, vcpu, state.levels.into())?;
        self.set_words(redistributor, own(private_registers()), &state.private)?;
        for (register, value) in &state.interface {
            self.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, vcpu | u64::from(*register), *value)?;
        }
        Ok(())
    }

    /// Writes registers, which are as many as there are values.
    fn set_words(&self, group: u32, offsets: Vec<u64>, values: &[u32]) -> Result<()> {
        if offsets.len() != values.len() {
            return Err(unfit("another number of interrupts"));
        }
        offsets
            .into_iter()
            .zip(values)
            .try_for_each(|(offset, value)| self.set(group, offset, u64::from(*value)))
    }

    /// Writes ones to registers that clear.
    fn clear(&self, group: u32, offsets: Vec<u64>) -> Result<()> {
        offsets.into_iter().try_for_each(|offset| self.set(group, offset, u32::MAX.into()))
    }

    fn has(&self, group: u32, attr: u64) -> bool {
        let attr = kvm_device_attr { group, attr, ..Default::default() };
        self.fd.has_device_attr(&attr).is_ok()
    }

    /// Writes an attribute. Those of 32 bits are the first four bytes of `value`.
    fn set(&self, group: u32, attr: u64, value: u64) -> Result<()> {
        let addr = &raw const value as u64;
        let attr = kvm_device_attr { group, attr, addr, flags: 0 };
        self.fd.set_device_attr(&attr).map_err(failed("KVM_SET_DEVICE_ATTR (GICv3)"))
    }

    /// Reads an attribute of 32 or 64 bits.
    fn get(&self, group: u32, attr: u64) -> Result<u64> {
        let mut value = 0u64;
        let mut attr = kvm_device_attr { group, attr, addr: &raw mut value as u64, flags: 0 };
        // SAFETY: no attribute is longer than `value`, which nothing else uses.
        unsafe { self.fd.get_device_attr(&mut attr) }
            .map_err(failed("KVM_GET_DEVICE_ATTR (GICv3)"))?;
        Ok(value)
    }

    /// Reads a register of 32 bits.
    fn word(&self, group: u32, attr: u64) -> Result<u32> {
        self.get(group, attr).map(|value| value as u32)
    }
}

/// The part of an attribute that names the vCPU.
fn of_vcpu(affinity: u32) -> u64 {
    u64::from(affinity) << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT
}

/// The offsets of the 32-bit registers that have a field for `count` interrupts from `first` on.
fn registers(offset: u64, bits: u64, first: u32, count: u32) -> impl Iterator<Item = u64> {
    let at = |interrupt: u32| offset + u64::from(interrupt) * bits / 8;
    (at(first)..at(first + count)).step_by(4)
}

fn shared_registers() -> Vec<u64> {
    OF_SHARED.iter().flat_map(|it| registers(it.offset, it.bits, FIRST_SPI, SPIS)).collect()
}

fn private_registers() -> Vec<u64> {
    let of = |it: &PerInterrupt| registers(GICR_SGI + it.offset, it.bits, 0, FIRST_SPI);
    OF_PRIVATE.iter().flat_map(of).collect()
}

fn shared_clears() -> Vec<u64> {
    let clears = OF_SHARED.iter().filter_map(|it| it.clear);
    clears.flat_map(|offset| registers(offset, 1, FIRST_SPI, SPIS)).collect()
}

fn private_clears() -> Vec<u64> {
    let clears = OF_PRIVATE.iter().filter_map(|it| it.clear);
    clears.flat_map(|offset| registers(GICR_SGI + offset, 1, 0, FIRST_SPI)).collect()
}

/// The attributes that have the input levels of 32 interrupts each.
fn shared_levels() -> Vec<u64> {
    (FIRST_SPI..FIRST_SPI + SPIS).step_by(32).map(u64::from).collect()
}

/// The registers of a CPU interface with this ICC_CTLR_EL1, whose PRIbits say how many active priorities there are.
fn interface_registers(control: u64) -> impl Iterator<Item = u64> {
    let priorities = match ((control >> 8) & 7) + 1 {
        7.. => 4,
        6 => 2,
        _ => 1,
    };
    ICC.into_iter().chain((0..priorities).flat_map(|n| [ICC_AP0R + n, ICC_AP1R + n]))
}

/// The error of a state that does not belong to such a VM.
fn unfit(what: &'static str) -> Error {
    Error::Call {
        call: "restore the GICv3",
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, format!("it has {what}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_where_the_architecture_has_them() {
        let shared = shared_registers();
        for (name, offset) in [
            ("IGROUPR1", 0x84),
            ("ISENABLER3", 0x10c),
            ("ISPENDR1", 0x204),
            ("ISACTIVER1", 0x304),
            ("IPRIORITYR8", 0x420),
            ("IPRIORITYR31", 0x47c),
            ("ICFGR2", 0xc08),
            ("IROUTER32", 0x6100),
            ("IROUTER127", 0x63fc),
        ] {
            assert!(shared.contains(&offset), "GICD_{name}");
        }
        let one_bit = SPIS as usize / 32;
        assert_eq!(shared.len(), one_bit * (4 + 2 + 8 + 64));
        let private = private_registers();
        assert_eq!(private.len(), 4 + 2 + 8);
        assert!(private.contains(&0x1_0100) && private.contains(&0x1_0c04));
        assert_eq!(private_clears(), [0x1_0180, 0x1_0380]);
        assert_eq!(shared_clears(), [0x184, 0x188, 0x18c, 0x384, 0x388, 0x38c]);
    }

    #[test]
    fn active_priorities_depend_on_the_priority_bits() {
        for (bits, count) in [(5, 2), (6, 4), (7, 8), (8, 8)] {
            let control = (bits - 1) << 8;
            assert_eq!(interface_registers(control).count(), ICC.len() + count);
        }
    }
}
