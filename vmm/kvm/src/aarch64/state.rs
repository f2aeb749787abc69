//! The state of a VM and its vCPUs that the guest can observe: saved and restored.
//!
//! The guest's counters (CNTVCT and CNTPCT) go on where they were. They are among the registers of each vCPU, but KVM has
//! one offset for all vCPUs of a VM, so the vCPU that is restored last sets it. All vCPUs had left the guest when the first
//! was saved, so no counter steps back, whichever that is, as long as none runs before all are restored.

use boxlite_hv::{Error, Result};
use kvm_bindings::{
    KVM_REG_ARM_COPROC_MASK, KVM_REG_ARM64_SYSREG, RegList, kvm_mp_state, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuFd, reg_size};
use serde::{Deserialize, Serialize};

use super::gic::GicState;
use crate::failed;

/// Room for the registers that KVM lists: some hundreds without SVE and EL2.
const MAX_REGISTERS: usize = 500;

/// The features of the processor: op0 3, op1 0, CRn 0, CRm 1 to 7.
const FIRST_FEATURES: u64 = KVM_REG_ARM64_SYSREG as u64 | 0xc008;
const LAST_FEATURES: u64 = KVM_REG_ARM64_SYSREG as u64 | 0xc03f;

/// The saved state of a VM: its interrupt controller.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    pub(super) gic: GicState,
}

/// The saved state of a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// In the order in which they are restored.
    registers: Vec<Register>,
    mp_state: kvm_mp_state,
    serror: SError,
}

/// A register: KVM's ID, which has its size, and its value, least significant byte first.
#[derive(Debug, Serialize, Deserialize)]
struct Register {
    id: u64,
    value: [u8; 16],
}

/// A pending SError, with its syndrome where the processor has one.
#[derive(Debug, Serialize, Deserialize)]
struct SError {
    pending: bool,
    syndrome: Option<u64>,
}

impl VcpuState {
    /// Reads the state. Pending resets take effect by it, as reading registers makes KVM carry them out.
    pub(super) fn save(fd: &VcpuFd) -> Result<Self> {
        let mut list = RegList::new(MAX_REGISTERS)
            .map_err(|_| Error::Missing("room for its own registers"))?;
        fd.get_reg_list(&mut list).map_err(|e| match e.errno() {
            libc::E2BIG => Error::Missing("a list of registers that is short enough"),
            _ => failed("KVM_GET_REG_LIST")(e),
        })?;
        let mut ids = list.as_slice().to_vec();
        // KVM derives from them which other registers exist. The sort is stable: the others stay in KVM's order.
        ids.sort_by_key(|id| !is_features(*id));
        Ok(Self {
            registers: ids.into_iter().map(|id| Register::read(fd, id)).collect::<Result<_>>()?,
            mp_state: fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?,
            serror: SError::read(fd)?,
        })
    }

    /// Writes the state: the registers before the power state, which must not be lost to a reset, and events last.
    pub(super) fn restore(&self, fd: &VcpuFd) -> Result<()> {
        for register in &self.registers {
            register.write(fd)?;
        }
        fd.set_mp_state(self.mp_state).map_err(failed("KVM_SET_MP_STATE"))?;
        self.serror.write(fd)
    }
}

/// Whether a register describes features of the processor (ID_AA64PFR0_EL1 and the like).
fn is_features(id: u64) -> bool {
    let kind = KVM_REG_ARM_COPROC_MASK as u64 | 0xffff;
    (FIRST_FEATURES..=LAST_FEATURES).contains(&(id & kind))
}

impl Register {
    fn read(fd: &VcpuFd, id: u64) -> Result<Self> {
        let mut value = [0; 16];
        fd.get_one_reg(id, &mut value).map_err(register_failed("KVM_GET_ONE_REG", id))?;
        Ok(Self { id, value })
    }

    /// Writes the register. It fails if the host's processor is another than that of the saved VM.
    fn write(&self, fd: &VcpuFd) -> Result<()> {
        let value = self.value.get(..reg_size(self.id)).unwrap_or_default();
        fd.set_one_reg(self.id, value)
            .map(drop)
            .map_err(register_failed("KVM_SET_ONE_REG", self.id))
    }
}

/// The error of a call for a register.
fn register_failed(call: &'static str, id: u64) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |e| {
        let error = std::io::Error::from_raw_os_error(e.errno());
        let source = std::io::Error::new(error.kind(), format!("register {id:#x}: {error}"));
        Error::Call { call, source }
    }
}

impl SError {
    fn read(fd: &VcpuFd) -> Result<Self> {
        let exception = fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?.exception;
        let syndrome = (exception.serror_has_esr != 0).then_some(exception.serror_esr);
        Ok(Self { pending: exception.serror_pending != 0, syndrome })
    }

    fn write(&self, fd: &VcpuFd) -> Result<()> {
        let mut events = kvm_vcpu_events::default();
        events.exception.serror_pending = self.pending.into();
        events.exception.serror_has_esr = self.syndrome.is_some().into();
        events.exception.serror_esr = self.syndrome.unwrap_or_default();
        fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature_registers_are_told_from_others() {
        let system = |encoding: u64| 0x6030_0000_0013_0000 | encoding;
        let (pfr0, mmfr2, mpidr, ctr, sctlr) = (0xc020, 0xc03a, 0xc005, 0xd801, 0xc080);
        assert!(is_features(system(pfr0)) && is_features(system(mmfr2)));
        assert!(![mpidr, ctr, sctlr].into_iter().any(|it| is_features(system(it))));
        let general = 0x6030_0000_0010_0020;
        assert!(!is_features(general));
    }
}
