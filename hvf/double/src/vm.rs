//! The VM of the process, its configuration and its counter.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use applevisor_sys::{hv_error_t, hv_return_t};
use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, KVM_CAP_ARM_NISV_TO_USER, kvm_device_attr,
    kvm_enable_cap, kvm_smccc_filter, kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER,
    kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::gic::{Gic, GicConfig};
use crate::memory::Memory;
use crate::sys::{self, Result, code, failed, kvm, lock, put, retry_busy};
use crate::vcpu;

/// The size of addresses that the framework has by default, in bits, and the largest.
const DEFAULT_IPA_BITS: u32 = 36;
const MAX_IPA_BITS: u32 = 40;
/// As many as the largest chips have.
const MAX_VCPUS: u32 = 64;

/// The framework allows one VM in a process.
static CURRENT: Mutex<Option<Arc<Vm>>> = Mutex::new(None);

/// The VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) fd: VmFd,
    pub(crate) memory: Memory,
    pub(crate) gic: Gic,
    /// The features of vCPUs.
    pub(crate) init: kvm_vcpu_init,
    /// vCPUs in their guest.
    pub(crate) running: AtomicUsize,
    /// The difference of the host's counter and the guest's. The framework has one for each vCPU; the double refuses
    /// different ones while a vCPU runs, as KVM has one for the VM.
    offset: Mutex<u64>,
}

/// The VM of this process.
pub(crate) fn current() -> Result<Arc<Vm>> {
    lock(&CURRENT).clone().ok_or(hv_error_t::HV_NO_DEVICE)
}

impl Vm {
    fn new(ipa_bits: u32) -> Result<Self> {
        let kvm_fd = Kvm::new().map_err(|_| hv_error_t::HV_UNSUPPORTED)?;
        let limit = kvm_fd.get_host_ipa_limit().unsigned_abs();
        if limit != 0 && ipa_bits > limit {
            return Err(hv_error_t::HV_BAD_ARGUMENT);
        }
        let fd = retry_busy(|| kvm_fd.create_vm_with_type(ipa_bits.into()))
            .map_err(kvm("KVM_CREATE_VM"))?;
        let cap = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        fd.enable_cap(&cap).map_err(kvm("KVM_ENABLE_CAP (KVM_CAP_ARM_NISV_TO_USER)"))?;
        forward_calls(&fd)?;
        let init = features(&kvm_fd, &fd)?;
        let vm = Self {
            fd,
            memory: Memory::new(ipa_bits),
            gic: Gic::default(),
            init,
            running: AtomicUsize::new(0),
            offset: Mutex::new(u64::MAX),
        };
        vm.set_offset(0)?;
        Ok(vm)
    }

    /// Whether a vCPU is in its guest.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst) != 0
    }

    /// Sets the difference of the counters.
    pub(crate) fn set_offset(&self, offset: u64) -> Result<()> {
        let mut current = lock(&self.offset);
        if *current != offset {
            retry_busy(|| sys::set_counter_offset(&self.fd, offset))
                .map_err(kvm("KVM_ARM_SET_COUNTER_OFFSET"))?;
            *current = offset;
        }
        Ok(())
    }
}

/// The features of all vCPUs: the host's, with pointer authentication if it has that.
fn features(kvm_fd: &Kvm, vm: &VmFd) -> Result<kvm_vcpu_init> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(kvm("KVM_ARM_PREFERRED_TARGET"))?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    if kvm_fd.check_extension(Cap::ArmPtrAuthAddress)
        && kvm_fd.check_extension(Cap::ArmPtrAuthGeneric)
    {
        init.features[0] |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
    }
    Ok(init)
}

/// Makes firmware calls exit, as the framework does. KVM keeps those of the architecture, e.g. SMCCC_VERSION.
fn forward_calls(vm: &VmFd) -> Result<()> {
    for (base, nr_functions) in
        [(0, 0x8000_0000), (0x8001_0000, 0x3fff_0000), (0xc001_0000, 0x3fff_0000)]
    {
        let filter = kvm_smccc_filter {
            base,
            nr_functions,
            action: kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as u8,
            ..Default::default()
        };
        let attr = kvm_device_attr {
            group: KVM_ARM_VM_SMCCC_CTRL,
            attr: KVM_ARM_VM_SMCCC_FILTER.into(),
            addr: &raw const filter as u64,
            flags: 0,
        };
        vm.set_device_attr(&attr)
            .map_err(kvm("KVM_ARM_VM_SMCCC_FILTER (needs Linux 6.4 or later)"))?;
    }
    Ok(())
}

/// An object of the framework, which its caller releases.
pub(crate) enum Object {
    VmConfig { ipa_bits: u32 },
    Gic(GicConfig),
    GicState(Vec<u8>),
}

impl Object {
    /// Gives it to the caller.
    pub(crate) fn create(self) -> *mut c_void {
        Box::into_raw(Box::new(self)).cast()
    }

    /// The object that `create` gave out.
    ///
    /// # Safety
    ///
    /// `object` is null or from `create`, not released, and used by this call only.
    pub(crate) unsafe fn at<'a>(object: *mut c_void) -> Result<&'a mut Self> {
        // SAFETY: the caller's promise.
        unsafe { object.cast::<Self>().as_mut() }.ok_or(hv_error_t::HV_BAD_ARGUMENT)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn os_release(object: *mut c_void) {
    assert!(!object.is_null(), "os_release of null is undefined");
    // SAFETY: from `Object::create`, and the caller gives it up.
    drop(unsafe { Box::from_raw(object.cast::<Object>()) });
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_config_create() -> *mut c_void {
    Object::VmConfig { ipa_bits: DEFAULT_IPA_BITS }.create()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vm_config_get_default_ipa_size(bits: *mut u32) -> hv_return_t {
    // SAFETY: the caller's pointer.
    unsafe { put(bits, Ok(DEFAULT_IPA_BITS)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vm_config_get_max_ipa_size(bits: *mut u32) -> hv_return_t {
    // SAFETY: the caller's pointer.
    unsafe { put(bits, Ok(MAX_IPA_BITS)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vm_config_set_ipa_size(config: *mut c_void, bits: u32) -> hv_return_t {
    // SAFETY: the caller's object.
    code(match unsafe { Object::at(config) } {
        Ok(Object::VmConfig { ipa_bits }) if (32..=MAX_IPA_BITS).contains(&bits) => {
            *ipa_bits = bits;
            Ok(())
        }
        _ => Err(hv_error_t::HV_BAD_ARGUMENT),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vm_get_max_vcpu_count(count: *mut u32) -> hv_return_t {
    // SAFETY: the caller's pointer.
    unsafe { put(count, Ok(MAX_VCPUS)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hv_vm_create(config: *mut c_void) -> hv_return_t {
    let ipa_bits = match config.is_null() {
        true => DEFAULT_IPA_BITS,
        // SAFETY: the caller's object.
        false => match unsafe { Object::at(config) } {
            Ok(Object::VmConfig { ipa_bits }) => *ipa_bits,
            _ => return code(Err(hv_error_t::HV_BAD_ARGUMENT)),
        },
    };
    code(create(&mut lock(&CURRENT), ipa_bits))
}

fn create(current: &mut Option<Arc<Vm>>, ipa_bits: u32) -> Result<()> {
    if current.is_some() {
        return Err(hv_error_t::HV_BUSY);
    }
    sys::install_kick_handler()?;
    *current = Some(Arc::new(Vm::new(ipa_bits)?));
    Ok(())
}

#[unsafe(no_mangle)]
extern "C" fn hv_vm_destroy() -> hv_return_t {
    code(destroy(&mut lock(&CURRENT)))
}

fn destroy(current: &mut Option<Arc<Vm>>) -> Result<()> {
    if current.is_none() {
        return Err(hv_error_t::HV_NO_DEVICE);
    }
    if vcpu::exist() {
        return Err(failed(hv_error_t::HV_BUSY, "hv_vm_destroy with a vCPU"));
    }
    *current = None;
    Ok(())
}
