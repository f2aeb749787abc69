//! The state of a VM and its vCPUs that the guest can observe: saved and restored.

use boxlite_hv::{Error, Result};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs,
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::failed;

/// The saved state of a VM: interrupt controllers, timer and paravirtual clock.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    pics: [kvm_irqchip; 2],
    ioapic: kvm_irqchip,
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl VmState {
    pub(super) fn save(fd: &VmFd) -> Result<Self> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            fd.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
            Ok::<_, Error>(chip)
        };
        Ok(Self {
            pics: [chip(KVM_IRQCHIP_PIC_MASTER)?, chip(KVM_IRQCHIP_PIC_SLAVE)?],
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: fd.get_pit2().map_err(failed("KVM_GET_PIT2"))?,
            clock: fd.get_clock().map_err(failed("KVM_GET_CLOCK"))?,
        })
    }

    pub(super) fn restore(&self, fd: &VmFd) -> Result<()> {
        for chip in self.pics.iter().chain([&self.ioapic]) {
            fd.set_irqchip(chip).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        fd.set_pit2(&self.pit).map_err(failed("KVM_SET_PIT2"))?;
        // The guest's clock goes on where it was. With the real time in it, KVM would add the time since then.
        let clock = kvm_clock_data { flags: self.clock.flags & !KVM_CLOCK_REALTIME, ..self.clock };
        fd.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))
    }
}

/// The saved state of a vCPU. CPUID is not in it: a restored VM gets the same from its
/// configuration.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Reads the state, of the MSRs those in `msrs`, in the order that KVM requires: MP state first (it may finish a
    /// pending INIT), events last.
    pub(super) fn save(fd: &VcpuFd, msrs: &[u32]) -> Result<Self> {
        Ok(Self {
            mp_state: fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?,
            regs: fd.get_regs().map_err(failed("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
            xsave: fd.get_xsave().map_err(failed("KVM_GET_XSAVE"))?,
            xcrs: fd.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
            debug: fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            lapic: fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
            msrs: read_msrs(fd, msrs)?,
            events: fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Writes the state in the order that KVM requires: special registers before the local APIC and the MSRs,
    /// the local APIC before the TSC deadline, events last.
    pub(super) fn restore(&self, fd: &VcpuFd) -> Result<()> {
        fd.set_mp_state(self.mp_state).map_err(failed("KVM_SET_MP_STATE"))?;
        fd.set_regs(&self.regs).map_err(failed("KVM_SET_REGS"))?;
        fd.set_sregs(&self.sregs).map_err(failed("KVM_SET_SREGS"))?;
        // SAFETY: the state is as long as `kvm_xsave`; features that need more (AMX) are not given
        // to the guest.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(failed("KVM_SET_XSAVE"))?;
        fd.set_xcrs(&self.xcrs).map_err(failed("KVM_SET_XCRS"))?;
        fd.set_debug_regs(&self.debug).map_err(failed("KVM_SET_DEBUGREGS"))?;
        fd.set_lapic(&self.lapic).map_err(failed("KVM_SET_LAPIC"))?;
        write_msrs(fd, &self.msrs)?;
        fd.set_vcpu_events(&self.events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }
}

/// Reads MSRs. KVM stops at the first one that this vCPU does not have, which is skipped.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| Error::Missing("room for its own MSRs"))?;
        let count = fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        read.extend_from_slice(&msrs.as_slice()[..count]);
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(read)
}

/// Writes MSRs. One that KVM refuses is skipped: the guest cannot have written it (read-only or host-dependent).
fn write_msrs(fd: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<()> {
    let mut rest = entries;
    while !rest.is_empty() {
        let msrs = Msrs::from_entries(rest).map_err(|_| Error::Missing("room for its own MSRs"))?;
        let count = fd.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(())
}
