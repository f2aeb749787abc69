//! The interrupt controller: a GICv3 in the kernel (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst).
//!
//! KVM wants all vCPUs before it initializes the controller, the framework wants the controller before any vCPU. So it
//! is initialized when a vCPU first enters its guest, or its state is first used; interrupts raised before are kept.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;

use applevisor_sys::{hv_error_t, hv_gic_icc_reg_t, hv_gic_redistributor_reg_t, hv_return_t};
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::sys::{Result, code, failed, kvm, lock, put, retry_busy};
use crate::vcpu;
use crate::vm::{self, Object, Vm};

const DISTRIBUTOR_SIZE: usize = 0x1_0000;
const REDISTRIBUTOR_SIZE: usize = 0x2_0000;
/// Room for redistributors, whatever the number of vCPUs.
const REDISTRIBUTORS_SIZE: usize = 0x200_0000;
const ALIGNMENT: usize = 0x1_0000;
const FIRST_SPI: u32 = 32;
/// Fewer than a Mac has: a state is shorter.
const SPIS: u32 = 224;

/// Where the controller is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GicConfig {
    distributor: u64,
    redistributors: u64,
}

/// The interrupt controller of a VM.
#[derive(Debug, Default)]
pub(crate) struct Gic(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// None before hv_gic_create.
    device: Option<Device>,
    redistributors: u64,
    /// The affinities of the vCPUs, in the order of creation, as attributes of the device have them.
    vcpus: Vec<Option<u64>>,
    initialized: bool,
    /// Lines that were set before the initialization.
    early: BTreeMap<u32, bool>,
}

#[derive(Debug)]
struct Device(DeviceFd);

impl Device {
    fn set(&self, group: u32, attr: u64, value: u64) -> Result<()> {
        let attr = kvm_device_attr { group, attr, addr: &raw const value as u64, flags: 0 };
        retry_busy(|| self.0.set_device_attr(&attr)).map_err(kvm("KVM_SET_DEVICE_ATTR (GICv3)"))
    }

    fn get(&self, group: u32, attr: u64) -> Result<u64> {
        let mut value = 0u64;
        let mut attr = kvm_device_attr { group, attr, addr: &raw mut value as u64, flags: 0 };
        // SAFETY: no attribute is longer than `value`, which nothing else uses.
        retry_busy(|| unsafe { self.0.get_device_attr(&mut attr) })
            .map_err(kvm("KVM_GET_DEVICE_ATTR (GICv3)"))?;
        Ok(value)
    }
}

impl State {
    fn device(&self) -> Result<&Device> {
        self.device.as_ref().ok_or(hv_error_t::HV_UNSUPPORTED)
    }

    fn initialize(&mut self, vm: &VmFd) -> Result<&Device> {
        if !self.initialized {
            if self.vcpus.iter().any(Option::is_none) {
                return Err(failed(hv_error_t::HV_ERROR, "a vCPU has no affinity (MPIDR_EL1)"));
            }
            self.device()?.set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT.into(), 0)?;
            self.initialized = true;
            for (intid, level) in std::mem::take(&mut self.early) {
                set_line(vm, intid, level)?;
            }
        }
        self.device()
    }
}

fn set_line(vm: &VmFd, intid: u32, level: bool) -> Result<()> {
    let line = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | intid;
    vm.set_irq_line(line, level).map_err(kvm("KVM_IRQ_LINE"))
}

impl Gic {
    fn create(&self, vm: &VmFd, config: GicConfig) -> Result<()> {
        let mut state = lock(&self.0);
        if state.device.is_some() || !state.vcpus.is_empty() {
            return Err(hv_error_t::HV_BUSY);
        }
        let mut device = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            ..Default::default()
        };
        let device = Device(vm.create_device(&mut device).map_err(kvm("KVM_CREATE_DEVICE"))?);
        device.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, (FIRST_SPI + SPIS).into())?;
        let addresses = KVM_DEV_ARM_VGIC_GRP_ADDR;
        device.set(addresses, KVM_VGIC_V3_ADDR_TYPE_DIST.into(), config.distributor)?;
        let count = (REDISTRIBUTORS_SIZE / REDISTRIBUTOR_SIZE) as u64;
        let region = count << 52 | config.redistributors;
        device.set(addresses, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION.into(), region)?;
        (state.device, state.redistributors) = (Some(device), config.redistributors);
        Ok(())
    }

    /// Adds the vCPU that `create` makes of its number: they get redistributors in this order.
    pub(crate) fn add_vcpu<T>(&self, create: impl FnOnce(u64) -> Result<T>) -> Result<T> {
        let mut state = lock(&self.0);
        if state.initialized {
            return Err(failed(hv_error_t::HV_BUSY, "a vCPU after another one has run"));
        }
        let vcpu = create(state.vcpus.len() as u64)?;
        state.vcpus.push(None);
        Ok(vcpu)
    }

    /// Notes the affinity of a vCPU, from its MPIDR_EL1.
    pub(crate) fn set_affinity(&self, vcpu: u64, mpidr: u64) {
        let affinity = mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff;
        if let Some(known) = lock(&self.0).vcpus.get_mut(vcpu as usize) {
            *known = Some(affinity << 32);
        }
    }

    /// Initializes the controller: all vCPUs exist.
    pub(crate) fn initialize(&self, vm: &VmFd) -> Result<()> {
        let mut state = lock(&self.0);
        match state.device {
            Some(_) => state.initialize(vm).map(drop),
            None => Ok(()),
        }
    }

    fn set_line(&self, vm: &VmFd, intid: u32, level: bool) -> Result<()> {
        let mut state = lock(&self.0);
        if !(FIRST_SPI..FIRST_SPI + SPIS).contains(&intid) {
            return Err(hv_error_t::HV_BAD_ARGUMENT);
        }
        if !state.initialized {
            state.device()?;
            state.early.insert(intid, level);
            return Ok(());
        }
        drop(state);
        set_line(vm, intid, level)
    }

    fn redistributor(&self, vcpu: u64) -> Result<u64> {
        let state = lock(&self.0);
        match state.vcpus.get(vcpu as usize) {
            Some(Some(_)) => Ok(state.redistributors + vcpu * REDISTRIBUTOR_SIZE as u64),
            _ => Err(failed(hv_error_t::HV_ERROR, "a redistributor before MPIDR_EL1 is set")),
        }
    }

    /// Reads or, with a value, writes a register of a vCPU.
    fn of_vcpu(
        &self,
        vm: &Vm,
        vcpu: u64,
        (group, register): (u32, u64),
        value: Option<u64>,
    ) -> Result<u64> {
        let mut state = lock(&self.0);
        state.initialize(&vm.fd)?;
        let affinity = state.vcpus.get(vcpu as usize).copied().flatten();
        let attr = affinity.ok_or(hv_error_t::HV_BAD_ARGUMENT)? | register;
        let device = state.device()?;
        match value {
            Some(value) => device.set(group, attr, value).map(|()| value),
            None => device.get(group, attr),
        }
    }

    /// The state, without CPU interfaces: the values of all attributes of the plan.
    fn save(&self, vm: &Vm) -> Result<Vec<u8>> {
        let mut state = lock(&self.0);
        state.initialize(&vm.fd)?;
        let device = state.device()?;
        let mut data = (state.vcpus.len() as u32).to_le_bytes().to_vec();
        for (group, attr) in plan(&state.vcpus) {
            data.extend((device.get(group, attr)? as u32).to_le_bytes());
        }
        Ok(data)
    }

    /// Loads a state, before any vCPU has run.
    fn restore(&self, vm: &Vm, data: &[u8]) -> Result<()> {
        let mut state = lock(&self.0);
        state.initialize(&vm.fd)?;
        let (words, rest) = data.as_chunks::<4>();
        let plan: Vec<_> = plan(&state.vcpus).collect();
        let fits = rest.is_empty() && words.len() == plan.len() + 1;
        let Some((count, words)) = words.split_first().filter(|_| fits) else {
            return Err(hv_error_t::HV_BAD_ARGUMENT);
        };
        if u32::from_le_bytes(*count) as usize != state.vcpus.len() {
            return Err(hv_error_t::HV_BAD_ARGUMENT);
        }
        let device = state.device()?;
        for vcpu in state.vcpus.iter().flatten() {
            // Software-generated interrupts are enabled in a new controller.
            let attr = vcpu | GICR_SGI | ICENABLER;
            device.set(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, attr, u32::MAX.into())?;
        }
        plan.iter().zip(words).try_for_each(|(&(group, attr), word)| {
            device.set(group, attr, u32::from_le_bytes(*word).into())
        })
    }
}

/// Registers with a field for each interrupt, by their offsets: IGROUPR, ICFGR, IPRIORITYR, IROUTER, ISENABLER,
/// ISACTIVER and, when levels are known from edges, ISPENDR; with the bits of a field.
const FIELDS: [(u64, u64); 7] =
    [(0x80, 1), (0xc00, 2), (0x400, 8), (0x6000, 64), (0x100, 1), (0x300, 1), (0x200, 1)];
const IROUTER: u64 = 0x6000;
const ICENABLER: u64 = 0x180;
const GICD_IIDR: u64 = 0x8;
const GICR_SGI: u64 = 0x1_0000;

/// The attributes of a state, in the order of a restore: into a controller as it is when it is new.
fn plan(vcpus: &[Option<u64>]) -> impl Iterator<Item = (u32, u64)> {
    let (distributor, redistributor, levels) = (
        KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
        KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
        KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    );
    let registers = |(offset, bits): (u64, u64), first: u32, count: u32| {
        let at = move |interrupt: u32| offset + u64::from(interrupt) * bits / 8;
        (at(first)..at(first + count)).step_by(4)
    };
    let of_vcpu = move |vcpu: u64| {
        let private = FIELDS.into_iter().filter(|field| field.0 != IROUTER);
        let private = private.flat_map(move |field| registers(field, 0, FIRST_SPI));
        let control = (redistributor, vcpu);
        let private = private.map(move |offset| (redistributor, vcpu | GICR_SGI | offset));
        [control, (levels, vcpu)].into_iter().chain(private)
    };
    let head = [(distributor, GICD_IIDR), (distributor, 0)];
    let shared_levels = (FIRST_SPI..FIRST_SPI + SPIS).step_by(32);
    let shared = FIELDS.into_iter().flat_map(move |field| registers(field, FIRST_SPI, SPIS));
    let vcpus: Vec<u64> = vcpus.iter().copied().flatten().collect();
    head.into_iter()
        .chain(vcpus.into_iter().flat_map(of_vcpu))
        .chain(shared_levels.map(move |intid| (levels, intid.into())))
        .chain(shared.map(move |offset| (distributor, offset)))
}

/// Constants of the framework, each asked for by a function of its own.
macro_rules! constants {
    ($($name:ident = $value:expr;)*) => {
        $(#[unsafe(no_mangle)]
        unsafe extern "C" fn $name(value: *mut usize) -> hv_return_t {
            // SAFETY: the caller's pointer.
            unsafe { put(value, Ok($value)) }
        })*
    };
}

constants! {
    hv_gic_get_distributor_size = DISTRIBUTOR_SIZE;
    hv_gic_get_distributor_base_alignment = ALIGNMENT;
    hv_gic_get_redistributor_region_size = REDISTRIBUTORS_SIZE;
    hv_gic_get_redistributor_size = REDISTRIBUTOR_SIZE;
    hv_gic_get_redistributor_base_alignment = ALIGNMENT;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_get_spi_interrupt_range(
    base: *mut u32,
    count: *mut u32,
) -> hv_return_t {
    // SAFETY: the caller's pointers.
    unsafe {
        match put(base, Ok(FIRST_SPI)) {
            0 => put(count, Ok(SPIS)),
            error => error,
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_config_create() -> *mut c_void {
    Object::Gic(GicConfig::default()).create()
}

/// Changes a configuration.
///
/// # Safety
///
/// As of [`Object::at`].
unsafe fn configure(
    config: *mut c_void,
    base: u64,
    set: impl FnOnce(&mut GicConfig, u64),
) -> hv_return_t {
    // SAFETY: the caller's promise.
    code(match unsafe { Object::at(config) } {
        Ok(Object::Gic(config)) if base.is_multiple_of(ALIGNMENT as u64) => {
            set(config, base);
            Ok(())
        }
        _ => Err(hv_error_t::HV_BAD_ARGUMENT),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_config_set_distributor_base(
    config: *mut c_void,
    base: u64,
) -> hv_return_t {
    // SAFETY: the caller's object.
    unsafe { configure(config, base, |config, base| config.distributor = base) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_config_set_redistributor_base(
    config: *mut c_void,
    base: u64,
) -> hv_return_t {
    // SAFETY: the caller's object.
    unsafe { configure(config, base, |config, base| config.redistributors = base) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_create(config: *mut c_void) -> hv_return_t {
    // SAFETY: the caller's object.
    code(match unsafe { Object::at(config) } {
        Ok(Object::Gic(config)) => vm::current().and_then(|vm| vm.gic.create(&vm.fd, *config)),
        _ => Err(hv_error_t::HV_BAD_ARGUMENT),
    })
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_spi(intid: u32, level: bool) -> hv_return_t {
    code(vm::current().and_then(|vm| vm.gic.set_line(&vm.fd, intid, level)))
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_state_create() -> *mut c_void {
    let data = vm::current().and_then(|vm| match vm.is_running() {
        true => Err(failed(hv_error_t::HV_BUSY, "hv_gic_state_create while a vCPU runs")),
        false => vm.gic.save(&vm),
    });
    data.map_or(std::ptr::null_mut(), |data| Object::GicState(data).create())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_state_get_size(state: *mut c_void, size: *mut usize) -> hv_return_t {
    // SAFETY: the caller's object and pointer.
    unsafe {
        match Object::at(state) {
            Ok(Object::GicState(data)) => put(size, Ok(data.len())),
            _ => code(Err(hv_error_t::HV_BAD_ARGUMENT)),
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_state_get_data(state: *mut c_void, to: *mut c_void) -> hv_return_t {
    // SAFETY: the caller's object; its buffer has the size that it asked for.
    unsafe {
        match Object::at(state) {
            Ok(Object::GicState(data)) if !to.is_null() => {
                to.cast::<u8>().copy_from(data.as_ptr(), data.len());
                code(Ok(()))
            }
            _ => code(Err(hv_error_t::HV_BAD_ARGUMENT)),
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_set_state(data: *const c_void, size: usize) -> hv_return_t {
    if data.is_null() {
        return code(Err(hv_error_t::HV_BAD_ARGUMENT));
    }
    // SAFETY: the caller's slice.
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) };
    code(vm::current().and_then(|vm| vm.gic.restore(&vm, data)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_get_redistributor_base(vcpu: u64, base: *mut u64) -> hv_return_t {
    let result = vcpu::with(vcpu, |vcpu| vcpu.vm.gic.redistributor(vcpu.id));
    // SAFETY: the caller's pointer.
    unsafe { put(base, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_get_redistributor_reg(
    vcpu: u64,
    reg: hv_gic_redistributor_reg_t,
    value: *mut u64,
) -> hv_return_t {
    let register = (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, reg as u64);
    let result = vcpu::with(vcpu, |vcpu| vcpu.vm.gic.of_vcpu(&vcpu.vm, vcpu.id, register, None));
    // SAFETY: the caller's pointer.
    unsafe { put(value, result) }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_redistributor_reg(
    vcpu: u64,
    reg: hv_gic_redistributor_reg_t,
    value: u64,
) -> hv_return_t {
    let register = (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, reg as u64);
    code(vcpu::with(vcpu, |vcpu| {
        vcpu.vm.gic.of_vcpu(&vcpu.vm, vcpu.id, register, Some(value)).map(drop)
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_gic_get_icc_reg(
    vcpu: u64,
    reg: hv_gic_icc_reg_t,
    value: *mut u64,
) -> hv_return_t {
    let register = (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, reg as u64);
    let result = vcpu::with(vcpu, |vcpu| vcpu.vm.gic.of_vcpu(&vcpu.vm, vcpu.id, register, None));
    // SAFETY: the caller's pointer.
    unsafe { put(value, result) }
}

#[unsafe(no_mangle)]
extern "C" fn hv_gic_set_icc_reg(vcpu: u64, reg: hv_gic_icc_reg_t, value: u64) -> hv_return_t {
    let register = (KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, reg as u64);
    code(vcpu::with(vcpu, |vcpu| {
        vcpu.vm.gic.of_vcpu(&vcpu.vm, vcpu.id, register, Some(value)).map(drop)
    }))
}
