//! What KVM makes of an access to a device, compared with what the VMM made of it.
//!
//! After the exit the VMM writes the general register of a load and the PC. The double keeps these from KVM, which still
//! has the access before it. At the next entry KVM completes the access with the data that the VMM's register has; then
//! both must agree. A VMM that did something else, such as to raise an abort or to load a saved state, wrote another PC:
//! then its registers count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use applevisor_sys::{hv_error_t, hv_reg_t as Reg};

use crate::instruction::Transfer;
use crate::registers;
use crate::sys::{Result, enter, failed, kvm};
use crate::vcpu::Vcpu;

static AGREED: AtomicU64 = AtomicU64::new(0);
static SIGNS_LOST: AtomicU64 = AtomicU64::new(0);

/// What was compared in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Accesses whose results were the same.
    pub agreed: u64,
    /// Loads whose sign KVM lost, as kernels of today do (`vcpu_data_host_to_guest` truncates what
    /// `kvm_handle_mmio_return` has extended).
    pub signs_lost: u64,
}

/// What was compared in this process. A difference is an error of `hv_vcpu_run`.
pub fn compared() -> Compared {
    let load = |count: &AtomicU64| count.load(Ordering::SeqCst);
    Compared { agreed: load(&AGREED), signs_lost: load(&SIGNS_LOST) }
}

/// An access as KVM has decoded it.
#[derive(Debug)]
pub(crate) struct Kvm {
    pub(crate) gpa: u64,
    pub(crate) write: bool,
    pub(crate) data: [u8; 8],
    pub(crate) len: u32,
}

impl Kvm {
    /// Whether the data of a store are those of its register.
    pub(crate) fn carries(&self, register: u64) -> bool {
        let len = self.len.min(8) as usize;
        self.data[..len] == register.to_le_bytes()[..len]
    }
}

/// An access that KVM has not completed, and what the VMM has written meanwhile.
#[derive(Debug)]
pub(crate) struct Pending {
    transfer: Transfer,
    pc: u64,
    pstate: u64,
    /// By KVM's names of the registers.
    written: BTreeMap<u64, u64>,
}

impl Pending {
    pub(crate) fn new(transfer: Transfer, pc: u64, pstate: u64) -> Self {
        Self { transfer, pc, pstate, written: BTreeMap::new() }
    }

    pub(crate) fn written(&self, id: u64) -> Option<u64> {
        self.written.get(&id).copied()
    }

    pub(crate) fn write(&mut self, id: u64, value: u64) {
        self.written.insert(id, value);
    }

    /// The register that a load writes.
    fn target(&self) -> Option<u64> {
        let loads = !self.transfer.write && self.transfer.register != 31;
        loads.then(|| registers::x(self.transfer.register))
    }

    /// Whether the VMM has answered the access, and done nothing else.
    fn is_answered(&self) -> bool {
        let (target, pc) = (self.target(), registers::general(Reg::PC));
        let ours = [target, Some(pc), Some(registers::general(Reg::CPSR))];
        self.written(pc) == Some(self.pc.wrapping_add(4))
            && target.is_none_or(|target| self.written.contains_key(&target))
            && self.written.keys().all(|id| ours.contains(&Some(*id)))
    }
}

impl Vcpu {
    /// Has KVM complete the access of the last exit, and compares.
    pub(crate) fn complete(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let target = pending.target();
        let before = target.map(|target| registers::get(&self.fd, target)).transpose()?;
        let value = target.and_then(|target| pending.written(target)).unwrap_or_default();
        // SAFETY: the page is mapped, and KVM reads it during KVM_RUN only.
        unsafe { (*self.run).__bindgen_anon_1.mmio.data = value.to_le_bytes() };
        self.immediate_exit().store(1, Ordering::SeqCst);
        match enter(&self.fd) {
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(kvm("KVM_RUN (to complete an access)")(e)),
            Ok(()) => return Err(failed(hv_error_t::HV_ERROR, "KVM ran on past an access")),
        }
        if pending.is_answered() {
            return self.compare(&pending);
        }
        if let (Some(target), Some(before)) = (target, before) {
            registers::set(&self.fd, target, before)?;
        }
        for (id, value) in [(Reg::PC, pending.pc), (Reg::CPSR, pending.pstate)] {
            registers::set(&self.fd, registers::general(id), value)?;
        }
        self.overwrite(&pending)
    }

    /// Gives KVM the registers that the VMM has written.
    fn overwrite(&self, pending: &Pending) -> Result<()> {
        pending.written.iter().try_for_each(|(&id, &value)| registers::set(&self.fd, id, value))
    }

    fn compare(&self, pending: &Pending) -> Result<()> {
        let cpsr = registers::general(Reg::CPSR);
        let mut expected = pending.written.clone();
        expected.entry(cpsr).or_insert(pending.pstate);
        for (&id, &value) in &expected {
            let of_kvm = registers::get(&self.fd, id)?;
            if of_kvm == value {
                continue;
            }
            let unused = u64::BITS - (8 << pending.transfer.size);
            let zero_extended = value << unused >> unused;
            if Some(id) == pending.target() && pending.transfer.sign && of_kvm == zero_extended {
                SIGNS_LOST.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let text = format!(
                "after {:x?} at PC {:#x}, register {id:#x} is {value:#x} by the VMM, {of_kvm:#x} by KVM",
                pending.transfer, pending.pc
            );
            return Err(failed(hv_error_t::HV_ERROR, &text));
        }
        AGREED.fetch_add(1, Ordering::SeqCst);
        self.overwrite(pending)
    }
}
