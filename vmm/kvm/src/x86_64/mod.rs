//! What x86_64 adds to a VM on KVM: interrupt controllers, the timer, CPUID and the state of a vCPU.

mod cpuid;
mod setup;
mod state;

use boxlite_hv::{BootState, Result, VmConfig};
use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_IOAPIC_NUM_PINS, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config, kvm_run,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use self::cpuid::Shape;
pub use self::state::{VcpuState, VmState};
use crate::{failed, retry_interrupted};

/// Pages for Intel VMX's real-mode task state segment (three) and identity page table (one), which guest memory
/// must not overlap. Below the I/O APIC, at the end of the 32-bit gap.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// The architecture's part of a VM.
#[derive(Debug)]
pub(crate) struct Platform {
    kvm: Kvm,
    vcpus: u32,
    nested: bool,
}

impl Platform {
    /// The capabilities that this architecture requires.
    pub(crate) const REQUIRED: [(Cap, &str); 3] = [
        (Cap::Irqchip, "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"),
        (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
        (Cap::ExtCpuid, "CPUID configuration (KVM_CAP_EXT_CPUID)"),
    ];

    /// The number of interrupt lines: the pins of the I/O APIC, which are KVM's GSIs.
    pub(crate) const LINES: u32 = KVM_IOAPIC_NUM_PINS;

    /// The argument of KVM_CREATE_VM.
    pub(crate) fn vm_type(_: &Kvm, _: &VmConfig) -> Result<u64> {
        Ok(0)
    }

    /// Configures a new VM and creates its interrupt controllers.
    pub(crate) fn new(kvm: Kvm, fd: &VmFd, config: &VmConfig) -> Result<Self> {
        if !config.nested {
            disable_pmu(fd)?;
        }
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(failed("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
        // The timer for guests without the TSC deadline timer. KVM handles the speaker port, which some guests use
        // for calibration.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
        Ok(Self { kvm, vcpus: config.vcpus, nested: config.nested })
    }

    /// Creates a vCPU in the state it boots from.
    pub(crate) fn vcpu(&self, vm: &VmFd, id: u32, boot: &BootState) -> Result<VcpuFd> {
        let fd =
            retry_interrupted(|| vm.create_vcpu(id.into())).map_err(failed("KVM_CREATE_VCPU"))?;
        let shape = Shape { id, vcpus: self.vcpus, nested: self.nested };
        setup::vcpu(&self.kvm, &fd, shape, boot)?;
        Ok(fd)
    }

    /// Handles an exit that only this architecture has. The guest runs on afterwards; the error says why it cannot.
    ///
    /// # Safety
    ///
    /// `run` is the mapped page of the vCPU, and holds its last exit.
    pub(crate) unsafe fn on_exit(
        _: &VcpuFd,
        run: *const kvm_run,
    ) -> std::result::Result<(), String> {
        // SAFETY: the page is mapped.
        match unsafe { (*run).exit_reason } {
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit says that `internal` is the member in use; it is plain numbers.
                let error = unsafe { (*run).__bindgen_anon_1.internal };
                Err(internal_error(error.suberror, &error.data, error.ndata))
            }
            other => Err(format!("unexpected exit {other}")),
        }
    }

    /// Tells a vCPU's guest that the VM was paused.
    pub(crate) fn resumed(fd: &VcpuFd) {
        // It is refused where the guest has no paravirtual clock: there is no other way to tell it.
        let _ = fd.kvmclock_ctrl();
    }

    /// The state of the VM.
    pub(crate) fn save(&self, vm: &VmFd) -> Result<VmState> {
        VmState::save(vm)
    }

    /// Loads the state of the VM.
    pub(crate) fn restore(&self, vm: &VmFd, state: &VmState) -> Result<()> {
        state.restore(vm)
    }

    /// The state of a vCPU that has no exit to complete.
    pub(crate) fn save_vcpu(&self, fd: &VcpuFd) -> Result<VcpuState> {
        let msrs = self.kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        VcpuState::save(fd, msrs.as_slice())
    }

    /// Loads the state of a vCPU.
    pub(crate) fn restore_vcpu(&self, fd: &VcpuFd, state: &VcpuState) -> Result<()> {
        state.restore(fd)
    }
}

/// Disables the guest's performance counters where KVM can (Linux 5.18 or later); elsewhere only CPUID hides
/// them.
fn disable_pmu(fd: &VmFd) -> Result<()> {
    if fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into()) & KVM_PMU_CAP_DISABLE as i32 == 0 {
        return Ok(());
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
    cap.args[0] = KVM_PMU_CAP_DISABLE.into();
    fd.enable_cap(&cap).map_err(failed("KVM_ENABLE_CAP (KVM_CAP_PMU_CAPABILITY)"))
}

/// Describes a KVM_EXIT_INTERNAL_ERROR, for people.
fn internal_error(suberror: u32, data: &[u64], count: u32) -> String {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => {
            // [0] is flags, [1] the instruction's size in its lowest byte and its bytes after it.
            let bytes: Vec<u8> =
                data.iter().take(count as usize).skip(1).flat_map(|n| n.to_le_bytes()).collect();
            let instruction = match bytes.split_first() {
                Some((&size @ 1..=15, rest)) => {
                    let bytes = rest.iter().take(size.into()).map(|byte| format!(" {byte:02x}"));
                    format!(" (instruction{})", bytes.collect::<String>())
                }
                _ => String::new(),
            };
            format!(
                "KVM cannot emulate the guest's code{instruction}; on a host without hardware \
                 virtualization KVM runs only simple code: use `--accel soft`"
            )
        }
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that KVM does not handle".into(),
        other => format!("KVM internal error {other}"),
    }
}
