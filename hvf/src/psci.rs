//! The firmware that a guest calls by HVC or SMC: PSCI 1.1 (Arm DEN0022) and SMCCC 1.1 (Arm DEN0028), as a pure
//! state machine over all vCPUs.
//!
//! ```text
//!             CPU_ON                   started
//!   Off ───────────────► Pending ─────────────────► On
//!    ▲                      │                        │
//!    └──────────────────────┴──── CPU_OFF, SYSTEM_*  ┘
//! ```
//!
//! **Invariant:** of the CPU_ON calls for one vCPU, exactly one succeeds between two of its power-offs.

use serde::{Deserialize, Serialize};

/// Function identifiers. Those of the 64-bit calling convention have [`CALL64`](function::CALL64) as well.
pub mod function {
    /// The bit of the 64-bit calling convention.
    pub const CALL64: u32 = 1 << 30;

    /// SMCCC_VERSION.
    pub const SMCCC_VERSION: u32 = 0x8000_0000;
    /// SMCCC_ARCH_FEATURES.
    pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;

    /// PSCI_VERSION.
    pub const VERSION: u32 = 0x8400_0000;
    /// CPU_SUSPEND.
    pub const CPU_SUSPEND: u32 = 0x8400_0001;
    /// CPU_OFF.
    pub const CPU_OFF: u32 = 0x8400_0002;
    /// CPU_ON.
    pub const CPU_ON: u32 = 0x8400_0003;
    /// AFFINITY_INFO.
    pub const AFFINITY_INFO: u32 = 0x8400_0004;
    /// MIGRATE_INFO_TYPE.
    pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u32 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u32 = 0x8400_0009;
    /// PSCI_FEATURES.
    pub const FEATURES: u32 = 0x8400_000a;
    /// SYSTEM_RESET2.
    pub const SYSTEM_RESET2: u32 = 0x8400_0012;
}

/// Return values, sign-extended to 64 bits: right in W0 and in X0.
pub mod status {
    /// SUCCESS.
    pub const SUCCESS: u64 = 0;
    /// NOT_SUPPORTED.
    pub const NOT_SUPPORTED: u64 = -1i64 as u64;
    /// INVALID_PARAMETERS.
    pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
    /// ALREADY_ON.
    pub const ALREADY_ON: u64 = -4i64 as u64;
    /// ON_PENDING.
    pub const ON_PENDING: u64 = -5i64 as u64;
    /// INVALID_ADDRESS.
    pub const INVALID_ADDRESS: u64 = -9i64 as u64;
}

/// PSCI 1.1 and SMCCC 1.1.
const VERSION_1_1: u64 = 1 << 16 | 1;
/// MIGRATE_INFO_TYPE: there is no trusted OS, so nothing to migrate.
const NO_TRUSTED_OS: u64 = 2;
/// AFFINITY_INFO's answers.
const AFFINITY_ON: u64 = 0;
const AFFINITY_OFF: u64 = 1;
const AFFINITY_ON_PENDING: u64 = 2;

/// The affinity fields of MPIDR_EL1. Bit 31 of the register reads as one, and Linux may pass it.
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

/// A function call: X0 to X3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function identifier, W0.
    pub function: u32,
    /// The arguments, X1 to X3.
    pub arguments: [u64; 3],
}

impl Call {
    /// The call that these registers hold. The 32-bit calling convention takes the lower halves.
    pub fn new([x0, x1, x2, x3]: [u64; 4]) -> Self {
        let function = x0 as u32;
        let arguments = match function & function::CALL64 {
            0 => [x1, x2, x3].map(|x| x & u64::from(u32::MAX)),
            _ => [x1, x2, x3],
        };
        Self { function, arguments }
    }
}

/// Where a vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// GPA of the first instruction.
    pub entry: u64,
    /// X0 there.
    pub context: u64,
}

/// Whether a vCPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// Waits for a CPU_ON.
    Off,
    /// CPU_ON has succeeded, and the vCPU's thread has not seen it yet.
    Pending(Start),
    /// Runs.
    On,
}

/// What follows from a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The call returns this in X0.
    Return(u64),
    /// As [`Return`](Self::Return) of [`status::SUCCESS`], and this vCPU is [`Power::Pending`] now: wake its thread.
    Start(usize),
    /// The calling vCPU is off: the call does not return.
    Park,
    /// The VM powers off. All vCPUs are off.
    SystemOff,
    /// The VM resets. All vCPUs are off.
    SystemReset,
}

/// The power states of a VM's vCPUs.
#[derive(Clone, Debug)]
pub struct Psci {
    vcpus: Vec<Vcpu>,
}

#[derive(Clone, Copy, Debug)]
struct Vcpu {
    affinity: u64,
    power: Power,
}

impl Psci {
    /// All vCPUs, by their affinities (MPIDR_EL1) and off.
    pub fn new(affinities: impl IntoIterator<Item = u64>) -> Self {
        let off = |mpidr| Vcpu { affinity: mpidr & AFFINITY_MASK, power: Power::Off };
        Self { vcpus: affinities.into_iter().map(off).collect() }
    }

    /// The power state of a vCPU. One that does not exist is off.
    pub fn power(&self, vcpu: usize) -> Power {
        self.vcpus.get(vcpu).map_or(Power::Off, |vcpu| vcpu.power)
    }

    /// Sets the power state of a vCPU at boot or from a saved state.
    pub fn set_power(&mut self, vcpu: usize, power: Power) {
        if let Some(vcpu) = self.vcpus.get_mut(vcpu) {
            vcpu.power = power;
        }
    }

    /// Takes the start of a pending vCPU, which is on from now.
    pub fn take_start(&mut self, vcpu: usize) -> Option<Start> {
        let vcpu = self.vcpus.get_mut(vcpu)?;
        let Power::Pending(start) = vcpu.power else { return None };
        vcpu.power = Power::On;
        Some(start)
    }

    /// Handles a call of `caller`.
    pub fn call(&mut self, caller: usize, call: Call) -> Action {
        let Call { function, arguments: [first, second, third] } = call;
        if !is_supported(function) {
            return Action::Return(status::NOT_SUPPORTED);
        }
        match function & !function::CALL64 {
            function::SMCCC_VERSION | function::VERSION => Action::Return(VERSION_1_1),
            function::SMCCC_ARCH_FEATURES => Action::Return(arch_features(first as u32)),
            function::FEATURES => Action::Return(psci_features(first as u32)),
            function::MIGRATE_INFO_TYPE => Action::Return(NO_TRUSTED_OS),
            // A standby state that ends at once, which PSCI permits for any reason; no power-down states.
            function::CPU_SUSPEND => Action::Return(status::SUCCESS),
            function::CPU_OFF => {
                self.set_power(caller, Power::Off);
                Action::Park
            }
            function::CPU_ON => self.cpu_on(first, Start { entry: second, context: third }),
            function::AFFINITY_INFO => Action::Return(self.affinity_info(first, second)),
            function::SYSTEM_OFF => self.system(Action::SystemOff),
            function::SYSTEM_RESET => self.system(Action::SystemReset),
            // SYSTEM_WARM_RESET, type 0, is the only one.
            function::SYSTEM_RESET2 if first == 0 => self.system(Action::SystemReset),
            function::SYSTEM_RESET2 => Action::Return(status::INVALID_PARAMETERS),
            _ => Action::Return(status::NOT_SUPPORTED),
        }
    }

    fn cpu_on(&mut self, target: u64, start: Start) -> Action {
        let affinity = target & AFFINITY_MASK;
        let Some(vcpu) = self.vcpus.iter().position(|vcpu| vcpu.affinity == affinity) else {
            return Action::Return(status::INVALID_PARAMETERS);
        };
        match self.power(vcpu) {
            Power::On => Action::Return(status::ALREADY_ON),
            Power::Pending(_) => Action::Return(status::ON_PENDING),
            Power::Off if !start.entry.is_multiple_of(crate::decode::INSTRUCTION) => {
                Action::Return(status::INVALID_ADDRESS)
            }
            Power::Off => {
                self.set_power(vcpu, Power::Pending(start));
                Action::Start(vcpu)
            }
        }
    }

    /// The state of the vCPUs that agree with `target` in the affinity fields from `level` up: on if any of them is.
    fn affinity_info(&self, target: u64, level: u64) -> u64 {
        let ignored: u64 = match level {
            0 => 0,
            1 => 0xff,
            2 => 0xffff,
            3 => 0xff_ffff,
            _ => return status::INVALID_PARAMETERS,
        };
        let affinity = target & AFFINITY_MASK & !ignored;
        let matching = self.vcpus.iter().filter(|vcpu| vcpu.affinity & !ignored == affinity);
        let states = matching.map(|vcpu| match vcpu.power {
            Power::On => AFFINITY_ON,
            Power::Pending(_) => AFFINITY_ON_PENDING,
            Power::Off => AFFINITY_OFF,
        });
        let order = [AFFINITY_ON, AFFINITY_ON_PENDING, AFFINITY_OFF];
        states
            .min_by_key(|state| order.iter().position(|o| o == state))
            .unwrap_or(status::INVALID_PARAMETERS)
    }

    fn system(&mut self, action: Action) -> Action {
        for vcpu in &mut self.vcpus {
            vcpu.power = Power::Off;
        }
        action
    }
}

/// Whether a function exists. Some have a form for the 64-bit calling convention, too.
fn is_supported(id: u32) -> bool {
    use function as f;
    match id & !f::CALL64 {
        f::CPU_SUSPEND | f::CPU_ON | f::AFFINITY_INFO | f::SYSTEM_RESET2 => true,
        f::SMCCC_VERSION
        | f::SMCCC_ARCH_FEATURES
        | f::VERSION
        | f::CPU_OFF
        | f::MIGRATE_INFO_TYPE
        | f::SYSTEM_OFF
        | f::SYSTEM_RESET
        | f::FEATURES => id & f::CALL64 == 0,
        _ => false,
    }
}

/// PSCI_FEATURES also reports SMCCC_VERSION. No function has flags that are set.
fn psci_features(id: u32) -> u64 {
    match is_supported(id) && id != function::SMCCC_ARCH_FEATURES {
        true => status::SUCCESS,
        false => status::NOT_SUPPORTED,
    }
}

/// None of the workarounds for speculation exists. A 0 would make guests call them at every entry of their kernel.
fn arch_features(id: u32) -> u64 {
    match id {
        function::SMCCC_VERSION | function::SMCCC_ARCH_FEATURES => status::SUCCESS,
        _ => status::NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests;
